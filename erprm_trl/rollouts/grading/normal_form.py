r"""Converts answers to the normal form in which they are compared and voted on: without marks, currency, units and
thousands separators, so that `\boxed{\text{1\,234 eggs}}`, `**$1,234**.` and `1234` are the same.

The text is not parsed as mathematics. All functions take time linear in the length of the text, because the text is
untrusted.
"""

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction


_MAX_ROUNDS = 12  # largest number of nested marks around an answer that are removed
_CHARACTERS = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width forms of ASCII
_CHARACTERS |= {ord(space): " " for space in "\u00a0\u2002\u2003\u2007\u2009\u200a\u202f\u3000"}
_CHARACTERS |= {0x2212: "-", 0x2044: "/", 0x3002: "."}
_VULGAR = "[\u00bc-\u00be\u2150-\u215e]"  # fractions of one character, such as ½
# With the integer before it. Next to a symbol, as in `½π` and `9^½`, its place in the formula is not clear.
_VULGAR_FRACTION = re.compile(
    rf"(?:(?<![\d.,/^])(\d{{1,3}}(?:,\d{{3}})+|\d{{1,9}}) ?|(?<![\w)\]}}^/])(?<![/^] ))({_VULGAR})(?![\w(\\^/])"
)
# An en dash before a number is a minus, but not in `5–6`.
_DASH_MINUS = re.compile(r"(?<![\d)\]}])(?<![\d)\]}] )\u2013(?=[\d.$\\])")
_MARKS = ' \t\r\n*_`"“”'
_DELIMITED = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_LATEX_SPACES = (r"\,", r"\;", r"\:")
_ENDS_KEPT = ("...", r"\right.")
_PARENTHESES = re.compile(r"\\.|[()]", re.DOTALL)

_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?![\d,])")
_SPACED_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_SPACE = re.compile(r"(?:\\[,;: ]|\\q?quad(?![A-Za-z])|~|\s)+")
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt)|mbox|operatorname|emph)\s*\{([^{}]*)\}"
)
_DEGREES = re.compile(r" ?\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})| ?(?:\^ ?)?\\degree(?![A-Za-z])")
_CURRENCY = re.compile(r"([-+]?)(?:(?:US|USD|EUR|GBP|INR|CAD|AUD|Rs\.?|\\euro|\\pounds)\s*(?=\d)|[€£¥₹₩₽₫₱฿¢]\s*)")
_DOLLARS_AND_CENTS = re.compile(r"(\d+) dollars?,?(?: and)? (\d{1,2}) cents?", re.IGNORECASE)
# The amount before a unit, including the LaTeX commands in it. `x = 18 apples` keeps its `x =`.
_AMOUNT = re.compile(
    r"(?:[A-Za-z] ?= ?)?(?:\d[eE][-+]?\d|[-+\d.,/^*(){}: ²³π]|\\(?:[dtc]?frac|sqrt|pi|cdot|times)(?![A-Za-z]))*"
)
# `2e-1` and `4e+1` are read with Euler's number.
_SCIENTIFIC_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,50}\.\d{1,50}|1)[eE][-+]?|\d{1,50}(?:E[-+]?|e))\d{1,2}")
_MIXED_NUMBER = re.compile(r"(-?)(\d{1,50}) (\d{1,50}) ?/ ?(\d{1,50})")
_ORDINAL = re.compile(r" ?\^ ?(?:\{ ?)?(?:st|nd|rd|th)(?![A-Za-z])(?: ?\})?")
_BLANK = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_WORD = re.compile(r"[^\W\d_]+")
_POWER = re.compile(r"\^ ?(?:\{ ?-?\d ?\}|-?\d)|[²³]")
_UNIT_SIGNS = set(" /-·.,'’()%°€£¥₹₩₽₫₱฿¢")
_PERCENT = re.compile(r" ?(?:%|percent|pct\b)", re.IGNORECASE)
_SHORT_UNITS = set(
    "km cm mm nm dm kg mg lb lbs oz ft yd mi in hr hrs min mins sec secs ms ml cl gal qt pt pts tsp mph kph kmh kmph "
    "rpm sq cu kw kwh hz khz mhz ghz gb mb kb tb usd eur gbp pcs deg rad am pm yr yrs wk wks mo th st nd rd fps "
    "pct".split()
)
_SMALL_WORDS = set("a an as at by he in is it of on per".split())  # may be part of a unit, as in `18 dollars a day`
# After a number, these words are mathematics and not a unit.
_OPERATIONS = set(
    "and or to plus minus times over divided multiplied squared cubed factorial choose mod modulo base pi sqrt "
    "sin cos tan cot sec csc sinx cosx tanx log ln exp lim inf infinity max gcd lcm if when where unless not "
    "half halves "
    "third thirds fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths "
    "eleventh elevenths twelfth twelfths twentieth twentieths hundred hundreds hundredth hundredths thousand "
    "thousands thousandth thousandths million millions millionth millionths billion billions trillion trillions "
    "lakh lakhs crore crores".split()
)
# A number after "the answer is" that is only a part of the answer.
_CONTINUED = re.compile(
    r"[-+$]*\d[\d.,]*\s*(?:(?:hundred|thousand|million|billion|trillion|lakh|crore)s?\b|(?:or|and)\s+[-+$\\(]*\d"
    r"|_\s?\{?\s?\d|factorial\b)|(?:at least|at most|less than|more than|fewer than|greater than)\s",
    re.IGNORECASE,
)
_MINUS = re.compile(r"(?:minus|negative)\s+(?=[\d.$\\])", re.IGNORECASE)
_CJK = "\u3000"  # in scripts from here on, words may have one character, and variables are not used
_BASE = re.compile(r"\d_ ?\{? ?(\d+) ?\}?$")
# A binary operation or a product without a sign, between numbers.
_TIMES = r"[*∗×·⋅]|\\(?:times|cdot|ast)(?![A-Za-z])"
_OPERATION = re.compile(
    rf"[\d.)}}\]%] ?(?:[-+÷]|\\div(?![A-Za-z])|{_TIMES}) ?[-+]?(?:[\d.({{\[$]|\\(?:d?frac|sqrt|left))|[\d)] ?\( ?[-\d]"
)
_SCIENTIFIC = re.compile(rf"(?<![\d.])(\d(?:\.\d*)?) ?(?:{_TIMES}) ?(?=10 ?\^)")
_QUOTIENT = re.compile(r"[\d)}] ?[/:] ?[({\d]|\\(?:[dtc]?frac|over)(?![A-Za-z])")
_NUMBER = re.compile(r"(?<![\d.])-?(?:\d{1,3}(?:,\d{3})+|\d{1,50})(?:\.\d{1,50})?")
_FRACTION = re.compile(
    r"(-?)(?:\\[dtc]?frac ?\{ ?(\d{1,50}) ?\} ?\{ ?(\d{1,50}) ?\}|(?<![\d.])(\d{1,50}) ?/ ?(\d{1,50}))"
)
_NUMBER_OR_FRACTION = re.compile(f"{_FRACTION.pattern}|{_NUMBER.pattern}")
_OPERATOR_BEFORE = re.compile(rf"(?:[-+/÷:]|\\(?:div|over)|{_TIMES}|\^ ?\{{?)$")
_OPERATOR_AFTER = re.compile(rf"(?:[-+/÷:^]|{_TIMES}) ?[\d({{\\.]|\\(?:div|over)(?![A-Za-z])|\( ?\d")
_BRACKET_COMMANDS = re.compile(r"\\(?:left|right)(?![A-Za-z])|\\(?=[{}])")
_LONGEST_STATEMENT = 2000  # characters
_CHOICE = re.compile(r"\(?([A-J])(?:\)|[.:](?=\s|$)|$)")


def plain_characters(text: str) -> str:
    """Replaces full-width forms, the Unicode minus, fractions such as ½ and special spaces by ASCII."""
    if text.isascii():
        return text
    return _VULGAR_FRACTION.sub(_improper, _DASH_MINUS.sub("-", text)).translate(_CHARACTERS)


def _improper(match: re.Match) -> str:
    """`15/2` for `7½`."""
    numerator, denominator = map(int, unicodedata.normalize("NFKC", match.group(2)).split("\u2044"))
    whole = int((match.group(1) or "0").replace(",", ""))
    return f"{whole * denominator + numerator}/{denominator}"


def strip_marks(text: str) -> str:
    r"""
    Removes Markdown emphasis, quotation marks, mathematical delimiters, parentheses and punctuation around an answer,
    repeatedly until nothing changes. `**(18)**.` becomes `18`. Points and intervals such as `(1,2)` keep their
    parentheses.
    """
    for _ in range(_MAX_ROUNDS):
        before = text
        text = text.strip(_MARKS).lstrip(":=：").lstrip()
        if text.endswith(_LATEX_SPACES):
            text = text[:-2]
        elif text.endswith("\\"):  # left from a space that is written with a backslash
            text = text[:-1]
        elif not text.endswith(_ENDS_KEPT):
            text = text.rstrip(".,;:。，；：")
        for left, right in _DELIMITED:
            if text.startswith(left) and text.endswith(right) and len(text) >= len(left + right):
                inside = text[len(left) : len(text) - len(right)]
                text = text if left in inside or right in inside else inside
        if _is_in_parentheses(text):
            text = text[1:-1]
        if text == before:
            break
    return text


def _is_in_parentheses(text: str) -> bool:
    if not (text.startswith("(") and text.endswith(")")) or "," in text or ";" in text or text[-2:-1] == "\\":
        return False
    depth = 0
    for token in _PARENTHESES.finditer(text, 0, len(text) - 1):
        depth += {"(": 1, ")": -1}.get(token.group(), 0)
        if depth == 0:  # the first parenthesis is closed before the end, as in `(x-1)(x+1)`
            return False
    return depth == 1


def normalize_answer(text: str) -> str:
    """
    The spelling in which the method "exact" compares answers: without marks (see [`strip_marks`]), `$`, thousands
    commas, full-width characters and Unicode minus. Units are kept.
    """
    # `\!` removes the space between the thousands in `11,\! 111`.
    text = re.sub(r"\\!\s*", "", plain_characters(text)).replace("{,}", ",")
    # A fraction of one character may have been next to a mark.
    text = plain_characters(strip_marks(strip_marks(text).replace("\\$", "").replace("$", "")))
    # Only at the start, because `(1,234)` is a point with two coordinates.
    return text.replace(",", "", thousands.group().count(",")) if (thousands := _THOUSANDS.match(text)) else text


def normal_form(text: str) -> str:
    r"""
    The spelling in which answers are parsed and voted on. It is [`normalize_answer`], and for a number with a unit, a
    currency or a percent sign, the number only. Other answers are not changed further.

    Units are dropped and not compared: `18 eggs`, `18 \text{ cm}^2`, `€18` and `18` are the same, as in the answers of
    GSM8K and MATH.
    """
    text = _MINUS.sub("-", normalize_answer(text), count=1) if _MINUS.match(text.strip()) else normalize_answer(text)
    flat = _flat(text)
    amount, unit = _split_unit(flat)
    if amount:
        return amount
    left, sign, right = flat.rpartition("=")
    amount, unit = _split_unit(right) if sign and left[-1:] not in ("<", ">", "!", "\\") else ("", "")
    if amount and not _PERCENT.match(unit):
        return f"{left.strip()} = {amount}"  # the result in `9*2 = 18 eggs`
    return flat if _is_letters(flat) else text


def is_percentage(text: str) -> bool:
    """Whether an answer is a number with a percent sign, which [`normal_form`] removes."""
    return bool(_PERCENT.match(unit_of(text)))


def unit_of(text: str) -> str:
    """The text after the number in an answer such as `7 1/2 miles`. Empty for other answers."""
    return _split_unit(_flat(normalize_answer(text)))[1]


def is_words(text: str) -> bool:
    """Whether a text consists of words of a language, and is not a product of variables. Words of formulas, such as
    `sqrt`, do not count."""
    words = [word.lower() for word in _WORD.findall(text)] if _is_letters(text) else []
    return any(len(word) >= 4 for word in words) and not any(word in ("infinity", "sqrt") for word in words)


def same_words(left: str, right: str) -> bool:
    """Whether two answers are the same words, ignoring case."""
    left, right = (_BLANK.sub("", text) for text in (left, right))
    return left == right or (len(left) > 2 and _is_letters(left) and left.casefold() == right.casefold())


def _is_letters(text: str) -> bool:
    return text[:1].isalpha() and all(char.isalpha() or char in " '’.,-" for char in text)


def is_continued_number(text: str) -> bool:
    """Whether a text begins with a number that is only a part of the answer, as in `5 million` or `5 or 6`."""
    return _CONTINUED.match(text) is not None


def number_base(text: str) -> str | None:
    """The base of a number such as `1010_2`."""
    return match.group(1) if (match := _BASE.search(text)) else None


def is_uncomputed(text: str, value: Fraction) -> bool:
    r"""
    Whether a text is a sum, difference, product or quotient of numbers that does not state its value. `(68+47)*8` does
    not, and `68+47 = 115` does. Numbers such as `1.5 \times 10^3` and `2^{10}` are computed. A fraction is not
    computed if the value is an integer.
    """
    flat = _SPACE.sub(" ", plain_characters(text).replace("{,}", ","))
    rest = _SCIENTIFIC.sub(r"\1e", flat)
    if not (_OPERATION.search(rest) or (value.denominator == 1 and _QUOTIENT.search(rest))):
        return False
    return not states(flat, value)


def states(text: str, value: Fraction) -> bool:
    """Whether a number is written in a text, as an integer, a decimal, or a fraction if it is no integer. The operands
    of sums, products and quotients do not count."""
    text = text[:_LONGEST_STATEMENT]
    if value.denominator == 1:
        text = _FRACTION.sub("/", text)
    for match in (_NUMBER if value.denominator == 1 else _NUMBER_OR_FRACTION).finditer(text):
        number = match.group()
        if _fraction(number) == value:
            before = text[max(0, match.start() - 8) : match.start()].rstrip()
            after = text[match.end() : match.end() + 12].lstrip()
            is_difference = number.startswith("-") and before[-1:] in tuple("0123456789)}")
            if not (is_difference or _OPERATOR_BEFORE.search(before) or _OPERATOR_AFTER.match(after)):
                return True
    return False


def parts_of(text: str) -> list[str]:
    """The parts of a point, a list or a set: `1` and `2` for `(1, 2)`. Other texts are one part."""
    text = strip_marks(_BRACKET_COMMANDS.sub("", text))
    if text[:1] in tuple("([{") and text[-1:] in tuple(")]}"):
        text = text[1:-1]
    commas, depth = [-1], 0
    for index, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            commas.append(index)
    return [text[left + 1 : right] for left, right in zip(commas, [*commas[1:], len(text)], strict=True)]


def _fraction(number: str) -> Fraction | None:
    match = _FRACTION.fullmatch(number)
    if match is None:
        return Fraction(number.replace(",", ""))
    sign, *parts = match.groups()
    top, bottom = (int(part) for part in parts if part is not None)
    return Fraction(-top if sign else top, bottom) if bottom else None


def choice_letter(text: str) -> str | None:
    r"""The letter of a choice with which an answer begins, as in `\textbf{(C)}\ 42`."""
    return match.group(1) if (match := _CHOICE.match(_flat(text))) else None


def is_open_sequence(text: str) -> bool:
    """Whether a text is an infinite sequence such as `1, 2, \\ldots`, of which math-verify would parse only a part."""
    return "," in text and ("dots" in text or "..." in text or "…" in text)


def _flat(text: str) -> str:
    """Replaces LaTeX's text commands, spaces, percent and degree signs by plain characters."""
    text = _TEXT.sub(r"\1", _TEXT.sub(r"\1", text)).replace("\\%", "%")
    return strip_marks(_DEGREES.sub("°", _ORDINAL.sub("", _SPACE.sub(" ", text))))


def _split_unit(flat: str) -> tuple[str, str]:
    """Splits a text into a number and its unit. Both are empty if the text is not a number with an optional unit."""
    if match := _DOLLARS_AND_CENTS.fullmatch(flat):
        return f"{match.group(1)}.{match.group(2):0>2}", "dollars"
    flat = _CURRENCY.sub(r"\1", flat, count=1) if _CURRENCY.match(flat) else flat
    amount = _AMOUNT.match(flat).group()
    unit = flat[len(amount) :]
    if unit and not _is_unit(unit, glued=amount[-1:].isdigit()):
        return "", ""
    amount = amount.rstrip(" (-/.") if unit else amount.strip()
    if amount.count("(") != amount.count(")"):  # `1/4 (25%)`
        return "", ""
    if not any(char.isdigit() or char == "π" for char in amount) or amount.count("{") != amount.count("}"):
        return "", ""
    if unit and amount[-1] in "+*^=:,{":
        return "", ""
    if _SPACED_THOUSANDS.fullmatch(amount):
        return amount.replace(" ", ""), unit
    if thousands := _THOUSANDS.match(amount):
        return amount.replace(",", "", thousands.group().count(",")), unit
    if _SCIENTIFIC_NUMBER.fullmatch(amount):  # math-verify would read `1.5e3` as a product with Euler's number
        return f"{Decimal(amount):f}", unit
    if mixed := _MIXED_NUMBER.fullmatch(amount):
        sign, whole, numerator, denominator = mixed.groups()
        return f"{sign}{int(whole) * int(denominator) + int(numerator)}/{denominator}", unit
    return amount.lstrip("+ "), unit


def _is_unit(text: str, glued: bool) -> bool:
    """Whether the text after a number is a unit or other words. `glued` means without a space, as in `5xy`."""
    text = _POWER.sub("", text)
    words = [word.lower() for word in _WORD.findall(text)]
    if any(char.isdigit() for char in text) or not {char for char in text if not char.isalpha()} <= _UNIT_SIGNS:
        return False
    if not words or _PERCENT.match(text) or text.lstrip().startswith("°"):
        return not any(word in _OPERATIONS for word in words) and "°" not in text.strip()[1:]
    first = words[0]
    is_first_a_unit = first in _SHORT_UNITS or _is_a_word(first, glued) or (len(first) == 1 and "/" in text)
    is_first_a_unit = is_first_a_unit or (first in _SMALL_WORDS and len(words) > 1 and not glued)
    return (
        is_first_a_unit
        and not any(word in _OPERATIONS for word in words)
        and all(
            len(word) > 2
            or word in _SHORT_UNITS
            or word in _SMALL_WORDS
            or ("/" in text and word in "mshgl")
            or word >= _CJK
            for word in words
        )
    )


def _is_a_word(word: str, glued: bool) -> bool:
    if word >= _CJK:
        return True
    # Products of variables are usually in alphabetical order, such as `abc` and `xyz`.
    if all(left < right for left, right in zip(word, word[1:], strict=False)):
        return len(word) > 3 and not glued
    return len(word) > 3 or (len(word) == 3 and not glued)
