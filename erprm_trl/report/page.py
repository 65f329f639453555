"""Writes one HTML file about a run: whether it worked, solutions with step scores, comparisons, curves and manifests.

The file needs no other file and no network. Text that a model wrote becomes text, code and formulas, never markup.
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
from .comparisons import Comparison, comparisons, ranked_models
from .headline import make_headline
from .rich_text import RichText
from .run_folder import RunFolder
from .solutions import Collection, choose_questions, compare_collections, gather_collections, score_collections


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
    Writes a page about everything that the library's stages have written in a folder and the folders below it.

    Args:
        folder (`str` or `Path`):
            A run: rollouts, trainings, comparisons, or a folder of such folders (four levels are searched).
        path (`str` or `Path`, *optional*):
            Name of the page. Defaults to `report.html` in the folder.
        eta (`float`, *optional*, defaults to `2.0`):
            Value of eta for the labels of rollouts with continuations.
        aggregation (`str`, *optional*, defaults to `"min"`):
            Aggregation of step scores that the page shows first: `"min"`, `"last"`, `"product"` or `"mean"`.
        max_solutions (`int`, *optional*, defaults to `1000`):
            Maximum number of solutions in the page, in all collections together. Whole questions, evenly spread, are
            selected. Figures use all solutions.
        reward_models (`Mapping[str, StepScorer]`, *optional*):
            Scorers, or backends of scorers, by the name to show. They score the page's solutions now.
        title (`str`, *optional*):
            Title of the page. Defaults to the folder's name.

    Returns:
        `Path`: path of the page.

    Raises:
        `FileNotFoundError`: if the folder does not exist, or holds nothing that a stage has written.
        `ValueError`: if the aggregation is unknown, or `max_solutions` is below 1.

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
    written = list(comparisons(run))
    computed = [] if written else compare_collections(collections)
    content = {
        "headline": make_headline(run, collections, aggregation, written, computed),
        **_sections(run, collections, written or computed, aggregation, eta),
    }
    if not collections and not any(content.values()):
        raise FileNotFoundError(
            f"The report's folder: got {run.root}, which holds nothing to show. Expected files that a stage writes, "
            "in it or at most four folders below: rollouts (manifest.json and rollouts-*.jsonl), trainer_state.json, "
            "best_of_n.json, curves.json, calibration.json, processbench.json, guard.json or solutions.jsonl. "
            "Pass the output_dir of the run."
        )
    rich = RichText()
    ranking = [model for _, curves in written or computed for model in ranked_models(curves, aggregation)]
    data = {
        "aggregations": AGGREGATIONS,
        "aggregation": aggregation,
        "collections": [
            collection.to_json(questions, eta, rich, ranking)
            for collection, questions in zip(collections, chosen, strict=True)
        ],
        "formulas": rich.formulas,
    }
    about = [{"name": collection.name, "about": collection.about()} for collection in collections]
    title = title or run.name(run.root)
    replace_file(path, _render(data, collections=about, eta=eta, title=title, notes=run.notes, **content))
    return path


def _sections(
    run: RunFolder, collections: list[Collection], compared: list[Comparison], aggregation: str, eta: float
) -> dict[str, list]:
    return {
        "selections": page_sections.selections(compared, aggregation),
        "reliabilities": page_sections.reliabilities(run, collections),
        "labels": page_sections.label_histograms(collections),
        "label_noises": page_sections.label_noises(collections, eta),
        "policies": page_sections.policies(run),
        "raft_rounds": page_sections.raft_rounds(run),
        "trainings": page_sections.trainings(run),
        "guards": page_sections.guards(run),
        "processbench": page_sections.processbench(run),
        "manifests": page_sections.manifests(run),
    }


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
        next_prefix=map("f{}".format, itertools.count()).__next__,  # for the ids of each figure
        **content,
    )
    # A lone surrogate outside the data, in a name for example, cannot be encoded.
    return page.encode("utf-8", "replace").decode("utf-8")


def script_json(value: Any) -> str:
    """JSON that an HTML parser reads as plain text: ASCII, without `<`, `>` and `&`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
