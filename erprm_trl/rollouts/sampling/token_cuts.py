"""Cuts sampled tokens at places in their text: at the ends of steps, and before a string that ends a solution."""

from bisect import bisect_left
from collections.abc import Sequence

from .base import Completion, Prompt, decode_continuation


def cut_tokens(
    tokenizer, prompt: Sequence[int], token_ids: Sequence[int], prefixes: Sequence[str]
) -> list[tuple[int, bool]]:
    """
    Finds the tokens of each prefix of a sampled text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.
        prompt (`Sequence[int]`):
            Token ids before the text.
        token_ids (`Sequence[int]`):
            Sampled token ids of the text, length T.
        prefixes (`Sequence[str]`):
            Prefixes of the text, in order of length.

    Returns:
        `list[tuple[int, bool]]`: for each prefix, the number of tokens up to the token that completes its last
        character, and whether these tokens decode to exactly the prefix. They do not if the last of these tokens also
        contains text after the prefix.
    """
    prompt, token_ids = list(prompt), list(token_ids)
    cuts = []
    start, known = 0, ""  # the last exact cut; the search only decodes tokens after it
    for prefix in prefixes:

        def reaches(count: int, start: int = start, rest: str = prefix[len(known) :]) -> bool:
            new = token_ids[start : start + count]
            return decode_continuation(tokenizer, prompt + token_ids[:start], new).startswith(rest)

        size = 8
        while start + size < len(token_ids) and not reaches(size):
            size *= 2
        cut = start + bisect_left(range(size), True, key=reaches)
        exact = cut <= len(token_ids) and decode_continuation(tokenizer, prompt, token_ids[:cut]) == prefix
        cuts.append((min(cut, len(token_ids)), exact))
        if exact:
            start, known = cut, prefix
    return cuts


def end_before(
    completion: Completion, until: Sequence[str], tokenizer, prompt: Prompt, prompt_ids: Sequence[int]
) -> Completion:
    """
    Cuts a completion before the first of the strings `until` in it. The completion then counts as finished.

    If the string begins in the prefix of the prompt, the completion becomes empty. `token_ids` keeps the tokens whose
    text is entirely in the kept text, so a token that also contains the beginning of the string is dropped.
    `num_tokens` is the number of kept tokens, or, for a completion without ids, the number of tokens of the kept text.

    Args:
        completion ([`Completion`]):
            The completion.
        until (`Sequence[str]`):
            Strings that end a solution.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.
        prompt ([`Prompt`]):
            Prompt of the completion.
        prompt_ids (`Sequence[int]`):
            Token ids of the prompt.

    Returns:
        [`Completion`]: the completion, cut if it contains one of the strings.
    """
    whole = prompt.prefix + completion.text
    begin = len(prompt.prefix)
    places = [whole.find(string, max(0, begin - len(string) + 1)) for string in until]
    end = min((place for place in places if place >= 0), default=None)
    if end is None:
        return completion
    kept = completion._replace(text=completion.text[: max(0, end - begin)], finished=True)
    if completion.token_ids:
        return fit_tokens(kept, tokenizer, prompt_ids)
    return kept._replace(num_tokens=len(tokenizer(kept.text, add_special_tokens=False)["input_ids"]))


def fit_tokens(completion: Completion, tokenizer, prompt_ids: Sequence[int]) -> Completion:
    """Drops tokens at the end that are not part of the completion's text. If the remaining tokens do not decode to the
    beginning of the text, all tokens are dropped."""
    prompt_ids, token_ids, text = list(prompt_ids), completion.token_ids, completion.text
    if decode_continuation(tokenizer, prompt_ids, list(token_ids)) == text:
        return completion
    ((cut, exact),) = cut_tokens(tokenizer, prompt_ids, token_ids, [text])
    kept = token_ids[: cut if exact else max(0, cut - 1)]
    if not text.startswith(decode_continuation(tokenizer, prompt_ids, list(kept))):
        return completion._replace(token_ids=())
    return completion._replace(token_ids=kept, num_tokens=len(kept))
