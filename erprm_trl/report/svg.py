"""Draws matplotlib figures as SVG for a page.

The page's security policy forbids style attributes, so styles become plain attributes. The page's style sheet changes
their colours in dark mode.
"""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup


if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_GEOMETRY, _LONG_NUMBER = (
    {"d", "x", "y", "transform"},
    re.compile(r"-?\d+\.\d{3,}"),
)  # two digits are enough for a page
WIDE = 400  # points; wider plots scroll on a phone
INK = {"#000000", "#404040"}  # drawn in the colour of the surrounding text


def inline_svg(draw: Callable[[], "Figure"], prefix: str, description: str) -> Markup:
    """
    Draws a figure without a background and returns it as an `<svg>` element.

    Args:
        draw (`Callable`):
            Makes the figure.
        prefix (`str`):
            Beginning of the figure's ids. It must be unique on the page.
        description (`str`):
            What the figure shows, for readers who cannot see it.

    Returns:
        `Markup`: The `<svg>` element.
    """
    import matplotlib

    buffer = io.StringIO()
    # Without a salt, matplotlib chooses the ids of shared shapes at random, and two pages of a run would differ.
    style = {"svg.hashsalt": "erprm_trl", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    with matplotlib.rc_context(style):
        draw().savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', buffer.getvalue()))
    for parent in root.iter():
        for child in [child for child in parent if child.tag in (f"{SVG}metadata", f"{SVG}style")]:
            parent.remove(child)
    for element in root.iter():
        _restyle(element, prefix, used)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    wide = float(root.attrib["viewBox"].split()[2]) > WIDE
    root.attrib |= {"class": "plot wide" if wide else "plot", "role": "img", "aria-label": description}
    ElementTree.register_namespace("", SVG.strip("{}"))
    # ElementTree escapes every text.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _restyle(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    style = element.attrib.pop("style", "")
    for name, _, value in (part.partition(":") for part in style.split(";") if ":" in part):
        name, value = name.strip(), value.strip()
        if name == "font":  # a shorthand; the page sets the font itself
            name, value = "font-size", re.search(r"[\d.]+px", value).group()
        element.set(name, value)
    if (identity := element.attrib.pop("id", None)) in used:
        element.set("id", f"{prefix}-{identity}")
    if (target := element.attrib.pop(f"{XLINK}href", None)) is not None:
        element.set("href", re.sub(r"^#", f"#{prefix}-", target))
    for name, value in element.attrib.items():
        value = _LONG_NUMBER.sub(lambda match: f"{float(match.group()):.2f}", value) if name in _GEOMETRY else value
        value = value.replace("url(#", f"url(#{prefix}-")
        element.set(name, "currentColor" if name in ("fill", "stroke") and value in INK else value)
    if element.tag == f"{SVG}text" and "fill" not in element.attrib:
        element.set("fill", "currentColor")
