"""Ties the steps of a completion to the policy's own tokens by character offsets; the text is never encoded again."""

from itertools import accumulate
from os.path import commonprefix
from typing import Any


def token_starts(tokenizer, token_ids: list[int]) -> tuple[str, list[int]]:
    """
    Decodes token by token.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        token_ids (`list[int]`):
            A completion, special tokens included.

    Returns:
        `tuple[str, list[int]]`: the text without special tokens, as `decode` gives it, and for each token the
        character at which it begins. Tokens without text of their own (special ones, the first bytes of a character)
        begin where the next text does.
    """
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    pieces = _stream(tokenizer, token_ids)
    if "".join(pieces) != text:  # a decoder that looks back, or a tokenizer without a stream: decode every prefix
        ends, unknown = [len(text)] * len(token_ids), range(len(token_ids) - 1)
    else:
        ends, unknown = list(accumulate(map(len, pieces))), _kept_back(pieces)
    for index in reversed(unknown):
        # Half a character decodes to a mark that its last byte replaces: only what stays is that token's text.
        decoded = tokenizer.decode(token_ids[: index + 1], skip_special_tokens=True)
        ends[index] = min(len(commonprefix([text, decoded])), ends[index + 1])
    return text, [0, *ends[:-1]]


def step_token_ends(tokenizer, token_ids: list[int], text: str, step_ends: list[int]) -> list[int] | None:
    """
    The last token of each step. A token belongs to the step in which it begins; those after the last step, the end
    token among them, to the last one.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        token_ids (`list[int]`):
            The completion.
        text (`str`):
            The completion's text, or the part of it that was split into steps. Of several places where the completion
            has this part, the last one counts: an answer may repeat what the thinking says.
        step_ends (`list[int]`):
            For each step the character of `text` at which it ends, increasing.

    Returns:
        `list[int]` or `None`: one index a step, increasing; `None` if a step owns no token (two steps end inside one
        token), or `text` is not found in what the tokens decode to.
    """
    decoded, starts = token_starts(tokenizer, token_ids)
    offset = decoded.rfind(text)
    if offset < 0 or not step_ends or not token_ids:
        return None
    last_token: dict[int, int] = {}
    step = 0
    for index, start in enumerate(starts):
        while step < len(step_ends) - 1 and start - offset >= step_ends[step]:
            step += 1
        last_token[step] = index
    return [last_token[step] for step in range(len(step_ends))] if len(last_token) == len(step_ends) else None


def _kept_back(pieces: list[str]) -> list[int]:
    """Tokens whose text may have come with a later one: the stream keeps a letter that shares its token with half a
    character until it knows the character."""
    kept_back, coming = [], 0
    for index in reversed(range(len(pieces))):
        if not pieces[index] and coming > 1:
            kept_back.append(index)
        coming = len(pieces[index]) or coming
    return kept_back[::-1]


def _stream(tokenizer, token_ids: list[int]) -> list[str]:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return []
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    try:
        return [stream.step(backend, token) or "" for token in token_ids]
    except Exception:  # no narrower class: bytes that make no character change text that the stream gave out before
        return []
