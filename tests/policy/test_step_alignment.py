"""Alignment of steps with a policy's own tokens: several tokenizers, random tokens, and tokens that span two steps."""

import json
import random
from itertools import accumulate
from os.path import commonprefix

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from step_fakes import ODD, ZOO, byte_level_bpe, sentencepiece_style, word_level
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from erprm_trl.policy.step_alignment import step_token_ends, token_starts
from erprm_trl.steps import split_steps


SOLUTION = "She sold 48+24 = 72 €, ½ of it!{0}Käse … 3 €{0}The answer is \\boxed{{72}}."
DIAL_SOLUTION = "7 + 15 = 2 {0} 2 * 3 = 6 {0} answer 6"


@pytest.fixture(scope="module")
def tokenizers():
    return {name: build() for name, (build, _) in ZOO.items()} | {"SentencePiece bytes": with_plain_bytes()}


def steps_of(tokenizer, ids, splitter):
    text = tokenizer.decode(ids, skip_special_tokens=True)
    pieces = split_steps(text, splitter)
    return pieces, step_token_ends(tokenizer, ids, text, list(accumulate(map(len, pieces))))


@pytest.mark.parametrize("name", ZOO)
def test_each_steps_tokens_decode_to_the_step(tokenizers, name):
    tokenizer = tokenizers[name]
    splitter = "\n" if name == "byte-level BPE" else "ки"
    ids = tokenizer.encode((DIAL_SOLUTION if name == "WordLevel" else SOLUTION).format(splitter))
    pieces, ends = steps_of(tokenizer, ids, splitter)
    assert len(pieces) == len(ends) == 3
    assert ends[-1] == len(ids) - 1
    for start, end, piece in zip([0, *(end + 1 for end in ends)], ends, pieces, strict=False):
        # decoders drop the space before the first word
        assert tokenizer.decode(ids[start : end + 1], skip_special_tokens=True).strip(" ") == piece.strip(" ")


@pytest.mark.parametrize("name", [*ZOO, "SentencePiece bytes"])
def test_random_tokens_have_increasing_starts_and_the_decoded_text(tokenizers, name):
    tokenizer, rng = tokenizers[name], random.Random(0)
    num_checked = 0
    for _ in range(150):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 30))]
        text, starts = token_starts(tokenizer, ids)
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        assert len(starts) == len(ids) and starts[0] == 0 and starts == sorted(starts) and starts[-1] <= len(text)
        pieces, ends = steps_of(tokenizer, ids, "\n" if name == "byte-level BPE" else "ки")
        if pieces and ends is not None:
            num_checked += 1
            assert len(ends) == len(pieces) and ends == sorted(set(ends)) and ends[-1] == len(ids) - 1
    assert num_checked > 100


def with_plain_bytes():
    """A SentencePiece tokenizer with bytes as ordinary tokens, like Llama's, so that they count as text."""
    content = json.loads(sentencepiece_style().backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("build", [byte_level_bpe, with_plain_bytes])
def test_characters_of_several_tokens_begin_at_their_first_byte(build):
    tokenizer, rng = build(), random.Random(1)
    cut = 0
    for _ in range(60):
        text = "".join(rng.choice(["ab", "ä", "€", "😀", " ", "½", "\n", "x"]) for _ in range(12)).strip() or "€"
        ids, expected, seen = [], [], b""
        for char in text:
            raw = char.encode()
            whole = tokenizer.encode(char, add_special_tokens=False)
            whole_token = whole[0] if build is byte_level_bpe and len(whole) == 1 and rng.random() < 0.5 else None
            for byte in [raw] if whole_token is not None else [bytes([byte]) for byte in raw]:
                # The oracle decodes the complete characters of the bytes so far.
                expected.append(len(seen.decode("utf-8", errors="ignore")))
                ids.append(whole_token if whole_token is not None else byte_id(tokenizer, byte[0]))
                seen += byte
            cut += whole_token is None and len(raw) > 1
        assert token_starts(tokenizer, ids) == (text, expected)
        # For a completion that ends inside a character, every prefix is decoded. (With SentencePiece, such a byte
        # makes its whole run of bytes invalid.)
        if build is byte_level_bpe:
            cut_short = [*ids, byte_id(tokenizer, 0xE2)]
            assert token_starts(tokenizer, cut_short) == (f"{text}\ufffd", [*expected, len(text)])
    assert cut > 50


def byte_id(tokenizer, byte):
    if "<0x0A>" in tokenizer.get_vocab():
        return tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>")
    # GPT-2's alphabet keeps printable bytes, and maps the others to characters from U+0100 on
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    char = chr(byte) if byte in plain else chr(256 + [other for other in range(256) if other not in plain].index(byte))
    return tokenizer.convert_tokens_to_ids(char)


def test_a_step_may_end_before_an_incomplete_character():
    # "€\nx": three bytes, a newline, a letter, and half of another character.
    tokenizer = byte_level_bpe()
    ids = [byte_id(tokenizer, byte) for byte in "€\nx".encode()] + [byte_id(tokenizer, 0xE2)]
    assert steps_of(tokenizer, ids, "newline") == (["€\n", "x\ufffd"], [3, 5])


def test_two_steps_inside_one_token_give_none():
    tokenizer = word_level()
    ids = tokenizer.encode("12 + 3")
    assert step_token_ends(tokenizer, ids, "12 + 3", [1, 2, 6]) is None  # "1", "2" and " + 3"
    assert step_token_ends(tokenizer, ids, "12 + 3", [2, 6]) == [0, 2]
    # A token belongs to the step in which it begins, so "12" belongs to the first.
    assert step_token_ends(tokenizer, ids, "12 + 3", [1, 6]) == [0, 2]


def test_the_end_token_and_later_tokens_belong_to_the_last_step():
    tokenizer = word_level()
    ids = tokenizer.encode("4 ки 8 </s>")
    # "4 ки" has characters 0 to 4, and " 8" has 4 to 6. Tokens begin at 0, 1, 4 and, without text, at 6.
    assert token_starts(tokenizer, ids) == ("4 ки 8", [0, 1, 4, 6])
    assert step_token_ends(tokenizer, ids, "4 ки 8", [4, 6]) == [1, 3]
    # Also after a final separator, the end token is not a separate step.
    assert step_token_ends(tokenizer, tokenizer.encode("4 ки </s>"), "4 ки", [4]) == [2]


def test_a_part_of_the_completions_text_is_located():
    tokenizer = word_level()
    ids = tokenizer.encode("check dial 4 ки 8 ? </s>")
    # "4 ки" and " 8" of "check dial 4 ки 8 ?". The text before belongs to the first step, the text after to the last.
    assert step_token_ends(tokenizer, ids, "4 ки 8", [4, 6]) == [3, 6]
    assert step_token_ends(tokenizer, ids, "4 ки 9", [4, 6]) is None


def test_no_tokens_or_no_steps_give_none():
    tokenizer = word_level()
    assert step_token_ends(tokenizer, [], "", [1]) is None
    assert step_token_ends(tokenizer, tokenizer.encode("4"), "4", []) is None


def test_an_end_token_that_is_also_the_padding_token_is_aligned():
    tokenizer = byte_level_bpe()
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    ids = [*tokenizer.encode("a\n"), end, *tokenizer.encode("b\n"), end]
    pieces, ends = steps_of(tokenizer, ids, "newline")
    assert pieces == ["a\n", "b\n"]
    # The first end token has no text and begins with the second step.
    assert ends == [len(tokenizer.encode("a\n")) - 1, len(ids) - 1]


def test_tokenizers_without_a_decode_stream_decode_every_prefix():
    tokenizer = byte_level_bpe()
    ids = tokenizer.encode("Käse €\nzwei")

    class Slow:
        def decode(self, token_ids, skip_special_tokens):
            return tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    assert token_starts(Slow(), ids) == token_starts(tokenizer, ids)


PIECES = [
    "7 + 15",
    *" \n\té½ßİﬁⅧ한A.",
    "\n\n",
    "e\u0301",
    "\u202eab",
    "😀",
    "\x00",
    "\u200b",
    "\ufffd",
    "<STEP>",
    "[STEP]",
]


@pytest.mark.parametrize("name", ODD)
def test_any_text_is_aligned_with_any_tokenizer(name):
    tokenizer = ODD[name][0]()
    texts = st.lists(st.sampled_from([*PIECES, "##", "Ġ", "▁", "</s>", "<s>", "[SEP]", "ки"]), max_size=8).map("".join)
    nonsense = st.lists(st.integers(0, len(tokenizer) - 1), max_size=12)

    @settings(max_examples=settings().max_examples // 4, deadline=None)
    @given(texts.map(tokenizer.encode) | nonsense)
    def check(ids):
        text, starts = token_starts(tokenizer, ids)
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        assert (
            len(starts) == max(1, len(ids)) and starts == sorted(starts) and 0 == starts[0] <= starts[-1] <= len(text)
        )
        # The text of the tokens before a token ends at or before the start of that token.
        for index, start in enumerate(starts):
            before = tokenizer.decode(ids[:index], skip_special_tokens=True)
            assert len(commonprefix([text, before])) >= start

    check()


def test_starts_equal_the_offsets_of_a_lossless_tokenizer():
    tokenizer = byte_level_bpe()

    @settings(deadline=None)
    # Not U+FFFD, because an incomplete character also decodes to it.
    @given(st.lists(st.sampled_from([piece for piece in PIECES if piece != "\ufffd"]), max_size=8).map("".join))
    @example(" \u202eab")  # the space shares its token with the first byte of the next character
    def check(text):
        encoded = tokenizer(text, return_offsets_mapping=True)
        decoded, starts = token_starts(tokenizer, encoded["input_ids"])
        assert decoded == text
        # The first bytes of a character have no text, and begin where the character begins.
        assert [start for start, _ in encoded["offset_mapping"]] == starts[: len(encoded["input_ids"])]

    check()


def test_a_repeated_text_is_located_at_its_last_occurrence():
    # The answer repeats the thinking, and only the answer was split into steps.
    tokenizer = word_level()
    ids = tokenizer.encode("4 ки 8 ? 4 ки 8 </s>")
    assert step_token_ends(tokenizer, ids, "4 ки 8", [4, 6]) == [5, 7]
