"""Bars of trainers and scorers."""

import pytest
import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from erprm_trl import PRMFormat, StepScorer
from erprm_trl.reward_model.scoring.backend import SolutionTooLong
from erprm_trl.scripts import console, progress
from erprm_trl.scripts.progress import TrainingBar, show_training, with_bar


class Line(torch.nn.Module):
    """y = w x, with the squared error as loss."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, labels):
        return {"loss": ((self.weight * x - labels) ** 2).mean(), "logits": self.weight * x}


def line_trainer(folder, **options):
    rows = [{"x": 1.0, "labels": 2.0}] * 4
    args = TrainingArguments(
        str(folder), max_steps=3, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, **options
    )
    return Trainer(Line(), args, train_dataset=rows, eval_dataset=rows)


def callbacks(trainer):
    return {type(callback) for callback in trainer.callback_handler.callbacks}


def test_a_quiet_training_is_one_bar_and_its_values_are_in_the_log(tmp_path, capsys):
    with console.quiet(tmp_path / "log"):
        trainer = line_trainer(tmp_path, dataloader_pin_memory=False)
        show_training(trainer, "Line")
        assert TrainingBar in callbacks(trainer) and not {PrinterCallback, ProgressCallback} & callbacks(trainer)
        trainer.train()
        trainer.evaluate()
    captured = capsys.readouterr()
    assert captured.out == ""
    _, bar = captured.err.splitlines()
    assert bar.startswith("Line: 100% 3/3 updates [") and "loss 4" in bar
    log = (tmp_path / "log").read_text()
    assert "step 1: loss 4, grad_norm 4, " in log and "step 3: eval_loss 4" in log


def test_disable_tqdm_shows_no_bar(tmp_path, capsys):
    with console.quiet(tmp_path / "log"):
        trainer = line_trainer(tmp_path, disable_tqdm=True, dataloader_pin_memory=False)
        show_training(trainer)
        trainer.train()
    assert capsys.readouterr() == ("", f"Log: {tmp_path / 'log'}\n")
    assert "step 3: loss 4" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("verbose", [None, True], ids=["no command", "verbose"])
def test_elsewhere_trainers_keep_their_bar(tmp_path, verbose):
    trainer = line_trainer(tmp_path)
    before = callbacks(trainer)
    if verbose is None:
        show_training(trainer)
    else:
        with console.quiet(tmp_path / "log", verbose):
            show_training(trainer)
    assert callbacks(trainer) == before and ProgressCallback in before


def test_a_resumed_training_begins_at_its_step(tmp_path, capsys):
    with console.quiet(tmp_path / "log"):
        bar = TrainingBar()
        trainer = line_trainer(tmp_path)
        trainer.state.max_steps, trainer.state.global_step, trainer.state.is_world_process_zero = 10, 4, True
        bar.on_train_begin(trainer.args, trainer.state, trainer.control)
        assert bar._training.n == 4  # steps of the earlier run do not count for the rate
        trainer.state.global_step = 5
        bar.on_step_end(trainer.args, trainer.state, trainer.control)
        # training fails here; the command closes the bar
    assert "50% 5/10 updates" in capsys.readouterr().err


class Lengths:
    """Scores a step by its length, at most three solutions per call."""

    prm_format, model_name, context_length, weights = PRMFormat(), "lengths", None, None

    def score(self, questions, steps, skip_too_long):
        assert len(questions) <= 3
        for index, solution in enumerate(steps):
            if "long" in solution:
                raise SolutionTooLong(index, "has too many tokens.")
        return [[1 / len(step) for step in solution] for solution in steps]


def test_a_scorer_with_a_bar_gives_the_same_scores(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SOLUTIONS_PER_CALL", 3)
    scorer = with_bar(StepScorer.from_backend(Lengths()))
    steps = [["x" * length] for length in range(1, 8)]
    assert scorer.score(["q"] * 7, steps) == [[1 / length] for length in range(1, 8)]
    assert capsys.readouterr().err.startswith("Scoring: 100% 7/7 solutions")
    assert scorer.score(["q"] * 3, steps[:3]) == [[1.0], [1 / 2], [1 / 3]]
    assert capsys.readouterr().err == ""  # nothing to wait for
    assert scorer.model_name == "lengths" and scorer.weights is None


def test_a_scorer_with_a_bar_names_the_solution_that_is_too_long(monkeypatch):
    monkeypatch.setattr(progress, "SOLUTIONS_PER_CALL", 3)
    steps = [["x"], ["xx"], ["xxx"], ["xxxx"], ["long"]]
    with pytest.raises(SolutionTooLong) as caught:
        with_bar(StepScorer.from_backend(Lengths())).score(["q"] * 5, steps)
    assert caught.value.index == 4
