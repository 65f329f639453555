"""Encodes a question and its steps as token ids, with the positions where step scores are read.

Training, scoring and reinforcement learning all use this encoder. It never searches for separators in the token ids.
Either the pieces are encoded one by one and their ids are joined, or the whole text is encoded and the steps are
located by their character offsets.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..io.text_lists import check_text_lists, check_texts
from .prm_format import PRMFormat


class EncodedSolution(NamedTuple):
    """
    An encoded solution.

    Attributes:
        input_ids (`list[int]`):
            Token ids of the prompt, the steps and the separators.
        step_positions (`list[int]`):
            Index in `input_ids` where the score of each kept step is read: the last token of the separator after it.
        num_dropped_steps (`int`):
            Number of whole steps at the end that did not fit `max_length`.
        separator_inside (`int` or `None`):
            Index of the first step whose own text or ids contain the separator.
        prompt_length (`int`):
            Number of token ids of the prompt.
    """

    input_ids: list[int]
    step_positions: list[int]
    num_dropped_steps: int
    separator_inside: int | None
    prompt_length: int


def encode_solution(
    tokenizer, prm_format: PRMFormat, question: str, steps: Sequence[str], max_length: int | None = None
) -> EncodedSolution:
    """Encodes one solution; see [`encode_solutions`]."""
    return encode_solutions(tokenizer, prm_format, [question], [steps], max_length)[0]


def encode_solutions(
    tokenizer,
    prm_format: PRMFormat,
    questions: Sequence[str],
    steps: Sequence[Sequence[str]],
    max_length: int | None = None,
) -> list[EncodedSolution]:
    """
    Encodes solutions as: prompt, step 1, separator, text between steps, step 2, separator, ...

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The reward model's tokenizer. Special tokens that it adds before a text (BOS) are kept. Special tokens that
            it adds after a text (EOS) are left out.
        prm_format ([`PRMFormat`]):
            The reward model's format.
        questions (`Sequence[str]`):
            One question per solution.
        steps (`Sequence[Sequence[str]]`):
            Steps of each solution, without separators.
        max_length (`int`, *optional*):
            Maximum length in tokens. Whole steps at the end of a longer solution are dropped and counted until it
            fits.

    Returns:
        `list[EncodedSolution]`: one encoded solution per solution.

    Raises:
        `ValueError`: if the tokenizer does not know the separator, or has no offsets although the format needs them.
        `TypeError`: if an argument is a string instead of a list.
    """
    check_texts("questions", questions)
    check_text_lists("steps", steps)
    prompts = [prm_format.render_prompt(question, tokenizer.bos_token) for question in questions]
    if not prompts:
        return []
    if prm_format.prompt_template.startswith("{bos_token}"):
        # Some tokenizers, such as Llama-2's, put a space before a text, but not before a text after their BOS.
        leading = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        prompts = [prompt.removeprefix(tokenizer.bos_token or "") for prompt in prompts]
    else:
        has_bos = "{bos_token}" in prm_format.prompt_template
        leading = [] if has_bos else _leading_ids(tokenizer, prm_format.separator)
    encode = _encode_pieces if prm_format.tokenization == "pieces" else _encode_texts
    encoded = encode(tokenizer, prm_format, leading, prompts, steps, max_length)
    return [_with_text(solution, prm_format.separator, texts) for solution, texts in zip(encoded, steps, strict=True)]


def _with_text(encoded: EncodedSolution, separator: str, steps: Sequence[str]) -> EncodedSolution:
    """Adds the steps with the separator in their text, where it may be a part of another token: `.\\n` is one token of
    Qwen's."""
    kept = steps[: len(encoded.step_positions)]
    inside = [index for index, step in enumerate(kept) if separator and separator in step][:1]
    inside += [encoded.separator_inside] if encoded.separator_inside is not None else []
    return encoded._replace(separator_inside=min(inside, default=None))


def _encode_pieces(tokenizer, prm_format, leading, prompts, steps, max_length) -> Iterable[EncodedSolution]:
    prm_format.token_ids(tokenizer)  # raises an error for tokens that the tokenizer does not know
    separator = tokenizer(prm_format.separator, add_special_tokens=False)["input_ids"]
    between = tokenizer(prm_format.between_steps, add_special_tokens=False)["input_ids"]
    distinct = list(dict.fromkeys([*prompts, *(step for solution in steps for step in solution)]))
    ids_of = dict(zip(distinct, tokenizer(distinct, add_special_tokens=False)["input_ids"], strict=True))
    for prompt, solution in zip(prompts, steps, strict=True):
        ids, positions, inside = [*leading, *ids_of[prompt]], [], None
        prompt_length = len(ids)
        for step_index, step in enumerate(solution):
            step_ids = ids_of[step]
            piece = [*(between if step_index else []), *step_ids, *separator]
            if max_length is not None and len(ids) + len(piece) > max_length:
                break
            if inside is None and _contains(step_ids, separator):
                inside = step_index
            ids += piece
            positions.append(len(ids) - 1)
        yield EncodedSolution(ids, positions, len(solution) - len(positions), inside, prompt_length)


def _encode_texts(tokenizer, prm_format, leading, prompts, steps, max_length) -> Iterable[EncodedSolution]:
    if not tokenizer.is_fast:
        raise ValueError(
            f'PRMFormat.tokenization="text": got {type(tokenizer).__name__}, which has no character offsets, expected '
            "a fast tokenizer. Load it with AutoTokenizer and use_fast=True."
        )
    laid_out = [_lay_out(prm_format, prompt, solution) for prompt, solution in zip(prompts, steps, strict=True)]
    tokens = tokenizer([text for text, _ in laid_out], add_special_tokens=False, return_offsets_mapping=True)
    for index, (prompt, solution) in enumerate(zip(prompts, steps, strict=True)):
        ids, offsets = tokens["input_ids"][index], tokens["offset_mapping"][index]
        encoded = _locate(leading, ids, offsets, prompt, laid_out[index])
        kept = len(solution)
        while max_length is not None and kept and len(encoded.input_ids) > max_length:
            # A token may span the end of a step and the text after it, so the shorter text is encoded again.
            kept = min(kept - 1, bisect_left(encoded.step_positions, max_length))
            shorter = _lay_out(prm_format, prompt, solution[:kept])
            again = tokenizer(shorter[0], add_special_tokens=False, return_offsets_mapping=True)
            encoded = _locate(leading, again["input_ids"], again["offset_mapping"], prompt, shorter)
        yield encoded._replace(num_dropped_steps=len(solution) - kept)


def _lay_out(prm_format: PRMFormat, prompt: str, steps: Sequence[str]) -> tuple[str, list[tuple[int, int, int]]]:
    """The whole text, and per step the character offsets of its start, its end and the end of its separator."""
    text, spans = prompt, []
    for index, step in enumerate(steps):
        start = len(text) + (len(prm_format.between_steps) if index else 0)
        spans.append((start, start + len(step), start + len(step) + len(prm_format.separator)))
        text += (prm_format.between_steps if index else "") + step + prm_format.separator
    return text, spans


def _locate(leading, ids, offsets, prompt: str, laid_out) -> EncodedSolution:
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]

    def count(end: int) -> int:
        # Number of tokens that begin before a character. Some tokenizers leave white space out of the offsets, so a
        # token of white space has zero width.
        return max(bisect_left(starts, end), bisect_right(ends, end))

    positions, inside = [], None
    for index, (start, end, closed) in enumerate(laid_out[1]):
        positions.append(len(leading) + count(closed) - 1)
        own = ids[bisect_right(ends, start) : count(end)]
        if inside is None and _contains(own, ids[count(end) : count(closed)]):
            inside = index
    prompt_length = len(leading) + bisect_right(ends, len(prompt))
    return EncodedSolution([*leading, *ids], positions, 0, inside, prompt_length)


def _contains(ids: list[int], part: list[int]) -> bool:
    return bool(part) and any(ids[i : i + len(part)] == part for i in range(len(ids) - len(part) + 1))


def _leading_ids(tokenizer, separator: str) -> list[int]:
    # Finds the special tokens before a text by locating the text's plain ids. The separator is the second try, because
    # a tokenizer without a token for "a" and without an unknown token encodes "a" as nothing.
    for text in ("a", separator):
        with_special = tokenizer(text)["input_ids"]
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        starts = range(len(with_special) - len(plain) + 1)
        if plain:
            return with_special[: next((i for i in starts if with_special[i : i + len(plain)] == plain), 0)]
    return []
