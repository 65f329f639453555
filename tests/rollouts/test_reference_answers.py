"""Tests reading reference answers from the values of a column."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from erprm_trl.rollouts.reference_answers import reference_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("18", "18"),
        ("18.0", "18.0"),  # as written
        (" 18 ", " 18 "),
        (18, "18"),
        (18.0, "18"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e20, "100000000000000000000"),
        (1e-7, "0.0000001"),
        (10**30, "1" + "0" * 30),
        (100, "100"),
        (float("inf"), "inf"),
        (True, "True"),
        (Decimal("18.50"), "18.5"),
        (Fraction(1, 2), "1/2"),
        (np.float32(0.1), "0.1"),
        (np.int64(18), "18"),
        (np.array(18.0), "18"),
        (torch.tensor(18), "18"),
        ([{"role": "assistant", "content": "18"}], "18"),
        ({"role": "assistant", "content": "18"}, "18"),
        (None, None),
        ("  ", None),
        (float("nan"), None),
        (np.float64("nan"), None),
        ([{"role": "assistant", "content": " "}], None),
    ],
)
def test_texts_numbers_and_messages_are_answers(value, text):
    assert reference_text(value, "answer[0]") == text


@pytest.mark.parametrize(
    "value", [["18"], [], {"a": 1}, [{"content": None}], b"18", "\ud800", np.array([1]), object()]
)
def test_errors_name_other_values(value):
    with pytest.raises(
        ValueError, match=r"^answer\[3\] holds no reference answer \(got .*expected a text or a number"
    ):
        reference_text(value, "answer[3]")
