"""Sampling by an offline vLLM engine, imported only when it is used."""

import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...io.paths import local_path
from .base import Completion, Progress, Prompt, decode_continuation
from .prompt_format import PromptFormat
from .token_cuts import end_before


class VLLMSampler:
    """
    Samples with an offline `vllm.LLM`: prefix caching on, the samples of a prompt as one request (`n`), one seed a
    sample.

    vLLM decides by itself, in another process, which requests it computes together. Where its kernels round
    differently in another batch (half precision on a GPU), a repeated call can differ in a few completions unless
    `VLLM_BATCH_INVARIANT=1` is set.

    Args:
        model (`str` or `Path`):
            Hub id or folder of the policy.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Defaults to the model's own. For a model without one add `engine_kwargs={"skip_tokenizer_init": True}`.
        temperature, top_p, top_k, max_new_tokens (*optional*):
            As in [`TransformersSampler`].
        prompt_template, system_prompt, use_chat_template, chat_template_kwargs, examples (*optional*):
            See [`PromptFormat`].
        engine_kwargs (`dict[str, Any]`, *optional*):
            More arguments of `vllm.LLM`, e.g. `{"tensor_parallel_size": 2, "gpu_memory_utilization": 0.8}`. Without a
            `"dtype"`, vLLM runs a float32 checkpoint in half precision.
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
            raise ImportError("VLLMSampler needs vLLM: pip install 'erprm_trl[vllm]'.") from error
        model = local_path(model)
        # "vllm" generation config: the model's own sampling defaults are not applied.
        defaults: dict[str, Any] = {"enable_prefix_caching": True, "generation_config": "vllm"}
        if current_platform.is_cpu():
            # A seeded request whose prompt is prefilled in two parts ends vLLM's CPU engine.
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

    @property
    def settings(self) -> dict[str, Any]:
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
    ) -> list[list[Completion]]:
        """`num_samples` completions of each prompt, in order; see [`TransformersSampler.sample`]."""
        from vllm import SamplingParams, TokensPrompt

        encoded = [self.prompt_format.encode(prompt) for prompt in prompts]
        self._check_room(encoded)
        greedy = self.temperature == 0
        # vLLM seeds the samples of a request with seed, seed + 1, ...: no other request or call may come near them.
        first_seed = random.Random(seed).getrandbits(62)
        eos = self.tokenizer.eos_token_id
        params = [
            SamplingParams(
                n=1 if greedy else num_samples,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                max_tokens=self.max_new_tokens,
                seed=first_seed + index * num_samples,
                # The engine knows the end tokens of the model and of its own tokenizer only.
                stop_token_ids=None if eos is None else [eos],
                # Looking for a string is the only use of vLLM's text: ours knows what stands before it.
                stop=[*stop, *until],
                detokenize=bool(stop or until),
            )
            for index in range(len(prompts))
        ]
        # What earlier calls left in the cache would change how this one is computed.
        self.engine.reset_prefix_cache()
        requests = [TokensPrompt(prompt_token_ids=ids) for ids in encoded]
        results = self.engine.generate(requests, params, use_tqdm=_progress_bar(progress) if progress else False)
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

    def close(self) -> None:
        """Ends the engine with its processes, which frees its memory."""
        # Garbage collection may leave it alive: what vLLM keeps of an import that failed can refer to this object.
        self.engine.llm_engine.engine_core.shutdown()
        del self.engine

    def _check_room(self, encoded: list[list[int]]) -> None:
        longest = max(encoded, key=len, default=[])
        if len(longest) >= self.context_length:
            raise ValueError(
                f"A prompt of {len(longest)} tokens leaves no room in the context of {self.context_length} (it begins "
                f"{self.tokenizer.decode(longest[:30])!r}). Drop the question, or stop continuing solutions that are "
                "this long with a smaller max_new_tokens."
            )

    def _completion(self, prompt: list[int], output) -> Completion:
        # What stopped it: nothing or an id for an end token, a string for one of `stop`.
        finished = output.finish_reason == "stop" and not isinstance(output.stop_reason, str)
        new = list(output.token_ids)
        # The end token counts, but is no text; not every model's is a special token of the tokenizer.
        text = decode_continuation(self.tokenizer, prompt, new[:-1] if finished else new)
        return Completion(text, finished, len(new), tuple(new))


def _progress_bar(progress: Progress):
    """What vLLM makes its progress bars with: bars that are not shown and tell `progress` of the completions."""
    from tqdm.std import tqdm

    class Updates(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            progress(n, 0)  # vLLM does not say how many tokens they have
            return super().update(n)

        def display(self, *args, **kwargs) -> bool:
            return True

    def bar(iterable=None, **settings):
        return Updates(**settings, leave=False, file=io.StringIO()) if iterable is None else iterable

    return bar
