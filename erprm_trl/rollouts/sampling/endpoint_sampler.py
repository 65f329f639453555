"""Sampling by a server: any `/v1/completions` of OpenAI's form, over HTTP, many requests at a time. Starting and
stopping servers, and balancing between them, is left to a router."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from ...io.http_client import EndpointClient, EndpointError, Service
from ...io.tokenizers import load_tokenizer
from ...steps import whole_characters
from .base import Completion, Progress, Prompt, decode_continuation, derived_seed, holds_stop
from .prompt_format import PromptFormat
from .token_cuts import end_before, fit_tokens


# What makes a completion the one that is asked for, or changes the form of the answer.
OWN_FIELDS = {
    "model",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "n",
    "best_of",
    "stream",
    "echo",
    "stop",
}
COMPLETIONS = Service(
    example="http://localhost:8000/v1",
    asked="completion",
    retried=frozenset({408, 409, 425, 429, *range(500, 600)}),
    remedies={
        401: "put the key into ${api_key_env}",
        403: "put a key that may use this model into ${api_key_env}",
        404: "check base_url, which ends with /v1 as a rule, and the name under which the model is served",
    },
    other_remedy="if the prompt is too long for the server, drop the question, lower max_new_tokens or serve a longer "
    "context; if a field is refused, look at top_k and extra_body, and at send='text' for a server that takes no "
    "token ids",
    when_down="Look at the server, then start again: a collection keeps its finished chunks.",
)


class EndpointSampler:
    """
    Samples from a `/v1/completions` endpoint: vLLM, SGLang, llama.cpp, `transformers serve`, a router before many.

    A completion is one request with its own seed, so a request that failed is sent again and asks for the same
    sample. Dropped connections, servers that hang, 408, 409, 425, 429, 5xx and answers that are cut off or hold no
    completion are tried again after growing, jittered waits, and no sooner than `Retry-After` says. Anything else,
    and a request without an answer after all attempts, ends the call with an error, and the other requests with it;
    [`collect_rollouts`] then has its finished chunks and continues there, also with another `base_url`.

    Whether a repeated call gives the same samples is up to the server: `transformers serve` seeds reliably at
    `max_concurrency=1` only, and a fleet of different machines rounds differently.

    What is not sent is left to the server's defaults, which many take from the model's `generation_config.json`. To
    sample the policy itself start `vllm serve --generation-config vllm` or SGLang with `--sampling-defaults openai`;
    for llama.cpp set `extra_body={"top_k": 0, "min_p": 0.0}`. `transformers serve` is greedy at any temperature unless
    that file says `"do_sample": true`.

    Args:
        model (`str`):
            The name under which the policy is served.
        base_url (`str`):
            Where, up to `/completions`, e.g. `"http://localhost:8000/v1"`. A `user:password@` is sent as basic
            authentication and shown nowhere.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], `str` or `Path`, *optional*):
            The policy's tokenizer, or its Hub id or folder. Defaults to `model`.
        temperature, top_p, top_k, max_new_tokens (*optional*):
            As in [`TransformersSampler`]; 0 for `top_k` sends none.
        prompt_template, system_prompt, use_chat_template, chat_template_kwargs, examples (*optional*):
            See [`PromptFormat`]. The chat template is applied here: the server gets the rendered prompt, and none of
            these settings.
        send (`str`, *optional*, defaults to `"tokens"`):
            `"tokens"` sends prompts as token ids. `"text"`, for servers that take nothing else, sends the text that
            the tokenizer turns into these ids: where it opens every text with a BOS token, a BOS written by the chat
            template is left out, for the server would double it. A server that decodes the new tokens alone
            (`transformers serve`) loses the space before the first word with tokenizers like Llama 2's; take another
            server for these.
        max_concurrency (`int`, *optional*, defaults to `64`):
            Requests at a time, of each process.
        request_timeout (`float`, *optional*, defaults to `600.0`):
            Seconds for one attempt, from connecting to the last byte.
        max_attempts (`int`, *optional*, defaults to `12`):
            Attempts for one completion.
        max_retry_seconds (`float`, *optional*, defaults to `900.0`):
            No new attempt begins later than this after a completion's first one.
        retry_wait (`float`, *optional*, defaults to `1.0`):
            Seconds before the second attempt; doubled each time, up to 60.
        api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable with the key. Without it none is sent.
        extra_body (`dict[str, Any]`, *optional*):
            More fields of each request, e.g. `{"repetition_penalty": 1.1}`; part of `settings`. Completions have
            `token_ids` only where the server returns them (vLLM: `{"return_token_ids": True}`), and
            `collect_rollouts(store_token_ids=True)` needs them.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
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
        send: str = "tokens",
        max_concurrency: int = 64,
        request_timeout: float = 600.0,
        max_attempts: int = 12,
        max_retry_seconds: float = 900.0,
        retry_wait: float = 1.0,
        api_key_env: str = "OPENAI_API_KEY",
        extra_body: dict[str, Any] | None = None,
    ):
        if send not in ("tokens", "text"):
            raise ValueError(f"send: got {send!r}, expected 'tokens' or 'text'.")
        self.extra_body = extra_body or {}
        taken = self.extra_body.keys() & (OWN_FIELDS | ({"top_k"} if top_k > 0 else set()))
        if taken:
            raise ValueError(f"extra_body: got {sorted(taken)}, which the sampler's own arguments set: use these.")
        self.client = EndpointClient(
            COMPLETIONS,
            base_url,
            max_concurrency,
            request_timeout,
            max_attempts,
            max_retry_seconds,
            retry_wait,
            api_key_env,
        )
        self.tokenizer = _tokenizer(model if tokenizer is None else tokenizer)
        self.prompt_format = PromptFormat(
            self.tokenizer, prompt_template, system_prompt, use_chat_template, chat_template_kwargs, examples
        )
        self.model_name, self.send = model, send
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.max_new_tokens = max_new_tokens

    @property
    def settings(self) -> dict[str, Any]:
        # Not the URL: a fleet may move, and the samples stay what they are.
        return {
            "backend": "endpoint",
            "model": self.model_name,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_new_tokens": self.max_new_tokens,
            "extra_body": self.extra_body,
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
        """
        `num_samples` completions of each prompt, in order; see [`TransformersSampler.sample`]. With `stop` the server
        has to say what ended a text, as vLLM (`stop_reason`) and SGLang (`matched_stop`) do; what a token holds after
        the string that stopped it is lost. With `until` alone any server will do.

        Raises:
            [`EndpointError`]: if one completion cannot be had, or a server does not say whether a text was stopped or
                ended by itself; nothing is returned then.
        """
        if self.send == "text":  # the server encodes a prefix by itself
            prompts = [prompt._replace(prefix_ids=None) for prompt in prompts]
        encoded = [self.prompt_format.encode(prompt) for prompt in prompts]
        contents = encoded if self.send == "tokens" else [self._text(ids) for ids in encoded]
        greedy = self.temperature == 0
        each = 1 if greedy else num_samples

        def read(answer: str) -> Completion:
            completion = self._completion(answer, stop, until)
            if progress is not None:
                progress(1, completion.num_tokens)
            return completion

        requests = [
            self._request(content, None if greedy else derived_seed(seed, index, sample), (*stop, *until))
            for index, content in enumerate(contents)
            for sample in range(each)
        ]
        answers = iter(self.client.post_all("/completions", requests, read))
        completions = [
            [self._ended(next(answers), stop, until, prompt, ids) for _ in range(each)]
            for prompt, ids in zip(prompts, encoded, strict=True)
        ]
        return [samples * (num_samples if greedy else 1) for samples in completions]

    def _ended(
        self, completion: Completion, stop: Sequence[str], until: Sequence[str], prompt: Prompt, ids: list[int]
    ) -> Completion:
        completion = end_before(completion, until, self.tokenizer, prompt, ids)
        if not completion.token_ids or not (stop or until):
            return completion
        # Servers leave the string that stopped a text out of the text, and not out of the ids.
        fitted = fit_tokens(completion, self.tokenizer, ids)
        if completion.finished or decode_continuation(self.tokenizer, ids, list(fitted.token_ids)) == fitted.text:
            return fitted
        return completion._replace(token_ids=())  # its text is continued: ids that lack a part of it are of no use

    def _text(self, ids: list[int]) -> str:
        whole = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        plain = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for text in (whole, whole.removeprefix(self.tokenizer.bos_token or ""), plain):
            if self.tokenizer(text)["input_ids"] == ids:
                return text
        raise ValueError(
            f"send='text': no text gives the {len(ids)} token ids of a prompt (it begins {whole[:80]!r}), so the "
            "server would read another prompt. Use send='tokens'."
        )

    def _request(self, content: list[int] | str, seed: int | None, stop: Sequence[str]) -> dict[str, Any]:
        return {
            "model": self.model_name,
            "prompt": content,
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            **({"top_k": self.top_k} if self.top_k > 0 else {}),
            **({} if seed is None else {"seed": seed}),
            **({"stop": list(stop)} if stop else {}),
            **self.extra_body,
        }

    def _completion(self, answer: str, stop: Sequence[str], until: Sequence[str]) -> Completion:
        body = json.loads(answer)
        (choice,) = body["choices"]
        text, reason = choice["text"], choice["finish_reason"]
        if not isinstance(text, str) or reason not in ("stop", "length"):
            raise ValueError("no text, or one that the server broke off")
        text = whole_characters(text)  # it may be continued
        # A tokenizer without a decoder joins words with spaces. A server that decodes the new tokens alone has lost
        # the one before the first word.
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and backend.decoder is None and text and not text[0].isspace():
            text = " " + text
        stopped = _stop_string(choice, stop, until) if reason == "stop" else None
        finished = reason == "stop" and stopped is None
        if stopped is not None and not holds_stop(text, (*stop, *until)):
            text += stopped
        num_tokens = (body.get("usage") or {}).get("completion_tokens")
        token_ids = tuple(choice.get("token_ids") or ())
        if not all(
            type(value) is int and value >= 0 for value in (0 if num_tokens is None else num_tokens, *token_ids)
        ):
            raise ValueError("a number or ids of tokens that are none")
        if num_tokens is None:
            num_tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) + finished
        return Completion(text, finished, num_tokens, token_ids)


def _stop_string(choice: dict[str, Any], stop: Sequence[str], until: Sequence[str]) -> str | None:
    """The string that stopped a text, or `None` if it ended by itself."""
    strings = (*stop, *until)
    for said in ("stop_reason", "matched_stop"):
        if said in choice:
            return choice[said] if choice[said] in strings else None
    contained = next((string for string in strings if string in choice["text"]), None)
    if contained is None and stop:
        # Taking the one for the other would go on after an end, or end a solution within.
        raise EndpointError(
            f"The server ended a text with neither stop_reason nor matched_stop, and none of {list(stop)} is in it: "
            "whether the text was stopped or ended by itself cannot be known. Serve the policy with vLLM or SGLang, "
            "or sample with backend='transformers'."
        )
    return contained


def _tokenizer(tokenizer):
    return load_tokenizer(tokenizer, trust_remote_code=False) if isinstance(tokenizer, (str, PathLike)) else tokenizer
