"""The sampler for causal language models of transformers, which uses `generate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...io.adapters import adapter_config, base_of_adapter
from ...io.file_checks import check_model_folder
from ...io.loaded_weights import refuse_random_lm_head
from ...io.paths import local_path
from ...io.tokenizers import load_tokenizer
from .base import Completion, Progress, Prompt, decode_continuation, derived_seed
from .kv_cache import (
    PromptsNotShared,
    SharedPromptsCache,
    adds_virtual_tokens,
    can_share,
    growing_cache,
    sharing_prompts,
)
from .next_token import single_token_ids
from .processor import limit_threads
from .prompt_format import PromptFormat
from .seeded_choice import SeededChoice
from .stop_strings import StopStrings
from .token_cuts import end_before


class TransformersSampler:
    """
    Samples from any causal language model of transformers, including PEFT models, in batches of different questions
    and prefixes.

    Prompts are sorted by length and divided into batches. Each prompt is prefilled once. Its samples share the keys
    and values of the prompt, or each get a copy if the attention of the model is not plain SDPA. Samples that have
    ended are removed from the batch. With an adapter that adds virtual tokens (prefix tuning, prompt tuning), each
    batch is one plain call of `generate`. The generation defaults of the model (`top_k`, `repetition_penalty`, ...)
    are not applied, so samples come from the unmodified policy.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy, on its device.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature. 0 is greedy decoding. The value of a prefix is defined for temperature 1 (arXiv
            2412.11006).
        top_p (`float`, *optional*, defaults to `1.0`):
            Probability mass kept by nucleus sampling.
        top_k (`int`, *optional*, defaults to `0`):
            Number of most likely tokens to sample from. 0 keeps the whole vocabulary.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens per completion. A completion that reaches it is not `finished`.
        batch_size (`int`, *optional*, defaults to `64`):
            Number of sequences generated in one batch.
        prompt_template, system_prompt, use_chat_template, chat_template_kwargs, examples (*optional*):
            See [`PromptFormat`].
        fork_cache (`bool`, *optional*, defaults to `True`):
            Whether to prefill a prompt once for all its samples, instead of once per sample.
    """

    def __init__(
        self,
        model,
        tokenizer,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = 512,
        batch_size: int = 64,
        prompt_template: str | None = None,
        system_prompt: str | None = None,
        use_chat_template: bool | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        examples: Sequence[Mapping[str, str]] | None = None,
        fork_cache: bool = True,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.prompt_format = PromptFormat(
            tokenizer, prompt_template, system_prompt, use_chat_template, chat_template_kwargs, examples
        )
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.fork_cache = fork_cache
        self._shares = True  # set to False if the model turns out not to support shared prompts
        self.eos_token_ids = _eos_token_ids(model, tokenizer)
        self.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_token_ids[0]
        self.context_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, *, model_init_kwargs: dict[str, Any] | None = None, **settings: Any
    ):
        """
        Loads the policy and its tokenizer onto the device of this process.

        Args:
            path_or_id (`str` or `Path`):
                Hub id or folder of a model, or of a LoRA adapter.
            model_init_kwargs (`dict[str, Any]`, *optional*):
                Arguments of `AutoModelForCausalLM.from_pretrained`. `dtype` defaults to the dtype of the checkpoint,
                `trust_remote_code` to `False`.
            settings:
                Other arguments of the class.

        Returns:
            [`TransformersSampler`]: the sampler.

        Raises:
            `FileNotFoundError`: if the base model that an adapter names does not exist.
            `TypeError`: if transformers does not know one of the `model_init_kwargs`.
            `ValueError`: if the model has no language-model head, e.g. because it is a classifier.
        """
        from accelerate import PartialState
        from transformers import AutoModelForCausalLM

        path_or_id = local_path(path_or_id)
        # Without an explicit `trust_remote_code`, transformers asks on the terminal whether to run code.
        kwargs = {"dtype": "auto", "trust_remote_code": False, **(model_init_kwargs or {})}
        check_model_folder(path_or_id, kwargs.get("revision"))
        shared = {name: kwargs[name] for name in ("revision", "trust_remote_code") if name in kwargs}
        adapter = adapter_config(path_or_id, kwargs.get("revision"))
        if adapter is not None:
            base_of_adapter(path_or_id, adapter)  # transformers' error does not name the adapter
        tokenizer = load_tokenizer(path_or_id, **shared)
        try:
            model, info = AutoModelForCausalLM.from_pretrained(path_or_id, output_loading_info=True, **kwargs)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise TypeError(
                f"model_init_kwargs: got {sorted(model_init_kwargs or {})}, expected arguments of "
                f"AutoModelForCausalLM.from_pretrained ({error}). Leave out arguments of other backends, such as vLLM."
            ) from error
        refuse_random_lm_head(path_or_id, model, info["missing_keys"], "Pass the language model that was fine-tuned.")
        if "device_map" not in kwargs:
            model = model.to(PartialState(cpu=not torch.accelerator.is_available()).device)
        if model.device.type == "cpu":
            limit_threads()
        return cls(model, tokenizer, **settings)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that determine a sample, as JSON values."""
        return {
            "backend": "transformers",
            "model": self.model.config._name_or_path,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            **self.prompt_format.settings,
        }

    @property
    def accelerators(self) -> list[str]:
        """Names of the accelerators that hold the model. Empty on a CPU."""
        devices = {str(parameter.device) for parameter in self.model.parameters() if parameter.device.type != "cpu"}
        return sorted(devices)

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
        """
        Samples completions.

        Args:
            prompts (`list[Prompt]`):
                Texts to continue.
            num_samples (`int`):
                Number of completions per prompt.
            seed (`int`):
                Seed of the samples. The samples also depend on the prompts and the settings. The global random state
                does not change.
            stop (`Sequence[str]`, *optional*):
                Strings after which a completion stops without being `finished`. The token that completes the string is
                kept, including text in it after the string.
            until (`Sequence[str]`, *optional*):
                Strings before which a completion ends and is `finished`. `token_ids` has the tokens whose text is
                entirely before the string, so a token that also contains the beginning of the string is dropped.
            progress (`Callable[[int, int], None]`, *optional*):
                Function to call every few tokens, with the number of completions that have ended and of tokens that
                were sampled since its last call.
            prompt_seeds (`Sequence[int]`, *optional*):
                One seed per prompt, which replaces `seed`. The samples of a prompt then do not depend on the other
                prompts, except for rounding.

        Returns:
            `list[list[Completion]]`: the completions of each prompt, in the order of the prompts.

        Raises:
            `ValueError`: if a prompt leaves no room in the context of the model.
        """
        encoded = [self.prompt_format.encode(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: (len(encoded[index]), index))
        completions: list[list[Completion]] = [[] for _ in prompts]
        jobs = [(index, sample) for index in order for sample in range(num_samples)]
        device = self.model.device
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for start in range(0, len(jobs), self.batch_size):
                batch = jobs[start : start + self.batch_size]
                seeds = None
                if prompt_seeds is not None and self.temperature != 0:
                    seeds = [derived_seed(prompt_seeds[index], sample) for index, sample in batch]
                texts = [encoded[index] for index, _ in batch]
                samples = self._sample_batch(texts, (*stop, *until), progress, seeds)
                for (index, _), completion in zip(batch, samples, strict=True):
                    completions[index].append(
                        end_before(completion, until, self.tokenizer, prompts[index], encoded[index])
                    )
        self.model.train(was_training)
        return completions

    def next_token_log_probs(self, prompts: list[Prompt], tokens: Sequence[str]) -> list[list[float]]:
        """
        Computes how likely each of a few tokens is as the next token. The temperature is not applied.

        Args:
            prompts (`list[Prompt]`):
                Texts to continue.
            tokens (`Sequence[str]`):
                Texts that the tokenizer encodes as one token each.

        Returns:
            `list[list[float]]`: for each prompt, one log-probability per token, computed in float32.

        Raises:
            `ValueError`: if a text is not one token.
        """
        token_ids = single_token_ids(self.tokenizer, tokens)
        encoded = [self.prompt_format.encode(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
        log_probs: list[list[float]] = [[] for _ in prompts]
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                inputs = _left_pad([encoded[index] for index in batch], self.pad_token_id, self.model.device)
                positions = (inputs[1].cumsum(-1) - 1).clamp_min(0)
                options = {"use_cache": False, "logits_to_keep": 1}
                logits = self.model(inputs[0], attention_mask=inputs[1], position_ids=positions, **options).logits
                rows = logits[:, -1].float().log_softmax(-1)[:, token_ids].tolist()
                for index, row in zip(batch, rows, strict=True):
                    log_probs[index] = row
        self.model.train(was_training)
        return log_probs

    def _sample_batch(
        self, prompts: list[list[int]], stop: Sequence[str], progress: Progress | None, seeds: list[int] | None
    ) -> list[Completion]:
        longest = max(map(len, prompts))
        room = self.max_new_tokens if self.context_length is None else self.context_length - longest
        if room < 1:
            text = self.tokenizer.decode(prompts[-1][:30])
            raise ValueError(
                f"Prompt: got {longest} tokens, expected fewer than the context of {self.context_length} (the prompt "
                f"begins with {text!r}). Drop the question, or set a smaller max_new_tokens if the prompt contains a "
                "long solution."
            )
        unique, counts = _runs(prompts)
        input_ids, attention_mask = _left_pad(unique, self.pad_token_id, self.model.device)
        repeats = torch.tensor(counts, device=input_ids.device)
        each = input_ids.repeat_interleave(repeats, 0), attention_mask.repeat_interleave(repeats, 0)

        def continued(cache) -> list[list[int]]:
            start, limit = input_ids.shape[1], min(self.max_new_tokens, room)
            stopping = StopStrings(self.tokenizer, stop, prompts, start) if stop else None
            choice = None
            if seeds is not None:
                choice = SeededChoice(seeds, start, limit, self.temperature, self.top_p, self.top_k)
            return self._continue(*each, cache, limit, stopping, choice, progress)

        if adds_virtual_tokens(self.model):  # PEFT adds virtual tokens only to a cache that `generate` creates
            new_tokens = continued(None)
        elif not self.fork_cache or len(unique) == len(prompts) or longest == 1:
            new_tokens = continued(growing_cache(self.model.config))
        else:
            prefilled = self._prefill(input_ids[:, :-1], attention_mask[:, :-1])
            new_tokens = self._continue_shared(continued, prefilled, repeats)
        return [self._completion(prompt, new) for prompt, new in zip(prompts, new_tokens, strict=True)]

    def _continue_shared(self, continued, prefilled, repeats: torch.Tensor) -> list[list[int]]:
        """Calls `continued` with a cache in which samples share their prompts, or with a copy of the prompt per sample
        if the model does not support sharing."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if self._shares and can_share(model, prefilled):
            cache = SharedPromptsCache(prefilled, repeats)
            try:
                with sharing_prompts(model):
                    new_tokens = continued(cache)
                cache.prompts.check()
                return new_tokens
            except PromptsNotShared:  # raised at the first token
                self._shares = False
        prefilled.reorder_cache(torch.arange(len(repeats), device=repeats.device).repeat_interleave(repeats))
        return continued(prefilled)

    def _continue(
        self,
        input_ids,
        attention_mask,
        cache,
        limit: int,
        stopping: StopStrings | None,
        choice: SeededChoice | None,
        progress: Progress | None,
    ) -> list[list[int]]:
        """Generates the new tokens of each row in several calls. Rows that have ended are removed between calls."""
        start, eos = input_ids.shape[1], torch.tensor(self.eos_token_ids, device=input_ids.device)
        new_tokens: list[list[int]] = [[] for _ in input_ids]
        rows = list(range(len(input_ids)))
        while rows:
            made = input_ids.shape[1] - start
            # Few tokens per call while texts are short, so that an ended text stays in the batch for at most a quarter
            # of its length. Without a cache to continue from, all tokens are generated in one call.
            most = limit if cache is None else min(limit - made, max(8, made // 4))
            out = self._generate(input_ids, attention_mask, cache, most, stopping, choice)
            is_end = torch.isin(out.sequences[:, input_ids.shape[1] :], eos)
            alive = ~is_end.any(1)
            lengths = [None] * len(rows) if stopping is None else stopping.lengths
            alive &= torch.tensor([length is None for length in lengths], device=alive.device)
            if out.sequences.shape[1] - start >= limit:
                alive[:] = False
            ended, kept = (~alive).nonzero().flatten(), alive.nonzero().flatten()
            if progress is not None:  # tokens after the first end token are padding
                progress(len(ended), int((is_end.cumsum(1) - is_end.int() == 0).sum()))
            for index, new in zip(ended.tolist(), out.sequences[ended, start:].tolist(), strict=True):
                new_tokens[rows[index]] = new[: lengths[index]]
            rows = [rows[index] for index in kept.tolist()]
            input_ids = out.sequences[kept]
            attention_mask = torch.nn.functional.pad(
                attention_mask[kept], (0, input_ids.shape[1] - attention_mask.shape[1]), value=1
            )
            if rows and len(ended):
                cache.reorder_cache(kept)
                for rowwise in (stopping, choice):
                    if rowwise is not None:
                        rowwise.keep(kept.tolist())
        return new_tokens

    def _prefill(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        positions = (attention_mask.cumsum(-1) - 1).clamp_min(0)
        cache = growing_cache(self.model.config)
        # The logits of the prompt are not needed, so only one position is computed instead of length x vocabulary.
        self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cache

    def _generate(
        self,
        input_ids,
        attention_mask,
        cache,
        max_new_tokens: int,
        stopping: StopStrings | None,
        choice: SeededChoice | None,
    ):
        from transformers import GenerationConfig

        greedy = self.temperature == 0 or choice is not None  # a choice leaves one token
        config = GenerationConfig(
            do_sample=not greedy,
            max_new_tokens=max_new_tokens,
            use_cache=True,  # training switches off the cache of models
            return_dict_in_generate=True,
            eos_token_id=self.eos_token_ids,
            pad_token_id=self.pad_token_id,
            **({} if greedy else {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}),
        )
        # generate() fills unset options from the generation config of the model, so it is replaced during the call. A
        # PEFT model passes its config on to the wrapped model, so both are restored.
        owners = [self.model, *([self.model.get_base_model()] if hasattr(self.model, "get_base_model") else [])]
        own = [owner.generation_config for owner in owners]
        try:
            for owner in owners:
                owner.generation_config = config
            return self.model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=cache,
                generation_config=config,
                stopping_criteria=None if stopping is None else [stopping],
                logits_processor=None if choice is None else [choice],
                # Processes sample different prompts. They need no synchronisation, because ZeRO-3's weights are
                # gathered before.
                synced_gpus=False,
            )
        finally:
            for owner, generation_config in zip(owners, own, strict=True):
                owner.generation_config = generation_config

    def _completion(self, prompt: list[int], new: list[int]) -> Completion:
        # The text ends at the first end token. Later ones may be padding with the same id.
        end = next((index for index, token in enumerate(new) if token in self.eos_token_ids), None)
        text = decode_continuation(self.tokenizer, prompt, new if end is None else new[:end])
        token_ids = tuple(new if end is None else new[: end + 1])
        return Completion(text, end is not None, len(token_ids), token_ids)


def _runs(prompts: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    unique, counts = [], []
    for prompt in prompts:
        if unique and prompt == unique[-1]:
            counts[-1] += 1
        else:
            unique.append(prompt)
            counts.append(1)
    return unique, counts


def _left_pad(prompts: list[list[int]], pad_token_id: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def _eos_token_ids(model, tokenizer) -> list[int]:
    # Chat models end a turn with a token that is only in their generation config.
    ids = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = ids if isinstance(ids, list) else [ids]
    ids = [token for token in [*ids, tokenizer.eos_token_id] if token is not None]
    if not ids:
        raise ValueError("Policy: got no end-of-sequence token, expected one to end samples. Set tokenizer.eos_token.")
    return list(dict.fromkeys(ids))
