"""Scores of a round's solutions, shared among the processes, and which solutions get none. What is done with the
scores is decided in `raft_rounds.py`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from ..reward_model.remote_scoring import RemoteStepScorer
from ..reward_model.scoring import StepScorer
from ..reward_model.sharded_scoring import check_sharding
from ..rollouts.steps import clean_steps
from ..rollouts.store import RolloutDataset
from ..tracking.coloured_steps import ColouredSteps, solutions_table
from .raft_rounds import RoundFolder, read_rows


def load_scorer(
    reward_model: str | Path | StepScorer, accelerator: Accelerator, batch_size: int, sharded: bool = False
) -> StepScorer:
    """
    The reward model: whole on every process, split over those of a ZeRO-3 training, or on a scoring server.

    Raises:
        `ValueError`: if a given scorer's weights are partitioned by ZeRO-3, or it is to be split and is given or the
            training is not by ZeRO-3.
    """
    if sharded:
        check_sharding(reward_model, accelerator)
        return StepScorer.from_pretrained(reward_model, batch_size=batch_size, accelerator=accelerator)
    if not isinstance(reward_model, StepScorer):
        return StepScorer.from_pretrained(reward_model, batch_size=batch_size, device=accelerator.device)
    if isinstance(reward_model, RemoteStepScorer):
        return reward_model
    if any(hasattr(parameter, "ds_id") for parameter in reward_model.model.parameters()):
        raise ValueError(
            "The reward model's weights are partitioned by ZeRO-3: it was loaded after the configuration was made. "
            "Give its path instead."
        )
    return reward_model


def unusable_reasons(rows: Sequence[dict[str, Any]], max_length: int | None = None) -> list[str | None]:
    """
    Why each solution can never be trained on, or `None`; that it is too long for the reward model shows when it is
    scored.

    Args:
        rows (`Sequence[dict]`):
            Rows of rollouts with their `prompt_ids`.
        max_length (`int`, *optional*):
            Longest prompt and solution in tokens of the policy.
    """
    reasons: list[str | None] = []
    for row in rows:
        if not row["finished"]:
            reasons.append("unfinished")
        elif not row["steps"]:
            reasons.append("no_steps")
        elif max_length is not None and len(row["prompt_ids"]) + row["num_tokens"] > max_length:
            reasons.append("longer_than_max_length")
        else:
            reasons.append(None)
    return reasons


def score_rows(
    rows: Sequence[dict[str, Any]], unusable: Sequence[str | None], scorer: StepScorer, accelerator: Accelerator
) -> list[list[float]]:
    """
    Step scores of every row, none where it is unusable or too long for the reward model, on all processes.

    Each process scores its share of the sampling's chunks. What is scored together, and so every last bit, does not
    depend on how many processes there are.
    """
    chunks: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        if unusable[index] is None:
            chunks.setdefault(row["chunk"], []).append(index)
    mine = []
    numbers = sorted(chunks)
    for first in range(0, len(numbers), accelerator.num_processes):
        # A process for which no chunk is left scores nothing: a model that is split needs all of them each time.
        number = numbers[first + accelerator.process_index : first + accelerator.num_processes][:1]
        indices = chunks[number[0]] if number else []
        questions = [rows[i]["question"] for i in indices]
        steps = [clean_steps(rows[i]["steps"], scorer.prm_format.splitter) for i in indices]
        scores = scorer.score(questions, steps, skip_too_long=True)
        mine += zip(indices, scores, strict=True)
    step_scores: list[list[float]] = [[] for _ in rows]
    for index, scores in gather_object(mine):
        step_scores[index] = scores
    return step_scores


def round_solutions(folder: RoundFolder, splitter: str, number: int) -> tuple[list[str], list[list[Any]]]:
    """The table of a round's first solutions, their steps coloured by score."""
    rows = RolloutDataset(folder.samples).rows[:number]
    scores = [entry["step_scores"] for entry in read_rows(folder.scores)[:number]]
    solutions = [
        ColouredSteps(clean_steps(row["steps"], splitter), some) for row, some in zip(rows, scores, strict=True)
    ]
    return solutions_table([row["question"] for row in rows], solutions)
