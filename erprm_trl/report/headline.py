"""The first screen of a page: whether the run worked, in one sentence, three numbers and one chart.

A comparison of reward models says most about a run. Without one, the page opens on what there is: policies before and
after training, the training of a policy, the training of a reward model, ProcessBench, a calibration or the rollouts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..io.counts import counted
from ..policy.guards import FILE_NAME as GUARD_FILE
from .comparisons import Comparison, is_trained, method_for, ranked_models
from .figures import (
    Drawing,
    calibration_drawings,
    interval_drawing,
    label_drawing,
    metric_drawing,
    selection_drawing,
    series_class,
)
from .metrics import Change, Training, change, find_trainings, points, title_and_unit
from .run_folder import RunFolder, shown_names
from .solutions import Collection


FIRST_AND_LAST = "First and last are means over the first and the last fifth of the logged values."
# Metrics of a reward model, by their names in a sentence.
REWARD_MODEL = {"loss": "loss", "brier": "Brier score", "auc_within_questions": "AUC within questions"}


@dataclass
class KeyNumber:
    """
    A number of the first screen.

    Attributes:
        value (`str`): The number with its unit.
        label (`str`): Name of the measured quantity.
        detail (`str`): Its interval, or how to read it.
    """

    value: str
    label: str
    detail: str = ""


@dataclass
class Headline:
    """
    The first screen.

    Attributes:
        verdict (`str`): The answer to "did it work?".
        numbers (`list[KeyNumber]`): At most three.
        drawing (`Drawing`, *optional*): The chart.
        title (`str`): Title of the chart.
        remarks (`list[str]`): Limits of the answer, and the answers of the run's other parts.
    """

    verdict: str
    numbers: list[KeyNumber]
    drawing: Drawing | None = None
    title: str = ""
    remarks: list[str] = field(default_factory=list)


def make_headline(
    run: RunFolder,
    collections: Sequence[Collection],
    aggregation: str,
    written: Sequence[Comparison],
    computed: Sequence[Comparison],
) -> Headline | None:
    """
    The first screen of a run.

    Args:
        run ([`RunFolder`]):
            The run.
        collections (`Sequence[Collection]`):
            Its solutions.
        aggregation (`str`):
            Aggregation of step scores that the page shows first.
        written, computed (`Sequence[Comparison]`):
            Comparisons that the run wrote, and comparisons that the page made of its scores.

    Returns:
        [`Headline`] or `None`: the first screen, or `None` if nothing in the run says how well it went.
    """
    trainings = find_trainings(run)
    candidates = [
        _of_comparison(written, aggregation),
        _of_policies(run, trainings),
        _of_policy_training(run, trainings),
        _of_comparison(computed, aggregation),
        _of_processbench(run),
        _of_calibration(run),
        _of_reward_model_training(trainings),
        _of_rollouts(collections),
    ]
    headlines = [headline for headline in candidates if headline is not None]
    if not headlines:
        return None
    first = headlines[0]
    if first is candidates[0] and candidates[1] is not None:
        first.remarks.insert(0, f"Policies: {candidates[1].verdict}")
    return first


def _of_comparison(compared: Sequence[Comparison], aggregation: str) -> Headline | None:
    for _, curves in compared:
        ranking = ranked_models(curves, aggregation)
        if not ranking:
            continue
        best, (fewest, most) = ranking[0], (min(curves["pass"]), max(curves["pass"]))
        shown = {
            name: f"“{shown}”"
            for name, shown in zip(curves["models"], shown_names(list(curves["models"])), strict=True)
        }
        result = method_for(curves["models"][best], aggregation)
        chosen, single, majority = result["best_of_n"][most], curves["pass"][fewest], curves["majority"][most]
        alone = "a single solution" if fewest == 1 else f"pass@{fewest}"
        numbers = [
            KeyNumber(
                f"{_percent(single)} → {_percent(chosen)}",
                f"right answers: {alone} → the best of {most}, chosen by {shown[best]}",
                _intervals(single, chosen),
            ),
            KeyNumber(_percent(majority), f"right answers by a majority vote of {most}", _interval(majority)),
        ]
        if (auc := result["auc_within_questions"]) is not None:
            detail = "how often a right solution scores above a wrong one of the same question; 0.5 is chance"
            numbers.append(KeyNumber(f"{auc:.2f}", f"AUC within questions of {shown[best]}", detail))
        verdict = _compared(chosen, single, f"the best of {most} solutions, chosen by {shown[best]}, is right", alone)
        vote = "more than" if chosen["mean"] > majority["mean"] else "not more than"
        overlap = chosen["low"] <= majority["high"] and majority["low"] <= chosen["high"]
        vote_noise = " (the intervals overlap)" if overlap else ""
        num_trained = sum(map(is_trained, ranking))
        perfect = _percent(curves["pass"][most])
        remarks = [f"That is {vote} a majority vote{vote_noise}. A perfect choice would reach {perfect}."]
        if num_trained > 1:
            remarks[0] += (
                f" The best of {num_trained} trained reward models is shown. It was selected on these questions, so "
                "its result is slightly optimistic."
            )
        drawing = selection_drawing(
            curves, aggregation, [name for name in shown if name == best or not is_trained(name)]
        )
        return Headline(verdict, numbers, drawing, "Right answers by the number of samples per question", remarks)
    return None


def _of_policies(run: RunFolder, trainings: Sequence[Training]) -> Headline | None:
    for _, summary in run.files("summary.json"):
        policies = summary.get("policies") if isinstance(summary, dict) else None
        if not isinstance(policies, dict) or len(policies) < 2:
            continue
        before, *others = policies
        best = max(others, key=lambda name: policies[name]["mean"])
        verdict = _compared(
            policies[best], policies[before], f"the policy {best} answers right", f"the policy {before}"
        )
        numbers = [
            KeyNumber(
                f"{_percent(policies[before])} → {_percent(policies[best])}",
                f"right answers: {before} → {best}",
                _intervals(policies[before], policies[best]),
            ),
            *_policy_numbers(trainings)[-2:],
        ]
        drawing = interval_drawing(policies, "share of right answers", "Share of right answers of each policy")
        return Headline(verdict, numbers, drawing, "Right answers of each policy, with 95% intervals")
    return None


def _of_policy_training(run: RunFolder, trainings: Sequence[Training]) -> Headline | None:
    policies = [training for training in trainings if not training.is_reward_model]
    best = _best_policy(policies)
    if best is None:
        return None
    training, gain = best
    numbers = _policy_numbers(policies)
    title = title_and_unit(gain.name)[0]
    answer, verb = ("Yes", "rose") if gain.last > gain.first else ("No", "did not rise")
    verdict = f"{answer}: the {title[0].lower()}{title[1:]} {verb}, {numbers[0].value}."
    for _, record in run.files(GUARD_FILE):
        if isinstance(record, dict) and record.get("reason"):
            verdict = f"No: the guard stopped the run at step {record.get('step')}. {record['reason']}"
    remarks = [FIRST_AND_LAST]
    if len(policies) > 1:
        remarks.insert(0, f"Numbers of {training.name}, the training with the highest last value of {len(policies)}.")
    return Headline(verdict, numbers, *_metric_chart(policies, gain.name), remarks)


def _of_reward_model_training(trainings: Sequence[Training]) -> Headline | None:
    models = [training for training in trainings if training.is_reward_model]
    changes = [(training, changed) for training in models if (changed := _reward_model_changes(training))]
    if not changes:
        return None

    def quality(pair: tuple[Training, dict[str, Change]]) -> float:
        last = {name: metric.last for name, metric in pair[1].items()}
        return last.get("auc_within_questions", -last.get("brier", last.get("loss", 0.0)))

    training, best = max(changes, key=quality)
    improved = [(metric.last > metric.first) == (name == "auc_within_questions") for name, metric in best.items()]
    answer = "Yes" if all(improved) else "Partly" if any(improved) else "No"
    first = next(iter(best.values())).name
    data = "held-out data" if first.startswith("eval_") else "the training batches"
    parts = [f"the {REWARD_MODEL[name]} went from {_shown(m.first)} to {_shown(m.last)}" for name, m in best.items()]
    numbers = [
        KeyNumber(f"{_shown(m.first)} → {_shown(m.last)}", title_and_unit(name)[0], f"on {data}, first → last")
        for name, m in best.items()
    ]
    remarks = [
        FIRST_AND_LAST,
        "No solutions were scored yet: best-of-N on fresh questions says more than these curves.",
    ]
    if len(models) > 1:
        remarks.insert(0, f"Numbers of {training.name}, the best of {len(models)} trainings.")
    return Headline(f"{answer}: on {data}, {_listed(parts)}.", numbers, *_metric_chart(models, first), remarks)


def _reward_model_changes(training: Training) -> dict[str, Change]:
    """How the metrics of a reward model changed: on held-out data, or else on the training batches."""
    for prefix in ("eval_", ""):
        changes = {name: change(training.history, f"{prefix}{name}") for name in REWARD_MODEL}
        if changes := {name: metric for name, metric in changes.items() if metric is not None}:
            return changes
    return {}


def _of_processbench(run: RunFolder) -> Headline | None:
    for _, record in run.files("processbench.json"):
        models = record.get("models") if isinstance(record, dict) else None
        if not models:
            continue
        shown = dict(zip(models, shown_names(list(models)), strict=True))
        best = max(models, key=lambda name: (is_trained(name), models[name]["average"]["f1"]["mean"]))
        average = models[best]["average"]
        numbers = [
            KeyNumber(_percent(average["f1"]), f"F1 of {shown[best]}, mean of the subsets", _interval(average["f1"]))
        ]
        for key, label in (
            ("erroneous", "wrong solutions: first wrong step found"),
            ("correct", "right solutions: accepted"),
        ):
            if key in average:
                numbers.append(KeyNumber(_percent(average[key]), label, _interval(average[key])))
        verdict = f"{shown[best]} finds the first wrong step with an F1 of {_percent(average['f1'])}."
        subsets = {name: figures["f1"] for name, figures in models[best]["subsets"].items()}
        drawing = interval_drawing(subsets, "F1", "F1 of each subset of ProcessBench")
        return Headline(verdict, numbers, drawing, f"F1 of {shown[best]} on each subset, with 95% intervals")
    return None


def _of_calibration(run: RunFolder) -> Headline | None:
    for _, results in run.files("calibration.json"):
        if not isinstance(results, dict) or "bins" not in next(iter(results.values()), {}):
            continue
        shown = dict(zip(results, shown_names(list(results)), strict=True))
        best = min(results, key=lambda name: (not is_trained(name), results[name]["ece"]))
        result = results[best]
        numbers = [KeyNumber(f"{result['ece']:.3f}", f"expected calibration error of {shown[best]}", "0 is perfect")]
        if brier := result.get("brier"):
            numbers.append(KeyNumber(f"{brier['mean']:.3f}", "Brier score", "lower is better"))
        if (auc := result.get("auc_can_succeed")) is not None:
            whole = result.get("unit") == "solution"
            meaning = "which solutions are right" if whole else "which prefixes can still succeed"
            numbers.append(KeyNumber(f"{auc:.2f}", f"AUC: {meaning}", "0.5 is chance"))
        verdict = f"Scores of {shown[best]} differ from the measured values by {result['ece']:.3f} on average."
        return Headline(verdict, numbers, calibration_drawings({best: result})[0], "Measured values against scores")
    return None


def _of_rollouts(collections: Sequence[Collection]) -> Headline | None:
    for collection in collections:
        graded = [row.is_right for rows_N in collection.questions for row in rows_N if row.is_graded]
        count, _, what = counted(collection.num_solutions, "solution").partition(" ")
        numbers = [KeyNumber(count, f"{what} of {counted(len(collection.questions), 'question')}")]
        if graded:
            numbers.insert(0, KeyNumber(f"{sum(graded) / len(graded):.1%}", "solutions with a right answer"))
        labels = [labels_S for labels_N in collection.labels or [] for labels_S in labels_N if labels_S]
        if labels:
            flat = [label for labels_S in labels for label in labels_S]
            numbers.append(
                KeyNumber(f"{sum(flat) / len(flat):.2f}", f"mean of {len(flat):,} step labels", "between 0 and 1")
            )
        drawing = label_drawing(labels) if labels else None
        return Headline(
            "No reward model has been evaluated yet.", numbers, drawing, "Labels by step" if labels else ""
        )
    return None


def _best_policy(trainings: Sequence[Training]) -> tuple[Training, Change] | None:
    """The policy with the highest last accuracy or, where no accuracy was logged, reward."""
    names = ("eval_accuracy", "steps/accuracy", "raft/accuracy", "eval_reward", "reward", "raft/mean_score")
    gains = [(training, change(training.history, *names)) for training in trainings if not training.is_reward_model]
    gains = [(training, gain) for training, gain in gains if gain is not None]
    return max(gains, key=lambda pair: ("accuracy" in pair[1].name, pair[1].last), default=None)


def _policy_numbers(trainings: Sequence[Training]) -> list[KeyNumber]:
    """Right answers or reward, steps per answer, and KL divergence or scores of the best policy."""
    best = _best_policy(trainings)
    if best is None:
        return []
    training, gain = best
    numbers = [_key_number(gain)]
    if steps := change(training.history, "steps/per_answer", "raft/steps_per_answer"):
        numbers.append(_key_number(steps, "steps per answer"))
    if kl := change(training.history, "kl"):
        numbers.append(
            _key_number(kl, "KL divergence from the reference policy, nats per token", "0 is the reference")
        )
    elif score := change(training.history, "raft/picked_score", "raft/mean_score", "steps/mean_score"):
        numbers.append(_key_number(score))
    return numbers


def _metric_chart(trainings: Sequence[Training], name: str) -> tuple[Drawing | None, str]:
    lines = {index: points(training.history, name) for index, training in enumerate(trainings)}
    lines = {index: line for index, line in lines.items() if len(line) > 1}
    if not lines:
        return None, ""
    drawing = metric_drawing(name, lines, size=(4.8, 3.0))
    if len(trainings) > 1:
        drawing.legend = [(series_class(index), trainings[index].name) for index in lines]
    return drawing, title_and_unit(name)[0]


def _key_number(changed: Change, label: str = "", detail: str = "first → last") -> KeyNumber:
    title, unit = title_and_unit(changed.name)
    shown = _as_percent if unit == "share" else _shown
    return KeyNumber(f"{shown(changed.first)} → {shown(changed.last)}", label or title, detail)


def _compared(new: Mapping[str, float], old: Mapping[str, float], what: str, other: str) -> str:
    if new["mean"] <= old["mean"]:
        answer = "No"
    else:
        answer = "Yes" if new["low"] > old["high"] else "Perhaps, as the 95% intervals overlap"
    return f"{answer}: {what} for {_percent(new)} of the questions, {other} for {_percent(old)}."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _percent(point: Mapping[str, float]) -> str:
    return f"{100 * point['mean']:.1f}%"


def _as_percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _interval(point: Mapping[str, float]) -> str:
    return f"95% interval: {_ends(point)}"


def _intervals(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    return f"95% intervals: {_ends(before)} → {_ends(after)}"


def _ends(point: Mapping[str, float]) -> str:
    return f"{100 * point['low']:.1f} to {100 * point['high']:.1f}%"


def _shown(value: float) -> str:
    return f"{value:.3f}" if 1e-3 <= abs(value) < 100 else f"{value:.3g}"
