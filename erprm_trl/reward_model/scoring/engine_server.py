"""Scores steps with a reward model on a vLLM or SGLang server, and finds out which kind of server an address has.

The client encodes solutions and sends token ids. vLLM serves a token classification model and returns the logits of
its two classes at every token. SGLang serves a causal language model and returns the log-probabilities of the good and
the bad token at every position.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...io.http_client import UNREADABLE, EndpointClient, EndpointError, Service
from ...io.tokenizers import load_tokenizer
from ..encoding import EncodedSolution
from ..prm_format import FormatTokenIds, PRMFormat, resolve_format
from .backend import ScoringBackend
from .local import encode_for_scoring, scores_of_classes, solutions_to_score
from .remote import SCORING, RemoteBackend, refuse_loading
from .vllm import RESERVED_TOKENS


ENGINE = Service(
    example="http://localhost:8000",
    asked=SCORING.asked,
    retried=SCORING.retried,
    remedies={
        401: "set ${api_key_env} to the server's API key",
        403: "set ${api_key_env} to an API key that may use this model",
        404: "serve the reward model: vllm serve FOLDER --runner pooling, where erprm export has written FOLDER, or "
        "python -m sglang.launch_server --model-path FOLDER for a model with a language-model head",
    },
    other_remedy="check the server's log. vLLM must serve the folder of erprm export with --runner pooling",
    when_down=SCORING.when_down,
)


class Engine(NamedTuple):
    """
    A kind of server: the form of its requests and answers.

    Attributes:
        name (`str`):
            Name for messages.
        head (`str`):
            Head of the reward models that it can score.
        path (`str`):
            Path of the requests.
        reserved (`int`):
            Number of tokens that a solution must be shorter than the context.
        body (`Callable`):
            Makes the body of a request from the name of the model, the solutions, and the ids of the format's tokens.
        read (`Callable`):
            Reads the logits (bad, good) or the one logit of each step of each solution from an answer.
        remedy (`str`):
            How to serve a reward model with another head.
    """

    name: str
    head: str
    path: str
    reserved: int
    body: Callable[[str, list[EncodedSolution], FormatTokenIds], dict[str, Any]]
    read: Callable[[Any, list[EncodedSolution], FormatTokenIds], list[Tensor]]
    remedy: str


def _pooling_body(model: str, solutions: list[EncodedSolution], ids: FormatTokenIds) -> dict[str, Any]:
    return {
        "model": model,
        "task": "token_classify",
        "input": [solution.input_ids for solution in solutions],
        "use_activation": False,
        "encoding_format": "float",
    }


def _read_pooling(answer: Any, solutions: list[EncodedSolution], ids: FormatTokenIds) -> list[Tensor]:
    outputs = sorted(answer["data"], key=lambda output: output["index"])
    logits = [torch.tensor(output["data"], dtype=torch.float32) for output in outputs]
    if [len(rows) for rows in logits] != [len(solution.input_ids) for solution in solutions]:
        raise ValueError("another number of tokens")
    return [rows[solution.step_positions] for rows, solution in zip(logits, solutions, strict=True)]


def _generate_body(model: str, solutions: list[EncodedSolution], ids: FormatTokenIds) -> dict[str, Any]:
    return {
        "input_ids": [solution.input_ids for solution in solutions],
        "sampling_params": {"max_new_tokens": 0, "temperature": 0.0},
        "return_logprob": True,
        "return_text_in_logprobs": False,
        "logprob_start_len": [solution.step_positions[0] for solution in solutions],
        "token_ids_logprob": [[ids.bad, ids.good] for _ in solutions],
    }


def _read_generate(answer: Any, solutions: list[EncodedSolution], ids: FormatTokenIds) -> list[Tensor]:
    outputs = [answer] if isinstance(answer, dict) else answer  # some versions unpack a single solution
    logits = []
    for output, solution in zip(outputs, solutions, strict=True):
        info, start = output["meta_info"], solution.step_positions[0]
        # Entry i belongs to token start + i, and is predicted at the position before it. The first entry is empty.
        entries = info["input_token_ids_logprobs"]
        if len(entries) != len(solution.input_ids) - start:
            raise ValueError("another number of tokens")
        entries = [*entries, info["output_token_ids_logprobs"][0]]
        at_steps = [{entry[1]: entry[0] for entry in entries[at + 1 - start]} for at in solution.step_positions]
        logits.append(torch.tensor([[logprobs[ids.bad], logprobs[ids.good]] for logprobs in at_steps]))
    return logits


ENGINES = {
    "vllm": Engine(
        "vLLM",
        "token",
        "/pooling",
        RESERVED_TOKENS,
        _pooling_body,
        _read_pooling,
        "Export the model and serve the new folder: erprm export --reward_model {source} --output_dir FOLDER, then "
        "vllm serve FOLDER --runner pooling. If the server serves the new folder, pass tokenizer=FOLDER.",
    ),
    "sglang": Engine(
        "SGLang",
        "lm",
        "/generate",
        1,
        _generate_body,
        _read_generate,
        "SGLang returns the class of a whole text, not of each token. Serve a model with a language-model head, or "
        "serve this model with vLLM or erprm serve.",
    ),
}


class EngineServerBackend:
    """
    A [`ScoringBackend`] whose model is on a vLLM or SGLang server. `StepScorer.from_pretrained("http://host:8000")`
    uses this backend with its default options, if the server is one of these.

    A vLLM server must serve an exported reward model ([`StepScorer.export_token_classifier`]) with `--runner pooling`.
    An SGLang server must serve a reward model with a language-model head, without an adapter.

    A call is divided into requests of `solutions_per_request` solutions, and up to `max_concurrency` requests run at
    a time. Retries and proxies are as with [`RemoteBackend`]. Scores are the same as with the model in this process up
    to the rounding of the engine's kernels.

    Args:
        url (`str`):
            Address of the server, with or without `/v1`. A `user:password@` in it is sent as basic authentication and
            never shown.
        tokenizer (`str` or `Path`, *optional*):
            Folder or Hub id of the served model, for its tokenizer and its `prm_format.json`. Defaults to the path or
            Hub id that the server reports.
        prm_format ([`PRMFormat`] or `str`, *optional*):
            Format of the served model, or the name of a preset. Defaults to the `prm_format.json` next to the
            tokenizer.
        max_concurrency (`int`, *optional*, defaults to `8`):
            Maximum number of concurrent requests per process.
        solutions_per_request (`int`, *optional*, defaults to `16`):
            Maximum number of solutions per request.
        request_timeout, max_attempts, max_retry_seconds, retry_wait (*optional*):
            See [`~erprm_trl.rollouts.EndpointSampler`].
        token_env (`str`, *optional*, defaults to `"ERPRM_SCORER_TOKEN"`):
            Environment variable with the server's API key. If it is not set, no key is sent.

    Raises:
        [`~erprm_trl.rollouts.EndpointError`]: if the server is neither, or if the request for its models fails.
        `FileNotFoundError`: if the tokenizer or the format cannot be read.
        `ValueError`: if the engine cannot score a model of this format.

    Example:

    ```python
    >>> backend = EngineServerBackend("http://gpu-machine:8000", tokenizer="outputs/my-erprm-exported")
    >>> scorer = StepScorer.from_backend(backend)
    ```
    """

    weights = None

    def __init__(
        self,
        url: str,
        *,
        tokenizer: str | Path | None = None,
        prm_format: PRMFormat | str | None = None,
        max_concurrency: int = 8,
        solutions_per_request: int = 16,
        request_timeout: float = 600.0,
        max_attempts: int = 12,
        max_retry_seconds: float = 900.0,
        retry_wait: float = 1.0,
        token_env: str = "ERPRM_SCORER_TOKEN",
    ):
        if solutions_per_request < 1:
            raise ValueError(
                f"solutions_per_request: got {solutions_per_request}, expected at least 1. Pass a larger number."
            )
        self.solutions_per_request = solutions_per_request
        limits = (max_concurrency, request_timeout, max_attempts, max_retry_seconds, retry_wait)
        self.client = EndpointClient(ENGINE, _without_version(url), *limits, token_env)
        self._served = self.client.get("/v1/models", self._read_models)
        self.engine = ENGINES[self._served.engine]
        source = tokenizer if tokenizer is not None else self._served.source
        self.prm_format, self.tokenizer = self._load(source, prm_format)
        if self.prm_format.head != self.engine.head:
            raise ValueError(
                f"{self.client.base_url}: got a {self.engine.name} server and the format of {source} with "
                f"head={self.prm_format.head!r}, expected head={self.engine.head!r}. "
                f"{self.engine.remedy.format(source=source)}"
            )
        self.token_ids = self.prm_format.token_ids(self.tokenizer)
        self._num_classes = 2 if self.prm_format.head == "lm" else self.prm_format.num_labels

    @property
    def model_name(self) -> str:
        """The name under which the server serves the model. It does not contain the server's address."""
        return self._served.name

    @property
    def context_length(self) -> int | None:
        """Maximum length of a solution in tokens, including the question, or `None` if the server reports no limit."""
        limit = self._served.max_model_len
        return None if limit is None else limit - self.engine.reserved

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool = False
    ) -> list[list[float]]:
        """
        Scores every step; see [`ScoringBackend.score`].

        Raises:
            [`SolutionTooLong`]: if a solution is too long and `skip_too_long` is `False`.
            [`~erprm_trl.rollouts.EndpointError`]: if a request fails.
        """
        encoded = encode_for_scoring(self.tokenizer, self.prm_format, questions, steps)
        kept = solutions_to_score(encoded, self.context_length, skip_too_long)
        size = self.solutions_per_request
        requests = [kept[start : start + size] for start in range(0, len(kept), size)]
        bodies = [
            self.engine.body(self.model_name, [encoded[index] for index in rows], self.token_ids) for rows in requests
        ]
        scores: list[list[float]] = [[] for _ in encoded]
        for rows, answer in zip(requests, self.client.post_all(self.engine.path, bodies, str), strict=True):
            for index, values in zip(rows, self._read_scores(answer, [encoded[i] for i in rows]), strict=True):
                scores[index] = values
        return scores

    def _read_scores(self, text: str, solutions: list[EncodedSolution]) -> list[list[float]]:
        # A malformed answer is not retried: another version of the server would give it again.
        try:
            logits = self.engine.read(json.loads(text), solutions, self.token_ids)
            classes = {rows.shape[-1] for rows in logits}
            scores = [scores_of_classes(rows) for rows in logits]
            if classes == {self._num_classes} and all(0 <= value <= 1 for values in scores for value in values):
                return scores
        except (*UNREADABLE, IndexError):
            pass
        raise EndpointError(
            f"{self.client.base_url}{self.engine.path}: got an answer in another form, expected the answer of "
            f"{self.engine.name} with the logits of {self._num_classes} classes at every token. Check the served "
            "model and the server's version."
        )

    def _read_models(self, text: str) -> "_ServedModel":
        try:
            cards = json.loads(text)["data"]
            # Adapters that the server loaded have a parent. The model itself has none.
            card = next(card for card in cards if card.get("parent") is None)
            owner, length = card.get("owned_by"), card.get("max_model_len")
            if owner in ENGINES and isinstance(card["id"], str) and (length is None or type(length) is int):
                return _ServedModel(owner, card["id"], card.get("root") or card["id"], length)
            received = f"a server of {owner!r}"
        except (*UNREADABLE, StopIteration):
            received = "an answer without models"
        raise EndpointError(
            f"{self.client.base_url}/v1/models: got {received}, expected a server of erprm serve, vLLM or SGLang. "
            "Check the address."
        )

    def _load(self, source: str | Path, prm_format: PRMFormat | str | None) -> tuple[PRMFormat, Any]:
        try:
            return resolve_format(prm_format, source), load_tokenizer(source)
        except OSError as error:
            raise FileNotFoundError(
                f"{self.client.base_url}: got a {self.engine.name} server of {source}, expected to read the tokenizer "
                f"and prm_format.json there ({str(error).splitlines()[0]}). Pass tokenizer= with a folder or Hub id "
                "that has both."
            ) from error


class _ServedModel(NamedTuple):
    engine: str
    name: str
    source: str
    max_model_len: int | None


def connect(
    url: str, *, prm_format: PRMFormat | str | None = None, tokenizer: str | Path | None = None
) -> ScoringBackend:
    """
    Returns the backend for the server at an address, after asking which kind of server it is.

    Args:
        url (`str`):
            Address of a server of `erprm serve`, vLLM or SGLang.
        prm_format, tokenizer (*optional*):
            See [`EngineServerBackend`]. They are refused for a server of `erprm serve`, which has its own.

    Raises:
        [`~erprm_trl.rollouts.EndpointError`]: if the server is of another kind, or does not answer.
        `ValueError`: if `prm_format` or `tokenizer` is set for a server of `erprm serve`.
    """
    try:
        backend = RemoteBackend(url)
    except EndpointError as error:
        if error.status != 404:
            raise
        not_ours = error
    else:
        refuse_loading(url, prm_format=prm_format, tokenizer=tokenizer)
        return backend
    try:
        return EngineServerBackend(url, prm_format=prm_format, tokenizer=tokenizer)
    except EndpointError as error:
        raise not_ours if error.status == 404 else error from None


def _without_version(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")
