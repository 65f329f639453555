"""Aligns the steps of a completion with the policy's own tokens by character offsets, without encoding the text
again."""

from itertools import accumulate
from os.path import commonprefix
from typing import Any


def token_starts(tokenizer, token_ids: list[int]) -> tuple[str, list[int]]:
    """
    Decodes a completion, and finds the character at which each token begins.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        token_ids (`list[int]`):
            Tokens of a completion, including special tokens.

    Returns:
        `tuple[str, list[int]]`: the decoded text without special tokens, and the first character of each token. A
        token without text (a special token, or the first bytes of a character) begins at the next token's text.
    """
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    pieces = _stream(tokenizer, token_ids)
    # If the decoder changes earlier text, or there is no decode stream, every prefix is decoded instead.
    if "".join(pieces) != text:
        ends, unknown = [len(text)] * len(token_ids), range(len(token_ids) - 1)
    else:
        ends, unknown = list(accumulate(map(len, pieces))), _kept_back(pieces)
    for index in reversed(unknown):
        # An incomplete character decodes to a replacement character, which is not part of the final text. So the
        # token's text ends at the common prefix.
        decoded = tokenizer.decode(token_ids[: index + 1], skip_special_tokens=True)
        ends[index] = min(len(commonprefix([text, decoded])), ends[index + 1])
    return text, [0, *ends[:-1]]


def step_token_ends(tokenizer, token_ids: list[int], text: str, step_ends: list[int]) -> list[int] | None:
    """
    Finds the last token of each step. A token belongs to the step in which it begins. Tokens after the last step, such
    as the end-of-text token, belong to the last step.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        token_ids (`list[int]`):
            Tokens of the completion.
        text (`str`):
            The text of the completion, or the part of it that was split into steps. If this part occurs several times,
            the last occurrence is used, because an answer may repeat a part of the thinking.
        step_ends (`list[int]`):
            End of each step as a character index in `text`, increasing.

    Returns:
        `list[int]` or `None`: the index of each step's last token, increasing. `None` if a step has no token of its
        own (two steps end inside one token), or if the decoded tokens do not contain `text`.
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
    """Indices of tokens whose text the stream may have returned with a later token. The stream delays the text of a
    token that ends in an incomplete character until the character is complete."""
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
    except Exception:  # the library's error, raised if invalid bytes change earlier text, has no narrower class
        return []
