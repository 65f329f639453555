"""What the page shows beside the solutions: comparisons, curves, guards and manifests of a run's folder, gathered for
the template. A section without content does not exist."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..io.redaction import redacted
from ..policy.guards import AGREEMENT, RATIOS, SHARES
from ..policy.guards import FILE_NAME as GUARD_FILE
from .figures import (
    calibration_drawings,
    label_drawing,
    metric_drawing,
    reliability_drawings,
    selection_drawings,
    series_class,
)
from .run_folder import RunFolder, shown_names
from .solutions import CURVES, Collection


STATE = "trainer_state.json"
# Shown at first, in this order; a prefix `eval_` counts as none.
MAIN_METRICS = (
    "loss",
    "brier",
    "auc_within_questions",
    "ece",
    "accuracy",
    "reward",
    "kl",
    "entropy",
    "value/explained_variance",
    "raft/mean_score",
    "raft/picked_score",
    "raft/accuracy",
    "raft/picked_accuracy",
)
GUARD_METRICS = {*RATIOS, *SHARES, AGREEMENT, "kl", "steps/mean_score", "steps/accuracy", "completions/clipped_ratio"}
NOT_CURVES = {"epoch", "step", "total_flos", "num_tokens", "num_input_tokens_seen", "raft/round"}
MOST_POINTS = 400  # of a line


def selections(run: RunFolder) -> list[dict[str, Any]]:
    """Best-of-n curves: plots, and a table at the largest n."""
    content = []
    for file in CURVES:
        for folder, comparison in run.files(file):
            if not isinstance(comparison, dict) or not {"pass", "majority", "models"} <= set(comparison):
                continue
            curves = _by_int(comparison)
            n = max(curves["pass"])
            models = zip(shown_names(list(curves["models"])), curves["models"].values(), strict=True)
            rows = [
                [name, *(interval(result["best_of_n"][n]) for result in by_method.values()), number(_auc(by_method))]
                for name, by_method in models
            ]
            methods = list(next(iter(curves["models"].values()), {}))
            content.append(
                {
                    "name": run.name(folder),
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
    """Calibrations that were measured, and the reliability of the solutions' scores."""
    content = [
        {
            "name": run.name(folder),
            "about": f"Scores of prefixes by {first['aggregation']} against what {first['prefixes']:,} held-out "
            "prefixes' continuations earn.",
            "drawings": calibration_drawings(results),
        }
        for folder, results in run.files("calibration.json")
        if isinstance(results, dict) and "bins" in (first := next(iter(results.values()), {}))
    ]
    for collection in collections:
        if drawings := reliability_drawings(collection):
            about = "Scores of whole solutions against the share of right answers among those with such a score."
            content.append({"name": collection.name, "about": about, "drawings": drawings})
    return content


def label_histograms(collections: list[Collection]) -> list[dict[str, Any]]:
    """Of each collection with continuations."""
    content = []
    for collection in collections:
        labels = [labels_S for labels_N in collection.labels or [] for labels_S in labels_N if labels_S]
        if labels:
            content.append({"name": collection.name, "drawings": [label_drawing(labels)]})
    return content


def trainings(run: RunFolder) -> list[dict[str, Any]]:
    """Curves of reward models and of policies, a plot a metric with a line a training."""
    kinds: dict[str, dict[str, list[dict]]] = {}
    for folder in run.folders:
        # A round of RAFT is in the state of the whole run, if that was saved.
        if folder.name.startswith("round-") and (folder.parent / STATE).exists():
            continue
        if history := _history(run, folder):
            kind = "Reward models" if (folder / "prm_format.json").exists() else "Policies"
            kinds.setdefault(kind, {})[run.name(folder)] = history
    return [_training(kind, histories) for kind, histories in kinds.items()]


def guards(run: RunFolder) -> list[dict[str, Any]]:
    """Why runs were stopped, and each signal beside its band."""
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
        logged = _history(run, folder) is not None
        content.append(
            {
                "name": run.name(folder),
                "reason": record.get("reason"),
                "step": record.get("step"),
                "checkpoint": redacted(record.get("last_good_checkpoint")),
                "columns": ["signal", *(column.replace("_", " ") for column in columns)],
                "rows": rows,
                "plots": [] if logged else _plots({name: {0: points} for name, points in history.items()}),
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
    """The numbers of RAFT's rounds, a row a round."""
    by_run: dict[Path, list[dict[str, Any]]] = {}
    for folder, manifest in run.files("manifest.json"):
        if isinstance(manifest, dict) and "metrics" in manifest and "kept" in manifest:
            metrics = {**manifest["metrics"], **manifest.get("evaluation", {})}
            by_run.setdefault(folder.parent, []).append({"round": folder.name.removeprefix("round-"), **metrics})
    content = []
    for folder, rounds in by_run.items():
        columns = list(dict.fromkeys(name for metrics in rounds for name in metrics))
        rows = [[metrics["round"], *(number(metrics.get(name)) for name in columns[1:])] for metrics in rounds]
        shown = [name.removeprefix("raft/").replace("_", " ") for name in columns]
        content.append({"name": run.name(folder), "columns": shown, "rows": rows})
    return content


def processbench(run: RunFolder) -> list[dict[str, Any]]:
    """F1 by subset, in percent."""
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
    """A mean and the ends of its interval."""
    scale, digits = (100, 1) if percent else (1, 3)
    mean, low, high = (f"{scale * point[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def number(value: Any) -> str:
    """A number of a table: few digits, a dash where there is none."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–" if value is None or isinstance(value, float) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if 1e-3 <= abs(value) < 1e3 else f"{value:.4g}"


def _training(kind: str, histories: dict[str, list[dict]]) -> dict[str, Any]:
    by_metric: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for index, history in enumerate(histories.values()):
        for entry in history:
            for name, value in entry.items():
                if isinstance(value, (int, float)) and math.isfinite(value) and not _is_no_curve(name):
                    by_metric.setdefault(name, {}).setdefault(index, []).append((entry.get("step", 0), value))
    main = {name: lines for name, lines in by_metric.items() if name.removeprefix("eval_") in MAIN_METRICS}
    main = dict(sorted(main.items(), key=lambda item: MAIN_METRICS.index(item[0].removeprefix("eval_"))))
    guard = {
        name: lines
        for name, lines in by_metric.items()
        if kind == "Policies" and (name in GUARD_METRICS or name.startswith("guard/")) and name not in main
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
        if max(map(len, lines.values())) > 1:
            thin = {index: points[:: -(-len(points) // MOST_POINTS)] for index, points in lines.items()}
            plots.append({"name": name, "svg": metric_drawing(name, thin).svg})
    return plots


def _is_no_curve(name: str) -> bool:
    return name in NOT_CURVES or name.startswith("train_") or name.endswith(("_runtime", "_per_second"))


def _history(run: RunFolder, folder: Path) -> list[dict] | None:
    """The longest log of a training: the folder's own, or that of its newest checkpoint."""
    states = [run.read(path) for path in (folder / STATE, *sorted(folder.glob(f"checkpoint-*/{STATE}")))]
    histories = [state["log_history"] for state in states if isinstance(state, dict) and state.get("log_history")]
    return max(histories, key=lambda history: history[-1].get("step", 0), default=None)


def _auc(by_method: Mapping[str, Any]) -> float | None:
    return by_method.get("min", next(iter(by_method.values())))["auc_within_questions"]


def _by_int(curves: Mapping[str, Any]) -> dict[str, Any]:
    # JSON has made the numbers of samples strings.
    def curve(points):
        return {int(n): point for n, point in points.items()}

    models = {
        name: {method: {**result, "best_of_n": curve(result["best_of_n"])} for method, result in methods.items()}
        for name, methods in curves["models"].items()
    }
    return {"pass": curve(curves["pass"]), "majority": curve(curves["majority"]), "models": models}


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [row for name, item in value.items() for row in _flat(item, f"{prefix}.{name}" if prefix else name)]
    return [] if not prefix else [(prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
