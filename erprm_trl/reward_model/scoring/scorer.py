"""Step scores from a trained process reward model, in batches. It reads solutions exactly as training did."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer

from ..._trl import get_config_model_id
from ...functional.aggregation import aggregate
from ...functional.step_losses import step_log_odds
from ...io.file_checks import check_model_folder
from ...io.http_client import is_url
from ...steps import clean_steps, split_steps
from ..collator import DataCollatorForStepLabels
from ..encoding import EncodedSolution, encode_solutions
from ..prm_format import PRMFormat, resolve_format
from ..step_logits import step_logits
from .implicit import implicit_log_odds
from .loading import load_reference_model, load_reward_model, unpartitioned


if TYPE_CHECKING:
    from accelerate import Accelerator


class StepScorer:
    """
    Scores the steps of solutions.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The reward model, on its device.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prm_format ([`PRMFormat`]):
            Its format.
        batch_size (`int`, *optional*, defaults to `32`):
            Solutions a batch at most; they are sorted by length first, and equal ones are scored once.
        max_batch_tokens (`int`, *optional*):
            Tokens a batch at most, padding included; what is longer is a batch by itself.
        reference_model ([`~transformers.PreTrainedModel`], *optional*):
            The reference model, on the same device, which `head="implicit"` needs.

    Raises:
        `ValueError`: if a token of the format is not one id, or the reference model is missing.

    Example:

    ```python
    >>> scorer = StepScorer.from_pretrained("outputs/my-erprm")
    >>> scorer.score(["What is 2 + 3?"], [["2 + 3 = 5", "The answer is 5."]])
    [[0.98, 0.97]]
    ```
    """

    def __init__(
        self,
        model,
        tokenizer,
        prm_format: PRMFormat,
        *,
        batch_size: int = 32,
        max_batch_tokens: int | None = None,
        reference_model=None,
    ):
        if prm_format.head == "implicit" and reference_model is None:
            raise ValueError(
                "StepScorer: got head='implicit' and no reference_model, expected the model that the reward model was "
                "trained against. Name it in PRMFormat(reference_model=...) and load with from_pretrained."
            )
        self.reference_model = None if reference_model is None else reference_model.eval()
        self.model = self._engine = model.eval()
        self.tokenizer = tokenizer
        self.prm_format = prm_format
        self.batch_size, self.max_batch_tokens = batch_size, max_batch_tokens
        self.token_ids = prm_format.token_ids(tokenizer)
        pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._collate = DataCollatorForStepLabels(pad_token_id)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        prm_format: PRMFormat | str | None = None,
        dtype: "str | torch.dtype" = "auto",
        device: "str | torch.device | None" = None,
        device_map: "str | dict[str, Any] | None" = None,
        batch_size: int = 32,
        max_batch_tokens: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        accelerator: "Accelerator | None" = None,
    ) -> "StepScorer":
        """
        Loads a model that [`ERPRMTrainer`] saved, a LoRA adapter included, or, with a preset, a public one:
        `StepScorer.from_pretrained("Qwen/Qwen2.5-Math-PRM-7B", prm_format="qwen2.5-math-prm")`.

        Args:
            path_or_id (`str` or `Path`):
                Folder or Hub id, or the address of a scoring server, `"http://host:8100"`: see [`RemoteStepScorer`].
                The server decides where its model lies and in what batches: `device`, `batch_size` and
                `max_batch_tokens` then say nothing, and the other arguments are errors.
            prm_format ([`PRMFormat`] or `str`, *optional*):
                The format or the name of a preset ([`PRMFormat.preset`]). Defaults to the model's own
                `prm_format.json`.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
                Dtype of the weights. Scores are float32 whatever it is.
            device (`str` or `torch.device`, *optional*):
                Defaults to the first accelerator, else the CPU. Not with `device_map`.
            device_map (`str` or `dict`, *optional*):
                Accelerate's placement of a model over several devices, e.g. `"auto"`.
            batch_size, max_batch_tokens (*optional*):
                See [`StepScorer`].
            revision, trust_remote_code (*optional*):
                As usual. No preset needs `trust_remote_code`.
            accelerator ([`~accelerate.Accelerator`], *optional*):
                Of a ZeRO-3 training: its processes then share the model, see [`ShardedStepScorer`]. Not with `device`
                and `device_map`; the weights have the training's dtype.

        Raises:
            `FileNotFoundError`: if there is no `prm_format.json` and no `prm_format` is given.
            `ValueError`: if an accelerator is given that does not train by ZeRO-3, or an address with arguments of
                loading; if the checkpoint lacks weights, its head for example; if an implicit reward model has no
                `reference_model` in its format, or is to be split.
        """
        if is_url(path_or_id):
            from .remote import RemoteStepScorer, refuse_loading

            refuse_loading(
                prm_format=prm_format,
                dtype=None if dtype == "auto" else dtype,
                device_map=device_map,
                revision=revision,
                trust_remote_code=trust_remote_code,
                accelerator=accelerator,
            )
            return RemoteStepScorer(path_or_id)
        path_or_id = str(path_or_id)
        check_model_folder(path_or_id)
        prm_format = resolve_format(prm_format, path_or_id, revision)
        kwargs: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "revision": revision}
        kwargs["trust_remote_code"] = trust_remote_code
        tokenizer = AutoTokenizer.from_pretrained(path_or_id, revision=revision, trust_remote_code=trust_remote_code)
        if accelerator is not None:
            from .sharded import ShardedStepScorer, check_sharding

            check_sharding(path_or_id, accelerator, prm_format, revision)
            model = load_reward_model(path_or_id, prm_format, kwargs)
            return ShardedStepScorer(
                model, tokenizer, prm_format, accelerator, batch_size=batch_size, max_batch_tokens=max_batch_tokens
            )
        with unpartitioned():
            reference_model = load_reference_model(prm_format, kwargs)
            model = load_reward_model(path_or_id, prm_format, kwargs)
        if device_map is None:
            accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
            device = device if device is not None else accelerator
            model = model.to(device)
            reference_model = None if reference_model is None else reference_model.to(device)
        return cls(
            model,
            tokenizer,
            prm_format,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            reference_model=reference_model,
        )

    @property
    def model_name(self) -> str:
        """The model's folder or Hub id, for manifests."""
        return get_config_model_id(self.model.config)

    @property
    def context_length(self) -> int | None:
        """The longest solution in tokens, the question included, or `None` where the model sets no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], *, skip_too_long: bool = False
    ) -> list[list[float]]:
        """
        Scores of every step.

        Args:
            questions (`Sequence[str]`):
                One question a solution.
            steps (`Sequence[Sequence[str]]`):
                Steps of each solution, without separators.
            skip_too_long (`bool`, *optional*, defaults to `False`):
                Give no scores to a solution that exceeds the model's context, instead of an error.

        Returns:
            `list[list[float]]`: one score in [0, 1] a step, computed in float32. A solution without steps has none.

        Raises:
            `ValueError`: if the two differ in length, or a solution exceeds the model's context.
        """
        if len(questions) != len(steps):
            raise ValueError(
                f"score: got {len(questions)} questions for {len(steps)} solutions, expected one question a solution."
            )
        solutions = [(question, tuple(some)) for question, some in zip(questions, steps, strict=True)]
        distinct = list(dict.fromkeys(solutions))
        scores: list[list[float]] = [[] for _ in distinct]
        encoded = encode_solutions(
            self.tokenizer, self.prm_format, [question for question, _ in distinct], [some for _, some in distinct]
        )
        context = self.context_length
        too_long = {i for i, one in enumerate(encoded) if context is not None and len(one.input_ids) > context}
        if too_long and not skip_too_long:
            index = min(too_long)
            raise ValueError(
                f"Solution {solutions.index(distinct[index])} has {len(encoded[index].input_ids)} tokens, more than "
                f"the model's context of {context}. Shorten or leave out the solution."
            )
        kept = [i for i, one in enumerate(encoded) if one.step_positions and i not in too_long]
        batches = self._batches(kept, encoded)
        scored = self._score_batches([[encoded[i] for i in batch] for batch in batches])
        for batch, values in zip(batches, scored, strict=True):
            for index, one in zip(batch, values, strict=True):
                scores[index] = one
        found = dict(zip(distinct, scores, strict=True))
        return [list(found[solution]) for solution in solutions]

    def score_texts(self, questions: Sequence[str], completions: Sequence[str]) -> list[list[float]]:
        """Scores of the steps of raw texts, split as the format says; see [`StepScorer.score`]."""
        return self.score(questions, [self.split(completion) for completion in completions])

    def score_solutions(self, questions: Sequence[str], steps: Sequence[Sequence[str]]) -> list[float]:
        """One score a solution: the format's aggregation of its step scores. A solution without steps is an error."""
        return aggregate(self.score(questions, steps), self.prm_format.aggregation).tolist()

    def split(self, completion: str) -> list[str]:
        """Steps of a raw text, as the format's splitter cuts it."""
        splitter = self.prm_format.splitter
        return clean_steps(split_steps(completion, splitter), splitter)

    def _batches(self, indices: list[int], encoded: list[EncodedSolution]) -> list[list[int]]:
        batches: list[list[int]] = []
        for index in sorted(indices, key=lambda index: len(encoded[index].input_ids)):
            tokens = (len(batches[-1]) + 1) * len(encoded[index].input_ids) if batches else 0
            too_many = self.max_batch_tokens is not None and tokens > self.max_batch_tokens
            if not batches or too_many or len(batches[-1]) == self.batch_size:
                batches.append([])
            batches[-1].append(index)
        return batches

    def _score_batches(self, batches: list[list[EncodedSolution]]) -> Iterator[list[list[float]]]:
        return map(self._score_batch, batches)

    @torch.no_grad()
    def _score_batch(self, encoded: list[EncodedSolution]) -> list[list[float]]:
        examples = [
            {
                "input_ids": one.input_ids,
                "step_positions": one.step_positions,
                "step_labels": [0.0] * len(one.step_positions),
                "prompt_length": one.prompt_length,
            }
            for one in encoded
        ]
        # A model that accelerate offloads lies on the meta device; its hooks bring inputs to where it runs.
        device = "cpu" if self.model.device.type == "meta" else self.model.device
        batch = {key: value.to(device) for key, value in self._collate(examples).items()}
        counts = batch["step_mask"].sum(-1).tolist()
        return [values.tolist() for values in self._log_odds(batch).sigmoid().split(counts)]

    def _log_odds(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        text = (batch["input_ids"], batch["attention_mask"])
        steps = (batch["step_positions"], batch["step_mask"])
        if self.prm_format.head == "implicit":
            return implicit_log_odds(
                self.model,
                self.reference_model,
                *text,
                batch["prompt_lengths"],
                *steps,
                beta=self.prm_format.beta,
                cumulative=self.prm_format.cumulative,
            )
        logits = step_logits(self._engine, self.prm_format.head, self.token_ids, *text, *steps, unwrapped=self.model)
        return step_log_odds(logits)


def solution_scores(step_scores: Sequence[Sequence[float]], aggregation: str) -> list[float | None]:
    """One score a solution, `None` where it has no step scores."""
    aggregated = iter(aggregate([scores for scores in step_scores if scores], aggregation).tolist())
    return [next(aggregated) if scores else None for scores in step_scores]
