"""Tests mappings that are given as JSON, and functions that are given by name."""

import math
import re
import subprocess
from types import SimpleNamespace

import pytest

from erprm_trl import PRMFormat
from erprm_trl.io.config_values import differences, import_function, read_json_fields, refuse_escapes
from erprm_trl.rollouts import CollectConfig


def test_json_text_is_parsed_and_other_values_do_not_change():
    config = SimpleNamespace(from_yaml={"a": 1}, from_command_line='{"a": [1, null]}', absent=None, text="plain")
    read_json_fields(config, "from_yaml", "from_command_line", "absent")
    assert config == SimpleNamespace(from_yaml={"a": 1}, from_command_line={"a": [1, None]}, absent=None, text="plain")


def test_the_error_for_invalid_json_names_the_field():
    with pytest.raises(ValueError, match="model_kwargs: got '{a: 1}'"):
        read_json_fields(SimpleNamespace(model_kwargs="{a: 1}"), "model_kwargs")


def test_a_function_by_its_path():
    assert import_function("math:sqrt") is math.sqrt


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("math.sqrt", "expected 'package.module:function'"),
        (":sqrt", "expected 'package.module:function'"),
        ("math:", "expected 'package.module:function'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("math:no_such_function", "no_such_function.*spelling"),
        ("math:pi", "is a float"),
    ],
)
def test_errors_name_functions_that_cannot_be_imported_or_called(path, message):
    with pytest.raises(ValueError, match=message):
        import_function(path)


@pytest.mark.parametrize(("text", "meant"), [(r"\n", r"'\n'"), (r"\n\n", r"'\n\n'"), (r"\t", r"'\t'")])
def test_literal_escape_sequences_raise(text, meant):
    r"""A shell passes `'\n'` as a backslash and an n. The remedy in the message, `$'\n'`, passes a line feed."""
    with pytest.raises(ValueError, match=rf"separator: got the .* expected {re.escape(meant)}.*\$'"):
        refuse_escapes("separator", text)
    with pytest.raises(ValueError, match="PRMFormat.separator"):
        PRMFormat(separator=text)
    with pytest.raises(ValueError, match="stop: got"):
        CollectConfig("model", "data", "out", stop=[text])
    remedy = subprocess.run(["bash", "-c", f"printf %s $'{text}'"], capture_output=True, text=True).stdout
    assert PRMFormat(separator=remedy).separator == text.encode().decode("unicode_escape")
    refuse_escapes("splitter", r"\n is a word")


def test_differences_name_nested_values():
    old = {"seed": 0, "sampler": {"top_p": 1.0, "kwargs": {"dtype": "auto"}}, "gone": [1]}
    new = {"seed": 0, "sampler": {"top_p": 0.9, "kwargs": {"dtype": "bfloat16"}}}
    assert differences(old, new) == [
        "sampler.top_p was 1.0 and is now 0.9",
        "sampler.kwargs.dtype was 'auto' and is now 'bfloat16'",
        "gone was [1] and is now None",
    ]
