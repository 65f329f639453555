"""Tests logging to all trackers: without a running tracker, with failing trackers, and without a trainer."""

import logging

import pytest
from datasets import Dataset
from step_fakes import save_tiny, settings, word_level
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from erprm_trl import ERPRMConfig, ERPRMTrainer
from erprm_trl.report import draw_selection_curves, selection_rows
from erprm_trl.selection import selection_curves
from erprm_trl.training.tracking import Trackers, label_histogram


class Broken:
    """A tracker that always fails."""

    name = "broken"

    def __getattr__(self, method):
        def fail(*arguments):
            raise ConnectionError("no tracker today")

        return fail


class Recorder:
    """A tracker that records its calls."""

    name = "recorder"

    def __init__(self):
        self.calls = []

    def __getattr__(self, method):
        return lambda *arguments: self.calls.append((method, *arguments))


def test_no_content_is_created_without_a_running_tracker():
    def never():
        raise AssertionError("content was created")

    trackers = Trackers(lambda: [])
    trackers.figure("a", never, 0)
    trackers.table("a", never, 0)
    trackers.histogram("a", never, 0)
    trackers.artifact("a", never)


def test_a_failure_is_logged_once_and_does_not_affect_other_trackers(caplog):
    recorder = Recorder()
    trackers = Trackers(lambda: [Broken(), recorder])
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            trackers.histogram("labels/all", lambda: [0.0, 1.0], step)
            trackers.figure("impossible", lambda: label_histogram([]), step)
    assert recorder.calls == [("histogram", "labels/all", [0.0, 1.0], step) for step in range(3)]
    assert len(caplog.records) == 2
    assert "`labels/all` could not be logged to broken: ConnectionError" in caplog.messages[0]
    assert "`impossible` could not be made" in caplog.messages[1]


@pytest.mark.slow("trains with every tracker")
@pytest.mark.parametrize("broken", [True, False])
def test_training_continues_with_a_broken_tracker(broken, tmp_path, monkeypatch, caplog):
    tracker = Broken() if broken else Recorder()
    monkeypatch.setattr("erprm_trl.training.tracking.trackers._started_by", lambda trainer: [tracker])
    tokenizer = word_level()
    options = {**settings(tmp_path), "log_artifacts": ["config", "data", "checkpoint"], "splitter": "ки"}
    options = {name: options[name] for name in options if name not in ("num_generations", "max_completion_length")}
    options |= {"separator": "ки", "good_token": "✓", "bad_token": "✗", "eval_strategy": "steps", "eval_steps": 1}
    data = Dataset.from_list([{"prompt": "Tom dial 7 . ?", "completions": ["7", "answer 2"], "labels": [0.9, 0.0]}])
    trainer = ERPRMTrainer(
        save_tiny(tmp_path / "tiny", tokenizer),
        ERPRMConfig(**options),
        train_dataset=data,
        eval_dataset={"math": data},
    )
    trainer.args.report_to = ["recorder"]
    trainer.train()
    assert trainer.state.global_step == 2
    if broken:
        assert any("`calibration/eval_math` could not be logged to broken" in message for message in caplog.messages)
    else:
        names = [(call[0], call[1]) for call in tracker.calls]
        assert names == [
            ("image", "labels/by_position"), ("histogram", "labels/all"), ("artifact", "config"), ("artifact", "data"),
            *[("image", "calibration/eval_math"), ("table", "solutions/eval_math")] * 2,
        ]  # fmt: skip
        _, rows = tracker.calls[-1][2]
        assert rows[0][0] == "Tom dial 7 . ?"
        assert rows[0][1].steps == ["7", "answer 2"] and rows[0][1].labels == pytest.approx([0.9, 0.0])
        assert rows[0][2] == round(min(rows[0][1].scores), 4)
        assert any("no checkpoint was saved" in message for message in caplog.messages)  # save_strategy is "no"


def test_other_processes_log_nothing():
    class TrainerOnAnotherProcess:
        def is_world_process_zero(self):
            return False

    assert Trackers.of(TrainerOnAnotherProcess())._running() == []


def test_best_of_n_curves_are_logged_without_a_trainer(tmp_path):
    answers = [[("7", 1.0), ("8", 0.0)], [("1", 0.0), ("2", 1.0)]]
    solutions = [
        [
            {"steps": ["a"], "outcome_reward": reward, "prediction": answer, "finished": True, "question_index": index}
            for answer, reward in group
        ]
        for index, group in enumerate(answers)
    ]
    curves = selection_curves(solutions, {"erprm": [[[0.9], [0.1]], [[0.8], [0.2]]]}, [1, 2])
    columns, rows = selection_rows(curves)
    assert columns == ["choice", "n", "accuracy", "low", "high"]
    by_name = {(row[0], row[1]): row[2] for row in rows}
    assert by_name["pass@n", 2] == 1.0 and by_name["pass@n", 1] == 0.5 and by_name["erprm, min", 2] == 0.5
    with Trackers.start(["tensorboard"], tmp_path / "best", {"api_key": "abc", "folder": str(tmp_path)}) as trackers:
        trackers.figure("best_of_n/min", lambda: draw_selection_curves(curves), step=0)
        trackers.table("best_of_n/curves", lambda: selection_rows(curves), step=0)
        trackers.scalars({"best_of_n/pass@n": 0.5}, step=1)
    events = EventAccumulator(str(tmp_path / "best" / "runs")).Reload()
    assert events.Tags()["images"] == ["best_of_n/min"] and events.Scalars("best_of_n/pass@n")[0].step == 1
    config = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "<redacted>" in config and "abc" not in config and str(tmp_path) not in config
    with pytest.raises(ValueError, match="report_to: got .'wand'"), Trackers.start(["wand"], tmp_path, {}):
        pass
    with Trackers.start("none", tmp_path, {}) as trackers:
        assert trackers._running() == []


def test_reward_parts_by_hand(tmp_path):
    from step_fakes import FakeScorer, by_last_number, encode, generate_fixed, questions, tiny_llama

    from erprm_trl import StepGRPOConfig, StepGRPOTrainer

    def outcome(completions, **columns):
        return [1.0 if index % 2 == 0 else None for index in range(len(completions))]

    tokenizer = word_level()
    expected = {
        "difference": ((0.8 - 0.0) + (0.2 - 0.0)) / 2,  # telescopes to the last score
        "sum": ((0.4 + 0.8) + 0.2) / 2,
        "outcome": (0.8 + 0.2) / 2,
    }
    for credit, step in expected.items():
        trainer = StepGRPOTrainer(
            tiny_llama(len(tokenizer)),
            [FakeScorer(by_last_number), outcome],
            args=StepGRPOConfig(**settings(tmp_path, credit=credit, aggregation="last", outcome_weight=0.5)),
            train_dataset=questions(4),
            processing_class=tokenizer,
        )
        generate_fixed(trainer, encode(tokenizer, *["4 ки 8 </s>", "2 </s>"] * 2))
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        trainer._generate_and_score_completions([{"prompt": f"Tom dial {index // 2}"} for index in range(4)])
        metrics = trainer._metrics["train"]
        assert metrics["reward_parts/step"] == [pytest.approx(step)]
        assert metrics["reward_parts/outcome"] == [0.25]  # weight 0.5 times the mean of 1 and 0; None counts as 0
        assert "reward_parts/kl" not in metrics
