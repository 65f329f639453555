"""Scores steps with an offline vLLM engine in this process. vLLM is imported only when the backend is created.

Use it on a GPU to score many solutions. The engine schedules the solutions itself and gets token ids, never text.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig

from ...io.adapters import adapter_config
from ...io.file_checks import check_model_folder
from ...io.paths import local_path
from ...io.tokenizers import load_tokenizer
from ..prm_format import FORMAT_FILE, PRMFormat, resolve_format
from .export import export_reward_model
from .local import encode_for_scoring, scores_of_classes, solutions_to_score


logger = logging.getLogger(__name__)

# vLLM computes a prompt in several parts if its batch is full. It leaves room for one sampled token in every part but
# the first, also for pooling, so that a prompt of max_model_len tokens never ends (vLLM 0.31, Scheduler.schedule).
RESERVED_TOKENS = 1


class VLLMBackend:
    """
    A [`ScoringBackend`] whose model is in an offline `vllm.LLM`. `StepScorer.from_pretrained(path, backend="vllm")`
    uses this backend with its default options.

    vLLM runs token classification models. A reward model with a language-model head, a LoRA adapter or a public model
    is first exported to a temporary folder, which is deleted when the engine has loaded it. To export it only once,
    run `erprm export` and load the exported folder.

    Scores are the same as with [`LocalBackend`] up to the rounding of vLLM's kernels.

    Args:
        path_or_id (`str` or `Path`):
            Folder or Hub id of the reward model.
        prm_format ([`PRMFormat`] or `str`, *optional*):
            Format of the model, or the name of a preset. Defaults to the model's own `prm_format.json`.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Dtype of the weights and of the computation. `"auto"` is the dtype of the checkpoint.
        revision (`str`, *optional*):
            Revision of the model on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code from the model's repository.
        engine_kwargs (`dict[str, Any]`, *optional*):
            Additional arguments of `vllm.LLM`, e.g. `{"max_model_len": 4096, "gpu_memory_utilization": 0.5}`.

    Raises:
        `ImportError`: if vLLM is not installed.
        `ValueError`: if the model cannot be exported; see [`StepScorer.export_token_classifier`].

    Example:

    ```python
    >>> backend = VLLMBackend("outputs/my-erprm", engine_kwargs={"max_model_len": 4096})
    >>> scorer = StepScorer.from_backend(backend)
    ```
    """

    weights = None

    def __init__(
        self,
        path_or_id: str | Path,
        *,
        prm_format: PRMFormat | str | None = None,
        dtype: "str | torch.dtype" = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        engine_kwargs: dict[str, Any] | None = None,
    ):
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(
                "VLLMBackend: vLLM is not installed, expected the package vllm. Run pip install 'erprm_trl[vllm]', or "
                "score without backend='vllm'."
            ) from error
        path_or_id = local_path(path_or_id)
        check_model_folder(path_or_id, revision)
        loading = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.prm_format = resolve_format(prm_format, path_or_id, revision)
        self.tokenizer = load_tokenizer(path_or_id, **loading)
        self.prm_format.token_ids(self.tokenizer)  # raises its errors before the weights are loaded
        self.model_name = path_or_id
        with TemporaryDirectory(prefix="erprm-export-") as exported:
            if not _is_servable(path_or_id, self.prm_format, revision):
                logger.warning(
                    "%s is exported to a temporary folder as a token classification model, which vLLM can run. To "
                    "export it only once, run: erprm export --reward_model %s --output_dir FOLDER",
                    path_or_id,
                    path_or_id,
                )
                export_reward_model(path_or_id, exported, prm_format=self.prm_format, dtype=dtype, **loading)
                path_or_id, loading = exported, {}
            if dtype == "auto":  # vLLM would run a float32 checkpoint in half precision
                dtype = AutoConfig.from_pretrained(path_or_id, **loading).dtype or torch.float32
            defaults: dict[str, Any] = {
                "dtype": str(dtype).removeprefix("torch."),
                "hf_overrides": {"num_labels": 2 if self.prm_format.head == "lm" else self.prm_format.num_labels},
                # Every position has a score, so the engine computes every position of every solution.
                "enable_prefix_caching": False,
            }
            self.engine = LLM(model=path_or_id, runner="pooling", **{**defaults, **loading, **(engine_kwargs or {})})

    @property
    def context_length(self) -> int:
        """Maximum length of a solution in tokens, including the question: one less than the engine's
        `max_model_len`."""
        return self.engine.llm_engine.model_config.max_model_len - RESERVED_TOKENS

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool = False
    ) -> list[list[float]]:
        """Scores every step; see [`ScoringBackend.score`]."""
        from vllm import PoolingParams, TokensPrompt

        encoded = encode_for_scoring(self.tokenizer, self.prm_format, questions, steps)
        kept = solutions_to_score(encoded, self.context_length, skip_too_long)
        scores: list[list[float]] = [[] for _ in encoded]
        if not kept:
            return scores
        outputs = self.engine.encode(
            [TokensPrompt(prompt_token_ids=encoded[index].input_ids) for index in kept],
            pooling_params=PoolingParams(use_activation=False),
            pooling_task="token_classify",
            use_tqdm=False,
        )
        for index, output in zip(kept, outputs, strict=True):
            scores[index] = scores_of_classes(output.outputs.data[encoded[index].step_positions])
        return scores

    def close(self) -> None:
        """Ends the engine and its processes, which frees its memory."""
        # Deleting the engine is not enough, because references that vLLM keeps may keep it alive.
        self.engine.llm_engine.engine_core.shutdown()
        del self.engine


def _is_servable(path_or_id: str, prm_format: PRMFormat, revision: str | None) -> bool:
    """Whether vLLM can load the weights as they are: a token classification model that this package saved."""
    from transformers.utils import cached_file

    own = cached_file(path_or_id, FORMAT_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    return prm_format.head == "token" and own is not None and adapter_config(path_or_id, revision) is None
