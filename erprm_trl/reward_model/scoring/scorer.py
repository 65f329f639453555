"""Step scores from any backend: [`StepScorer`].

Selection, guided search, policy training and the scoring server all call it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ...functional.aggregation import aggregate
from ...io.text_lists import check_text_lists, check_texts
from ...steps import clean_steps, split_steps
from ..prm_format import FormatTokenIds, PRMFormat
from .backend import CollectiveBackend, ScoringBackend, SolutionTooLong
from .loading import backend_of, load_backend


if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

_MEMBERS = ("score", "prm_format", "model_name", "context_length", "weights")


class StepScorer:
    """
    Scores the steps of solutions.

    Checks what it gets, scores equal solutions once, splits texts into steps and aggregates step scores. A
    [`ScoringBackend`] computes the scores: a model in this process ([`LocalBackend`], [`ImplicitBackend`]), a model
    that is split over the processes of a training ([`ShardedBackend`]), a server ([`RemoteBackend`]), or a class of
    yours, with [`StepScorer.from_backend`].

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The reward model, on its device.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prm_format ([`PRMFormat`]):
            Its format.
        batch_size (`int`, *optional*, defaults to `32`):
            Maximum number of solutions per batch. Solutions are sorted by length first.
        max_batch_tokens (`int`, *optional*):
            Maximum number of tokens per batch, padding included. A longer solution is a batch of its own.
        reference_model ([`~transformers.PreTrainedModel`], *optional*):
            The reference model, on the same device, which `head="implicit"` needs.

    Raises:
        `ValueError`: if the tokenizer does not know a token of the format, an adapter puts virtual tokens before the
            text, or the reference model is missing.

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
        limits = {"batch_size": batch_size, "max_batch_tokens": max_batch_tokens}
        self.backend: ScoringBackend = backend_of(model, tokenizer, prm_format, reference_model, **limits)

    @classmethod
    def from_backend(cls, backend: ScoringBackend) -> "StepScorer":
        """
        A scorer over a backend: one of ours with options of its own, or a class of yours; see [`ScoringBackend`].

        Raises:
            `TypeError`: if the backend lacks one of the protocol's members.
        """
        missing = [name for name in _MEMBERS if not hasattr(backend, name)]
        if missing:
            raise TypeError(
                f"StepScorer: got a {type(backend).__name__} without {', '.join(missing)}, expected a StepScorer or a "
                "ScoringBackend. Add the missing members; see erprm_trl.reward_model.scoring.ScoringBackend."
            )
        scorer = cls.__new__(cls)
        scorer.backend = backend
        return scorer

    @classmethod
    def of(cls, scorer: "StepScorer | ScoringBackend") -> "StepScorer":
        """The scorer itself, or a scorer over a backend; see [`StepScorer.from_backend`]."""
        return scorer if isinstance(scorer, StepScorer) else cls.from_backend(scorer)

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
                Folder or Hub id, or the address of a scoring server, `"http://host:8100"`: see [`RemoteBackend`].
                The server decides where its model is and how large batches are: `device`, `batch_size` and
                `max_batch_tokens` are then ignored, and the other arguments are errors.
            prm_format ([`PRMFormat`] or `str`, *optional*):
                The format or the name of a preset ([`PRMFormat.preset`]). Defaults to the model's own
                `prm_format.json`.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
                Dtype of the weights. Scores are float32 with any dtype.
            device (`str` or `torch.device`, *optional*):
                Defaults to the first accelerator, else the CPU. Not with `device_map`.
            device_map (`str` or `dict`, *optional*):
                Accelerate's placement of a model over several devices, e.g. `"auto"`.
            batch_size, max_batch_tokens (*optional*):
                See [`StepScorer`].
            revision, trust_remote_code (*optional*):
                As usual. No preset needs `trust_remote_code`.
            accelerator ([`~accelerate.Accelerator`], *optional*):
                The accelerator of a ZeRO-3 training, whose processes then share the model: see [`ShardedBackend`].
                Not with `device` and `device_map`. The weights have the training's dtype.

        Raises:
            `FileNotFoundError`: if there is no `prm_format.json` and no `prm_format` is given, or if an adapter's base
                model is not at the place that the adapter names.
            `ValueError`: if an accelerator is given that does not train by ZeRO-3, or an address with arguments of
                loading; if the tokenizer does not know the format's tokens, or gives other ids than the model was
                trained with; if the checkpoint lacks weights, its head for example; if transformers has no model of
                the architecture with the head; if an adapter puts virtual tokens before the text; if an implicit
                reward model has no `reference_model` in its format, or is to be split.
            `ImportError`: if the tokenizer needs the package `sentencepiece`, which is missing.
        """
        return cls.from_backend(
            load_backend(
                path_or_id,
                prm_format=prm_format,
                dtype=dtype,
                device=device,
                device_map=device_map,
                batch_size=batch_size,
                max_batch_tokens=max_batch_tokens,
                revision=revision,
                trust_remote_code=trust_remote_code,
                accelerator=accelerator,
            )
        )

    @property
    def prm_format(self) -> PRMFormat:
        """The reward model's format."""
        return self.backend.prm_format

    @property
    def model_name(self) -> str:
        """The model's folder or Hub id, for manifests."""
        return self.backend.model_name

    @property
    def context_length(self) -> int | None:
        """The longest solution in tokens, the question included, or `None` where the model sets no limit."""
        return self.backend.context_length

    @property
    def weights(self) -> nn.Module | None:
        """The model, or `None` where it is not in this process."""
        return self.backend.weights

    @property
    def model(self):
        """The model. Backends without one in this process have no such attribute; see [`StepScorer.weights`]."""
        return self.backend.model

    @property
    def reference_model(self):
        """The reference model of `head="implicit"`, otherwise `None`."""
        return getattr(self.backend, "reference_model", None)

    @property
    def tokenizer(self):
        """The tokenizer of a model in this process."""
        return self.backend.tokenizer

    @property
    def token_ids(self) -> FormatTokenIds:
        """Ids of the format's tokens in the tokenizer of a model in this process."""
        return self.backend.token_ids

    @property
    def batch_size(self) -> int:
        """Maximum number of solutions per batch of a model in this process."""
        return self.backend.batch_size

    @property
    def max_batch_tokens(self) -> int | None:
        """Maximum number of tokens per batch of a model in this process."""
        return self.backend.max_batch_tokens

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], *, skip_too_long: bool = False
    ) -> list[list[float]]:
        """
        Scores of every step.

        Args:
            questions (`Sequence[str]`):
                One question per solution.
            steps (`Sequence[Sequence[str]]`):
                Steps of each solution, without separators.
            skip_too_long (`bool`, *optional*, defaults to `False`):
                Give no scores to a solution that exceeds the model's context, instead of an error.

        Returns:
            `list[list[float]]`: one score in [0, 1] per step, computed in float32. A solution without steps has none.

        Raises:
            `ValueError`: if the two differ in length, a solution exceeds the model's context (the error names its
                index), or the backend gives another number of scores.
            `TypeError`: if a string is given where a list belongs, or something else for a string (the error names
                the argument and the row).
        """
        with self._others_told():
            solutions = _solutions(questions, steps)
            distinct = list(dict.fromkeys(solutions))
        try:
            scores = self.backend.score(
                [question for question, _ in distinct],
                [solution_steps for _, solution_steps in distinct],
                skip_too_long=skip_too_long,
            )
        except SolutionTooLong as error:  # the backend counts distinct solutions, the caller all of them
            raise SolutionTooLong(solutions.index(distinct[error.index]), error.reason) from None
        self._check_scores(scores, distinct, solutions, skip_too_long)
        scores_of = dict(zip(distinct, scores, strict=True))
        return [list(scores_of[solution]) for solution in solutions]

    def score_texts(self, questions: Sequence[str], completions: Sequence[str]) -> list[list[float]]:
        """Scores of the steps of raw texts, split as the format says; see [`StepScorer.score`]."""
        with self._others_told():
            check_texts("completions", completions)
            steps = [self.split(completion) for completion in completions]
        return self.score(questions, steps)

    def score_solutions(self, questions: Sequence[str], steps: Sequence[Sequence[str]]) -> list[float]:
        """One score per solution, aggregated as the format says. A solution without steps is an error."""
        return aggregate(self.score(questions, steps), self.prm_format.aggregation).tolist()

    def split(self, completion: str) -> list[str]:
        """Steps of a raw text, split as the format says."""
        splitter = self.prm_format.splitter
        return clean_steps(split_steps(completion, splitter, self.prm_format.steps_of), splitter)

    @contextmanager
    def _others_told(self) -> Iterator[None]:
        """An error in here is an error on all processes that share the backend."""
        try:
            yield
        except Exception:
            if isinstance(self.backend, CollectiveBackend):
                self.backend.give_up()
            raise

    def _check_scores(self, scores, distinct, solutions, skip_too_long: bool) -> None:
        name = f"{type(self.backend).__name__}.score"
        if len(scores) != len(distinct):
            raise ValueError(
                f"{name}: got {len(scores)} lists of scores for {len(distinct)} solutions, expected one per solution. "
                "Correct the backend."
            )
        for step_scores, solution in zip(scores, distinct, strict=True):
            num_steps = len(solution[1])
            if len(step_scores) == num_steps or (skip_too_long and not len(step_scores)):
                continue
            index = solutions.index(solution)
            if not len(step_scores):
                raise SolutionTooLong(
                    index, f"got no scores from {name}: it is too long. Shorten or leave out the solution."
                )
            raise ValueError(
                f"{name}: got {len(step_scores)} scores for the {num_steps} steps of solution {index}, expected one "
                "per step. Correct the backend."
            )


def _solutions(questions: Sequence[str], steps: Sequence[Sequence[str]]) -> list[tuple[str, tuple[str, ...]]]:
    check_texts("questions", questions)
    check_text_lists("steps", steps)
    if len(questions) != len(steps):
        raise ValueError(
            f"score: got {len(questions)} questions for {len(steps)} solutions, expected one question per solution."
        )
    return [(question, tuple(solution_steps)) for question, solution_steps in zip(questions, steps, strict=True)]


def solution_scores(step_scores: Sequence[Sequence[float]], aggregation: str) -> list[float | None]:
    """One score per solution, `None` where it has no step scores."""
    aggregated = iter(aggregate([scores for scores in step_scores if scores], aggregation).tolist())
    return [next(aggregated) if scores else None for scores in step_scores]
