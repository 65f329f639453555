"""The format: its errors, its file, and tokens that are not one id."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import byte_level_bpe, save_tiny, sentencepiece_style, word_level

from erprm_trl import PRMFormat


def test_round_trip_through_a_folder(tmp_path):
    format_ = PRMFormat(
        separator=" ки", good_token="✓", bad_token="✗", head="token", prompt_template="Q: {question}\nA:"
    )
    assert PRMFormat.from_json(format_.to_json()) == format_
    format_.save(tmp_path)
    assert PRMFormat.load(tmp_path) == format_
    assert "ки" in (tmp_path / "prm_format.json").read_text(encoding="utf-8")  # people read it


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="not saved by ERPRMTrainer"):
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
        ({"prompt_template": "no place"}, r"expected '\{question\}'"),
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
        ({"separator": "ки"}, byte_level_bpe, r"separator: .*'ки' as 4 ids.*'\\n'.*add_"),
        # The unknown token is no separator.
        ({"separator": "<|step|>"}, word_level, r"'<\|step\|>' as 1 ids .*one known id"),
        ({"good_token": "yes"}, byte_level_bpe, "good_token: the tokenizer encodes 'yes'"),
        ({"separator": "\n"}, sentencepiece_style, r"encodes '\\n' as 2 ids"),
    ],
)
def test_a_token_of_several_ids_is_an_error_that_proposes_others(tokens, tokenizer, message):
    with pytest.raises(ValueError, match=message):
        PRMFormat(**tokens).token_ids(tokenizer())


def test_a_scalar_head_needs_no_good_and_bad_token():
    ids = PRMFormat(separator="ки", head="token", good_token="yes").token_ids(word_level())
    assert ids.good is None and ids.bad is None


def test_missing_tokens_are_added_once(tmp_path):
    tokenizer = byte_level_bpe()
    format_ = PRMFormat(separator="<|step|>")
    before = len(tokenizer)
    assert format_.add_missing_tokens(tokenizer) == ["<|step|>"]
    assert format_.add_missing_tokens(tokenizer) == []
    assert format_.token_ids(tokenizer).separator == before
    # the token stands for itself in any text, and survives saving
    save_tiny(tmp_path, tokenizer)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path).encode("a<|step|>")[-1] == before


FIELDS = [field.name for field in dataclasses.fields(PRMFormat)]
VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.text(), max_size=1)
)


@settings(max_examples=settings().max_examples // 2, deadline=None)
@given(st.text() | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), VALUES, max_size=3).map(json.dumps))
def test_whatever_a_file_says_is_a_format_or_a_value_error(text):
    try:
        prm_format = PRMFormat.from_json(text)
    except ValueError:
        return
    for field in dataclasses.fields(PRMFormat):
        value = getattr(prm_format, field.name)
        assert type(value) is type(field.default) or value is None or isinstance(value, (str, float, int))
    texts = (prm_format.separator, prm_format.good_token, prm_format.between_steps, prm_format.splitter)
    assert all(isinstance(text, str) for text in texts) and isinstance(prm_format.beta, (int, float))


def test_fields_of_another_type_are_named():
    with pytest.raises(ValueError, match=r"PRMFormat.separator: got 5 \(int\), expected str"):
        PRMFormat.from_json('{"separator": 5}')
    with pytest.raises(ValueError, match=r"PRMFormat.beta: got '0.1' \(str\), expected int or float"):
        PRMFormat.from_json('{"beta": "0.1"}')
    with pytest.raises(ValueError, match="expected a JSON object"):
        PRMFormat.from_json("[" * 100_000)
