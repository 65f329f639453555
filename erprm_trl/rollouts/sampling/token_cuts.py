"""Cuts sampled tokens where their text is cut: at the end of a step, and at a string that ends a solution."""

from bisect import bisect_left
from collections.abc import Sequence

from .base import Completion, Prompt, decode_continuation


def cut_tokens(
    tokenizer, prompt: Sequence[int], token_ids: Sequence[int], prefixes: Sequence[str]
) -> list[tuple[int, bool]]:
    """
    Finds the tokens that each prefix of a sampled text consists of.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        prompt (`Sequence[int]`):
            Token ids before the text.
        token_ids (`Sequence[int]`):
            Sampled token ids of the text, length T.
        prefixes (`Sequence[str]`):
            Prefixes of the text, each as long as the one before or longer.

    Returns:
        `list[tuple[int, bool]]`: For each prefix, the number of tokens up to the one that completes its last
        character, and whether these tokens decode to exactly the prefix. They do not where that token goes on with
        what follows the prefix.
    """
    prompt, token_ids = list(prompt), list(token_ids)
    cuts = []
    start, known = 0, ""  # the last exact cut: only what follows it is decoded in the search
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
    Ends a completion before the first of the strings `until` in it. It counts as finished then.

    A string may begin in the prompt's prefix: then nothing of the completion is kept. `token_ids` are those whose text
    lies within the kept text, so a token that also holds the beginning of the string is dropped. `num_tokens` is their
    number; for a completion without ids, the number of tokens of the kept text.
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
    """Drops the tokens at the end whose text is not in the completion's text. All are dropped where the others do not
    decode to the beginning of the text."""
    prompt_ids, token_ids, text = list(prompt_ids), completion.token_ids, completion.text
    if decode_continuation(tokenizer, prompt_ids, list(token_ids)) == text:
        return completion
    ((cut, exact),) = cut_tokens(tokenizer, prompt_ids, token_ids, [text])
    kept = token_ids[: cut if exact else max(0, cut - 1)]
    if not text.startswith(decode_continuation(tokenizer, prompt_ids, list(kept))):
        return completion._replace(token_ids=())
    return completion._replace(token_ids=kept, num_tokens=len(kept))
