"""[`StepScorer`], which scores steps with any backend.

Selection, guided search, policy training and the scoring server all use it.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ...functional.aggregation import aggregate
from ...io.text_lists import check_text_lists, check_texts
from ...steps import clean_steps, split_steps, whole_characters
from ..prm_format import FormatTokenIds, PRMFormat
from .backend import CollectiveBackend, OutcomeBackend, ScoreOnlyBackend, ScoringBackend, SolutionTooLong
from .eta import as_number, format_at_eta, scores_at_eta
from .export import save_token_classifier
from .loading import backend_of, load_backend


if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_HAS_WARNED: set[str] = set()
_MEMBERS = ("score", "prm_format", "model_name", "context_length", "weights")


class StepScorer:
    """
    Scores the steps of solutions.

    A scorer checks its arguments, scores duplicate solutions once, splits texts into steps and aggregates step scores.
    Its [`ScoringBackend`] computes the scores: a model in this process ([`LocalBackend`], [`ImplicitBackend`]), a
    model that is sharded over the processes of a training run ([`ShardedBackend`]), an engine ([`VLLMBackend`]), a
    server ([`RemoteBackend`], [`EngineServerBackend`]), or your own class ([`StepScorer.from_backend`]).

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The reward model, on its device.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        prm_format ([`PRMFormat`]):
            Format of the model.
        batch_size (`int`, *optional*, defaults to `32`):
            Maximum number of solutions per batch. Solutions are sorted by length first.
        max_batch_tokens (`int`, *optional*):
            Maximum number of tokens per batch, including padding. A longer solution is scored in its own batch.
        reference_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference model on the same device. Only `head="implicit"` needs it.
        eta (`float`, *optional*):
            Eta at which the scores are read. By default, scores are returned as the model gives them, at the eta of
            its labels. Another eta is exact for rewards of 0 and 1. It needs a model that was trained at a finite eta,
            which its format records.

    Raises:
        `ValueError`: if the tokenizer does not know a token of the format, if an adapter inserts virtual tokens before
            the text, if the reference model is missing, or if the scores cannot be read at `eta`.

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
        eta: float | None = None,
    ):
        limits = {"batch_size": batch_size, "max_batch_tokens": max_batch_tokens}
        self._use(backend_of(model, tokenizer, prm_format, reference_model, **limits), eta)

    def _use(self, backend: ScoringBackend, eta: float | None, trained_eta: float | None = None) -> None:
        self.backend, self.eta, self._stated_eta = backend, as_number(eta), as_number(trained_eta)
        if eta is not None or trained_eta is not None:
            format_at_eta(backend.prm_format, eta, trained_eta)  # raises its errors

    @classmethod
    def from_backend(
        cls, backend: ScoringBackend, *, eta: float | None = None, trained_eta: float | None = None
    ) -> "StepScorer":
        """
        Returns a scorer over a backend. Use it to set a backend's options, or to score with your own class; see
        [`ScoringBackend`]. For `eta` and `trained_eta` see [`StepScorer.from_pretrained`].

        Raises:
            `TypeError`: if the backend lacks one of the protocol's members.
            `ValueError`: if the scores cannot be read at `eta`.
        """
        missing = [name for name in _MEMBERS if not hasattr(backend, name)]
        if missing:
            raise TypeError(
                f"StepScorer: got a {type(backend).__name__} without {', '.join(missing)}, expected a StepScorer or a "
                "ScoringBackend. Add the missing members; see erprm_trl.reward_model.scoring.ScoringBackend."
            )
        scorer = cls.__new__(cls)
        scorer._use(backend, eta, trained_eta)
        return scorer

    @classmethod
    def of(cls, scorer: "StepScorer | ScoringBackend") -> "StepScorer":
        """Returns the scorer itself, or a scorer over a backend (see [`StepScorer.from_backend`]) or over an object
        that only has `score(questions, steps)`."""
        if isinstance(scorer, StepScorer):
            return scorer
        score_only = hasattr(scorer, "score") and not isinstance(scorer, ScoringBackend)
        return cls.from_backend(ScoreOnlyBackend(scorer) if score_only else scorer)

    def at_eta(self, eta: float | None, trained_eta: float | None = None) -> "StepScorer":
        """
        Returns a scorer over the same backend that reads the scores at another eta, or as the model gives them if
        `eta` is `None`. For the arguments see [`StepScorer.from_pretrained`].

        Raises:
            `ValueError`: if the scores cannot be read at `eta`.
        """
        trained_eta = self._stated_eta if trained_eta is None else trained_eta
        return self.from_backend(self.backend, eta=eta, trained_eta=trained_eta)

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
        eta: float | None = None,
        trained_eta: float | None = None,
        backend: str = "local",
        tokenizer: str | Path | None = None,
    ) -> "StepScorer":
        """
        Loads a model or LoRA adapter that [`ERPRMTrainer`] saved, or a public reward model with its preset:
        `StepScorer.from_pretrained("Qwen/Qwen2.5-Math-PRM-7B", prm_format="qwen2.5-math-prm")`.

        Args:
            path_or_id (`str` or `Path`):
                Folder, Hub id, or address of a scoring server such as `"http://host:8100"` (see [`RemoteBackend`]) or
                of a vLLM or SGLang server (see [`EngineServerBackend`]). Or a scorer file, i.e. a `.yaml` file for a
                [`MonteCarloScorer`] or a [`JudgeScorer`]. The server or the file chooses the device and batch size.
                With an address or a scorer file, `device`, `batch_size` and `max_batch_tokens` are ignored, and the
                other arguments raise an error, except `prm_format` and `tokenizer` with a vLLM or SGLang server.
            prm_format ([`PRMFormat`] or `str`, *optional*):
                Format of the model, or the name of a preset ([`PRMFormat.preset`]). Defaults to the model's own
                `prm_format.json`.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
                Dtype of the weights. Scores are float32 with any dtype.
            device (`str` or `torch.device`, *optional*):
                Device of the model. Defaults to the first accelerator, else the CPU. It is not used with `device_map`.
            device_map (`str` or `dict`, *optional*):
                Accelerate's placement of a model over several devices, e.g. `"auto"`.
            batch_size, max_batch_tokens (*optional*):
                See [`StepScorer`].
            revision (`str`, *optional*):
                Revision of the model on the Hub.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether to run Python code from the model's repository. No preset needs it.
            accelerator ([`~accelerate.Accelerator`], *optional*):
                Accelerator of a ZeRO-3 training run, to shard the model over its processes (see [`ShardedBackend`]).
                `device` and `device_map` are not used then. The weights have the dtype of the training run.
            eta (`float`, *optional*):
                Eta at which the scores are read, see [`StepScorer`]. By default, scores are returned as the model
                gives them.
            trained_eta (`float`, *optional*):
                Eta of the labels that the model was trained on, if its format does not record it: 0 for a model whose
                scores are success rates.
            backend (`str`, *optional*, defaults to `"local"`):
                `"vllm"` loads the model into an offline vLLM engine in this process (see [`VLLMBackend`]), which
                chooses its device and batches itself.
            tokenizer (`str` or `Path`, *optional*):
                Folder or Hub id with the tokenizer and the format of the model on a vLLM or SGLang server, if the path
                that the server reports cannot be read here.

        Raises:
            `FileNotFoundError`: if `prm_format` is not set and the model has no `prm_format.json`, or if an adapter's
                base model is not at the path that the adapter records.
            `ValueError`: in these cases:

                - The accelerator does not train with ZeRO-3.
                - An address is combined with an argument for loading.
                - The tokenizer does not know the format's tokens, or has other ids than the model was trained with.
                - The checkpoint lacks weights, such as its head.
                - Transformers has no model of the architecture with the head.
                - An adapter inserts virtual tokens before the text.
                - An implicit reward model has no `reference_model` in its format, or is to be sharded.
                - The scores cannot be read at `eta`, because the eta of the labels is infinite or not known.
            `ImportError`: if the tokenizer needs the package `sentencepiece` and it is not installed, or for
                `backend="vllm"` without vLLM.
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
                backend=backend,
                tokenizer=tokenizer,
            ),
            eta=eta,
            trained_eta=trained_eta,
        )

    @property
    def prm_format(self) -> PRMFormat:
        """The reward model's format. Its `eta` is the eta of the scores."""
        return format_at_eta(self.backend.prm_format, self.eta, self._stated_eta)

    @property
    def trained_eta(self) -> float | None:
        """Eta of the labels that the model was trained on, `None` if it is not known."""
        return format_at_eta(self.backend.prm_format, None, self._stated_eta).eta

    @property
    def model_name(self) -> str:
        """The model's folder or Hub id, for manifests."""
        return self.backend.model_name

    @property
    def context_length(self) -> int | None:
        """Maximum length of a solution in tokens, including the question, or `None` without a limit."""
        return self.backend.context_length

    @property
    def weights(self) -> nn.Module | None:
        """The model, or `None` if it is not in this process."""
        return self.backend.weights

    @property
    def model(self):
        """The model. A backend without a model in this process has no such attribute; see [`StepScorer.weights`]."""
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
        self,
        questions: Sequence[str],
        steps: Sequence[Sequence[str]],
        *,
        skip_too_long: bool = False,
        eta: float | None = None,
    ) -> list[list[float]]:
        """
        Scores every step.

        Args:
            questions (`Sequence[str]`):
                One question per solution.
            steps (`Sequence[Sequence[str]]`):
                Steps of each solution, without separators.
            skip_too_long (`bool`, *optional*, defaults to `False`):
                Whether to return an empty list for a solution that exceeds the model's context, instead of raising an
                error.
            eta (`float`, *optional*):
                Eta at which the scores are read, see [`StepScorer`]. Defaults to the scorer's own `eta`.

        Returns:
            `list[list[float]]`: one score in [0, 1] per step, computed in float32. A solution without steps has an
            empty list.

        Raises:
            `ValueError`: if the numbers of questions and solutions differ, if a solution exceeds the model's context
                (the error names its index), if the backend returns a wrong number of scores, or if the scores cannot
                be read at `eta`.
            `TypeError`: if an argument is a string instead of a list, or an entry is not a string (the error names the
                argument and the row).
        """
        eta = self.eta if eta is None else as_number(eta)
        with self._stopping_other_processes():
            if eta is not None:
                format_at_eta(self.backend.prm_format, eta, self._stated_eta)  # raises its errors
            solutions = _solutions(questions, steps)
            distinct = list(dict.fromkeys(solutions))
        try:
            scores = self.backend.score(
                [question for question, _ in distinct],
                [solution_steps for _, solution_steps in distinct],
                skip_too_long=skip_too_long,
            )
        except SolutionTooLong as error:  # the backend's index counts only distinct solutions
            raise SolutionTooLong(solutions.index(distinct[error.index]), error.reason) from None
        self._check_scores(scores, distinct, solutions, skip_too_long)
        if eta is not None:
            scores = scores_at_eta(scores, self.trained_eta, eta)
        scores_of = dict(zip(distinct, scores, strict=True))
        return [list(scores_of[solution]) for solution in solutions]

    def score_texts(
        self, questions: Sequence[str], completions: Sequence[str], *, eta: float | None = None
    ) -> list[list[float]]:
        """Splits raw texts into steps by the format's splitter, and scores them; see [`StepScorer.score`]."""
        with self._stopping_other_processes():
            check_texts("completions", completions)
            steps = self.split_texts(completions)
        return self.score(questions, steps, eta=eta)

    def score_solutions(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], *, eta: float | None = None
    ) -> list[float]:
        """Returns one score per solution, by the format's aggregation. A solution without steps is an error."""
        return aggregate(self.score(questions, steps, eta=eta), self.prm_format.aggregation).tolist()

    def export_token_classifier(self, folder: str | Path) -> None:
        """
        Saves the reward model as an `AutoModelForTokenClassification`, which engines such as vLLM serve.

        The two classes are "bad" and "good", and the head has the rows of the bad and the good token of the
        language-model head. The scores are the same. Adapters are merged into the weights, which takes the memory of
        a second copy of the model. The tokenizer and a `prm_format.json` with `head="token"` and `num_labels=2` are
        saved in the same folder. A reward model with a token classification head is saved with its own head.

        Args:
            folder (`str` or `Path`):
                Folder for the exported model.

        Raises:
            `ValueError`: if the model is not in this process, if the folder has a model, or if the model has another
                kind of head, a quantized dtype, an adapter that cannot be merged, or an architecture without a token
                classification model with the same scores.
        """
        if self.weights is None:
            raise ValueError(
                f"export_token_classifier: got a {type(self.backend).__name__} without a model, expected a model in "
                "this process. Run erprm export --reward_model FOLDER --output_dir NEW_FOLDER where the model is."
            )
        save_token_classifier(copy.deepcopy(self.model), self.tokenizer, self.backend.prm_format, folder)

    def split(self, completion: str) -> list[str]:
        """Splits a raw text into steps by the format's splitter."""
        splitter = self.prm_format.splitter
        return clean_steps(split_steps(completion, splitter, self.prm_format.steps_of), splitter)

    def split_texts(self, completions: Sequence[str]) -> list[list[str]]:
        """Splits raw texts into steps by the format's splitter. Warns once if texts of several lines are one step."""
        steps = [self.split(completion) for completion in completions]
        lines = [texts for texts in steps if any("\n" in text for text in texts)]
        if lines and max(map(len, lines)) == 1 and not _HAS_WARNED:
            _HAS_WARNED.add("one step")
            logger.warning(
                "%d of %d texts have several lines, but one step, as the reward model's splitter is %r. If steps end "
                "elsewhere, pass lists of steps.", len(lines), len(steps), self.prm_format.splitter,
            )  # fmt: skip
        return steps

    def for_unfinished(self) -> "StepScorer":
        """Returns a scorer for solutions that may be unfinished. It is this scorer, unless the backend scores the last
        step by the solution's outcome ([`MonteCarloScorer`])."""
        if isinstance(self.backend, OutcomeBackend):
            return self.from_backend(self.backend.for_unfinished(), eta=self.eta, trained_eta=self._stated_eta)
        return self

    @contextmanager
    def _stopping_other_processes(self) -> Iterator[None]:
        """Makes an error in this context an error on all processes that share the backend."""
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
                "Fix the backend."
            )
        for step_scores, solution in zip(scores, distinct, strict=True):
            num_steps = len(solution[1])
            if len(step_scores) == num_steps or (skip_too_long and not len(step_scores)):
                continue
            index = solutions.index(solution)
            if not len(step_scores):
                raise SolutionTooLong(
                    index, f"is too long: got no scores from {name}. Shorten the solution, or leave it out."
                )
            raise ValueError(
                f"{name}: got {len(step_scores)} scores for the {num_steps} steps of solution {index}, expected one "
                "per step. Fix the backend."
            )


def _solutions(questions: Sequence[str], steps: Sequence[Sequence[str]]) -> list[tuple[str, tuple[str, ...]]]:
    check_texts("questions", questions)
    check_text_lists("steps", steps)
    if len(questions) != len(steps):
        raise ValueError(
            f"score: got {len(questions)} questions for {len(steps)} solutions, expected one question per solution. "
            "Repeat the question for each of its solutions."
        )
    return [(whole_characters(q), tuple(map(whole_characters, row))) for q, row in zip(questions, steps, strict=True)]


def solution_scores(step_scores: Sequence[Sequence[float]], aggregation: str) -> list[float | None]:
    """Aggregates step scores to one score per solution, `None` for a solution without step scores."""
    aggregated = iter(aggregate([scores for scores in step_scores if scores], aggregation).tolist())
    return [next(aggregated) if scores else None for scores in step_scores]
