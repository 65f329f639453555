"""The sampler for an offline vLLM engine. vLLM is imported only when the sampler is created."""

import io
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...io.paths import local_path
from .base import Completion, Progress, Prompt, decode_continuation
from .next_token import single_token_ids
from .prompt_format import PromptFormat
from .token_cuts import end_before


logger = logging.getLogger(__name__)


class VLLMSampler:
    """
    Samples with an offline `vllm.LLM`, with prefix caching, one request per prompt (`n` samples), and one seed per
    sample.

    vLLM chooses which requests it computes in the same batch. Kernels may round differently in different batches (half
    precision on a GPU), so a repeated call may differ in a few completions, unless `VLLM_BATCH_INVARIANT=1` is set.

    Args:
        model (`str` or `Path`):
            Hub id or folder of the policy.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the policy. Defaults to the tokenizer of the model. For a model without a tokenizer, also pass
            `engine_kwargs={"skip_tokenizer_init": True}`.
        temperature, top_p, top_k, max_new_tokens (*optional*):
            See [`TransformersSampler`].
        prompt_template, system_prompt, use_chat_template, chat_template_kwargs, examples (*optional*):
            See [`PromptFormat`].
        engine_kwargs (`dict[str, Any]`, *optional*):
            Additional arguments of `vllm.LLM`, e.g. `{"tensor_parallel_size": 2, "gpu_memory_utilization": 0.8}`.
            Without a `"dtype"`, vLLM runs a float32 checkpoint in half precision.
    """

    def __init__(
        self,
        model: str | Path,
        tokenizer=None,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = 512,
        prompt_template: str | None = None,
        system_prompt: str | None = None,
        use_chat_template: bool | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        examples: Sequence[Mapping[str, str]] | None = None,
        engine_kwargs: dict[str, Any] | None = None,
    ):
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise ImportError(
                "VLLMSampler: vLLM is not installed, expected the package vllm. Run pip install 'erprm_trl[vllm]'."
            ) from error
        model = local_path(model)
        # With generation_config="vllm", the sampling defaults of the model are not applied.
        defaults: dict[str, Any] = {"enable_prefix_caching": True, "generation_config": "vllm"}
        defaults["disable_log_stats"] = False  # the engine then counts hits of its prefix cache
        if current_platform.is_cpu():
            # vLLM's CPU engine crashes if the prompt of a seeded request is prefilled in two parts.
            defaults["enable_chunked_prefill"] = False
        self.engine = LLM(model=model, **{**defaults, **(engine_kwargs or {})})
        config = self.engine.llm_engine.model_config
        self.dtype, self.context_length = config.dtype, config.max_model_len
        self.tokenizer = tokenizer if tokenizer is not None else self.engine.get_tokenizer()
        self.prompt_format = PromptFormat(
            self.tokenizer, prompt_template, system_prompt, use_chat_template, chat_template_kwargs, examples
        )
        self.model_name = model
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.max_new_tokens = max_new_tokens
        num_devices = 0 if current_platform.is_cpu() else self.engine.llm_engine.vllm_config.parallel_config.world_size
        self.accelerators = [f"{current_platform.device_type}:{index}" for index in range(num_devices)]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that determine a sample, as JSON values."""
        return {
            "backend": "vllm",
            "model": self.model_name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_new_tokens": self.max_new_tokens,
            **self.prompt_format.settings,
        }

    def sample(
        self,
        prompts: list[Prompt],
        num_samples: int,
        seed: int,
        stop: Sequence[str] = (),
        until: Sequence[str] = (),
        progress: Progress | None = None,
        prompt_seeds: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """Samples `num_samples` completions of each prompt, see [`TransformersSampler.sample`]."""
        from vllm import SamplingParams, TokensPrompt

        encoded = [self.prompt_format.encode(prompt) for prompt in prompts]
        self._check_room(encoded)
        greedy = self.temperature == 0
        # vLLM seeds the samples of a request with seed, seed + 1, ..., so the seeds of requests and calls must be far
        # apart.
        first_seed = random.Random(seed).getrandbits(62)
        seeds = [first_seed + index * num_samples for index in range(len(prompts))]
        if prompt_seeds is not None:
            seeds = [random.Random(prompt_seed).getrandbits(62) for prompt_seed in prompt_seeds]
        eos = self.tokenizer.eos_token_id
        params = [
            SamplingParams(
                n=1 if greedy else num_samples,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                max_tokens=self.max_new_tokens,
                seed=request_seed,
                # The engine only knows the end tokens of the model and of its own tokenizer.
                stop_token_ids=None if eos is None else [eos],
                # vLLM's text is only used to find stop strings. The text of a completion is decoded after its prompt.
                stop=[*stop, *until],
                detokenize=bool(stop or until),
            )
            for request_seed in seeds
        ]
        # Cached prefixes of earlier calls would change the batches, and so the rounding, of this call.
        self.engine.reset_prefix_cache()
        cached_before, prompts_before = self.prefix_cache_counts()
        requests = [TokensPrompt(prompt_token_ids=ids) for ids in encoded]
        # One call for all prompts, so that the engine fills its batch with new requests while others end.
        results = self.engine.generate(requests, params, use_tqdm=_progress_bar(progress) if progress else False)
        cached, num_tokens = self.prefix_cache_counts()
        if num_tokens > prompts_before:
            hit_rate = (cached - cached_before) / (num_tokens - prompts_before)
            logger.info("Prefix cache: %.1f%% of %d prompt tokens", 100 * hit_rate, num_tokens - prompts_before)
        if progress is not None:
            progress(0, sum(len(output.token_ids) for result in results for output in result.outputs))
        completions = [
            [
                end_before(self._completion(ids, output), until, self.tokenizer, prompt, ids)
                for output in result.outputs
            ]
            for prompt, ids, result in zip(prompts, encoded, results, strict=True)
        ]
        return (
            [completions_of_prompt * num_samples for completions_of_prompt in completions] if greedy else completions
        )

    def prefix_cache_counts(self) -> tuple[int, int]:
        """Number of prompt tokens that the engine has taken from its prefix cache so far, and of all prompt tokens.
        Each sample of a prompt counts. Zeros if the engine does not count (`disable_log_stats=True`)."""
        if not self.engine.llm_engine.log_stats:
            return 0, 0
        counters = {metric.name: getattr(metric, "value", 0) for metric in self.engine.get_metrics()}
        return tuple(int(counters.get(f"vllm:prefix_cache_{name}", 0)) for name in ("hits", "queries"))

    def next_token_log_probs(self, prompts: list[Prompt], tokens: Sequence[str]) -> list[list[float]]:
        """Computes how likely each of a few tokens is as the next token, see
        [`TransformersSampler.next_token_log_probs`]."""
        from vllm import SamplingParams, TokensPrompt

        token_ids = single_token_ids(self.tokenizer, tokens)
        encoded = [self.prompt_format.encode(prompt) for prompt in prompts]
        self._check_room(encoded)
        params = SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=token_ids, detokenize=False)
        self.engine.reset_prefix_cache()  # as in `sample`
        requests = [TokensPrompt(prompt_token_ids=ids) for ids in encoded]
        results = self.engine.generate(requests, params, use_tqdm=False)
        next_tokens = [result.outputs[0].logprobs[0] for result in results]
        return [[listed[token_id].logprob for token_id in token_ids] for listed in next_tokens]

    def close(self) -> None:
        """Ends the engine and its processes, which frees its memory."""
        # Deleting the engine is not enough, because references that vLLM keeps after a failed import may keep it
        # alive.
        self.engine.llm_engine.engine_core.shutdown()
        del self.engine

    def _check_room(self, encoded: list[list[int]]) -> None:
        longest = max(encoded, key=len, default=[])
        if len(longest) >= self.context_length:
            raise ValueError(
                f"Prompt: got {len(longest)} tokens, expected fewer than the context of {self.context_length} (the "
                f"prompt begins with {self.tokenizer.decode(longest[:30])!r}). Drop the question, or set a smaller "
                "max_new_tokens if the prompt contains a long solution."
            )

    def _completion(self, prompt: list[int], output) -> Completion:
        # `stop_reason` is None or an id for an end token, and a string for a stop string.
        finished = output.finish_reason == "stop" and not isinstance(output.stop_reason, str)
        new = list(output.token_ids)
        # The end token is not part of the text. It is removed here because it may not be a special token of the
        # tokenizer.
        text = decode_continuation(self.tokenizer, prompt, new[:-1] if finished else new)
        return Completion(text, finished, len(new), tuple(new))


def _progress_bar(progress: Progress):
    """A function with which vLLM creates its progress bars. The bars are hidden, and report completions to
    `progress`."""
    from tqdm.std import tqdm

    class Updates(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            progress(n, 0)  # vLLM does not report the number of their tokens
            return super().update(n)

        def display(self, *args, **kwargs) -> bool:
            return True

    def bar(iterable=None, **settings):
        return Updates(**settings, leave=False, file=io.StringIO()) if iterable is None else iterable

    return bar
