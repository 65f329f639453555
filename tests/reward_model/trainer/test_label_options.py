"""Label options in training: the same labels as without a trainer, training data only, counts in the model card."""

import math

import pytest
from datasets import Dataset
from rollout_folders import write_rollouts
from zoo import word_level

from erprm_trl import ERPRMConfig, ERPRMTrainer, PRMFormat, dial
from erprm_trl.reward_model.trainer.preprocessing import encode_examples, encode_rollouts
from erprm_trl.rollouts import LabelOptions


FORMAT = PRMFormat(separator="ки", good_token="✓", bad_token="✗", prompt_template="check {question}")
SOLUTIONS = [
    [(1.0, [0, 1], [0, 0]), (0.0, [1, 0], [0, 0], [0, 1])],
    [(0.0, [0, 0], [0, 0]), (0.0, [0, 0], [1, 1])],
]


class Judge:
    """A judge that finds no error."""

    model_name = "judge"

    def score(self, questions, steps):
        return [[1.0] * len(solution) for solution in steps]


@pytest.fixture
def rollouts(tmp_path):
    return write_rollouts(tmp_path / "rollouts", SOLUTIONS)


@pytest.mark.parametrize("num_proc", [None, 2])
def test_the_examples_equal_labelling_and_then_encoding(rollouts, num_proc, monkeypatch):
    if num_proc:  # without processes: only the order of labelling and encoding differs
        real = Dataset.map
        monkeypatch.setattr(Dataset, "map", lambda self, *rest, num_proc, **named: real(self, *rest, **named))
    options = {"min_question_rate": 0.2, "error_tolerance": 0, "label_correct_solutions": "ones"}
    encoded, counts = encode_rollouts(
        rollouts, 0.0, None, word_level(), FORMAT, num_proc=num_proc, options=LabelOptions(**options)
    )
    expected, plain_counts = encode_examples(rollouts.labels(0.0, **options), word_level(), FORMAT)
    assert encoded.to_list() == expected.to_list()
    assert [row["step_labels"] for row in encoded] == [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]
    labels = counts.pop("labels")
    assert counts == plain_counts and labels["options"] == options
    assert (labels["kept"], labels["dropped_questions"]) == (2, 1)


def config(output_dir, **options):
    names = ("separator", "good_token", "bad_token", "prompt_template")
    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1, **options}
    return ERPRMConfig(str(output_dir), **{name: getattr(FORMAT, name) for name in names}, **settings)


def test_a_trainer_labels_the_training_data_only(rollouts, tmp_path, caplog):
    options = {"min_question_rate": 0.2, "relative_labels": True, "label_correct_solutions": "ones"}
    trainer = ERPRMTrainer(
        dial.BASE_PATH,
        config(tmp_path / "out", eta=math.inf, **options),
        train_dataset=str(rollouts.path),
        eval_dataset=str(rollouts.path),
    )
    assert [row["step_labels"] for row in trainer.train_dataset] == [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0]]
    plain = [row["labels"] for row in rollouts.labels(math.inf)]
    assert [row["step_labels"] for row in trainer.eval_dataset] == plain
    assert "labels" not in trainer.data_counts["eval"]
    trainer.create_model_card("model")
    card = (tmp_path / "out" / "README.md").read_text()
    shown = "`min_question_rate=0.2`, `relative=True`, `label_correct_solutions=ones`"
    assert f"| train data: label options | {shown} |" in card
    kept = "2 of 4 solutions; 2 with a question below min_question_rate; 1 questions left out"
    assert f"| train data: kept by the label options | {kept} |" in card


def test_a_trainer_takes_a_judge(rollouts, tmp_path, caplog):
    args = config(tmp_path / "out", agreement_tolerance=1)
    trainer = ERPRMTrainer(dial.BASE_PATH, args, train_dataset=rollouts, agree_with=Judge())
    assert len(trainer.train_dataset) == 1  # the only right solution
    assert trainer.data_counts["train"]["labels"]["options"] == {"agree_with": "judge", "agreement_tolerance": 1}
    assert "leave out 3 of 4 solutions: 3 with another first error than the judge" in caplog.text
    with pytest.raises(ValueError, match="agreement_tolerance: got 1 without agree_with"):
        ERPRMTrainer(dial.BASE_PATH, args, train_dataset=rollouts)


def test_options_without_rollouts_are_a_warning(tmp_path, caplog):
    labelled = Dataset.from_list([{"prompt": "q", "completions": ["a", "b"], "labels": [1.0, 0.0]}])
    ERPRMTrainer(dial.BASE_PATH, config(tmp_path / "out", error_tolerance=1), train_dataset=labelled)
    assert "The train dataset has no rollouts, so the label options" in caplog.text
