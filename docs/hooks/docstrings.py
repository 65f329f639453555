"""Turns TRL's docstring style into Markdown for the API reference.

`Args:` and `Parameters:` become definition lists, `Returns:` and `Raises:` get a heading, and [`Name`] becomes a link
if the reference documents the name. mkdocstrings loads this file as an extension of griffe.
"""

import inspect
import re
from pathlib import Path

import griffe


API = Path(__file__).parents[1] / "api"

PARAMETERS = ("Args", "Parameters", "Attributes")
HEADINGS = {"Args": "Parameters", "Parameters": "Parameters", "Attributes": "Attributes"}
_SECTION = re.compile(r"^(Args|Parameters|Attributes|Returns|Raises|Example|Source|Limits)[^\S\n]*:(.*)$")
_ENTRY = re.compile(r"^(?P<names>[\w*`][^(:]*?)\s*(?:\((?P<type>.*)\))?:$")
_LINK = re.compile(r"\[`([~\w.]+)`\](?![\[(])")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_NOTE = re.compile(r"^> \[!(\w+)\]$")


def documented_names(folder: Path = API) -> dict[str, str]:
    """The objects that the pages of the reference document: full path by the last part of the name."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md")))
    return {path.split(".")[-1]: path for path in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)}


def as_markdown(docstring: str, paths: dict[str, str]) -> str:
    """
    A docstring in TRL's style as Markdown.

    Args:
        docstring (`str`):
            The docstring, without the indentation of the code around it.
        paths (`dict[str, str]`):
            Full paths of documented objects by name, see [`documented_names`].
    """
    lines, out, is_code = inspect.cleandoc(docstring).split("\n"), [], False
    index = 0
    while index < len(lines):
        line = lines[index]
        is_code ^= line.startswith("```")
        section = None if is_code else _SECTION.match(line)
        if section is None:
            out.append(line)
            index += 1
            continue
        end = index + 1
        while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" ")):
            end += 1
        name, rest = section.group(1), section.group(2).strip()
        body = inspect.cleandoc("\n" + "\n".join(lines[index + 1 : end])).split("\n")
        out += _section(name, rest, body)
        index = end
    parts = _FENCE.split("\n".join(_notes(out)))  # prose and fenced code in turn
    parts[::2] = [_links(_formulas(part), paths) for part in parts[::2]]
    return "".join(parts)


def _section(name: str, rest: str, body: list[str]) -> list[str]:
    if name in PARAMETERS:
        return [f"**{HEADINGS[name]}**", "", *_definitions(body), ""]
    if name == "Raises" and sum(line.startswith(("`", "[`")) for line in body) > 1:
        body = [f"- {line}" if line.startswith(("`", "[`")) else line for line in body]
    if rest:  # one paragraph that begins on the same line
        return ["", f"**{name}**: {rest}", *body]
    return ["", f"**{name}**", "", *body, ""]


def _definitions(body: list[str]) -> list[str]:
    """Entries of a list of parameters: `name (type):` and an indented description, in groups that begin with `>`."""
    out, group = [], []
    for line in [*body, ""]:
        if line.startswith("> "):
            group.append(line[2:])
            continue
        if group:
            out += ["", f"*{' '.join(group)}*", ""]
            group = []
        entry = None if line.startswith(" ") else _ENTRY.match(line)
        if entry is None:
            out.append(line and f"    {line.removeprefix('    ')}")
            continue
        names = ", ".join(f"`{name.strip('` ')}`" for name in entry["names"].split(","))
        if "(" in (entry["type"] or "") and "), " in (
            entry["type"] or ""
        ):  # several parameters with types of their own
            names, kind = _several(line), ""
        else:
            kind = f" ({entry['type']})" if entry["type"] else ""
        out += ["", f"{names}{kind}", "", ":   "]
    return _joined(out)


def _several(line: str) -> str:
    """`good_token (`str`), bad_token (`str`):` with each name as code."""
    return re.sub(r"(^|\), )(\w+) \(", r"\1`\2` (", line.removesuffix(":"))


def _joined(lines: list[str]) -> list[str]:
    """Puts the first line of a description behind the colon that opens it."""
    out = []
    for line in lines:
        if out and out[-1] == ":   " and line.strip():
            out[-1] = ":   " + line.strip()
        else:
            out.append(line)
    return out


def _notes(lines: list[str]) -> list[str]:
    """GitHub's `> [!NOTE]` as an admonition."""
    out, in_note = [], False
    for line in lines:
        note = _NOTE.match(line)
        if note:
            out += ["", f"!!! {note.group(1).lower()}", ""]
            in_note = True
        elif in_note and line.startswith(">"):
            out.append("    " + line[1:].removeprefix(" "))
        else:
            in_note = False
            out.append(line)
    return out


def _formulas(text: str) -> str:
    r"""Formulas `\\( x \\)` as arithmatex reads them."""
    return text.replace("\\\\(", "\\(").replace("\\\\)", "\\)")


def _links(text: str, paths: dict[str, str]) -> str:
    def link(match: re.Match) -> str:
        name = match.group(1)
        shown = name.removeprefix("~").split(".")[-1] if name.startswith("~") else name
        first, _, member = name.removeprefix("~").removeprefix("erprm_trl.").rpartition(".")
        owner = first.split(".")[-1] if first else ""
        if not name.startswith("~") or name.startswith("~erprm_trl."):
            if member in paths and (not first or name.startswith("~")):
                return f"[`{shown}`][{paths[member]}]"
            if owner in paths:
                return f"[`{shown}`][{paths[owner]}.{member}]"
        return f"`{shown}`"

    return _LINK.sub(link, text)


class TRLDocstrings(griffe.Extension):
    """Rewrites each docstring as it is loaded."""

    def __init__(self):
        self.paths = documented_names()

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, self.paths)
