"""One HTML file about a run's folder: solutions with the scores and raw rewards of their steps, comparisons, curves,
manifests.

The file needs no other file and no network. Text that a model wrote is shown as text and never as markup.
"""

import base64
import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..functional.aggregation import AGGREGATIONS
from ..io.atomic_files import make_folder, replace_file
from ..io.paths import local_path
from . import sections as page_sections
from .run_folder import RunFolder
from .solutions import choose_questions, gather_collections, score_collections


if TYPE_CHECKING:
    from ..reward_model.scoring.scorer import StepScorer

TEMPLATES = Path(__file__).parent / "templates"
FILE_NAME = "report.html"


def write_report(
    folder: str | Path,
    path: str | Path | None = None,
    *,
    eta: float = 2.0,
    aggregation: str = "min",
    max_solutions: int = 1000,
    reward_models: "Mapping[str, StepScorer] | None" = None,
    title: str | None = None,
) -> Path:
    """
    Writes a page about whatever the library's stages have left in a folder and the folders below it.

    Args:
        folder (`str` or `Path`):
            A run: rollouts, trainings, comparisons, or a folder of such folders (four levels are searched).
        path (`str` or `Path`, *optional*):
            The page. Defaults to `report.html` in the folder.
        eta (`float`, *optional*, defaults to `2.0`):
            Of the labels, where there are continuations.
        aggregation (`str`, *optional*, defaults to `"min"`):
            What the page shows first of `"min"`, `"last"`, `"product"` and `"mean"`.
        max_solutions (`int`, *optional*, defaults to `1000`):
            Solutions in the page, of all collections together: whole questions, evenly spread. Figures are of all.
        reward_models (`Mapping[str, StepScorer]`, *optional*):
            Scorers, or backends of scorers, that score the page's solutions now, by the name to show.
        title (`str`, *optional*):
            Defaults to the folder's name.

    Returns:
        `Path`: the page.

    Raises:
        `FileNotFoundError`: if the folder is none, or holds nothing that a stage has written.
        `ValueError`: for an unknown aggregation, or fewer than one solution.

    Example:

    ```python
    >>> write_report("outputs/quickstart")
    PosixPath('outputs/quickstart/report.html')
    ```
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation: got {aggregation!r}, expected one of {', '.join(AGGREGATIONS)}.")
    if max_solutions < 1:
        raise ValueError(f"max_solutions: got {max_solutions}, expected at least 1.")
    run = RunFolder(folder)
    path = Path(local_path(path)) if path is not None else run.root / FILE_NAME
    make_folder(path.parent)
    collections = gather_collections(run, eta, keep_unscored=bool(reward_models))
    chosen = choose_questions(collections, max_solutions)
    if reward_models:
        score_collections(collections, chosen, reward_models)
    sections = {
        "selections": page_sections.selections(run),
        "reliabilities": page_sections.reliabilities(run, collections),
        "labels": page_sections.label_histograms(collections),
        "policies": page_sections.policies(run),
        "raft_rounds": page_sections.raft_rounds(run),
        "trainings": page_sections.trainings(run),
        "guards": page_sections.guards(run),
        "processbench": page_sections.processbench(run),
        "manifests": page_sections.manifests(run),
    }
    if not collections and not any(sections.values()):
        raise FileNotFoundError(
            f"Report: {run.root} holds nothing to show, expected what a recipe writes: rollouts (manifest.json and "
            "rollouts-*.jsonl), trainer_state.json, best_of_n.json, curves.json, calibration.json, processbench.json, "
            "guard.json or solutions.jsonl, here or at most four folders below. Name the run's output_dir."
        )
    data = {
        "aggregations": AGGREGATIONS,
        "aggregation": aggregation,
        "collections": [
            collection.to_json(questions, eta) for collection, questions in zip(collections, chosen, strict=True)
        ],
    }
    about = [{"name": collection.name, "about": collection.about()} for collection in collections]
    page = _render(data, collections=about, eta=eta, title=title or run.name(run.root), notes=run.notes, **sections)
    replace_file(path, page)
    return path


def _render(data: dict[str, Any], **content: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=Markup(script_json(data)),
        aggregations=data["aggregations"],
        aggregation=data["aggregation"],
        next_prefix=map("f{}".format, itertools.count()).__next__,  # of the ids of each figure of this page
        **content,
    )
    # A lone surrogate outside the data, in a name for example, has no bytes.
    return page.encode("utf-8", "replace").decode("utf-8")


def script_json(value: Any) -> str:
    """JSON that no HTML parser takes for anything but text: ASCII, without `<`, `>` and `&`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
