"""Scores of a round's solutions, shared among the processes, and which solutions get none. What is done with the
scores is decided in `raft_rounds.py`."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from ..functional.aggregation import aggregate
from ..reward_model.encoding import encode_solutions
from ..reward_model.scoring import StepScorer
from ..rollouts.steps import clean_step


def load_scorer(reward_model: str | Path | StepScorer, accelerator: Accelerator, batch_size: int) -> StepScorer:
    """
    The reward model, whole on every process.

    Raises:
        `ValueError`: if a given scorer's weights are partitioned by ZeRO-3.
    """
    if not isinstance(reward_model, StepScorer):
        with _whole_models(accelerator):
            return StepScorer.from_pretrained(reward_model, device=accelerator.device, batch_size=batch_size)
    if any(hasattr(parameter, "ds_id") for parameter in reward_model.model.parameters()):
        raise ValueError(
            "The reward model's weights are partitioned by ZeRO-3: it was loaded after the configuration was made. "
            "Give its path instead."
        )
    return reward_model


def unusable_reasons(
    rows: Sequence[dict[str, Any]], scorer: StepScorer, max_length: int | None = None
) -> list[str | None]:
    """
    Why each solution can never be trained on, or `None`.

    Args:
        rows (`Sequence[dict]`):
            Rows of rollouts with their `prompt_ids`.
        scorer ([`StepScorer`]):
            The reward model, for the length of its context.
        max_length (`int`, *optional*):
            Longest prompt and solution in tokens of the policy.
    """
    context = getattr(scorer.model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    encoded = encode_solutions(
        scorer.tokenizer,
        scorer.prm_format,
        [row["question"] for row in rows],
        [_clean_steps(row, scorer) for row in rows],
    )
    reasons: list[str | None] = []
    for row, solution in zip(rows, encoded, strict=True):
        if not row["finished"]:
            reasons.append("unfinished")
        elif not row["steps"]:
            reasons.append("no_steps")
        elif max_length is not None and len(row["prompt_ids"]) + row["num_tokens"] > max_length:
            reasons.append("longer_than_max_length")
        elif len(solution.input_ids) > context:
            reasons.append("too_long_for_reward_model")
        else:
            reasons.append(None)
    return reasons


def score_rows(
    rows: Sequence[dict[str, Any]], unusable: Sequence[str | None], scorer: StepScorer, accelerator: Accelerator
) -> list[list[float]]:
    """
    Step scores of every row, none where it is unusable, on all processes.

    Each process scores its share of the sampling's chunks. What is scored together, and so every last bit, does not
    depend on how many processes there are.

    Raises:
        `ValueError`: if a score is NaN.
    """
    chunks: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        if unusable[index] is None:
            chunks.setdefault(row["chunk"], []).append(index)
    mine = []
    for chunk in sorted(chunks)[accelerator.process_index :: accelerator.num_processes]:
        indices = chunks[chunk]
        scores = scorer.score([rows[i]["question"] for i in indices], [_clean_steps(rows[i], scorer) for i in indices])
        mine += zip(indices, scores, strict=True)
    step_scores: list[list[float]] = [[] for _ in rows]
    for index, scores in gather_object(mine):
        step_scores[index] = scores
    if any(math.isnan(score) for scores in step_scores for score in scores):
        raise ValueError("The reward model gave NaN for a step: look at its weights and dtype.")
    return step_scores


def solution_scores(step_scores: Sequence[Sequence[float]], aggregation: str) -> list[float | None]:
    """One score a solution, `None` where it has no step scores."""
    aggregated = iter(aggregate([scores for scores in step_scores if scores], aggregation).tolist())
    return [next(aggregated) if scores else None for scores in step_scores]


@contextmanager
def _whole_models(accelerator: Accelerator) -> Iterator[None]:
    """Models that are loaded meanwhile are not partitioned, whatever DeepSpeed does to the policy."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(plugin.hf_ds_config)


def _clean_steps(row: dict[str, Any], scorer: StepScorer) -> list[str]:
    return [clean_step(step, scorer.prm_format.splitter) for step in row["steps"]]
