"""The documentation site: every public name is in the reference, docstrings become Markdown, formulas become MathML,
and the built pages load nothing from the network."""

import importlib
import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from doc_pages import ROOT


DOCS = ROOT / "docs"
PACKAGES = [
    "dial", "functional", "io", "memory", "policy", "report", "reward_model", "reward_model.scoring", "rollouts",
    "selection", "training", "training.tracking",
]  # fmt: skip


def hook(name):
    """A hook of the site as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_every_public_name_is_in_the_reference(package):
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    documented = {path.split(".")[-1] for path in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)}
    documented |= set(re.findall(r"`(\w+)`", text))
    module = importlib.import_module(f"erprm_trl.{package}".rstrip("."))
    assert set(module.__all__) - documented == set(), f"add ::: erprm_trl.{package}.NAME to a page of docs/api"


def test_every_name_in_the_reference_is_public():
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    for path in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE):
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path


DOCSTRING = r"""
Counts steps, see [`StepScorer`] and [`~transformers.Trainer`], with \\( \eta = 2 \\).

Args:
    steps (`list[str]`, *optional*, defaults to `4`):
        The steps.
        They may be empty.
    good (`str`, *optional*), bad (`str`):
        Tokens.
    > Parameters that control the rest

    others:
        See [`StepScorer.score`].

Returns:
    `int`: their number.

Source: a paper.
"""
MARKDOWN = r"""
Counts steps, see [`StepScorer`][pkg.StepScorer] and `Trainer`, with \( \eta = 2 \).

**Parameters**

`steps` (`list[str]`, *optional*, defaults to `4`)

:   The steps.
    They may be empty.

`good` (`str`, *optional*), `bad` (`str`)

:   Tokens.

*Parameters that control the rest*

`others`

:   See [`StepScorer.score`][pkg.StepScorer.score].

**Returns**

`int`: their number.

**Source**: a paper.
"""


def test_a_docstring_in_trls_style_becomes_markdown():
    pytest.importorskip("griffe")
    markdown = hook("docstrings").as_markdown(DOCSTRING, {"StepScorer": "pkg.StepScorer"})
    assert re.sub(r"\n\s*\n+", "\n\n", markdown).strip() == MARKDOWN.strip()


def test_several_errors_become_a_list():
    pytest.importorskip("griffe")
    text = "Reads.\n\nRaises:\n    `ValueError`: if it is\n        empty.\n    `TypeError`: if not.\n"
    assert "- `ValueError`: if it is\n    empty.\n- `TypeError`: if not." in hook("docstrings").as_markdown(text, {})


def test_code_in_a_docstring_stays_as_it_is():
    pytest.importorskip("griffe")
    text = "Says.\n\n```text\nArgs:\n    x:\n        [`StepScorer`]\n```"
    assert hook("docstrings").as_markdown(text, {}) == text


def test_formulas_become_mathml():
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    html = r'<p><span class="arithmatex">\(V_\eta\)</span></p><div class="arithmatex">\[a &lt; b\]</div>'
    content = hook("site").on_page_content(html, page=None, config=None, files=None)
    assert "arithmatex" not in content and content.count("<math") == 2
    assert "<mi>V</mi><mi>&#x003B7;</mi>" in content and 'display="block"' in content and "&#x0003C;" in content


def test_a_notebook_becomes_a_page():
    pytest.importorskip("mkdocs")
    image = {"output_type": "display_data", "data": {"image/png": "iVBO\nRw=="}}
    result = {"output_type": "execute_result", "data": {"text/plain": "2"}}
    warning = {"output_type": "stream", "name": "stderr", "text": "x"}
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": [result]},
        {"cell_type": "code", "source": "f()", "outputs": [warning, image]},
    ]
    page = hook("site").notebook_page({"cells": cells}, "a.ipynb")
    assert page.startswith("# Title\n\n[Download this notebook](a.ipynb).\n\n```python\n1 + 1\n```\n\n```text\n2\n```")
    assert 'src="data:image/png;base64,iVBORw=="' in page and "x\n" not in page


class Loads(HTMLParser):
    """Addresses that a page loads when it is opened."""

    def __init__(self):
        super().__init__()
        self.addresses, self.images_without_text = [], 0

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio", "object", "embed"):
            self.addresses.append(attrs.get("src") or attrs.get("data") or "")
        if tag == "link" and attrs.get("rel") != "canonical":
            self.addresses.append(attrs.get("href") or "")
        self.images_without_text += tag == "img" and not attrs.get("alt")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it."""
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        folder,
        "--config-file",
        ROOT / "mkdocs.yml",
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.mark.slow("builds the site in a process")
def test_the_site_loads_nothing_from_the_network(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert not [address for address in loads.addresses if re.match(r"(\w+:)?//", address)], page
        assert not loads.images_without_text, page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow("builds the site in a process")
def test_the_pages_show_formulas_links_and_parameters(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "arithmatex" not in text, page
        assert not re.search(r"\[<code>\w+</code>\]", text), f"{page}: a link that was not converted"
    reference = (site / "api" / "reward_model.html").read_text(encoding="utf-8")
    assert 'id="erprm_trl.reward_model.ERPRMTrainer"' in reference
    assert re.search(r"<dt><code>max_length</code>", reference)
    assert "Args:" not in reference
