"""Step scores from a trained process reward model, in batches. It reads solutions exactly as training did."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer

from .._trl import get_config_model_id
from ..functional.aggregation import aggregate
from ..functional.step_losses import step_log_odds
from ..rollouts.endpoint_client import is_url
from ..rollouts.steps import clean_steps, split_steps
from .collator import DataCollatorForStepLabels
from .encoding import EncodedSolution, encode_solutions
from .model_setup import AUTO_MODELS
from .prm_format import PRMFormat
from .step_logits import step_logits


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
            Solutions a batch; they are sorted by length first.

    Example:

    ```python
    >>> scorer = StepScorer.from_pretrained("outputs/my-erprm")
    >>> scorer.score(["What is 2 + 3?"], [["2 + 3 = 5", "The answer is 5."]])
    [[0.98, 0.97]]
    ```
    """

    def __init__(self, model, tokenizer, prm_format: PRMFormat, *, batch_size: int = 32):
        self.model = self._engine = model.eval()
        self.tokenizer = tokenizer
        self.prm_format = prm_format
        self.batch_size = batch_size
        self.token_ids = prm_format.token_ids(tokenizer)
        pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._collate = DataCollatorForStepLabels(pad_token_id)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        prm_format: PRMFormat | None = None,
        dtype: "str | torch.dtype" = "auto",
        device: "str | torch.device | None" = None,
        device_map: "str | dict[str, Any] | None" = None,
        batch_size: int = 32,
        revision: str | None = None,
        trust_remote_code: bool = False,
        accelerator: "Accelerator | None" = None,
    ) -> "StepScorer":
        """
        Loads a model that [`ERPRMTrainer`] saved, a LoRA adapter included.

        Args:
            path_or_id (`str` or `Path`):
                Folder or Hub id, or the address of a scoring server, `"http://host:8100"`: see [`RemoteStepScorer`].
                The server decides where its model lies and in what batches: `device` and `batch_size` then say
                nothing, and the other arguments are errors.
            prm_format ([`PRMFormat`], *optional*):
                Defaults to the model's own `prm_format.json`.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
                Dtype of the weights. Scores are float32 whatever it is.
            device (`str` or `torch.device`, *optional*):
                Defaults to the first accelerator, else the CPU. Not with `device_map`.
            device_map (`str` or `dict`, *optional*):
                Accelerate's placement of a model over several devices, e.g. `"auto"`.
            batch_size, revision, trust_remote_code (*optional*):
                As usual.
            accelerator ([`~accelerate.Accelerator`], *optional*):
                Of a ZeRO-3 training: its processes then share the model, see [`ShardedStepScorer`]. Not with `device`
                and `device_map`; the weights have the training's dtype.

        Raises:
            `FileNotFoundError`: if there is no `prm_format.json` and no `prm_format` is given.
            `ValueError`: if an accelerator is given that does not train by ZeRO-3, or an address with arguments of
                loading.
        """
        if is_url(path_or_id):
            from .remote_scoring import RemoteStepScorer, refuse_loading

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
        prm_format = prm_format or PRMFormat.load(path_or_id, revision)
        kwargs: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "revision": revision}
        kwargs["trust_remote_code"] = trust_remote_code
        if prm_format.head == "token":
            kwargs["num_labels"] = 1
        tokenizer = AutoTokenizer.from_pretrained(path_or_id, revision=revision, trust_remote_code=trust_remote_code)
        if accelerator is not None:
            from .sharded_scoring import ShardedStepScorer, check_sharding

            check_sharding(path_or_id, accelerator)
            model = _load_model(path_or_id, prm_format.head, kwargs)
            return ShardedStepScorer(model, tokenizer, prm_format, accelerator, batch_size=batch_size)
        with _unpartitioned():
            model = _load_model(path_or_id, prm_format.head, kwargs)
        if device_map is None:
            accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
            model = model.to(device if device is not None else accelerator)
        return cls(model, tokenizer, prm_format, batch_size=batch_size)

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
        scores: list[list[float]] = [[] for _ in steps]
        encoded = encode_solutions(self.tokenizer, self.prm_format, questions, steps)
        context = self.context_length
        too_long = {i for i, one in enumerate(encoded) if context is not None and len(one.input_ids) > context}
        if too_long and not skip_too_long:
            index = min(too_long)
            raise ValueError(
                f"Solution {index} has {len(encoded[index].input_ids)} tokens, more than the model's context of "
                f"{context}. Shorten or leave out the solution."
            )
        order = [i for i in range(len(steps)) if encoded[i].step_positions and i not in too_long]
        order.sort(key=lambda index: len(encoded[index].input_ids))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        scored = self._score_batches([[encoded[i] for i in batch] for batch in batches])
        for batch, values in zip(batches, scored, strict=True):
            for index, one in zip(batch, values, strict=True):
                scores[index] = one
        return scores

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

    def _score_batches(self, batches: list[list[EncodedSolution]]) -> Iterator[list[list[float]]]:
        return map(self._score_batch, batches)

    @torch.no_grad()
    def _score_batch(self, encoded: list[EncodedSolution]) -> list[list[float]]:
        examples = [
            {
                "input_ids": one.input_ids,
                "step_positions": one.step_positions,
                "step_labels": [0.0] * len(one.step_positions),
            }
            for one in encoded
        ]
        # A model that accelerate offloads lies on the meta device; its hooks bring inputs to where it runs.
        device = "cpu" if self.model.device.type == "meta" else self.model.device
        batch = {key: value.to(device) for key, value in self._collate(examples).items()}
        logits = step_logits(
            self._engine,
            self.prm_format.head,
            self.token_ids,
            batch["input_ids"],
            batch["attention_mask"],
            batch["step_positions"],
            batch["step_mask"],
            unwrapped=self.model,
        )
        counts = batch["step_mask"].sum(-1).tolist()
        return [values.tolist() for values in step_log_odds(logits).sigmoid().split(counts)]


def solution_scores(step_scores: Sequence[Sequence[float]], aggregation: str) -> list[float | None]:
    """One score a solution, `None` where it has no step scores."""
    aggregated = iter(aggregate([scores for scores in step_scores if scores], aggregation).tolist())
    return [next(aggregated) if scores else None for scores in step_scores]


@contextmanager
def _unpartitioned() -> Iterator[None]:
    # While ZeRO-3 trains a policy in this process, transformers splits the weights of every model that is loaded. A
    # scorer has no engine to gather them again: each process holds it whole.
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def _load_model(path_or_id: str, head: str, kwargs: dict[str, Any]):
    from peft.utils import CONFIG_NAME
    from transformers.utils import cached_file

    adapter = cached_file(
        path_or_id, CONFIG_NAME, revision=kwargs["revision"], _raise_exceptions_for_missing_entries=False
    )
    if adapter is None:
        return AUTO_MODELS[head].from_pretrained(path_or_id, **kwargs)
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForTokenClassification

    auto = {"lm": AutoPeftModelForCausalLM, "token": AutoPeftModelForTokenClassification}[head]
    return auto.from_pretrained(path_or_id, **kwargs)
