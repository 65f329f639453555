"""The sampler for a server with an OpenAI-compatible `/v1/completions` endpoint. It sends many requests at a time to
one address; use a router to balance the load over several servers."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from ...io.http_client import EndpointClient, EndpointError, Service
from ...io.tokenizers import load_tokenizer
from ...steps import whole_characters
from .base import Completion, Progress, Prompt, decode_continuation, derived_seed, holds_stop
from .next_token import read_log_probs, request_fields, single_token_ids
from .prompt_format import PromptFormat
from .token_cuts import end_before, fit_tokens


# Fields of a request that the sampler sets itself, or that would change the form of the answer.
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
        404: "check base_url, which usually ends with /v1, and the name under which the model is served",
    },
    other_remedy="if the prompt is too long for the server, drop the question, lower max_new_tokens or serve a longer "
    "context; if the server refuses a field, check top_k and extra_body; if it does not accept token ids, set "
    "send='text'",
    when_down="Check the server, then start again. A collection keeps its finished chunks.",
)


class EndpointSampler:
    """
    Samples from a `/v1/completions` endpoint: vLLM, SGLang, llama.cpp, `transformers serve`, or a router in front of
    several servers.

    Each completion is one request with its own seed, so a retried request asks for the same sample. A request is
    retried after a dropped connection, a timeout, the statuses 408, 409, 425, 429 and 5xx, and an incomplete answer or
    an answer without completion. The waits before retries grow, have random jitter, and are at least as long as
    `Retry-After`. Any other failure, or a request without an answer after all attempts, cancels the other requests and
    raises an error. [`collect_rollouts`] keeps its finished chunks, and a later call resumes there, also with another
    `base_url`.

    The server determines whether a repeated call gives the same samples. `transformers serve` uses seeds reliably only
    with `max_concurrency=1`, and servers on different machines round differently.

    Parameters that are not sent have the server's defaults, which many servers read from the model's
    `generation_config.json`. To sample from the unmodified policy, start `vllm serve --generation-config vllm`, or
    SGLang with `--sampling-defaults openai`. For llama.cpp, set `extra_body={"top_k": 0, "min_p": 0.0}`.
    `transformers serve` decodes greedily at any temperature, unless `generation_config.json` has `"do_sample": true`.

    Args:
        model (`str`):
            Name under which the policy is served.
        base_url (`str`):
            Address of the endpoint without `/completions`, e.g. `"http://localhost:8000/v1"`. A `user:password@` in it
            is sent as basic authentication, and never shown.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], `str` or `Path`, *optional*):
            Tokenizer of the policy, or its Hub id or folder. Defaults to `model`.
        temperature, top_p, top_k, max_new_tokens (*optional*):
            See [`TransformersSampler`]. With `top_k=0`, the field is not sent.
        prompt_template, system_prompt, use_chat_template, chat_template_kwargs, examples (*optional*):
            See [`PromptFormat`]. The chat template is applied here, and the server gets the rendered prompt.
        send (`str`, *optional*, defaults to `"tokens"`):
            Form of the prompt. `"tokens"` sends token ids. `"text"`, for servers that do not accept token ids, sends a
            text that the tokenizer encodes to the same ids. If the tokenizer adds a BOS token to every text, the BOS
            token of the chat template is removed from the text, because the server adds it again. A server that
            decodes new tokens without the prompt (`transformers serve`) loses the space before the first word with
            tokenizers such as Llama 2's. Use another server for such tokenizers.
        max_concurrency (`int`, *optional*, defaults to `64`):
            Maximum number of simultaneous requests per process.
        request_timeout (`float`, *optional*, defaults to `600.0`):
            Timeout of one attempt, in seconds, from connecting to the last byte.
        max_attempts (`int`, *optional*, defaults to `12`):
            Maximum number of attempts per completion.
        max_retry_seconds (`float`, *optional*, defaults to `900.0`):
            Time after the first attempt, in seconds, after which no new attempt starts.
        retry_wait (`float`, *optional*, defaults to `1.0`):
            Wait before the second attempt, in seconds. It doubles with each attempt, up to 60 seconds.
        api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Name of the environment variable with the API key. If it is not set, no key is sent.
        extra_body (`dict[str, Any]`, *optional*):
            Additional fields of each request, e.g. `{"repetition_penalty": 1.1}`. They are part of `settings`.
            Completions have `token_ids` only if the server returns them (vLLM: `{"return_token_ids": True}`), which
            `collect_rollouts(store_token_ids=True)` needs.
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
            raise ValueError(f"send: got {send!r}, expected 'tokens' or 'text'. Pass one of these two.")
        self.extra_body = extra_body or {}
        taken = self.extra_body.keys() & (OWN_FIELDS | ({"top_k"} if top_k > 0 else set()))
        if taken:
            raise ValueError(
                f"extra_body: got {sorted(taken)}, expected fields that no argument of the sampler sets. Use the "
                "arguments of the sampler for these."
            )
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
        """All settings that determine a sample, as JSON values."""
        # The address is left out, because servers may move without a change of the samples.
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
        prompt_seeds: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """
        Samples `num_samples` completions of each prompt, see [`TransformersSampler.sample`].

        With `stop`, the server must report why a text ended, as vLLM (`stop_reason`) and SGLang (`matched_stop`) do.
        Text of the last token after the stop string is lost. `until` works with any server.

        Raises:
            [`EndpointError`]: if a request fails for good, or if the server does not report whether a text was stopped
                or ended with an end token.
        """
        if self.send == "text":  # the server encodes the prefix
            prompts = [prompt._replace(prefix_ids=None) for prompt in prompts]
        encoded = [self.prompt_format.encode(prompt) for prompt in prompts]
        contents = self._contents(encoded)
        greedy = self.temperature == 0
        each = 1 if greedy else num_samples

        def read(answer: str) -> Completion:
            completion = self._completion(answer, stop, until)
            if progress is not None:
                progress(1, completion.num_tokens)
            return completion

        def request_seed(index: int, sample: int) -> int | None:
            if greedy:
                return None
            parts = (seed, index) if prompt_seeds is None else (prompt_seeds[index],)
            return derived_seed(*parts, sample)

        requests = [
            self._request(content, request_seed(index, sample), (*stop, *until))
            for index, content in enumerate(contents)
            for sample in range(each)
        ]
        answers = iter(self.client.post_all("/completions", requests, read))
        completions = [
            [self._ended(next(answers), stop, until, prompt, ids) for _ in range(each)]
            for prompt, ids in zip(prompts, encoded, strict=True)
        ]
        return [samples * (num_samples if greedy else 1) for samples in completions]

    def next_token_log_probs(self, prompts: list[Prompt], tokens: Sequence[str]) -> list[list[float]]:
        """
        Asks how likely each of a few tokens is as the next token, see [`TransformersSampler.next_token_log_probs`].

        vLLM returns the log-probabilities of these tokens. Other servers list their most likely tokens. A token
        outside the list gets the smallest log-probability of the list, which is an upper bound.

        Raises:
            [`EndpointError`]: if the server returns no log-probabilities, or lists none of the tokens.
            `ValueError`: if a text is not one token.
        """
        token_ids = single_token_ids(self.tokenizer, tokens)
        contents = self._contents([self.prompt_format.encode(prompt) for prompt in prompts])
        fields = {**request_fields(token_ids), **self.extra_body}
        requests = [{**self._request(content, None, ()), **fields} for content in contents]
        return self.client.post_all(
            "/completions", requests, lambda answer: read_log_probs(answer, self.tokenizer, token_ids)
        )

    def _contents(self, encoded: list[list[int]]) -> list[list[int]] | list[str]:
        """The prompts in the form in which they are sent."""
        return encoded if self.send == "tokens" else [self._text(ids) for ids in encoded]

    def _ended(
        self, completion: Completion, stop: Sequence[str], until: Sequence[str], prompt: Prompt, ids: list[int]
    ) -> Completion:
        completion = end_before(completion, until, self.tokenizer, prompt, ids)
        if not completion.token_ids or not (stop or until):
            return completion
        # Servers remove the stop string from the text, but not from the token ids.
        fitted = fit_tokens(completion, self.tokenizer, ids)
        if completion.finished or decode_continuation(self.tokenizer, ids, list(fitted.token_ids)) == fitted.text:
            return fitted
        return completion._replace(token_ids=())  # the text will be continued, so incomplete token ids are useless

    def _text(self, ids: list[int]) -> str:
        whole = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        plain = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for text in (whole, whole.removeprefix(self.tokenizer.bos_token or ""), plain):
            if self.tokenizer(text)["input_ids"] == ids:
                return text
        raise ValueError(
            f"send: got 'text' with a prompt that begins with {whole[:80]!r}, expected a text that the tokenizer "
            f"encodes to its {len(ids)} token ids. There is no such text. Use send='tokens'."
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
            raise ValueError("no text, or a text that the server did not complete")
        text = whole_characters(text)  # the text may be continued, and tokenizers reject lone surrogates
        # A tokenizer without a decoder joins words with spaces. A server that decodes new tokens without the prompt
        # loses the space before the first word.
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
            raise ValueError("an invalid number of tokens, or invalid token ids")
        if num_tokens is None:
            num_tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) + finished
        return Completion(text, finished, num_tokens, token_ids)


def _stop_string(choice: dict[str, Any], stop: Sequence[str], until: Sequence[str]) -> str | None:
    """The string that stopped a text, or `None` if it ended with an end token."""
    strings = (*stop, *until)
    for name in ("stop_reason", "matched_stop"):
        if name in choice:
            return choice[name] if choice[name] in strings else None
    contained = next((string for string in strings if string in choice["text"]), None)
    if contained is None and stop:
        # A wrong guess would continue a solution after its end, or end it in the middle.
        raise EndpointError(
            f"Server: got an answer with neither stop_reason nor matched_stop, and without any of {list(stop)} in its "
            "text, expected the reason why the text ended. Serve the policy with vLLM or SGLang, or sample with "
            "backend='transformers'."
        )
    return contained


def _tokenizer(tokenizer):
    return load_tokenizer(tokenizer, trust_remote_code=False) if isinstance(tokenizer, (str, PathLike)) else tokenizer
