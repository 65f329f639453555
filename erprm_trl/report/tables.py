"""Formats results as plain-text tables for a terminal: selection, calibration, ProcessBench, paired differences."""

from collections.abc import Mapping
from typing import Any

from ..io.counts import counted


def format_selection_table(curves: Mapping[str, Any], n: int) -> str:
    """
    Formats the accuracy of each way to choose one of n solutions, with intervals.

    Args:
        curves (`Mapping`):
            From [`~erprm_trl.selection.selection_curves`].
        n (`int`):
            Number of samples. The curves must have this point.

    Returns:
        `str`: one line each for pass@1, majority@n and pass@n, then one per reward model with best-of-n by each
        aggregation and the AUC within questions.
    """
    methods = list(next(iter(curves["models"].values()), {}))
    width = _width(curves["models"])
    lines = [
        f"{'pass@1':<{width}}{_interval(curves['pass'][1])}",
        f"{f'majority@{n}':<{width}}{_interval(curves['majority'][n])}",
        f"{f'pass@{n}':<{width}}{_interval(curves['pass'][n])}",
        "",
        f"{f'best of {n} by':<{width}}"
        + "".join(f"{method:<22}" for method in methods)
        + "AUC within questions (min)",
    ]
    for name, by_method in curves["models"].items():
        cells = "".join(f"{_interval(by_method[method]['best_of_n'][n]):<22}" for method in methods)
        auc = by_method.get("min", next(iter(by_method.values())))["auc_within_questions"]
        lines.append(f"{name:<{width}}{cells}{'n/a' if auc is None else format(auc, '.3f')}")
    return "\n".join(lines)


def selection_rows(curves: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """
    Lists all points of the curves: the way to choose, n, the accuracy and its interval.

    Args:
        curves (`Mapping`):
            From [`~erprm_trl.selection.selection_curves`].

    Returns:
        `tuple`: names of the columns, and the rows.
    """
    ways = {"pass@n": curves["pass"], "majority@n": curves["majority"]}
    for name, by_method in curves["models"].items():
        ways |= {f"{name}, {method}": of_method["best_of_n"] for method, of_method in by_method.items()}
    rows = [
        [way, n, curve[n]["mean"], curve[n]["low"], curve[n]["high"]]
        for way, curve in ways.items()
        for n in sorted(curve)
    ]
    return ["choice", "n", "accuracy", "low", "high"], rows


def format_calibration_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """
    Formats the calibration of reward models, one line per model, followed by the parts of their Brier scores.

    Args:
        results (`Mapping[str, Mapping]`):
            Results of [`~erprm_trl.selection.measure_calibration`] by name of a reward model.

    Returns:
        `str`: the table. "error" is the squared distance from the value without the noise of K continuations, and
        "n/a" where that noise cannot be estimated.
    """
    first = next(iter(results.values()))
    few, many = first["continuations"]["fewest"], first["continuations"]["most"]
    continuations = few if few == many else f"{few} to {many}"
    width = _width(results)
    whole = first.get("unit") == "solution"
    unit = ("solution",) if whole else ("prefix", "prefixes")
    compared = "rewards" if whole else f"{continuations} continuations each, value at eta = {first['eta']}"
    lines = [
        f"{counted(first['prefixes'], *unit)} of {counted(first['questions'], 'question')}, {compared}, "
        f"scores by {first['aggregation']}",
        "",
        _line(
            width,
            "",
            [
                "Brier",
                "error (noise off)",
                "ECE",
                "ECE recalibrated",
                "AUC right" if whole else "AUC can succeed",
                "in questions",
            ],
        ),
    ]
    for name, result in results.items():
        cells = [
            _four_digits(result["brier"]),
            _four_digits(result["value_error"]["squared_without_noise"]),
            _number(result["ece"]),
            _number(result["recalibration"]["ece"]),
            _number(result["auc_can_succeed"]),
            _number(result["auc_can_succeed_within_questions"]),
        ]
        lines.append(_line(width, name, cells))
    parts = list(first["brier_parts"])
    lines += ["", _line(width, "Brier's parts", [part.replace("_", " ") for part in parts])]
    lines += [
        _line(width, name, [_number(result["brier_parts"][part]) for part in parts])
        for name, result in results.items()
    ]
    rates = {name: result["rates"] for name, result in results.items() if result.get("rates")}
    lines += [""] * bool(rates) + [f"{name}, read at eta = 0: {_about_rates(entry)}" for name, entry in rates.items()]
    return "\n".join(lines)


def _about_rates(rates: Mapping[str, Any]) -> str:
    """A sentence about `rates` of a calibration."""
    error = rates["error"]
    noise_off = "" if error is None else f"error {error['mean']:.3f} [{error['low']:.3f}, {error['high']:.3f}], "
    measured = f"({noise_off}ECE {rates['ece']:.3f})"
    if rates["are_rates"]:
        return f"scores are success rates {measured}. They can be read at other etas."
    return f"scores are not success rates {measured}. Values read from them at other etas are unreliable."


def format_processbench_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """
    Formats F1 by subset and its average, in percent with intervals, one block per reward model.

    Args:
        results (`Mapping[str, Mapping]`):
            From [`~erprm_trl.selection.evaluate_processbench`].
    """
    width = _width(next(iter(results.values()))["subsets"])
    lines = []
    for name, result in results.items():
        lines += [f"{name}, threshold {result['threshold']:.3f}"]
        if too_long := result["too_long"]:
            what = "solution is too long for the model and counts", "solutions are too long for the model and count"
            lines.append(f"{counted(too_long, *what)} as wrong")
        lines.append(_line(width, "", ["erroneous", "correct", "F1"]))
        for subset, figures in [*result["subsets"].items(), ("average", result["average"])]:
            lines.append(_line(width, subset, [_percent(figures[key]) for key in ("erroneous", "correct", "f1")]))
        if "f1_minus_first" in result:
            lines.append(_line(width, f"F1 - {next(iter(results))}:", [_percent(result["f1_minus_first"])]))
        lines.append("")
    return "\n".join(lines[:-1])


def label_noise_facts(noise: Mapping[str, Any]) -> list[tuple[str, str]]:
    """
    The figures of a measurement of label noise, with their names.

    Args:
        noise (`Mapping`):
            From [`~erprm_trl.rollouts.measure_label_noise`].
    """
    repeated, questions = noise["repeated"], noise["questions"]
    below = [
        (f"questions that are solved at a rate below {limit}", _share(share))
        for limit, share in questions["below"].items()
    ]
    return [
        ("standard error of a label", _number(repeated["label_error"])),
        ("prefixes with a success in only one half of the continuations", _share(repeated["hard_disagreement"])),
        ("prefixes of right solutions without a success", _share(noise["right_solutions"]["failing_prefixes"])),
        ("right solutions with such a prefix", _share(noise["right_solutions"]["with_failing_prefix"])),
        ("steps of wrong solutions after which the rate rises", _share(noise["wrong_solutions"]["rises"])),
        ("wrong solutions with a success after a failing prefix", _share(noise["wrong_solutions"]["revived"])),
        ("mean rate of the questions", _number(questions["rate"])),
        *below,
    ]


def format_label_noise_table(noise: Mapping[str, Any]) -> str:
    """
    Formats the noise of labels: one line per figure, then one line per number of steps of a prefix.

    Args:
        noise (`Mapping`):
            From [`~erprm_trl.rollouts.measure_label_noise`].
    """
    facts = label_noise_facts(noise)
    width = max(len(name) for name, _ in facts) + 2
    lines = [
        f"{counted(noise['prefixes'], 'prefix', 'prefixes')} of {counted(noise['solutions'], 'solution')} "
        f"({noise['right']:,} right), labels at eta = {noise['eta']}",
        "",
        *(f"{name:<{width}}{value}" for name, value in facts),
        "",
        f"{'steps':<8}{'prefixes':>10}{'all fail':>12}{'all succeed':>14}{'rate, right':>14}{'rate, wrong':>14}",
    ]
    for point in noise["by_position"]:
        shares = f"{_share(point['certain_failure']):>12}{_share(point['certain_success']):>14}"
        rates = f"{_number(point['right']):>14}{_number(point['wrong']):>14}"
        steps = f"{point['position']}{'+' * point['or_more']}"
        lines.append(f"{steps:<8}{point['prefixes']:>10}{shares}{rates}")
    return "\n".join(lines)


def format_difference_table(differences: Mapping[str, Any], n: int) -> str:
    """
    Formats best-of-n of each model minus best-of-n of the first, with paired intervals and p-values.

    Args:
        differences (`Mapping`):
            From [`~erprm_trl.selection.paired_differences`].
        n (`int`):
            Number of samples. The differences must have this point.
    """
    models = differences["models"]
    methods = list(next(iter(models.values())))
    width = _width(models)
    lines = [f"best of {n} minus that of {differences['reference']} (p at the largest n)", _line(width, "", methods)]
    for name, by_method in models.items():
        cells = [
            f"{_signed(by_method[method]['difference'][n])} p={by_method[method]['test']['p_value']:.2g}"
            for method in methods
        ]
        lines.append(_line(width, name, cells))
    return "\n".join(lines)


def _line(width: int, name: str, cells: list[str]) -> str:
    return (f"{name:<{width}}" + "".join(f"{cell:<32}" if "p=" in cell else f"{cell:<24}" for cell in cells)).rstrip()


def _width(names) -> int:
    """Width of the first column. Names are often long paths."""
    return max(24, 2 + max(map(len, names), default=0))


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def _four_digits(point: Mapping[str, float] | None) -> str:
    return "n/a" if point is None else f"{point['mean']:.4f} [{point['low']:.4f}, {point['high']:.4f}]"


def _interval(point: Mapping[str, float]) -> str:
    return f"{point['mean']:.3f} [{point['low']:.3f}, {point['high']:.3f}]"


def _signed(point: Mapping[str, float]) -> str:
    return f"{point['mean']:+.3f} [{point['low']:+.3f}, {point['high']:+.3f}]"


def _percent(point: Mapping[str, float]) -> str:
    return f"{100 * point['mean']:.1f} [{100 * point['low']:.1f}, {100 * point['high']:.1f}]"
