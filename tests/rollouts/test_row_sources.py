"""Tests reading rows from files, folders, splits and streams."""

import csv
import gzip
import itertools
import json
import logging
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from erprm_trl.rollouts import Question, load_questions
from erprm_trl.rollouts.row_sources import as_dataset, read_rows


ROWS = [{"question": f"q, {i}", "answer": answer} for i, answer in enumerate(["1,072", "18", "None", "0.10"])]
QUESTIONS = [Question(row["question"], row["answer"]) for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write_table(path, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["question", "answer"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def compress(path):
    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))


def test_tables_and_compressed_files(tmp_path):
    (tmp_path / "rows.jsonl").write_text(LINES)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    write_table(tmp_path / "rows.csv")
    write_table(tmp_path / "rows.tsv", delimiter="\t")
    for path in list(tmp_path.iterdir()):
        compress(path)
    assert len(list(tmp_path.iterdir())) == 8
    for path in sorted(tmp_path.iterdir()):
        assert load_questions(path) == QUESTIONS, path  # an answer "None", and no digit of "0.10" lost
    assert load_questions(tmp_path / "rows.csv", max_questions=2) == QUESTIONS[:2]


def test_a_column_may_be_empty_in_the_first_ten_megabytes(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"question": "q" * 2**20, "answer": "1", "rated": None}] * 11 + [{**ROWS[1], "rated": {"rating": 1}}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(path, None, "train", {})[11]["rated"] == {"rating": 1}


def test_paths_may_begin_with_the_home_directory_and_be_path_objects(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text(LINES)
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "folder")
    for source in ("~/rows.jsonl", Path("~/rows.jsonl"), "~/folder", tmp_path / "folder"):
        assert load_questions(source) == QUESTIONS


def test_splits_of_folders_and_dictionaries(tmp_path):
    rows = Dataset.from_list(ROWS)
    splits = DatasetDict(train=rows, test=rows.select([1]))
    splits.save_to_disk(tmp_path / "saved")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(LINES)
    (tmp_path / "data" / "test.jsonl").write_text(LINES.splitlines()[1])
    for source in (splits, tmp_path / "saved", str(tmp_path / "data")):
        assert load_questions(source) == QUESTIONS
        assert load_questions(source, split="test") == QUESTIONS[1:2]
        with pytest.raises(ValueError, match="'dev'"):
            load_questions(source, split="dev")
    with pytest.raises(ValueError, match=r"got the splits \['test', 'train'\] .*Choose one of them with `split`"):
        load_questions(splits, split="dev")


def test_a_folder_with_a_card_is_read_as_it_is_now(tmp_path, monkeypatch):
    """`datasets` caches such a folder by its last name and its card, and would return the rows of another folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    card = "---\nconfigs:\n- config_name: default\n  data_files: rows.jsonl\n---\n"

    def write(place, text):
        folder = tmp_path / place / "pairs"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(card)
        (folder / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n")
        return [row["text"] for row in read_rows(folder, None, "train", {})]

    assert write("one", "first") == ["first"]
    assert write("two", "second") == ["second"]
    assert write("one", "third, longer") == ["third, longer"]


def stream(rows):
    """A stream without column names, as after `map`."""
    dataset = IterableDataset.from_generator(lambda: iter(rows)).map(lambda row: row)
    assert dataset.column_names is None
    return dataset


def test_streams_are_read_without_column_names():
    assert load_questions(stream(ROWS)) == QUESTIONS
    assert load_questions(DatasetDict(train=Dataset.from_list(ROWS))["train"].to_iterable_dataset()) == QUESTIONS
    endless = ({"question": f"q{i}", "answer": float(i)} for i in itertools.count())
    assert load_questions(endless, max_questions=2) == [Question("q0", "0"), Question("q1", "1")]
    with pytest.raises(ValueError, match=r"got \['answer', 'question'\], expected 'gold'.*`answer_column`"):
        load_questions(stream(ROWS), answer_column="gold")
    with pytest.raises(ValueError, match="Row 1 .*'answer' holds no reference answer"):
        load_questions(stream([ROWS[0], {"question": "q", "answer": None}]))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.csv", None, "no file at .*rows.csv', expected one of the kinds .jsonl, .json, .csv"),
        ("rows.txt", "q", "a file of another kind at .*rows.txt'"),
        ("folder", None, "no file or folder at .*folder'"),
        ("rows.csv", "", "line 1: got the columns \\[\\], which are not distinct names"),
        ("rows.csv", "question,question\n1,2\n", "'question'\\], which are not distinct names"),
        ("rows.csv", "question,answer\n", "got no rows"),
        ("rows.csv", "question,answer\nHow many, now,1\n", "line 2: got 3 fields for 2 columns .put quotes"),
        ("rows.csv", "question,answer\nq,1\n\nr\n", "line 4: got 1 fields for 2 columns"),
        ("rows.csv", 'question,answer\nq,"1', "line 2: unexpected end of data"),
        ("rows.csv", "question,answer\nq,\n", "Row 0 .*no reference answer"),
        ("rows.jsonl.gz", "not compressed", "cannot be decompressed .Not a gzipped file"),
        ("rows.csv.gz", "not compressed", "cannot be decompressed .Not a gzipped file"),
    ],
)
def test_errors_name_unreadable_sources(name, text, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_questions(str(tmp_path / name))


def test_columns_in_place_of_rows_raise(tmp_path):
    with pytest.raises(ValueError, match=r"got a dict with \['answer', 'question'\].*`datasets.Dataset.from_dict`"):
        load_questions({"question": ["q"], "answer": ["1"]})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder .*empty cannot be read .*`save_to_disk`"):
        load_questions(tmp_path / "empty")


def test_answer_columns_that_are_not_read_are_logged(caplog):
    row = {"question": "q", "answer": "1", "solution": "#### 1", "level": 2}
    with caplog.at_level(logging.INFO, "erprm_trl"):
        assert load_questions([row], answer_column="solution")[0].answer == "1"
    assert "read from column 'solution'. Not read: 'answer'" in caplog.text


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize(
    "values",
    [
        [5, "-", "true", "1e3", "007", "1.50", "NaN", "[1]", None],  # texts and numbers
        ["2024-03-31", "2024-03-31T10:00:00+02:00"],  # dates
        [12345678901234567, 7.5],  # a large integer and a fraction
        [[1, 0], ["+", "-"]],
        [["2024-03-31"], ["b"]],
        [{"day": "2024-03-31", "id": 1}, {"day": "2024-03-30", "id": "007"}],
        ["a", None],
        [1, None],
        [[1.5, 2.0], None],
    ],
    ids=str,
)
def test_values_of_a_json_file_are_read_as_they_are(tmp_path, values, suffix):
    rows = [{"value": value, "text": "a"} for value in values]
    text = json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"rows{suffix}").write_text(text)
    read = list(read_rows(tmp_path / f"rows{suffix}", None, "train", {}))
    assert read == rows and [repr(row) for row in read] == [repr({**row}) for row in rows]


def test_half_of_a_surrogate_pair_in_a_single_row_is_an_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "Q", "steps": ["a\\ud83d", "b"]}\n')
    with pytest.raises(ValueError, match="rows.jsonl, line 1: .*surrogates not allowed"):
        read_rows(tmp_path / "rows.jsonl", None, "train", {})
    (tmp_path / "rows.jsonl").write_text('{"question": "Q", "steps": ["\\ud83d\\ude00", "b"]}\n')
    assert list(read_rows(tmp_path / "rows.jsonl", None, "train", {}))[0]["steps"] == ["\U0001f600", "b"]


def test_a_dataset_of_rows_with_texts_and_numbers_in_a_column(caplog):
    rows = [{"id": 1, "steps": ["a"]}, {"id": "007", "steps": ["b"]}, {"steps": []}]
    assert list(as_dataset(rows, "rows.jsonl")["id"]) == ["1", "007", None]
    assert "rows.jsonl: the columns ['id'] hold texts and numbers" in caplog.text
    dataset = Dataset.from_list(rows[:1])
    assert as_dataset(dataset, "rows") is dataset
    with pytest.raises(ValueError, match="rows.jsonl: a column holds values of several kinds"):
        as_dataset([{"value": [1]}, {"value": ["+"]}], "rows.jsonl")
