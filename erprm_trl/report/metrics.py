"""Describes the metrics of training runs: titles and units for plots, and first and last values for summaries."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..policy.guards import AGREEMENT, RATIOS, SHARES
from .run_folder import RunFolder


STATE = "trainer_state.json"
# Title and unit of a metric. The main metrics of a training come first and are shown in this order.
TITLES: dict[str, tuple[str, str]] = {
    "loss": ("Loss", "loss"),
    "brier": ("Brier score, lower is better", "Brier score"),
    "auc_within_questions": ("AUC within questions, 0.5 is chance", "AUC"),
    "ece": ("Expected calibration error, lower is better", "ECE"),
    "accuracy": ("Accuracy", "share"),
    "steps/accuracy": ("Share of right answers", "share"),
    "reward": ("Mean reward", "reward"),
    "kl": ("KL divergence from the reference policy", "nats per token"),
    "entropy": ("Entropy of the policy", "nats per token"),
    "value/explained_variance": ("Explained variance of the critic, 1 is perfect", "share"),
    "raft/accuracy": ("Share of right answers among the samples", "share"),
    "raft/picked_accuracy": ("Share of right answers among the selected solutions", "share"),
    "raft/mean_score": ("Mean score of the samples", "score"),
    "raft/picked_score": ("Mean score of the selected solutions", "score"),
    "raft/agreement": ("AUC of the score against the graded answer", "AUC"),
}
MAIN = tuple(TITLES)
TITLES |= {
    "auc": ("AUC over all steps, 0.5 is chance", "AUC"),
    "mae": ("Mean absolute error, lower is better", "error"),
    "learning_rate": ("Learning rate", "rate"),
    "grad_norm": ("Norm of the gradient", "norm"),
    "perf/tokens_per_second": ("Tokens per second", "tokens / s"),
    "perf/mfu": ("Share of the peak compute in use", "share"),
    "steps/per_answer": ("Steps per answer", "steps"),
    "steps/tokens_per_step": ("Tokens per step", "tokens"),
    "steps/mean_score": ("Mean score of a step", "score"),
    "steps/unfinished_share": ("Share of unfinished answers", "share"),
    "steps/repeated_share": ("Share of repeated steps", "share"),
    "steps/unscorable_share": ("Share of answers that could not be scored", "share"),
    "refresh/agreement_before": ("AUC on held-out questions before the refresh", "AUC"),
    "refresh/agreement_after": ("AUC on held-out questions after the refresh", "AUC"),
    "refresh/accuracy": ("Share of right answers among the labelled solutions", "share"),
    "refresh/loss": ("Loss of the reward model", "loss"),
    "steps/agreement": ("AUC of the score against the graded answer", "AUC"),
    "completions/mean_length": ("Mean length of completions", "tokens"),
    "completions/clipped_ratio": ("Share of completions that were cut", "share"),
    "reward_std": ("Standard deviation of the reward", "reward"),
}
GUARD = {*RATIOS, *SHARES, AGREEMENT, "kl", "steps/mean_score", "steps/accuracy", "completions/clipped_ratio"}
NOT_SHOWN = {"epoch", "step", "total_flos", "num_tokens", "num_input_tokens_seen", "raft/round"}


def title_and_unit(name: str) -> tuple[str, str]:
    """The title of a metric and the unit for its axis; an unknown metric keeps its name."""
    title, unit = TITLES.get(name.removeprefix("eval_"), (name, "value"))
    return (f"{title}, held-out data" if name.startswith("eval_") and title != name else title), unit


def is_shown(name: str) -> bool:
    """Whether a logged value is a metric that changes over a training, and not a summary of the whole training."""
    return not (name in NOT_SHOWN or name.startswith("train_") or name.endswith(("_runtime", "_per_second")))


class Change(NamedTuple):
    """The first and the last value of a metric."""

    name: str
    first: float
    last: float


def change(history: Sequence[Mapping[str, Any]], *names: str) -> Change | None:
    """
    How the first of several metrics that a training logged twice or more has changed.

    Logged values of single batches are noisy, so the first and the last fifth of the values are averaged.
    """
    for name in names:
        values = [value for _, value in points(history, name)]
        if len(values) > 1:
            fifth = max(1, len(values) // 5)
            return Change(name, sum(values[:fifth]) / fifth, sum(values[-fifth:]) / fifth)
    return None


def points(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """The finite values of a metric with their training steps."""
    return [
        (entry.get("step", 0), entry[name])
        for entry in history
        if isinstance(entry.get(name), (int, float)) and math.isfinite(entry[name])
    ]


class Training(NamedTuple):
    """A training's name on the page, its log, and whether it trained a reward model."""

    name: str
    history: list[dict[str, Any]]
    is_reward_model: bool


def find_trainings(run: RunFolder) -> list[Training]:
    """The trainings in a run's folder that logged anything."""
    trainings = []
    for folder in run.folders:
        # The state of the whole RAFT run, if it was saved, includes its rounds.
        if folder.name.startswith("round-") and (folder.parent / STATE).exists():
            continue
        if history := history_of(run, folder):
            is_reward_model = (folder / "prm_format.json").exists() or any("brier" in entry for entry in history)
            trainings.append(Training(run.name(folder), history, is_reward_model))
    return trainings


def history_of(run: RunFolder, folder: Path) -> list[dict[str, Any]] | None:
    """The longest log of a training: the one in its folder or in its newest checkpoint."""
    states = [run.read(path) for path in (folder / STATE, *sorted(folder.glob(f"checkpoint-*/{STATE}")))]
    histories = [state["log_history"] for state in states if isinstance(state, dict) and state.get("log_history")]
    return max(histories, key=lambda history: history[-1].get("step", 0), default=None)
