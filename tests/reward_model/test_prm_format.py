"""The format: its errors, its file, and tokens that are encoded as several ids."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import byte_level_bpe, save_tiny, sentencepiece_style, silent_bpe, word_level

from erprm_trl import PRMFormat


def test_round_trip_through_a_folder(tmp_path):
    format_ = PRMFormat(
        separator=" ки", good_token="✓", bad_token="✗", head="token", prompt_template="Q: {question}\nA:"
    )
    assert PRMFormat.from_json(format_.to_json()) == format_
    format_.save(tmp_path)
    assert PRMFormat.load(tmp_path) == format_
    assert "ки" in (tmp_path / "prm_format.json").read_text(encoding="utf-8")  # readable, not escaped


@pytest.mark.parametrize("eta", [None, 0.0, 2.5, -1.0, math.inf, -math.inf])
def test_every_eta_is_valid_json_and_read_again(eta, tmp_path):
    format_ = PRMFormat(eta=eta)
    format_.save(tmp_path)
    assert PRMFormat.load(tmp_path) == format_
    text = (tmp_path / "prm_format.json").read_text()
    assert "Infinity" not in text and json.dumps(format_.to_dict(), allow_nan=False)
    assert ('"eta"' in text) is (eta is not None)  # earlier versions refuse fields that they do not know


@pytest.mark.parametrize("eta", ["0", [1], math.nan])
def test_an_eta_that_is_not_a_number_is_refused(eta):
    with pytest.raises(ValueError, match=r"PRMFormat.eta: got .*expected a number from -inf to inf, or None"):
        PRMFormat(eta=eta)
    with pytest.raises(ValueError, match=r"PRMFormat.eta: got"):
        PRMFormat.from_json(json.dumps({"eta": eta}))


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the file that ERPRMTrainer saves"):
        PRMFormat.load(tmp_path)
    with pytest.raises(ValueError, match="fields from"):
        PRMFormat.from_json('{"seperator": "x"}')


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "sequence"}, "head: got 'sequence', expected one of lm, token"),
        ({"aggregation": "max"}, "aggregation: got 'max'"),
        ({"separator": ""}, "separator: got ''"),
        ({"good_token": "-"}, "two different tokens"),
        ({"prompt_template": "no place"}, r"expected a text with '\{question\}' once"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        PRMFormat(**fields)


def test_templates_leave_other_braces_alone():
    assert (
        PRMFormat(prompt_template="\\boxed{} {question}").render_prompt("{x} {question}") == "\\boxed{} {x} {question}"
    )


@pytest.mark.parametrize(
    ("tokens", "tokenizer", "message"),
    [
        ({"good_token": "yes"}, byte_level_bpe, "good_token: the tokenizer encodes 'yes' as . ids .*exactly one"),
        # The unknown token cannot be a separator.
        ({"separator": "<|step|>"}, word_level, r"separator: .*'<\|step\|>' as 1 ids .*known ids.*'ки'.*add_"),
        ({"separator": "é"}, silent_bpe, r"separator: .*'é' as 0 ids .*known ids"),
    ],
)
def test_an_unknown_token_is_an_error_that_proposes_known_tokens(tokens, tokenizer, message):
    with pytest.raises(ValueError, match=message):
        PRMFormat(**tokens).token_ids(tokenizer())


@pytest.mark.parametrize(("build", "separator", "last"), [
    (sentencepiece_style, "\n", "\n"),  # SentencePiece's mark and the newline, as on Mistral and Llama 2
    (byte_level_bpe, "ки", "¸"),
])  # fmt: skip
def test_a_step_score_is_read_at_the_last_id_of_its_separator(build, separator, last):
    tokenizer = build()
    ids = PRMFormat(separator=separator).token_ids(tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids.separator) == last


def test_a_tokenizer_with_other_ids_than_the_expected_ids_is_refused():
    tokenizer = byte_level_bpe()
    plus, newline = tokenizer.encode("+")[0], tokenizer.encode("\n")[-1]
    expected = {"separator": newline, "good_token": plus}
    PRMFormat(expected_ids=expected).token_ids(tokenizer)
    other = PRMFormat(expected_ids=expected | {"good_token": plus + 1})
    with pytest.raises(ValueError, match=rf"good_token: .*'\+' as \[{plus}\], expected {plus + 1}, .*model's repo"):
        other.token_ids(tokenizer)
    dataclasses.replace(other, expected_ids=None).token_ids(tokenizer)  # the fix that the message proposes
    assert PRMFormat.from_json(other.to_json()) == other and hash(other) == hash(PRMFormat())
    with pytest.raises(ValueError, match="expected_ids: got {'head': 1}, expected integer ids for some or all of"):
        PRMFormat(expected_ids={"head": 1})
    with pytest.raises(ValueError, match=r"PRMFormat.expected_ids: got 5 \(int\), expected dict"):
        PRMFormat.from_json('{"expected_ids": 5}')


def test_known_white_space_is_not_added_as_a_new_token():
    tokenizer = sentencepiece_style()
    before, text = len(tokenizer), tokenizer.encode("one\ntwo")
    assert PRMFormat(separator="\n").add_missing_tokens(tokenizer) == []
    assert len(tokenizer) == before and tokenizer.encode("one\ntwo") == text
    # A tokenizer that skips white space has no white space to replace.
    assert PRMFormat(separator="\n").add_missing_tokens(silent_bpe()) == ["\n"]


def test_a_token_head_needs_no_good_and_bad_token():
    ids = PRMFormat(separator="ки", head="token", good_token="yes").token_ids(word_level())
    assert ids.good is None and ids.bad is None


def test_missing_tokens_are_added_once(tmp_path):
    tokenizer = byte_level_bpe()
    format_ = PRMFormat(separator="<|step|>")
    before = len(tokenizer)
    assert format_.add_missing_tokens(tokenizer) == ["<|step|>"]
    assert format_.add_missing_tokens(tokenizer) == []
    assert format_.token_ids(tokenizer).separator == before
    # the token is one id in any text, also after saving and loading
    save_tiny(tmp_path, tokenizer)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path).encode("a<|step|>")[-1] == before


FIELDS = [field.name for field in dataclasses.fields(PRMFormat)]
VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.text(), max_size=1)
)


@settings(max_examples=settings().max_examples // 2, deadline=None)
@given(st.text() | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), VALUES, max_size=3).map(json.dumps))
def test_any_file_content_gives_a_format_or_a_value_error(text):
    try:
        prm_format = PRMFormat.from_json(text)
    except ValueError:
        return
    for field in dataclasses.fields(PRMFormat):
        value = getattr(prm_format, field.name)
        assert type(value) is type(field.default) or value is None or isinstance(value, (str, float, int))
    texts = (prm_format.separator, prm_format.good_token, prm_format.between_steps, prm_format.splitter)
    assert all(isinstance(text, str) for text in texts) and isinstance(prm_format.beta, (int, float))


def test_errors_name_fields_of_a_wrong_type():
    with pytest.raises(ValueError, match=r"PRMFormat.separator: got 5 \(int\), expected str"):
        PRMFormat.from_json('{"separator": 5}')
    with pytest.raises(ValueError, match=r"PRMFormat.beta: got '0.1' \(str\), expected int or float"):
        PRMFormat.from_json('{"beta": "0.1"}')
    with pytest.raises(ValueError, match="expected a JSON object"):
        PRMFormat.from_json("[" * 100_000)
