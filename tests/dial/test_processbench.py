"""Labels of dial solutions against labels worked by hand, and their files read by the loader."""

import json
import sys

from erprm_trl.dial import processbench
from erprm_trl.rollouts import RolloutDataset
from erprm_trl.selection import load_processbench


QUESTION = "Tom dial 7 . right 15 . times 3 . left 1 . ?"  # 7 + 15 = 2, 2 * 3 = 6, 6 - 1 = 5
SOLUTIONS = [
    "7 + 15 = 2 ки 2 * 3 = 6 ки 6 - 1 = 5 ки answer 5 ки",
    "7 + 15 = 2 ки 2 * 3 = 6 ки 6 - 1 = 5 ки answer 5 ки",  # equal solutions: one row
    "7 + 15 = 3 ки 3 * 3 = 9 ки 9 - 1 = 8 ки answer 8 ки",  # the first step is wrong, the others follow from it
    "7 + 15 = 2 ки 2 * 3 = 7 ки 7 - 1 = 5 ки answer 5 ки",  # two mistakes, and the correct answer
    "7 + 15 = 2 ки 2 * 3 = 6 ки answer 6 ки",  # the third move is missing, so the answer is wrong
    "7 + 15 = 2 ки 2 * 3 = 6 ки",  # ends early
]


def write_samples(folder):
    folder.mkdir()
    config = {"num_questions": 1, "chunk_size": 1, "num_solutions": len(SOLUTIONS), "splitter": "ки"}
    (folder / "manifest.json").write_text(json.dumps({"config": config}))
    rows = [
        {
            "chunk": 0,
            "question_index": 0,
            "solution_index": index,
            "question": QUESTION,
            "steps": [f"{step} ки" for step in text.removesuffix(" ки").split(" ки ")],
            "sampler": {"model": "dial"},
        }
        for index, text in enumerate(SOLUTIONS)
    ]
    (folder / "rollouts-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_labels_by_hand(tmp_path):
    subsets, num_unlabelled = processbench.judged_solutions(RolloutDataset(write_samples(tmp_path / "samples")))
    assert list(subsets) == ["moves-3"] and num_unlabelled == 1
    rows = subsets["moves-3"]
    assert [(row["label"], row["final_answer_correct"]) for row in rows] == [
        (-1, True),
        (0, False),
        (1, True),
        (2, False),
    ]
    assert rows[0]["steps"] == ["7 + 15 = 2", "2 * 3 = 6", "6 - 1 = 5", "answer 5"]
    assert [row["id"] for row in rows] == ["moves-3-0", "moves-3-1", "moves-3-2", "moves-3-3"]
    assert set(rows[0]) == {"id", "generator", "problem", "steps", "final_answer_correct", "label"}


def test_the_loader_reads_the_files(tmp_path, monkeypatch, capsys):
    samples = write_samples(tmp_path / "samples")
    arguments = ["--samples", str(samples), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["processbench", *arguments])
    processbench.main()
    assert "moves-3: 4 solutions, 3 with an error" in capsys.readouterr().out
    data = load_processbench(str(tmp_path / "out"))
    assert [solution.label for solution in data["moves-3"]] == [-1, 0, 1, 2]
    assert data["moves-3"][0].problem == QUESTION
