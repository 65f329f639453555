"""The guard on synthetic logs (limits, patience, noise, resume) and in real runs (checkpoints, two processes)."""

import json
import logging
import math
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked_launch import launch_forked
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from erprm_trl.policy.guards import PolicyGuard


HEALTHY = {
    "steps/per_answer": 4.0,
    "steps/tokens_per_step": 20.0,
    "steps/unfinished_share": 0.1,
    "steps/repeated_share": 0.05,
    "steps/unscorable_share": 0.0,
    "kl": 0.1,
    "steps/agreement": 0.8,
    "steps/mean_score": 0.5,
    "steps/accuracy": 0.6,
}


def impatient(**arguments):
    """A guard that stops after five logs outside the limits, so that tests are short."""
    return PolicyGuard(**{"patience": 5, **arguments})


class Run:
    """Simulates the calls of a trainer to a callback: logs, steps and saves."""

    def __init__(self, folder, guard, log_history=(), global_step=0):
        self.guard = guard
        self.args = SimpleNamespace(output_dir=str(folder))
        self.state = TrainerState(global_step=global_step, log_history=list(log_history))
        self.control = TrainerControl()
        guard.on_train_begin(self.args, self.state, self.control)

    def log(self, **changed):
        """Runs one step: logs healthy metrics with the changes (no log if a value is `None`), and saves."""
        self.state.global_step += 1
        metrics = {**HEALTHY, **{name.replace("__", "/"): value for name, value in changed.items()}}
        self.control.should_save = True
        self.guard.on_step_end(self.args, self.state, self.control)
        logs = {"loss": 0.0, **metrics}
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.guard.on_log(self.args, self.state, self.control, logs=logs)
        if self.control.should_save:
            self.guard.on_save(self.args, self.state, self.control)
        return self.control.should_training_stop

    def steps_until_stopped(self, limit=200, **changed):
        return next((count for count in range(1, limit) if self.log(**changed)), None)


def started(folder, logs=5, **arguments):
    run = Run(folder, impatient(**arguments))
    for _ in range(logs):
        assert not run.log()
    return run


TROUBLE = {
    "steps/per_answer": [{"steps__per_answer": 1.0}, {"steps__per_answer": 9.0}],
    "steps/tokens_per_step": [{"steps__tokens_per_step": 9.0}, {"steps__tokens_per_step": 41.0}],
    "steps/unfinished_share": [{"steps__unfinished_share": 0.31}],
    "steps/repeated_share": [{"steps__repeated_share": 0.26}],
    "steps/unscorable_share": [{"steps__unscorable_share": 0.21}],
    "kl": [{"kl": 2.1}, {"kl": math.inf}],
    "steps/agreement": [{"steps__agreement": 0.44}],
    # Accuracy .6 -> .39 is a decrease of .21. The score rises, stays, or falls by less than .01.
    "score_and_accuracy": [
        {"steps__accuracy": 0.39, "steps__mean_score": 0.9},
        {"steps__accuracy": 0.39},
        {"steps__accuracy": 0.38, "steps__mean_score": 0.49},
    ],
}
EDGE = [
    {"steps__per_answer": 2.0},  # 4 / 2
    {"steps__per_answer": 8.0},  # 4 * 2
    {"steps__tokens_per_step": 10.0},
    {"steps__tokens_per_step": 40.0},
    {"steps__unfinished_share": 0.29},  # below .1 + .2
    {"steps__unfinished_share": 0.0, "steps__repeated_share": 0.0},
    {"steps__repeated_share": 0.24},
    {"steps__unscorable_share": 0.2},
    {"kl": 2.0},
    {"steps__agreement": 0.45},
    {"steps__accuracy": 0.41, "steps__mean_score": 0.9},  # a decrease of .19
    {"steps__accuracy": 0.3, "steps__mean_score": 0.2},  # harder questions: the score also falls
    {"steps__accuracy": 0.3, "steps__mean_score": 0.39},  # a decrease of .3, of which the score shows .11
    {"steps__accuracy": 0.9, "steps__mean_score": 0.99},
]


@pytest.mark.parametrize(
    ("signal", "changed"), [(signal, changed) for signal in TROUBLE for changed in TROUBLE[signal]]
)
def test_each_single_signal_stops_the_run(tmp_path, signal, changed):
    run = started(tmp_path)
    # The median of five logs changes with the third log. The patience counts it and four more: 3 + 4 = 7.
    assert run.steps_until_stopped(**changed) == 7
    assert run.guard.outside == [signal]
    assert f"`{signal}` is " in run.guard.stopped_because
    assert started(tmp_path / "default", patience=PolicyGuard().patience).steps_until_stopped(**changed) == 12  # 3 + 9
    report = json.loads((tmp_path / "guard.json").read_text())
    assert [name for name, standing in report["signals"].items() if standing["logs_outside"]] == [signal]


@pytest.mark.parametrize("changed", EDGE)
def test_values_at_a_limit_are_not_outside(tmp_path, changed):
    run = started(tmp_path)
    assert run.steps_until_stopped(limit=30, **changed) is None and not run.guard.outside


def test_reference_median_and_patience_worked_by_hand(tmp_path):
    run = Run(tmp_path, PolicyGuard(warmup=3, window=3, patience=2, max_ratio=1.5))
    for value in (2.0, 100.0, 4.0):  # the reference is the median 4, and the limits are 4 / 1.5 and 6
        run.log(steps__per_answer=value)
    assert run.guard.outside == []  # the same three values: 4
    run.log(steps__per_answer=7.0)  # 100, 4, 7: 7 is outside, once
    assert run.guard.outside == ["steps/per_answer"] and run.guard.stopped_because is None
    run.log(steps__per_answer=5.0)  # 4, 7, 5: 5 is inside
    assert run.guard.outside == []
    run.log(steps__per_answer=8.0)  # 7, 5, 8: 7, once
    assert run.guard.stopped_because is None
    assert run.log(steps__per_answer=6.5)  # 5, 8, 6.5: 6.5, twice
    assert run.guard.stopped_because.startswith(
        "Outside the limits for 2 consecutive logs: `steps/per_answer` is 6.5, expected at least 2.667 and at most 6 "
        "(reference 4)."
    )
    report = json.loads((tmp_path / "guard.json").read_text())
    assert report["reason"] == run.guard.stopped_because and report["step"] == 7
    # Saved while all signals were within their limits: steps 1, 2, 3 and 5, the step of the log that returned.
    assert report["last_good_checkpoint"] == run.guard.last_good_checkpoint == str(tmp_path / "checkpoint-5")
    assert report["signals"]["steps/per_answer"] == {
        "value": 6.5,
        "reference": 4.0,
        "low": pytest.approx(4 / 1.5),
        "high": 6.0,
        "logs_outside": 2,
    }
    assert report["signals"]["kl"]["low"] is None and report["signals"]["kl"]["high"] == 2.0
    history = [[1, 2.0], [2, 100.0], [3, 4.0], [4, 7.0], [5, 5.0], [6, 8.0], [7, 6.5]]
    assert report["history"]["steps/per_answer"] == history
    assert os.listdir(tmp_path) == ["guard.json"]
    # Only signals that stayed outside are a reason, and the reason of the first stop is kept.
    assert run.guard.stopped_because.count("expected") == 1
    run.log(steps__per_answer=50.0)
    assert json.loads((tmp_path / "guard.json").read_text()) == report


def test_signals_are_not_checked_before_the_warmup(tmp_path):
    run = Run(tmp_path, PolicyGuard(warmup=10, patience=1))
    for _ in range(9):
        assert not run.log(kl=5.0, steps__agreement=0.1)
    assert run.log(kl=5.0, steps__agreement=0.1)
    assert sorted(run.guard.outside) == ["kl", "steps/agreement"]


@pytest.mark.parametrize("changed", [{"kl": 1e6}, {"steps__per_answer": 0.0}, {"steps__unfinished_share": 1.0}])
def test_occasional_outliers_have_no_effect(tmp_path, changed, caplog):
    run = started(tmp_path)
    for index in range(60):
        run.log(**(changed if index % 5 in (0, 2) else {}))  # two of every five logs
        assert not run.guard.outside
    assert not caplog.records


@pytest.mark.parametrize("noise", [1, 2])
@pytest.mark.parametrize("seed", range(12))
def test_healthy_runs_are_not_stopped(tmp_path, seed, noise):
    # 300 noisy logs of a policy that learns: accuracy .5 -> .98, answers a third shorter, KL .01 -> .3 with spikes,
    # and an AUC that falls towards chance as fewer answers are wrong, and is then noisy and often undefined. With
    # the noise of large batches no signal leaves its limits. With twice the noise, none stays outside for long.
    dice = random.Random(seed)
    run = Run(tmp_path, PolicyGuard())
    for index in range(300):
        done = min(index / 200, 1.0)
        accuracy = min(max(0.5 + 0.48 * done + dice.gauss(0, 0.06 * noise), 0.0), 1.0)
        agreement = dice.gauss(0.8 - 0.2 * done, 0.08 * noise)
        run.log(
            steps__per_answer=max(dice.gauss(4 - 1.2 * done, 0.3 * noise), 0),
            steps__tokens_per_step=max(dice.gauss(20 - 3 * done, 2 * noise), 0),
            steps__unfinished_share=max(dice.gauss(0.1 - 0.05 * done, 0.05 * noise), 0),
            steps__repeated_share=max(dice.gauss(0.05, 0.03 * noise), 0),
            steps__unscorable_share=max(dice.gauss(0.02, 0.02 * noise), 0),
            kl=0.01 + 0.3 * done + (100 if dice.random() < 0.02 * noise else abs(dice.gauss(0, 0.02))),
            steps__agreement=agreement if accuracy < 0.95 else dice.choice([math.nan, dice.random()]),
            steps__mean_score=dice.gauss(0.5 + 0.45 * done, 0.05 * noise),
            steps__accuracy=accuracy,
        )
        assert run.guard.stopped_because is None, index
        assert noise > 1 or not run.guard.outside, index
    assert noise > 1 or run.guard.last_good_checkpoint == str(tmp_path / "checkpoint-300")


@pytest.mark.parametrize("few", [0.99, 0.01])
def test_agreement_is_ignored_if_few_answers_are_of_one_kind(tmp_path, few):
    run = started(tmp_path)
    for _ in range(4):
        run.log(steps__agreement=0.2)
    assert run.guard.outside == ["steps/agreement"]
    run.log(steps__agreement=0.2, steps__accuracy=few)
    assert run.guard.outside == [] and run.guard.stopped_because is None
    assert run.steps_until_stopped(limit=30, steps__agreement=0.2, steps__accuracy=few, steps__mean_score=few) is None


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_nan_and_none_are_skipped(tmp_path, nothing):
    run = started(tmp_path)
    missing = {name.replace("/", "__"): nothing for name in HEALTHY}
    for _ in range(3):
        run.log(steps__per_answer=1.0)
    for _ in range(20):  # without logs the signal stays outside, the count does not grow, and nothing is saved
        run.log(**missing)
        assert run.guard.outside == ["steps/per_answer"] and run.guard.stopped_because is None
    assert run.guard.last_good_checkpoint.endswith("-7")  # the median changes with log 8
    assert run.steps_until_stopped(steps__per_answer=1.0) == 4  # the count continues: 1 + 4
    assert Run(tmp_path, PolicyGuard()).steps_until_stopped(limit=30, **missing) is None


NO_ANSWERS = {"steps__accuracy": None, "steps__agreement": None}


def test_a_score_that_no_longer_improves_stops_a_run_without_answers(tmp_path):
    run = Run(tmp_path, PolicyGuard(warmup=1, window=1, max_plateau=3, patience=2))
    # Each score improves the best one by at least 0.003, except for the last three.
    for score in (0.5, 0.503, 0.51, 0.52, 0.5, 0.5229, 0.51):
        run.log(steps__mean_score=score, **NO_ANSWERS)
        assert run.guard.outside == []
    run.log(steps__mean_score=0.52, **NO_ANSWERS)  # the fourth log after 0.52
    assert run.guard.outside == ["score_plateau"] and run.guard.last_good_checkpoint.endswith("-7")
    run.log(steps__mean_score=0.53, **NO_ANSWERS)
    assert run.guard.outside == []
    assert run.steps_until_stopped(steps__mean_score=0.53, **NO_ANSWERS) == 5  # logs 4 and 5 are outside
    assert "`score_plateau` is 5, expected at most 3" in run.guard.stopped_because
    # By default, the best median is that of the fifth log. 10 logs later it is too old, and 10 logs are tolerated.
    assert Run(tmp_path, PolicyGuard()).steps_until_stopped(steps__mean_score=0.5, **NO_ANSWERS) == 5 + 10 + 10
    assert Run(tmp_path, PolicyGuard(max_plateau=None)).steps_until_stopped(limit=60, **NO_ANSWERS) is None
    assert Run(tmp_path, PolicyGuard()).steps_until_stopped(limit=60, steps__mean_score=0.5) is None  # with answers


def test_the_score_is_not_compared_without_answers(tmp_path):
    run = Run(tmp_path, impatient(max_plateau=None))
    none = NO_ANSWERS
    for score in (0.1, 0.9):
        assert run.steps_until_stopped(limit=30, steps__mean_score=score, **none) is None
    # Answers are graded in some logs. Only the accuracies and scores of these logs count.
    for _ in range(5):
        run.log()
        run.log(steps__mean_score=0.0, **none)
    for _ in range(6):
        run.log(steps__accuracy=0.3)
        assert not run.log(steps__mean_score=0.0, **none)
    assert run.log(steps__accuracy=0.3)
    assert run.guard.outside == ["score_and_accuracy"]


def test_trls_clipped_ratio_replaces_a_missing_unfinished_share(tmp_path):
    def log(run, unfinished, **rest):
        logs = {"loss": 0.0, "completions/clipped_ratio": unfinished, **rest}
        run.guard.on_log(run.args, run.state, run.control, logs=logs)

    for rest, outside in (({}, ["steps/unfinished_share"]), ({"steps/unfinished_share": 0.0}, [])):
        run = Run(tmp_path, PolicyGuard())
        for unfinished in [0.1] * 5 + [0.9] * 3:
            log(run, unfinished, **rest)
        assert run.guard.outside == outside


def test_evaluation_logs_and_summaries_are_ignored(tmp_path):
    run = started(tmp_path)
    bad = {"kl": 99.0, "steps/per_answer": 0.0, "completions/clipped_ratio": 1.0}
    for extra in ({"eval_loss": 1.0}, {"train_runtime": 1.0, "train_loss": 1.0}, {"anything": 1.0}):
        for _ in range(20):
            evaluated = {f"eval_{name}": value for name, value in bad.items()}
            run.guard.on_log(run.args, run.state, run.control, logs={**extra, **bad, **evaluated})
    run.guard.on_log(run.args, run.state, run.control, logs=None)
    assert not run.guard.outside and not run.control.should_training_stop


def test_limits_of_none_disable_their_checks(tmp_path):
    arguments = dict.fromkeys(["max_ratio", "max_increase", "max_kl", "min_agreement", "max_divergence"])
    run = started(tmp_path, **arguments)
    changed = {name: value for signal in TROUBLE.values() for name, value in signal[0].items()}
    assert run.steps_until_stopped(limit=30, **changed) is None and not run.guard.outside


def test_a_reference_of_zero_has_no_limits(tmp_path):
    run = Run(tmp_path, PolicyGuard())
    for value in (0.0, 3.0):
        assert run.steps_until_stopped(limit=20, steps__per_answer=value) is None
    assert not run.guard.outside


def test_each_excursion_gives_one_warning_with_advice(tmp_path, caplog):
    run = started(tmp_path)
    for value in (5.0, 5.0, 5.0, 5.0, 0.1, 0.1, 0.1, 5.0, 5.0, 5.0):
        run.log(kl=value)
    messages = [record.getMessage() for record in caplog.records]
    # Outside from the third 5 (log 8), back at the third .1 of five (log 12), outside from the next third 5 (log 15).
    assert [message.split(": ")[0] for message in messages] == ["PolicyGuard, step 8", "PolicyGuard, step 15"]
    assert messages[0] == (
        "PolicyGuard, step 8: `kl` is 5, expected at most 2 (reference 0.1). The policy writes text that the reward "
        "model was not trained on. Raise beta, or lower the learning rate. No checkpoint is saved until it is within "
        "its limits."
    )
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    run.guard.on_train_end(run.args, run.state, run.control)
    assert caplog.records[-1].getMessage().endswith("Last good checkpoint: " + str(tmp_path / "checkpoint-14") + ".")


def test_only_process_zero_logs_and_writes(tmp_path, caplog):
    run = started(tmp_path)
    run.state.is_world_process_zero = False
    assert run.steps_until_stopped(kl=5.0) == 7 and run.guard.stopped_because
    assert not caplog.records and not os.listdir(tmp_path)


def test_a_resumed_run_continues_the_guards_state(tmp_path, caplog):
    straight = started(tmp_path / "straight")
    for _ in range(4):
        straight.log(steps__repeated_share=0.5)
    others = [{name: 1.0, "kl": 99.0, "step": 9} for name in ("eval_loss", "train_loss") for _ in range(9)]
    entries = [*straight.state.log_history, *others]
    caplog.clear()
    resumed = Run(tmp_path / "resumed", impatient(), entries, global_step=9)
    assert resumed.guard.outside == ["steps/repeated_share"] and not caplog.records
    assert resumed.guard.last_good_checkpoint is None
    for run in (straight, resumed):
        assert run.steps_until_stopped(steps__repeated_share=0.5) == 3
    assert straight.guard.stopped_because == resumed.guard.stopped_because
    # The checkpoint of a resumed run counts as good if no signal was outside.
    (tmp_path / "resumed" / "checkpoint-7").mkdir()
    resumed = Run(tmp_path / "resumed", resumed.guard, entries[:7], global_step=7)
    assert resumed.guard.stopped_because is None and not resumed.guard.outside
    assert resumed.guard.last_good_checkpoint == str(tmp_path / "resumed" / "checkpoint-7")
    (tmp_path / "resumed" / "checkpoint-9").mkdir()
    assert Run(tmp_path / "resumed", resumed.guard, entries, global_step=9).guard.last_good_checkpoint is None


def test_a_checkpoint_saved_while_a_signal_is_outside_is_not_good(tmp_path):
    run = started(tmp_path)
    for _ in range(3):
        run.log(kl=5.0)
    run.guard.on_save(run.args, run.state, run.control)  # as with save_strategy="best"
    assert run.guard.last_good_checkpoint == str(tmp_path / "checkpoint-7")


def test_a_new_run_resets_the_state(tmp_path):
    run = started(tmp_path)
    run.steps_until_stopped(kl=5.0)
    again = Run(tmp_path / "again", run.guard)
    assert again.guard.stopped_because is None and again.guard.last_good_checkpoint is None
    assert again.steps_until_stopped(limit=20, kl=1.0) is None


@pytest.mark.parametrize(
    ("argument", "value"), [("warmup", 0), ("window", 0), ("patience", 0), ("max_ratio", 1.0), ("max_ratio", 0.5)]
)
def test_invalid_arguments_are_errors(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` of the guard: got {value}, expected"):
        PolicyGuard(**{argument: value})


# Real runs


class Tiny(torch.nn.Module):
    """A model with one weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, labels=None):
        return {"loss": ((self.weight - x) ** 2).mean()}


class Scripted(Trainer):
    """Logs a KL of 5 from step `collapses_at` on until `recovers_at`, and counts its saves."""

    collapses_at, recovers_at = None, math.inf
    saved = ()

    def log(self, logs, start_time=None):
        if "loss" in logs:
            collapsed = self.collapses_at is not None and self.state.global_step >= self.collapses_at
            logs.update(HEALTHY, kl=5.0 if collapsed and self.state.global_step < self.recovers_at else 0.1)
        super().log(logs, start_time)

    def _save_checkpoint(self, model, trial):
        self.saved = (*self.saved, self.state.global_step)
        super()._save_checkpoint(model, trial)


def train(folder, collapses_at, resume=None, recovers_at=math.inf, **arguments):
    """Trains for twenty steps, or until the guard stops the run."""
    settings = {
        "max_steps": 20,
        "logging_steps": 1,
        "save_steps": 1,
        "save_total_limit": 1,
        "per_device_train_batch_size": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    guard = impatient()
    args = TrainingArguments(str(folder), **{**settings, **arguments})
    dataset = [{"x": torch.ones(1)} for _ in range(4)]
    trainer = Scripted(Tiny(), args, train_dataset=dataset, callbacks=[guard])
    trainer.collapses_at, trainer.recovers_at = collapses_at, recovers_at
    trainer.train(resume_from_checkpoint=resume)
    return trainer, guard


def checkpoints(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith("checkpoint"))


@pytest.mark.slow("trains until it collapses")
def test_the_last_good_checkpoint_survives_a_save_limit_of_one(tmp_path):
    trainer, guard = train(tmp_path, collapses_at=8)
    # The median changes at logs 8, 9, 10, so nothing is saved from step 10 on, and the run stops at step 10 + 4.
    assert trainer.state.global_step == 14 and "`kl` is 5" in guard.stopped_because
    assert checkpoints(tmp_path) == ["checkpoint-9"]
    assert guard.last_good_checkpoint == str(tmp_path / "checkpoint-9")
    assert json.loads((tmp_path / "guard.json").read_text())["step"] == 14
    # The run can be resumed from it, and continues to its end if the signal stays within its limits.
    trainer, guard = train(tmp_path, collapses_at=None, resume=guard.last_good_checkpoint)
    assert trainer.state.global_step == 20 and guard.stopped_because is None
    assert checkpoints(tmp_path) == ["checkpoint-20"]


@pytest.mark.slow("trains until it collapses")
def test_saving_continues_in_the_step_where_the_signal_returns(tmp_path):
    # Bad logs 8 to 11 put the median outside from step 10 on. With 12, 13 and 14, three of five are good again.
    trainer, guard = train(tmp_path, collapses_at=8, recovers_at=12, max_steps=16, save_total_limit=None)
    assert trainer.saved == (1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 15, 16)
    # The return at 14 saves nothing if no checkpoint was due. The checkpoint of 12 was held back.
    trainer, guard = train(tmp_path / "thirds", collapses_at=8, recovers_at=12, max_steps=16, save_steps=3)
    assert trainer.saved == (3, 6, 9, 15, 16)
    # If it is the last step of the run and of an epoch, it is saved exactly once.
    trainer, guard = train(tmp_path / "short", collapses_at=6, recovers_at=10, max_steps=12)
    assert trainer.saved == (1, 2, 3, 4, 5, 6, 7, 12) and guard.stopped_because is None


@pytest.mark.slow("trains until it collapses")
def test_a_run_resumed_during_a_collapse_stops_like_an_uninterrupted_run(tmp_path):
    # The checkpoint of step 9 was saved before the median changed, and its history holds the two bad logs.
    train(tmp_path, collapses_at=8, max_steps=9)
    trainer, guard = train(tmp_path, collapses_at=8, resume=str(tmp_path / "checkpoint-9"))
    assert trainer.state.global_step == 14 and guard.last_good_checkpoint == str(tmp_path / "checkpoint-9")


@pytest.mark.slow("trains until it collapses")
@pytest.mark.parametrize(
    ("arguments", "last_step", "kept"),
    [
        (
            {"logging_steps": 2, "save_steps": 3},
            18,
            "checkpoint-9",
        ),  # the fifth log is at step 10, and the ninth at step 18
        ({"save_strategy": "epoch"}, 9, "checkpoint-4"),  # epochs of four steps
        ({"logging_strategy": "epoch", "save_strategy": "epoch", "max_steps": 40}, 36, "checkpoint-16"),
    ],
)
def test_other_log_and_save_intervals_are_supported(tmp_path, arguments, last_step, kept):
    trainer, guard = train(tmp_path, collapses_at=1, **arguments)
    assert guard.last_good_checkpoint == str(tmp_path / kept) and checkpoints(tmp_path) == [kept]
    # Outside from the fifth log on, the last of the warmup, and stopped at the ninth.
    assert trainer.state.global_step == last_step


def test_a_healthy_run_is_not_changed(tmp_path):
    trainer, guard = train(tmp_path, collapses_at=None)
    assert trainer.state.global_step == 20 and guard.stopped_because is None
    assert checkpoints(tmp_path) == ["checkpoint-20"] and not (tmp_path / "guard.json").exists()


def train_with_collapse_on_one_process(folder):
    """Two trainings: process zero alone sees the collapse of the first, and process one alone that of the second."""
    rank = int(os.environ["RANK"])
    for name, sees in (("zero", 0), ("one", 1)):
        trainer, _ = train(Path(folder, name), collapses_at=8 if rank == sees else None)
        Path(folder, name, f"rank{rank}.txt").write_text(f"{trainer.state.global_step}")


@pytest.mark.slow("starts two processes")
def test_two_processes_stop_together(tmp_path):
    # If metrics differ between processes, process zero decides, and both processes stop.
    errors, printed = launch_forked(train_with_collapse_on_one_process, [(2, [str(tmp_path)])])
    assert errors == [None] and printed.count("world 2") == 2
    for name, step in (("zero", "14"), ("one", "20")):
        assert [(tmp_path / name / f"rank{rank}.txt").read_text() for rank in (0, 1)] == [step, step]
    assert checkpoints(tmp_path / "zero") == ["checkpoint-9"] and checkpoints(tmp_path / "one") == ["checkpoint-20"]
