"""Mappings given as JSON, and functions given by name."""

import math
import re
import subprocess
from types import SimpleNamespace

import pytest

from erprm_trl import PRMFormat
from erprm_trl.io.config_values import import_function, read_json_fields, refuse_escapes
from erprm_trl.rollouts import CollectConfig


def test_json_text_becomes_its_value_and_other_values_stay():
    config = SimpleNamespace(from_yaml={"a": 1}, from_command_line='{"a": [1, null]}', absent=None, text="plain")
    read_json_fields(config, "from_yaml", "from_command_line", "absent")
    assert config == SimpleNamespace(from_yaml={"a": 1}, from_command_line={"a": [1, None]}, absent=None, text="plain")


def test_text_that_is_not_json_names_the_field():
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
def test_what_cannot_be_imported_or_called_is_named(path, message):
    with pytest.raises(ValueError, match=message):
        import_function(path)


@pytest.mark.parametrize(("text", "meant"), [(r"\n", r"'\n'"), (r"\n\n", r"'\n\n'"), (r"\t", r"'\t'")])
def test_escape_sequences_of_a_shell_are_refused(text, meant):
    r"""`--separator '\n'` is a backslash and an n. The remedy, `$'\n'`, is a line feed."""
    with pytest.raises(ValueError, match=rf"separator: got the .* expected {re.escape(meant)}.*\$'"):
        refuse_escapes("separator", text)
    with pytest.raises(ValueError, match="PRMFormat.separator"):
        PRMFormat(separator=text)
    with pytest.raises(ValueError, match="stop: got"):
        CollectConfig("model", "data", "out", stop=[text])
    remedy = subprocess.run(["bash", "-c", f"printf %s $'{text}'"], capture_output=True, text=True).stdout
    assert PRMFormat(separator=remedy).separator == text.encode().decode("unicode_escape")
    refuse_escapes("splitter", r"\n is a word")
