"""Tests that a string in place of a list of texts raises an error that names the argument and the row."""

import numpy as np
import pytest

from erprm_trl.io import check_text_lists, check_texts


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (check_texts, "abc", r"^steps: got the str 'abc', expected a list of strings\. Put it into a list"),
        (check_texts, b"abc", r"^steps: got the bytes b'abc'"),
        (check_texts, None, r"^steps: got NoneType 'None', expected a list of strings"),
        (check_texts, ["a", ["b"]], r"^steps\[1\]: got list \"\['b'\]\", expected a string"),
        (check_texts, ["a", None], r"^steps\[1\]: got NoneType 'None', expected a string"),
        (check_text_lists, "abc", r"^steps: got the str 'abc', expected a list of lists of strings"),
        (check_text_lists, [["a"], "bc"], r"^steps\[1\]: got the str 'bc', expected a list of strings"),
        (check_text_lists, [["a"], ["b", 3]], r"^steps\[1\]\[1\]: got int '3', expected a string"),
        (check_text_lists, [["a"], None], r"^steps\[1\]: got NoneType"),
    ],
)
def test_errors_for_other_values_name_the_row(check, value, message):
    with pytest.raises(TypeError, match=message):
        check("steps", value)


@pytest.mark.parametrize("texts", [[], ["a"], ("a", ""), np.array(["a", "b"])])
def test_sequences_of_strings_pass(texts):
    check_texts("steps", texts)
    check_text_lists("steps", [texts, texts])
