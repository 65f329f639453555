"""Tests the normal form in which answers are compared and voted on."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processor_time import limited_processor_time

from erprm_trl.rollouts.grading.normal_form import (
    choice_letter,
    is_open_sequence,
    is_percentage,
    is_words,
    normal_form,
    normalize_answer,
    number_base,
    parts_of,
    same_words,
    strip_marks,
    unit_of,
)


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("**18**.", "18"),
        ("18**", "18"),
        ("(18)", "18"),
        ("((18))", "18"),
        ("`18`", "18"),
        (r"\(18\)", "18"),
        (r"\[ 18 \]", "18"),
        ("$$18$$", "18"),
        ("“18”", "18"),
        ("__(`$18$`)__,", "18"),
        ("= 18;", "18"),
        (r"18\,", "18"),
        (".5", ".5"),
        ("-5", "-5"),
        ("5!", "5!"),
        ("$18", "$18"),  # currency, and no delimiter
        ("$5$ and $6$", "$5$ and $6$"),
        ("(1,2)", "(1,2)"),
        ("**(1, 2]**.", "(1, 2]"),
        ("(1;2)", "(1;2)"),
        ("(x-1)(x+1)", "(x-1)(x+1)"),
        ("(x-1)", "x-1"),
        ("1, 2, ...", "1, 2, ..."),
        (r"\left\{1, 2\right.", r"\left\{1, 2\right."),
        ("** .", ""),
    ],
)
def test_marks_are_stripped_until_nothing_changes(text, stripped):
    assert strip_marks(text) == stripped


EIGHTEEN = [
    "18 dollars", "$18", r"\$18", "US$18", "USD 18", "€18", "18€", "£18", "Rs. 18", "18 USD", "18¢", "18元",
    "18 eggs", r"\text{18 eggs}", r"18\text{ eggs}", r"18 \text{ cm}^2", r"18\,\text{km/h}", r"18\ \mathrm{m/s^2}",
    "18 km/h", "18km", "18 m/s", "18 cm^2", "18 m²/h", "18 miles per hour", "18 cups of flour", "18 sq ft",
    "18 dollars a day", "$18/hour", "18 (eggs)", "18-inch", "18th", r"18^{\text{th}}", "18%", r"18\%",
    "18 percent", r"18\text{ percent}", "18°", r"18^\circ", r"18^{\circ}", r"18\degree", "18°C",
    r"18^\circ \text{C}", r"\text{18}", r"\mathbf{18}", "(18)", "**18**.", "１８", "+18", "18.", "18 .",
    r"\text{18}\ \text{eggs}",
]  # fmt: skip


@pytest.mark.parametrize("text", EIGHTEEN)
def test_a_number_loses_marks_currency_and_unit(text):
    assert normal_form(text) == "18"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("1,234", "1234"),
        (r"1\,234", "1234"),
        (r"1\ 234\ 567", "1234567"),
        ("1{,}234", "1234"),
        (r"11,\! 111 \text{ km}", "11111"),
        ("1 234.5", "1234.5"),
        ("$1,234.50", "1234.50"),
        ("12 34", "12 34"),
        ("1,2", "1,2"),
        ("(1,234)", "(1,234)"),  # a point
        ("-$5", "-5"),
        ("−5 °C", "-5"),
        ("12.5%", "12.5"),
        ("1/2 cup", "1/2"),
        ("1/2 of the cake", "1/2"),
        ("3 1/2 hours", "7/2"),
        ("½", "1/2"),
        ("-¾ cup", "-3/4"),
        ("7½", "15/2"),
        ("7 ½ miles", "15/2"),
        ("2⅔", "8/3"),
        ("1⁄8", "1/8"),
        ("1.5e3", "1500"),
        ("1.5E-3 kg", "0.0015"),
        ("1e-3", "0.001"),
        ("2e3", "2000"),
        ("2e", "2e"),
        ("2e-1", "2e-1"),
        ("½π", "½π"),
        ("1/4 (25%)", "1/4 (25%)"),
        ("12,500½", "25001/2"),
        ("–5", "-5"),
        ("–$5", "-5"),
        ("5–6", "5–6"),
        ("5 –6", "5 –6"),
        (r"\frac{1}{2} cup", r"\frac{1}{2}"),
        (r"11\pi \text{ cm}^2", r"11\pi"),
        (r"5\sqrt{2} cm", r"5\sqrt{2}"),
        ("12:30 PM", "12:30"),
        ("x = 18 cm", "x = 18"),
        ("18 dollars and 5 cents", "18.05"),
        (r"18 \text{ dollars and } 50 \text{ cents}", "18.50"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"\mathrm{(A)}", "A"),
    ],
)
def test_other_numbers_and_words(text, normal):
    assert normal_form(text) == normal


@pytest.mark.parametrize(
    "text",
    [
        "5x", "5 x", "5xy", "5 xy", "5xyz", "2 abc", "5x^2", "5 x/y", "3/n", "3/pi", "3i", "2 e", "5 sin x",
        "5 sqrt 2", "5 pi", "5!", "5 or 6", "5 and 6", "5 to 6", "5 and x", "5 more than x", "5 out of 6",
        "5 mod 7", "5 choose 2", "2 and a half", "2 thirds", "5 million", "5 hundred", "5 squared", "5 times y",
        "5 millions", "5 thousands", "3 sevenths", "2 ninths", "3 lakh", "3 cosx",
        r"5 \text{ or } 6", r"12\sin 30^\circ", "30° + 60°", "5, x", "5 m^2", "5 remainder 2", "5 if x > 0",
        "x > 3", r"\{1, 2\}", "[1, 2)", "1010_2", "5 + apples",
    ],
)  # fmt: skip
def test_mathematics_after_a_number_is_not_a_unit(text):
    assert normal_form(text) == text


def test_exact_answers_keep_units_and_decimals():
    assert normalize_answer("**$1,234.00**.") == "1234.00"
    assert normalize_answer("18 dollars") == "18 dollars"
    assert normalize_answer("(1,234)") == "(1,234)"


def test_other_properties_of_answers():
    assert [unit_of(text) for text in ("7 1/2 miles", r"7\frac{1}{2}\text{ miles}", "5", "5 or 6", "x")] == [
        "miles",
        "miles",
        "",
        "",
        "",
    ]
    assert parts_of(r"\left( 23*40, (1+1) \right)") == [" 23*40", " (1+1) "]
    assert [parts_of(text) for text in ("[1,2)", r"\{1,2\}", "1,2", "12", "")] == [["1", "2"]] * 3 + [["12"], [""]]
    assert all(is_percentage(text) for text in ("50%", r"50\%", "50 percent"))
    assert not any(is_percentage(text) for text in ("50 cents", "50", "x%"))
    assert [number_base(text) for text in ("1010_2", "1010_{12}", "1010", "x_2")] == ["2", "12", None, None]
    assert [choice_letter(text) for text in (r"\textbf{(C)}\ 42", "C. 42", "C) 42", "C", "(C)")] == ["C"] * 5
    assert [choice_letter(text) for text in ("Cat", "C1", "42", "C + 1", "")] == [None] * 5
    assert is_open_sequence(r"1, 2, \ldots") and is_open_sequence("1, 2, ...")
    assert not is_open_sequence("1, 2") and not is_open_sequence(r"0.3\ldots")
    assert is_words("Evelyn") and is_words("no solution")
    assert not any(is_words(text) for text in ("xyz", "x", "12 eggs", "infinity"))
    assert same_words("No Solution", "no solution") and same_words("x + 1", "x+1") and same_words("Yes", "yes")
    assert not same_words("A", "a") and not same_words("12 34", "1234")


@settings(deadline=None)
@given(st.text(st.sampled_from("0123456789 .,$%()*`\\{}_^-+/xekmcirpt°€½–\n"), max_size=30))
def test_the_normal_form_is_idempotent(text):
    assert strip_marks(strip_marks(text)) == strip_marks(text)
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)
    assert normal_form(normal_form(text)) == normal_form(text)


@pytest.mark.parametrize(
    "unit",
    [
        "(",
        "(1)",
        "*",
        "$",
        "\\",
        r"\text{",
        r"\text{a",
        " ",
        "1 ",
        "1,",
        "1,000",
        "a ",
        "^{",
        r"^\circ",
        "\\, ",
        "**(",
        ".",
    ],
)
def test_hostile_text_takes_linear_time(unit):
    with limited_processor_time():
        for text in (unit * 30_000, "18 " + unit * 30_000, unit * 30_000 + "x", "(" + unit * 30_000 + ")"):
            normal_form(text)
            is_percentage(text)
            same_words(text, text + "x")
            choice_letter(text)
            number_base(text)
            unit_of(text)
            parts_of(text)
