"""The format: its errors, its file, and tokens that are not one id."""

import pytest
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


def test_a_separator_of_several_ids_is_an_error_that_proposes_others():
    with pytest.raises(
        ValueError, match=r"separator: the tokenizer encodes 'ки' as 4 ids.*one id here: .*'\\n'.*add_missing_tokens"
    ):
        PRMFormat(separator="ки").token_ids(byte_level_bpe())
    with pytest.raises(ValueError, match="encodes '<|step|>' as 1 ids .*expected exactly one known id"):
        PRMFormat(separator="<|step|>").token_ids(word_level())  # the unknown token is no separator
    with pytest.raises(ValueError, match="good_token: the tokenizer encodes 'yes'"):
        PRMFormat(good_token="yes").token_ids(byte_level_bpe())
    with pytest.raises(ValueError, match=r"encodes '\\n' as 2 ids"):
        PRMFormat(separator="\n").token_ids(sentencepiece_style())


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
