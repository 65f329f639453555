"""Scores steps with a model in this process, with one forward pass per batch."""

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..._trl import get_config_model_id
from ...functional.step_losses import step_log_odds
from ...steps import clean_step, split_steps
from ..collator import DataCollatorForStepLabels, padding_id
from ..encoding import EncodedSolution, encode_solutions
from ..heads import refuse_virtual_tokens
from ..prm_format import FormatTokenIds, PRMFormat
from ..step_logits import step_logits
from .backend import SolutionTooLong


logger = logging.getLogger(__name__)
_HAS_WARNED: set[str] = set()  # warnings that were logged, each once per process


class Plan(NamedTuple):
    """
    The batches of a call.

    Attributes:
        batches (`list[list[EncodedSolution]]`):
            The encoded solutions of each batch. Solutions that get no scores are in no batch.
        rows (`list[list[int]]`):
            The index of each of these solutions in the call.
        num_solutions (`int`):
            Number of solutions of the call.
    """

    batches: list[list[EncodedSolution]]
    rows: list[list[int]]
    num_solutions: int

    def in_order(self, scored: Iterable[list[list[float]]]) -> list[list[float]]:
        """Returns the scores of all solutions in the order of the call, given the scores of each batch."""
        scores: list[list[float]] = [[] for _ in range(self.num_solutions)]
        for rows, batch_scores in zip(self.rows, scored, strict=True):
            for row, step_scores in zip(rows, batch_scores, strict=True):
                scores[row] = step_scores
        return scores


class LocalBackend:
    """
    A [`ScoringBackend`] whose model is in this process.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The reward model, on its device. It is put into evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        prm_format ([`PRMFormat`]):
            Format of the model.
        batch_size (`int`, *optional*, defaults to `32`):
            Maximum number of solutions per batch. Solutions are sorted by length first.
        max_batch_tokens (`int`, *optional*):
            Maximum number of tokens per batch, including padding. A longer solution is scored in its own batch.
        log_odds (`Callable`, *optional*):
            Function from a batch of [`DataCollatorForStepLabels`] on the model's device to the log-odds of all its
            steps. Defaults to one forward pass of the model with the format's head.

    Raises:
        `ValueError`: if the tokenizer does not know a token of the format, or if an adapter inserts virtual tokens
            before the text.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        prm_format: PRMFormat,
        *,
        batch_size: int = 32,
        max_batch_tokens: int | None = None,
        log_odds: Callable[[dict[str, Tensor]], Tensor] | None = None,
    ):
        refuse_virtual_tokens(model, "Scoring")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.prm_format = prm_format
        self.batch_size, self.max_batch_tokens = batch_size, max_batch_tokens
        self.token_ids = prm_format.token_ids(tokenizer)
        self._collate = DataCollatorForStepLabels(padding_id(tokenizer))
        self._log_odds = log_odds or self._log_odds_of_model

    @property
    def model_name(self) -> str:
        """Folder or Hub id of the model."""
        return get_config_model_id(self.model.config)

    @property
    def context_length(self) -> int | None:
        """The model's context length in tokens, or `None` if its configuration has no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def weights(self) -> nn.Module:
        """The model."""
        return self.model

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool = False
    ) -> list[list[float]]:
        """Scores every step; see [`ScoringBackend.score`]."""
        plan = self.plan(questions, steps, skip_too_long)
        return plan.in_order(self.score_batches(plan.batches))

    def plan(self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool) -> Plan:
        """
        Encodes solutions and divides them into batches, shortest first.

        Raises:
            [`SolutionTooLong`]: if a solution exceeds the model's context and `skip_too_long` is `False`.
        """
        encoded = encode_for_scoring(self.tokenizer, self.prm_format, questions, steps)
        kept = solutions_to_score(encoded, self.context_length, skip_too_long)
        rows: list[list[int]] = []
        for index in sorted(kept, key=lambda index: len(encoded[index].input_ids)):
            tokens = (len(rows[-1]) + 1) * len(encoded[index].input_ids) if rows else 0
            too_many = self.max_batch_tokens is not None and tokens > self.max_batch_tokens
            if not rows or too_many or len(rows[-1]) == self.batch_size:
                rows.append([])
            rows[-1].append(index)
        return Plan([[encoded[index] for index in batch] for batch in rows], rows, len(encoded))

    @torch.no_grad()
    def score_batches(self, batches: Sequence[list[EncodedSolution]]) -> list[list[list[float]]]:
        """Scores the steps of encoded solutions. The scores of all batches are copied to the host together, so that an
        accelerator does not wait between batches."""
        log_odds = [self._log_odds(self.collate(batch)) for batch in batches]
        scores = iter(torch.cat(log_odds).sigmoid().tolist() if log_odds else [])
        return [[list(islice(scores, len(solution.step_positions))) for solution in batch] for batch in batches]

    def collate(self, encoded: list[EncodedSolution]) -> dict[str, Tensor]:
        """Returns encoded solutions as a batch of [`DataCollatorForStepLabels`] on the model's device."""
        examples = [
            {
                "input_ids": solution.input_ids,
                "step_positions": solution.step_positions,
                "step_labels": [0.0] * len(solution.step_positions),
                "prompt_length": solution.prompt_length,
            }
            for solution in encoded
        ]
        # A model that accelerate offloads is on the meta device. Its hooks move the inputs to the right device.
        device = "cpu" if self.model.device.type == "meta" else self.model.device
        batch = self._collate(examples)
        if self.model.device.type == "cuda":  # otherwise the device waits for each copy
            batch = {key: value.pin_memory() for key, value in batch.items()}
        return {key: value.to(device, non_blocking=True) for key, value in batch.items()}

    def _log_odds_of_model(self, batch: dict[str, Tensor]) -> Tensor:
        return log_odds_at_head(self.model, self.model, self.prm_format.head, self.token_ids, batch)


def scores_of_classes(logits: Tensor) -> list[float]:
    """Step scores from the logits of a token classification model: of shape (steps, 1), or (steps, 2) with the class
    "good" last."""
    return step_log_odds(logits.flip(-1)).sigmoid().tolist()


def encode_for_scoring(
    tokenizer, prm_format: PRMFormat, questions: Sequence[str], steps: Sequence[Sequence[str]]
) -> list[EncodedSolution]:
    """
    Encodes solutions as [`encode_solutions`] does. The first step with a separator at which the format's splitter
    would split it, or which it would remove, is logged once per process.
    """
    encoded = encode_solutions(tokenizer, prm_format, questions, steps)
    for index, solution in enumerate(encoded if not _HAS_WARNED else ()):
        if (inside := solution.separator_inside) is None:
            continue
        step, splitter = steps[index][inside], prm_format.splitter
        is_one = len(split_steps(step, splitter)) == 1 and clean_step(step, splitter).strip() == step.strip()
        if not is_one and splitter != "raw_lines":
            _HAS_WARNED.add("separator")
            logger.warning(
                "steps: step %d of solution %d contains the reward model's separator. ERPRMTrainer trains on no such "
                "step, so its scores may be wrong. Pass steps without separators. For rows of a RolloutDataset, use "
                "score_rollouts, or clean_steps(row.steps, splitter).",
                inside,
                index,
            )
            break
    return encoded


def solutions_to_score(encoded: list[EncodedSolution], context: int | None, skip_too_long: bool) -> list[int]:
    """
    Returns the indices of the solutions that have steps and fit the context.

    Args:
        encoded (`list[EncodedSolution]`):
            Encoded solutions.
        context (`int` or `None`):
            Maximum length in tokens, or `None` without a limit.
        skip_too_long (`bool`):
            Whether to leave out a solution that is too long, instead of raising an error.

    Raises:
        [`SolutionTooLong`]: if a solution is too long and `skip_too_long` is `False`.
    """
    kept = []
    for index, solution in enumerate(encoded):
        if context is None or len(solution.input_ids) <= context:
            kept += [index] if solution.step_positions else []
        elif not skip_too_long:
            raise SolutionTooLong(
                index,
                f"has {len(solution.input_ids)} tokens, expected at most the model's context of {context}. "
                "Shorten the solution, or leave it out.",
            )
    return kept


def log_odds_at_head(
    engine: nn.Module, model: nn.Module, head: str, token_ids: FormatTokenIds, batch: dict[str, Tensor]
) -> Tensor:
    """
    Log-odds of all steps of a batch, from one forward pass.

    Args:
        engine (`torch.nn.Module`):
            Runs the forward pass: the model, or the DeepSpeed engine around it.
        model (`torch.nn.Module`):
            The transformers or PEFT model inside `engine`.
        head (`str`):
            The format's head.
        token_ids ([`FormatTokenIds`]):
            Ids of the format's tokens.
        batch (`dict[str, torch.Tensor]`):
            A batch of [`DataCollatorForStepLabels`].

    Returns:
        `torch.Tensor`: float32 of shape (number of steps,), in the order of `step_positions[step_mask]`.
    """
    names = ("input_ids", "attention_mask", "step_positions", "step_mask")
    inputs = (batch[name] for name in names)
    return step_log_odds(
        step_logits(engine, head, token_ids, *inputs, unwrapped=model, step_index=batch.get("step_index"))
    )
