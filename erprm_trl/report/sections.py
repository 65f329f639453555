"""Gathers the sections of the page from a run's folder: comparisons, curves, guards and manifests.

Each function returns one entry per folder that has something to show. The page omits sections without entries.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..io.redaction import redacted
from ..policy.guards import FILE_NAME as GUARD_FILE
from ..rollouts.dataset import RolloutDataset
from ..rollouts.label_noise import measure_label_noise
from .comparisons import Comparison, method_for, ranked_models
from .figures import (
    calibration_drawings,
    label_drawing,
    label_noise_drawings,
    metric_drawing,
    reliability_drawings,
    selection_drawings,
    series_class,
)
from .metrics import GUARD, MAIN, find_trainings, history_of, is_shown, points, title_and_unit
from .run_folder import RunFolder, shown_names
from .solutions import Collection
from .tables import label_noise_facts


MOST_POINTS = 400  # per line of a plot


def selections(compared: Sequence[Comparison], aggregation: str) -> list[dict[str, Any]]:
    """Best-of-N curves: plots, and a table at the largest N with the best reward models first."""
    content = []
    for title, curves in compared:
        n = max(curves["pass"])
        methods = list(next(iter(curves["models"].values()), {}))
        shown = dict(zip(curves["models"], shown_names(list(curves["models"])), strict=True))
        rows = []
        for name in ranked_models(curves, aggregation):
            by_method = curves["models"][name]
            cells = [interval(result["best_of_n"][n]) for result in by_method.values()]
            rows.append([shown[name], *cells, number(method_for(by_method, "min")["auc_within_questions"])])
        content.append(
            {
                "name": title,
                "drawings": selection_drawings(curves),
                "facts": [
                    ("pass@1", interval(curves["pass"][1]) if 1 in curves["pass"] else None),
                    (f"majority@{n}", interval(curves["majority"][n])),
                    (f"pass@{n}", interval(curves["pass"][n])),
                ],
                "columns": [f"best of {n} by", *methods, "AUC within questions"],
                "rows": rows,
            }
        )
    return content


def reliabilities(run: RunFolder, collections: list[Collection]) -> list[dict[str, Any]]:
    """Measured calibrations, and the reliability of the solutions' scores."""
    content = [
        {
            "name": run.name(folder),
            "about": f"Scores of {first['prefixes']:,} held-out {_compared(first)[0]} by {first['aggregation']} "
            f"against {_compared(first)[1]}.",
            "drawings": calibration_drawings(results),
        }
        for folder, results in run.files("calibration.json")
        if isinstance(results, dict) and "bins" in (first := next(iter(results.values()), {}))
    ]
    for collection in collections:
        if drawings := reliability_drawings(collection):
            about = (
                "Scores of whole solutions against the share of right answers among solutions with a similar score."
            )
            content.append({"name": collection.name, "about": about, "drawings": drawings})
    return content


def _compared(calibration: dict[str, Any]) -> tuple[str, str]:
    whole = calibration.get("unit") == "solution"
    return ("solutions", "their rewards") if whole else ("prefixes", "the mean reward of their continuations")


def label_histograms(collections: list[Collection]) -> list[dict[str, Any]]:
    """Histograms of the labels of each collection that has continuations."""
    content = []
    for collection in collections:
        labels = [labels_S for labels_N in collection.labels or [] for labels_S in labels_N if labels_S]
        if labels:
            content.append({"name": collection.name, "drawings": [label_drawing(labels)]})
    return content


def label_noises(collections: list[Collection], eta: float) -> list[dict[str, Any]]:
    """The noise of the labels of each collection that has continuations."""
    content = []
    for collection in collections:
        if collection.labels is None or collection.path is None:
            continue
        try:
            noise = measure_label_noise(RolloutDataset(collection.path), eta)
        except ValueError:  # every solution has a single step
            continue
        content.append(
            {"name": collection.name, "facts": label_noise_facts(noise), "drawings": label_noise_drawings(noise)}
        )
    return content


def trainings(run: RunFolder) -> list[dict[str, Any]]:
    """Curves of reward models and of policies: one plot per metric, with one line per training."""
    kinds: dict[str, dict[str, list[dict]]] = {}
    for training in find_trainings(run):
        kind = "Reward models" if training.is_reward_model else "Policies"
        kinds.setdefault(kind, {})[training.name] = training.history
    sections = [_training(kind, histories) for kind, histories in kinds.items()]
    return [section for section in sections if section["main"] or section["guard"] or section["rest"]]


def guards(run: RunFolder) -> list[dict[str, Any]]:
    """Why runs were stopped, and each signal with its band."""
    content = []
    for folder, record in run.files(GUARD_FILE):
        if not isinstance(record, dict) or "signals" not in record:
            continue
        columns = ["value", "reference", "low", "high", "logs_outside"]
        rows = [
            [name, *(number(standing.get(column)) for column in columns)]
            for name, standing in record["signals"].items()
        ]
        history = {name: [tuple(point) for point in points] for name, points in record.get("history", {}).items()}
        is_logged = history_of(run, folder) is not None
        content.append(
            {
                "name": run.name(folder),
                "reason": record.get("reason"),
                "step": record.get("step"),
                "checkpoint": redacted(record.get("last_good_checkpoint")),
                "columns": ["signal", *(column.replace("_", " ") for column in columns)],
                "rows": rows,
                "plots": [] if is_logged else _plots({name: {0: points} for name, points in history.items()}),
            }
        )
    return content


def policies(run: RunFolder) -> list[dict[str, Any]]:
    """Accuracy of policies before and after training."""
    return [
        {"name": run.name(folder), "rows": [[name, interval(point)] for name, point in summary["policies"].items()]}
        for folder, summary in run.files("summary.json")
        if isinstance(summary, dict) and isinstance(summary.get("policies"), dict)
    ]


def raft_rounds(run: RunFolder) -> list[dict[str, Any]]:
    """Results of RAFT's rounds, one row per round."""
    by_run: dict[Path, list[dict[str, Any]]] = {}
    for folder, manifest in run.files("manifest.json"):
        if isinstance(manifest, dict) and "metrics" in manifest and "kept" in manifest:
            refresh = manifest.get("refresh", {}).get("metrics", {})
            metrics = {**manifest["metrics"], **manifest.get("evaluation", {}), **refresh}
            by_run.setdefault(folder.parent, []).append({"round": folder.name.removeprefix("round-"), **metrics})
    content = []
    for folder, rounds in by_run.items():
        columns = list(dict.fromkeys(name for metrics in rounds for name in metrics))
        rows = [[metrics["round"], *(number(metrics.get(name)) for name in columns[1:])] for metrics in rounds]
        shown = [name.removeprefix("raft/").replace("/", " ").replace("_", " ") for name in columns]
        content.append({"name": run.name(folder), "columns": shown, "rows": rows})
    return content


def processbench(run: RunFolder) -> list[dict[str, Any]]:
    """F1 by subset of ProcessBench, in percent."""
    content = []
    for folder, record in run.files("processbench.json"):
        if not isinstance(record, dict) or not record.get("models"):
            continue
        subsets = list(next(iter(record["models"].values()))["subsets"])
        rows = []
        for name, result in zip(shown_names(list(record["models"])), record["models"].values(), strict=True):
            figures = [*(result["subsets"][subset] for subset in subsets), result["average"]]
            rows.append(
                [name, number(result["threshold"]), *(interval(figure["f1"], percent=True) for figure in figures)]
            )
        columns = ["F1, percent", "threshold", *subsets, "average"]
        content.append({"name": run.name(folder), "columns": columns, "rows": rows})
    return content


def manifests(run: RunFolder) -> list[dict[str, Any]]:
    """Settings, versions and counts of every stage, without secrets and absolute paths."""
    content = []
    for file in ("manifest.json", "prm_format.json", "summary.json"):
        for folder, record in run.files(file):
            if isinstance(record, dict):
                shown = {name: part for name, part in record.items() if file != "summary.json" or name == "settings"}
                if rows := _flat(redacted(shown)):
                    content.append({"name": f"{run.name(folder)}/{file}", "rows": rows})
    return content


def interval(point: Mapping[str, float], percent: bool = False) -> str:
    """A mean with the ends of its interval."""
    scale, digits = (100, 1) if percent else (1, 3)
    mean, low, high = (f"{scale * point[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def number(value: Any) -> str:
    """A number for a table, with few digits. A missing or non-finite one becomes a dash."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–" if value is None or isinstance(value, float) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if 1e-3 <= abs(value) < 1e3 else f"{value:.4g}"


def _training(kind: str, histories: dict[str, list[dict]]) -> dict[str, Any]:
    names = dict.fromkeys(name for history in histories.values() for entry in history for name in entry)
    by_metric = {
        name: {index: line for index, history in enumerate(histories.values()) if (line := points(history, name))}
        for name in names
        if is_shown(name)
    }
    main = {name: lines for name, lines in by_metric.items() if name.removeprefix("eval_") in MAIN}
    main = dict(sorted(main.items(), key=lambda item: MAIN.index(item[0].removeprefix("eval_"))))
    guard = {
        name: lines
        for name, lines in by_metric.items()
        if kind == "Policies" and (name in GUARD or name.startswith("guard/")) and name not in main
    }
    rest = {name: lines for name, lines in sorted(by_metric.items()) if name not in main and name not in guard}
    return {
        "name": kind,
        "legend": [(series_class(index), name) for index, name in enumerate(histories)],
        "main": _plots(main),
        "guard": _plots(guard),
        "rest": _plots(rest),
    }


def _plots(metrics: dict[str, dict[int, list[tuple[float, float]]]]) -> list[dict[str, Any]]:
    plots = []
    for name, lines in metrics.items():
        if max(map(len, lines.values()), default=0) > 1:
            thin = {index: line[:: -(-len(line) // MOST_POINTS)] for index, line in lines.items()}
            title, _ = title_and_unit(name)
            plots.append({"name": name, "title": title, "svg": metric_drawing(name, thin).svg})
    return plots


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [row for name, item in value.items() for row in _flat(item, f"{prefix}.{name}" if prefix else name)]
    return [] if not prefix else [(prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
