"""Tests cutting sampled tokens at the ends of steps, and before strings that end a solution."""

import pytest
import zoo

from erprm_trl.rollouts import Completion, Prompt
from erprm_trl.rollouts.sampling.base import decode_continuation
from erprm_trl.rollouts.sampling.token_cuts import cut_tokens, end_before, fit_tokens


TEXTS = [
    " 7 + 15 = 22 apples.\nHälfte: 3,5 €; ½ davon.\n\nIt is\n \n#### 66",
    "\n\nStep 1: \U0001f600\n",
    "",
]


class Pieces:
    """A tokenizer whose tokens are the pieces of `TOKENS`."""

    TOKENS = ("", "a", ".\n\n", "\nb", "\n", " Q", ":", "b\n")

    def decode(self, ids, skip_special_tokens=False):
        return "".join(self.TOKENS[token] for token in ids)

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [1] * len(text)}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [zoo.byte_level_bpe, zoo.sentencepiece_style])
def test_each_prefix_against_a_search_through_all_lengths(make, text):
    tokenizer = make()
    prompt = tokenizer("a question")["input_ids"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    text = decode_continuation(tokenizer, prompt, ids)
    decoded = [decode_continuation(tokenizer, prompt, ids[:count]) for count in range(len(ids) + 1)]
    prefixes = [text[:end] for end in range(len(text) + 1)]
    expected = []
    for prefix in prefixes:
        first = next(count for count, beginning in enumerate(decoded) if beginning.startswith(prefix))
        expected.append((first, decoded[first] == prefix))
    assert cut_tokens(tokenizer, prompt, ids, prefixes) == expected
    assert cut_tokens(tokenizer, prompt, ids, [f"{text}?"]) == [(len(ids), False)]  # not a prefix


def test_a_token_with_a_boundary_inside_is_not_split():
    ids = (1, 3, 1, 2, 1)  # "a", "\nb", "a", ".\n\n", "a"
    assert cut_tokens(Pieces(), [], ids, ["a\n", "a\nba", "a\nba.\n\n"]) == [(2, False), (3, True), (4, True)]


def end(text_ids, until, prefix=""):
    tokenizer = Pieces()
    completion = Completion(tokenizer.decode(text_ids), False, len(text_ids), tuple(text_ids))
    return end_before(completion, until, tokenizer, Prompt("q", prefix), [4])


def test_a_completion_ends_before_the_first_string():
    assert end([1, 4, 5, 6, 1], [" Q:"]) == Completion("a\n", True, 2, (1, 4))
    assert end([1, 4, 5, 6, 1], [":", "\n Q"]) == Completion("a", True, 1, (1,))
    # ".\n\n" also holds the beginning of the string: its dot stays in the text
    assert end([1, 2, 5, 6], ["\n\n Q:"]) == Completion("a.", True, 1, (1,))
    assert end([5, 6], [" Q:"]) == Completion("", True, 0, ())
    whole = Completion("a\n", False, 2, (1, 4))
    assert end([1, 4], [" Q:"]) == whole  # the string does not occur, so nothing changes


def test_a_string_may_begin_in_the_prefix():
    assert end([5, 6, 1], ["\n Q:"], prefix="a\n") == Completion("", True, 0, ())
    assert end([1, 5, 6], ["\n Q:"], prefix="a\n") == Completion("a Q:", False, 3, (1, 5, 6))
    assert not end([1], ["\n Q:"], prefix="a\n Q:").finished  # tokens of the prefix are not repeated


def test_without_ids_the_tokens_of_the_kept_text_are_counted():
    completion = end_before(Completion("aa Q: a", False, 9), [" Q:"], Pieces(), Prompt("q"), [])
    assert completion == Completion("aa", True, 2)


def test_ids_that_do_not_match_the_text_are_dropped():
    assert fit_tokens(Completion("ab", True, 2, (4, 4)), Pieces(), []) == Completion("ab", True, 2)
    fits = Completion("a\nb", True, 2, (1, 3))
    assert fit_tokens(fits, Pieces(), []) is fits
