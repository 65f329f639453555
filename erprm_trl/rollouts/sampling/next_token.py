"""Reads how likely a few tokens are as the next token, from a completions endpoint.

A server returns the log-probabilities of the tokens that a request names (vLLM), or of the most likely tokens.
"""

import json
from collections.abc import Sequence
from typing import Any

from ...io.http_client import EndpointError


NUM_LISTED = 20  # tokens that a server lists, vLLM's default limit


def single_token_ids(tokenizer, tokens: Sequence[str]) -> list[int]:
    """
    The ids of texts that are one token each.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        tokens (`Sequence[str]`):
            The texts.

    Raises:
        `ValueError`: if a text is not one token.
    """
    ids = [tokenizer.encode(token, add_special_tokens=False) for token in tokens]
    for token, token_ids in zip(tokens, ids, strict=True):
        if len(token_ids) != 1 or token_ids == [tokenizer.unk_token_id]:
            raise ValueError(
                f"Next token: got {token!r}, which the tokenizer encodes as {token_ids}, expected one token that it "
                "knows. Choose another text, such as one with or without a space before it."
            )
    return [token_ids[0] for token_ids in ids]


def request_fields(token_ids: Sequence[int]) -> dict[str, Any]:
    """Fields of a request for the log-probabilities of next tokens. Servers other than vLLM ignore the last two, and
    list the most likely tokens."""
    return {
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": NUM_LISTED,
        "logprob_token_ids": list(token_ids),
        "return_tokens_as_token_ids": True,
    }


def read_log_probs(answer: str, tokenizer, token_ids: Sequence[int]) -> list[float]:
    """
    Reads the log-probabilities of tokens from the answer of a server.

    A token that the server does not list gets the smallest log-probability of the list, which is an upper bound.

    Args:
        answer (`str`):
            JSON text of the answer.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        token_ids (`Sequence[int]`):
            The tokens.

    Returns:
        `list[float]`: one log-probability per token.

    Raises:
        [`EndpointError`]: if the answer has no log-probabilities, or lists none of the tokens.
        `ValueError`: if the answer is not complete.
    """
    (choice,) = json.loads(answer)["choices"]
    listed = ((choice.get("logprobs") or {}).get("top_logprobs") or [None])[0]
    if not listed:
        raise EndpointError(
            "Server: got an answer without logprobs.top_logprobs, expected the log-probabilities of the next token. "
            "Serve the judge with vLLM or SGLang, or leave verdict_tokens out to ask for votes."
        )
    if not all(isinstance(value, (int, float)) for value in listed.values()):
        raise ValueError("a log-probability that is not a number")
    names = [
        (f"token_id:{token_id}", tokenizer.decode([token_id]), tokenizer.convert_ids_to_tokens(token_id))
        for token_id in token_ids
    ]
    log_probs = [next((listed[name] for name in of_token if name in listed), None) for of_token in names]
    if all(log_prob is None for log_prob in log_probs):
        raise EndpointError(
            f"Server: got the most likely tokens {sorted(listed, key=listed.get, reverse=True)}, expected one of "
            f"{[of_token[1] for of_token in names]} among them. Change the prompt so that the answer begins with one "
            "of these, or choose other tokens."
        )
    smallest = min(listed.values())
    return [float(smallest if log_prob is None else log_prob) for log_prob in log_probs]
