"""Converts LaTeX formulas to MathML elements, which browsers show without a library, a font or a network.

Formulas come from models and are not trusted. Only listed commands are converted. The result holds only listed
elements and attributes, and its size is limited. The page shows the source text of a formula that cannot be converted.
"""

import re
from typing import Any
from xml.etree.ElementTree import Element


MAX_CHARACTERS = 1_000  # per formula
MAX_ELEMENTS = 2_000  # per formula
MAX_DEPTH = 40  # of elements
MAX_PAGE_CHARACTERS = 400_000  # distinct formulas of a page in all, which bounds the page's size and the time it takes

# Commands with arguments. Left out on purpose: definitions of macros and \sideset, whose result can be exponentially
# long, and \href, \class, \style, \color, \verb, \unicode, \rule, \hspace, \genfrac and others that models rarely use.
STRUCTURES = frozenset(
    r"""
    \frac \dfrac \tfrac \cfrac \binom \dbinom \tbinom \sqrt \over \choose \overset \underset \stackrel \substack
    \text \textbf \textit \textrm \textnormal \textup \mbox \hbox \mathrm \mathbf \mathbb \mathcal \mathit \mathsf
    \mathtt \mathfrak \mathscr \mathnormal \boldsymbol \bm \boxed \fbox \operatorname \phantom
    \bar \hat \tilde \vec \dot \ddot \overline \underline \overbrace \underbrace \widehat \widetilde
    \overrightarrow \overleftarrow \xrightarrow \xleftarrow
    \left \right \middle \big \Big \bigg \Bigg \bigl \Bigl \biggl \Biggl \bigr \Bigr \biggr \Biggr
    \lim \sup \inf \max \min \gcd \det \Pr \argmax \argmin \limits \mod \pmod \bmod \not \tag \nonumber \notag
    \begin \end \hline \bold \hphantom \displaystyle \textstyle \quad \qquad \enspace \thinspace \, \; \: \! \> \\
    """.split()
) | {"\\ "}
# Environments, by the one that the converter knows and that looks the same.
ENVIRONMENTS = {name: name for name in "matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix array cases".split()}
ENVIRONMENTS |= dict.fromkeys("align align* aligned split".split(), "align*")
ENVIRONMENTS |= dict.fromkeys("gather gather* gathered equation equation* multline multline*".split(), "matrix")

ELEMENTS = frozenset(
    "mrow mi mn mo mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mtable mtr mtd mstyle "
    "mpadded mphantom".split()
)
NUM_CHILDREN = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
TOKENS = frozenset(("mi", "mn", "mo", "mtext"))  # elements that hold text
ATTRIBUTES = frozenset(
    "mathvariant stretchy fence form separator movablelimits largeop accent linethickness displaystyle scriptlevel "
    "width height depth lspace rspace voffset minsize maxsize columnalign".split()
)
_VALUE = re.compile(r"[a-z-]{1,16}|[+-]?\d{0,2}(?:\.\d{1,3})?(?:em|ex|px|pt)?")
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{([^{}]*)\}")
_PERCENT = re.compile(r"(?<!\\)%")
_LINE_SKIP = re.compile(r"\\\\\s*\[\s*-?[\d.]{1,8}\s*(?:pt|ex|em|mm|cm)\s*\]")
_CHARACTER = re.compile(r"&#x([0-9A-Fa-f]{1,6});")

Tree = list[Any]


def mathml_tree(latex: str, display: bool = False) -> Tree | None:
    """
    Converts a formula.

    Args:
        latex (`str`):
            The formula without its delimiters.
        display (`bool`, *optional*, defaults to `False`):
            Whether the formula stands on a line of its own.

    Returns:
        `list` or `None`: The `math` element as `[name, attributes, *children]`. Attributes are a dictionary, and a
        child is an element or, in a token element, the text. `None` if the formula is empty, exceeds a limit, uses a
        command that is not listed, or is not valid LaTeX.
    """
    from latex2mathml.converter import convert_to_element

    if not latex.strip() or len(latex) > MAX_CHARACTERS or not _is_listed(latex):
        return None
    latex = _PERCENT.sub(r"\\%", latex)  # models write 25% where LaTeX would begin a comment
    latex = _LINE_SKIP.sub(r"\\\\", latex)
    latex = _ENVIRONMENT.sub(lambda match: rf"\{match[1]}{{{ENVIRONMENTS[match[2]]}}}", latex)
    try:
        root = convert_to_element(latex, display="block" if display else "inline")
        budget = [MAX_ELEMENTS]
        children = [_convert(child, budget, 1) for child in root]
    except Exception:  # the converter raises errors of many kinds, among them RecursionError and StopIteration
        return None
    return ["math", {"display": "block"} if display else {}, *children]


def _is_listed(latex: str) -> bool:
    from latex2mathml.commands import CONVERSION_MAP, FUNCTIONS
    from latex2mathml.symbols_parser import SYMBOLS

    return all(
        command in STRUCTURES or command in FUNCTIONS or (command in SYMBOLS and command not in CONVERSION_MAP)
        for command in _COMMAND.findall(latex)
    ) and all(name in ENVIRONMENTS for _, name in _ENVIRONMENT.findall(latex))


def _convert(element: Element, budget: list[int], depth: int) -> Tree:
    """An element as a tree. `budget` holds how many more elements the formula may have."""
    budget[0] -= 1
    if budget[0] < 0 or depth > MAX_DEPTH:
        raise ValueError("The formula has too many elements.")
    name, attributes = element.tag, {}
    if name == "menclose":  # browsers do not draw it any more
        name, attributes = "mrow", {"class": "boxed"}
    is_token = name in TOKENS
    if name not in ELEMENTS or (is_token and len(element)) or (element.text and not is_token):
        raise ValueError(f"The element {name} is not expected here.")
    attributes |= {
        key: value for key, value in element.attrib.items() if key in ATTRIBUTES and _VALUE.fullmatch(value)
    }
    if is_token:
        return [name, attributes, _CHARACTER.sub(lambda match: chr(int(match[1], 16)), element.text or "")]
    children = [_convert(child, budget, depth + 1) for child in element]
    if len(children) != NUM_CHILDREN.get(name, len(children)):
        raise ValueError(f"The element {name} has {len(children)} children.")
    children = children if name in NUM_CHILDREN else _join_thousands(children)
    return children[0] if name == "mrow" and len(children) == 1 and not attributes else [name, attributes, *children]


def _join_thousands(trees: list[Tree]) -> list[Tree]:
    """Joins 50 , 000 to 50,000: a comma between elements is a separator, and browsers add a space after it."""
    joined: list[Tree] = []
    for tree in trees:
        if (
            len(joined) > 1
            and tree[0] == joined[-2][0] == "mn"
            and joined[-1][0] == "mo"
            and joined[-1][2] == ","
            and re.fullmatch(r"\d{3}(\.\d+)?", tree[2])
            and re.fullmatch(r"\d{1,3}(,\d{3})*", joined[-2][2])
        ):
            joined[-2:] = [["mn", joined[-2][1], f"{joined[-2][2]},{tree[2]}"]]
        else:
            joined.append(tree)
    return joined
