"""Mixtures of sources: shares, order, counts, labels and evaluation per source."""

import json
import logging
import math
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from fake_sampler import FakeSampler
from recipe_runs import parse
from zoo import save_tiny, word_level

from erprm_trl import ERPRMConfig, ERPRMTrainer, LabelledSource, PRMFormat, RolloutDataset, collect_rollouts
from erprm_trl.reward_model.trainer.mixture import examples_per_epoch, mixture_order, named_sources
from erprm_trl.rollouts import LabelOptions, Question
from erprm_trl.scripts.train import MixtureSource


FORMAT = {"separator": "ки", "good_token": "✓", "bad_token": "✗", "prompt_template": "check {question}"}


def rows(count, label, answer=0, **more):
    return Dataset.from_list(
        [
            {"prompt": f"Tom {i} ?", "completions": [f"answer {answer}"], "labels": [label], **more}
            for i in range(count)
        ]
    )


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"), word_level())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixture") / "own"
    collect_rollouts(
        [Question(f"q{index}?", str(index % 3)) for index in range(6)], FakeSampler(), path, num_solutions=2,
        num_continuations=3, grading="exact", answer_pattern=r"answer (\d+)", show_progress=False,
    )  # fmt: skip
    return path


def make(model_path, folder, train_dataset, **options):
    evaluation = options.pop("eval_dataset", None)
    settings = {
        "max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no", "use_cpu": True,
        "bf16": False, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False,
        "learning_rate": 0.01, "lr_scheduler_type": "constant", **FORMAT, **options,
    }  # fmt: skip
    arguments = ERPRMConfig(str(folder), **settings)
    return ERPRMTrainer(model_path, arguments, train_dataset=train_dataset, eval_dataset=evaluation)


@pytest.mark.parametrize(
    ("counts", "weights", "strategy", "expected"),
    [
        ([10, 30], None, "all_exhausted", [10, 30]),
        ([10, 30], [1, 1], "all_exhausted", [30, 30]),
        ([10, 30], [1, 1], "first_exhausted", [10, 10]),
        ([10, 30], [3, 1], "all_exhausted", [90, 30]),
        ([10, 30], [0.3, 0.1], "first_exhausted", [10, 3]),
        ([10, 30], [1, 3], "first_exhausted", [10, 30]),
        ([100, 1], [1, 1000], "first_exhausted", [1, 1]),
    ],
)
def test_examples_per_epoch_by_hand(counts, weights, strategy, expected):
    assert examples_per_epoch(counts, weights, strategy) == expected


def test_the_order_repeats_rows_evenly_and_spreads_sources_over_the_epoch():
    order = mixture_order([4, 10, 3], [10, 5, 3], seed=0)
    used = Counter(order.tolist())
    assert sorted(used[row] for row in range(4)) == [2, 2, 3, 3]
    assert sorted(used[row] for row in range(4, 14)) == [0] * 5 + [1] * 5
    assert [used[row] for row in (14, 15, 16)] == [1, 1, 1]
    halves = [np.sum(half < 4) for half in np.split(order, 2)]
    assert halves == [5, 5]
    assert (order == mixture_order([4, 10, 3], [10, 5, 3], seed=0)).all()
    assert (order != mixture_order([4, 10, 3], [10, 5, 3], seed=1)).any()


def test_names_come_from_folders_and_stay_distinct(tmp_path):
    data = rows(1, 1.0)
    sources = named_sources(
        [tmp_path / "a" / "own", tmp_path / "b" / "own", data, LabelledSource(data, name="own_2")], "x"
    )
    assert [source.name for source in sources] == ["own", "own_3", "source_3", "own_2"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "train dataset is an empty list"),
        ([LabelledSource("a", name="x"), LabelledSource("b", name="x")], "the name 'x', expected different"),
        ([LabelledSource("a", weight=1.0), "b"], r"weights \[1.0, None\], expected a weight for all"),
    ],
)
def test_lists_that_are_refused(sources, message):
    with pytest.raises(ValueError, match=message):
        named_sources(sources, "train")


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_is_a_positive_number(weight):
    with pytest.raises(ValueError, match="weight: got .*, expected a number above 0"):
        LabelledSource("a", weight=weight)


def test_sources_have_their_own_eta_and_counts(model_path, folder, tmp_path, caplog):
    """The labels of each source are its own, in exactly the shares of the weights, also in the log and the card."""
    sources = [
        LabelledSource(folder, eta=math.inf, weight=2, name="hard"),
        LabelledSource(str(folder), eta=0.0, weight=1, name="soft"),
        LabelledSource(rows(4, 0.25), weight=1, name="marked"),
    ]
    with caplog.at_level(logging.INFO, logger="erprm_trl"):
        trainer = make(model_path, tmp_path, sources)
    counts = trainer.data_counts["train"]["sources"]
    usable = counts["hard"]["kept"]
    assert counts["soft"]["kept"] == usable > 4
    examples = {name: counts[name]["examples"] for name in counts}
    assert examples == {"hard": 2 * usable, "soft": usable, "marked": usable}
    assert (counts["hard"]["repeated_rows"], counts["marked"]["repeated_rows"]) == (usable, usable - 4)
    assert (counts["hard"]["eta"], counts["soft"]["eta"], counts["marked"]["eta"]) == (math.inf, 0.0, None)
    assert (
        f"source marked: {usable} examples per epoch (25.0%) from 4 rows, 0 rows unused, {usable - 4} rep"
        in caplog.text
    )

    expected = Counter()
    for eta, times in ((math.inf, 2), (0.0, 1)):
        alone = make(model_path, tmp_path, folder, eta=eta)
        for example in alone.train_dataset:
            expected[tuple(example["input_ids"]), tuple(example["step_labels"])] += times
    mixed = Counter((tuple(example["input_ids"]), tuple(example["step_labels"])) for example in trainer.train_dataset)
    assert sum(mixed.values()) == 4 * usable == len(trainer.train_dataset)
    assert {key: mixed[key] for key in expected} == expected

    assert trainer.prm_format.eta is None  # the labels have several etas
    trainer.create_model_card("mixed")
    card = (tmp_path / "README.md").read_text()
    assert f"| hard | eta = inf | {usable} of 12 |" in card and "| marked | from the dataset | 4 of 4 |" in card
    assert "| 25.0% |" in card and set(trainer._manifests) == {"train/hard", "train/soft"}


def test_sources_with_one_eta_record_it_and_unused_rows_are_counted(model_path, folder, tmp_path):
    trainer = make(
        model_path, tmp_path, [LabelledSource(folder, weight=1, name="a"), LabelledSource(folder, weight=4, name="b")],
        eta=1.0, mixture_stopping_strategy="first_exhausted",
    )  # fmt: skip
    counts = trainer.data_counts["train"]["sources"]
    assert trainer.prm_format.eta == 1.0
    assert (
        counts["b"]["unused_rows"] == 0 and counts["a"]["unused_rows"] == counts["a"]["kept"] - counts["a"]["examples"]
    )
    assert trainer.data_counts["train"]["kept"] == 2 * counts["a"]["kept"]
    assert len(trainer.train_dataset) == counts["a"]["examples"] + counts["b"]["examples"]


def test_label_options_per_source(model_path, folder, tmp_path):
    ones = LabelOptions(label_correct_solutions="ones")
    sources = [LabelledSource(folder, name="plain"), LabelledSource(folder, name="ones", label_options=ones)]
    trainer = make(model_path, tmp_path, sources, eta=0.0)
    rollouts = RolloutDataset(folder)
    labels = trainer.train_dataset["step_labels"][:]
    assert labels[::2] == rollouts.labels(0.0)["labels"][:]
    assert labels[1::2] == rollouts.labels(0.0, label_correct_solutions="ones")["labels"][:] != labels[::2]
    counts = trainer.data_counts["train"]["sources"]
    assert "labels" not in counts["plain"] and counts["ones"]["labels"]["kept"] == counts["ones"]["kept"]
    trainer.create_model_card("mixed")
    assert "| ones | eta = 0.0, `label_correct_solutions=ones` |" in (tmp_path / "README.md").read_text()
    with pytest.raises(ValueError, match="got label options for a dataset with labels.*Remove the options"):
        make(model_path, tmp_path, [LabelledSource(rows(2, 0.5), label_options=ones)])


def test_label_weights_have_a_mean_of_one_over_the_mixture(model_path, tmp_path):
    parts = [
        LabelledSource(rows(2, 0.5, label_std=[0.1]), weight=3, name="a"),
        LabelledSource(rows(2, 0.5, answer=1, label_std=[0.3]), weight=1, name="b"),
    ]
    trainer = make(model_path, tmp_path, parts, label_weighting="precision")
    weights = [example["step_weights"][0] for example in trainer.train_dataset]
    assert len(weights) == 8 and len(set(weights)) == 2
    assert np.mean(weights) == pytest.approx(1.0)


def test_sources_that_do_not_fit_are_refused(model_path, folder, tmp_path):
    with pytest.raises(ValueError, match="train/b dataset has columns .*expected 'label_std'"):
        sources = [LabelledSource(rows(2, 0.5, label_std=[0.1]), name="a"), LabelledSource(rows(2, 0.5), name="b")]
        make(model_path, tmp_path, sources, label_weighting="precision")
    with pytest.raises(ValueError, match="got eta=0.5 for a Dataset, expected rollouts.*Remove eta"):
        make(model_path, tmp_path, [LabelledSource(rows(2, 0.5), eta=0.5)])
    with pytest.raises(ValueError, match="a stream as source 'source_2'.*interleave_datasets"):
        make(model_path, tmp_path, [folder, rows(2, 0.5).to_iterable_dataset()])
    encoded = make(model_path, tmp_path, rows(2, 0.5)).train_dataset.remove_columns("question_id")
    with pytest.raises(ValueError, match="source 'source_2' with .* expected the same columns"):
        make(model_path, tmp_path, [folder, encoded])


def test_encoded_examples_can_be_a_source(model_path, folder, tmp_path):
    encoded = make(model_path, tmp_path, rows(2, 0.5)).train_dataset
    trainer = make(model_path, tmp_path, [folder, encoded])
    assert trainer.data_counts["train"]["sources"]["source_2"]["steps"] == 2
    trainer.train()


def test_evaluation_per_source(model_path, folder, tmp_path):
    """Each source has metrics of its own, equal to an evaluation of it alone."""
    sources = [
        LabelledSource(folder, eta=0.0, name="soft"),
        LabelledSource(folder, eta=math.inf, name="hard"),
        rows(3, 1.0),
    ]
    trainer = make(model_path, tmp_path, rows(3, 1.0), eval_dataset=sources)
    metrics = trainer.evaluate()
    assert {"eval_soft_auc", "eval_hard_auc_within_questions", "eval_source_3_loss"} <= metrics.keys()
    assert metrics["eval_soft_loss"] != metrics["eval_hard_loss"]
    for source in sources[:2]:
        alone = trainer.evaluate(source)
        assert alone["eval_loss"] == pytest.approx(metrics[f"eval_{source.name}_loss"], abs=1e-6)
    again = trainer.evaluate(sources)
    assert again["eval_hard_auc"] == metrics["eval_hard_auc"]


def test_a_resumed_run_exactly_equals_the_uninterrupted_run(model_path, folder, tmp_path):
    sources = [LabelledSource(folder, weight=1), LabelledSource(rows(3, 0.5), weight=1)]
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    first = make(model_path, tmp_path / "run", sources, **options)
    first.train()
    second = make(model_path, tmp_path / "run", sources, **options)
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    losses = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (first, second)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_yaml_entries_are_paths_or_mappings(folder, tmp_path):
    (tmp_path / "steps.jsonl").write_text(json.dumps(rows(1, 0.5)[0]) + "\n")
    config = tmp_path / "train.yaml"
    config.write_text(
        f"model_name_or_path: x\noutput_dir: y\nbf16: false\nuse_cpu: true\nmixture:\n  - path: {folder}\n"
        f"    eta: inf\n    weight: 0.7\n  - path: {tmp_path / 'steps.jsonl'}\n    weight: 0.3\n"
        f"eval_mixture: [{folder}]\n"
    )
    _, (data, *_) = parse("train_erprm", ["--config", config])
    assert data.mixture[0] == MixtureSource(str(folder), eta="inf", weight=0.7)
    own, steps = (source.load() for source in data.mixture)
    assert (own.eta, own.weight, steps.name, len(steps.data)) == (math.inf, 0.7, "steps", 1)
    assert data.eval_mixture == [MixtureSource(str(folder))]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("[{path: a, wieght: 1}]", r"mixture\[0\]: got the keys \['path', 'wieght'\], expected path and some of"),
        ("[{eta: 1}]", r"mixture\[0\]: got the keys \['eta'\]"),
        ("[a]\nrollouts: b", "got rollouts='b', .*expected exactly one of"),
    ],
)
def test_yaml_entries_that_are_refused(entries, message, tmp_path):
    from erprm_trl.scripts.outcome import UsageError

    config = tmp_path / "train.yaml"
    config.write_text(f"model_name_or_path: x\noutput_dir: y\nbf16: false\nuse_cpu: true\nmixture: {entries}\n")
    with pytest.raises(UsageError, match=message):
        parse("train_erprm", ["--config", config])


def test_the_format_of_the_first_rollouts_is_used(model_path, tmp_path):
    collect_rollouts(
        [Question("q?", "1")], FakeSampler(), tmp_path / "blank", num_continuations=1, grading="exact",
        answer_pattern=r"answer (\d+)", splitter="blank_line", show_progress=False,
    )  # fmt: skip
    trainer = make(model_path, tmp_path, [rows(2, 0.5), tmp_path / "blank"])
    assert trainer.prm_format == PRMFormat(**FORMAT, splitter="blank_line")
