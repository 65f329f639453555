"""Figures inside a page: no style attribute, unique ids, and the same result every time."""

import re

from matplotlib.figure import Figure

from erprm_trl.report.svg import inline_svg


def draw():
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([0, 1], [0, 1], color="#0072B2", marker="o", label="<b>")
    figure.legend(frameon=False)
    return figure


def test_figures_need_no_style_and_share_no_id():
    svg, other = (inline_svg(draw, prefix, "a <plot>") for prefix in ("f1", "f2"))
    ids = [set(re.findall(r' id="([^"]+)"', figure)) for figure in (svg, other)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) == ids[0]
    assert "style" not in svg and "<b>" not in svg and 'aria-label="a &lt;plot&gt;"' in svg
    assert 'stroke="#0072b2"' in svg and 'fill="currentColor"' in svg and "#ffffff" not in svg


def test_a_figure_is_drawn_the_same_again():
    assert inline_svg(draw, "f1", "") == inline_svg(draw, "f1", "")
