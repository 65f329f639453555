"""Figures inside a page: no style attribute, ids of their own, the same every time."""

import re

from matplotlib.figure import Figure

from erprm_trl.report.svg import inline_svg


def draw():
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([0, 1], [0, 1], color="#0072B2", marker="o", label="<b>")
    figure.legend(frameon=False)
    return figure


def test_figures_need_no_style_and_share_no_id():
    one, two = (inline_svg(draw, prefix, "a <plot>") for prefix in ("f1", "f2"))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', one)) == ids[0]
    assert "style" not in one and "<b>" not in one and 'aria-label="a &lt;plot&gt;"' in one
    assert 'stroke="#0072b2"' in one and 'fill="currentColor"' in one and "#ffffff" not in one


def test_a_figure_is_drawn_the_same_again():
    assert inline_svg(draw, "f1", "") == inline_svg(draw, "f1", "")
