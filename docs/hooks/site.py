"""Hooks of the documentation site: formulas become MathML, and notebooks become pages. Both need no network."""

import html
import json
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File


_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content, page, config, files):
    """Converts the formulas that arithmatex has marked."""

    def as_mathml(match: re.Match) -> str:
        display = "block" if match.group(1) == "div" else "inline"
        return convert(html.unescape(match.group(2)).strip(), display=display)

    return _FORMULA.sub(as_mathml, content)


def on_files(files, config):
    """Adds a Markdown page for each notebook."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        notebook = json.loads(Path(file.abs_src_path).read_text(encoding="utf-8"))
        page = file.src_uri.removesuffix(".ipynb") + ".md"
        text = notebook_page(notebook, file.src_uri.rsplit("/", 1)[-1])
        files.append(File.generated(config, page, content=text))
    return files


def notebook_page(notebook: dict, file_name: str) -> str:
    """The cells of a notebook and their outputs as Markdown, with a link to the notebook after its title."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            parts += [text for output in cell["outputs"] if (text := _shown(output))]
    link = f"[Download this notebook]({file_name})."
    return "\n\n".join([parts[0], link, *parts[1:]]) + "\n"


def _shown(output: dict) -> str:
    if output["output_type"] == "stream":
        return _as_text("".join(output["text"])) if output["name"] == "stdout" else ""
    data = output.get("data", {})
    if "image/png" in data:
        image = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="Output of the cell" src="data:image/png;base64,{image}">'
    return _as_text("".join(data.get("text/plain", "")))


def _as_text(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
