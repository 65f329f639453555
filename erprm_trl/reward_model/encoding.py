"""The one encoder: a question and its steps become token ids and the positions where scores are read.

Training, scoring and reinforcement learning all call it. Pieces are encoded one by one and joined as ids, so a
separator is one id wherever it stands and its position is known without searching for it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from .prm_format import PRMFormat


class EncodedSolution(NamedTuple):
    """
    A solution as a reward model reads it.

    `input_ids` are the token ids; `step_positions` the index of the separator that closes each step, one a step that
    was kept; `num_dropped_steps` how many whole steps at the end did not fit `max_length`; `separator_inside` the
    first step whose own text contains the separator's id, or `None`; `prompt_length` how many ids the prompt has.
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
    Encodes solutions: prompt, step 1, separator, step 2, separator, ...

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The reward model's tokenizer. The special tokens that it puts before a text (BOS) are kept, those that it
            puts after one (EOS) are not: the steps follow.
        prm_format ([`PRMFormat`]):
            The format.
        questions (`Sequence[str]`):
            One question a solution.
        steps (`Sequence[Sequence[str]]`):
            Steps of each solution, without separators.
        max_length (`int`, *optional*):
            Longest sequence in tokens. Whole steps at the end are left out, and counted, until it fits.

    Returns:
        `list[EncodedSolution]`: one a solution.
    """
    separator = prm_format.token_ids(tokenizer).separator
    prompts = _encode_prompts(tokenizer, [prm_format.render_prompt(question) for question in questions])
    flat = [step for solution in steps for step in solution]
    flat_ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
    encoded = []
    for prompt, solution in zip(prompts, steps, strict=True):
        ids, positions, inside = list(prompt), [], None
        for number in range(len(solution)):
            step_ids = next(flat_ids)
            full = len(positions) < number or (max_length is not None and len(ids) + len(step_ids) + 1 > max_length)
            if full:
                continue  # this step and all after it; their ids still have to be taken off the iterator
            if inside is None and separator in step_ids:
                inside = number
            ids += [*step_ids, separator]
            positions.append(len(ids) - 1)
        encoded.append(EncodedSolution(ids, positions, len(solution) - len(positions), inside, len(prompt)))
    return encoded


def _encode_prompts(tokenizer, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    with_special = tokenizer(texts)["input_ids"]
    bare = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [_without_suffix(ids, plain) for ids, plain in zip(with_special, bare, strict=True)]


def _without_suffix(ids: list[int], plain: list[int]) -> list[int]:
    # A tokenizer's special tokens stand before and after the plain ids; what stands after them goes.
    for start in range(len(ids) - len(plain) + 1):
        if ids[start : start + len(plain)] == plain:
            return ids[: start + len(plain)]
    return ids
