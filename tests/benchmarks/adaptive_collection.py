"""Label error against the number of rollouts on dial, with fixed K and with adaptive allocation:
`python tests/benchmarks/adaptive_collection.py`.

Each seed has its own questions and solutions. The reference uses K = 512 continuations per prefix, sampled with
another seed and kept in the output folder. Errors are over all labelled prefixes (whole solutions need no label).
Rollouts are the generated continuations per prefix. Intervals are 95% t-intervals over seeds.
"""

import argparse
import json
import math
import os
from dataclasses import replace
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

from eta_comparison import interval

from erprm_trl import dial
from erprm_trl.functional import soft_value_from_rate
from erprm_trl.rollouts import Grader, Prompt, TransformersSampler, collect_rollouts, load_questions
from erprm_trl.rollouts.labels import PosteriorValues, sample_values
from erprm_trl.rollouts.sampling.base import derived_seed


FIXED = (2, 4, 8, 16, 32, 64)
ADAPTIVE = {
    "adaptive": ({"allocation": "adaptive"}, (1, 2, 4, 8, 16)),
    "allocation alone": ({"allocation": "adaptive", "reuse_continuations": False}, (2, 4, 8, 16)),
    "reuse alone": ({"reuse_continuations": True}, (1, 2, 4, 8, 16)),
    "reuse alone, posterior": ({"reuse_continuations": True}, (1, 2, 4, 8, 16)),
}
FIGURES = ("rms", "mae", "bias")


def main():
    """Runs every seed, prints the table and the ratios, writes JSON and PNG."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--reference", type=int, default=512)
    parser.add_argument("--etas", type=float, nargs="+", default=[0.0, 2.0, 10.0])
    parser.add_argument("--output_dir", default="outputs/bench/adaptive_collection")
    arguments = parser.parse_args()
    folder = Path(arguments.output_dir)
    runs = [run(folder / f"seed-{seed}", seed, arguments) for seed in arguments.seeds]
    points = summarize(runs, arguments.etas)
    (folder / "adaptive_collection.json").write_text(json.dumps({"points": points, "runs": runs}, indent=1))
    print_table(points, arguments.etas)
    plot(points, arguments.etas, folder / "adaptive_collection.png")


def run(folder, seed, arguments):
    """Errors of one seed's collections: a list with one point per method, budget and eta."""
    questions = load_questions(dial.make_questions(arguments.questions, seed=100 + seed))
    sampler = TransformersSampler.from_pretrained(dial.BASE_PATH, max_new_tokens=64, batch_size=512)

    def collect(name, num_continuations, **settings):
        return collect_rollouts(
            questions,
            sampler,
            folder / name.replace(", ", "-").replace(" ", "-"),
            num_continuations=num_continuations,
            splitter=dial.SEPARATOR,
            grading="exact",
            answer_pattern=dial.ANSWER_PATTERN,
            seed=seed,
            chunk_size=25,
            show_progress=False,
            **settings,
        )

    fixed = collect(f"fixed {FIXED[-1]}", FIXED[-1])
    reference = reference_rates(folder, fixed.rows, sampler, arguments.reference, seed)
    points = []

    def add(method, rows, rollouts, estimator):
        for eta in arguments.etas:
            if estimator == "posterior":
                posterior = PosteriorValues.fit(rows, eta)
                labels = [mean for row in rows for mean, _ in posterior(row.prefix_rewards)]
            else:
                labels = [value for row in rows for value in sample_values(row.prefix_rewards, eta)]
            points.append({"method": method, "eta": eta, "rollouts": rollouts / len(labels)}
                          | errors(labels, reference, eta))  # fmt: skip

    for k in FIXED:  # the first k continuations equal a collection with num_continuations=k
        rows = [replace(row, prefix_rewards=[rewards[:k] for rewards in row.prefix_rewards]) for row in fixed.rows]
        for method, estimator in (("fixed", "sample"), ("fixed, posterior", "posterior")):
            add(method, rows, k * len(reference), estimator)
    for method, (settings, budgets) in ADAPTIVE.items():
        for k in budgets:
            data = collect(f"{method.removesuffix(', posterior')} {k}", k, **settings)
            assert [row.steps for row in data.rows] == [row.steps for row in fixed.rows]
            generated = data.manifest["summary"]["sharing"]["generated"]
            add(method, data.rows, generated, "sample" if method == "reuse alone" else "posterior")
    return points


def reference_rates(folder, rows, sampler, num_samples, seed):
    """Success rate of each labelled prefix from `num_samples` new continuations."""
    path = folder / f"reference-{num_samples}.json"
    prefixes = {}
    for row in rows:
        for length in range(1, len(row.steps)):
            prefixes[row.question, row.prefix(length)] = row.answer
    if not path.exists():
        prompts = [Prompt(*key) for key in prefixes]
        samples = sampler.sample(prompts, num_samples, derived_seed(seed, "reference"))
        texts = [
            prompt.prefix + completion.text
            for prompt, completions in zip(prompts, samples, strict=True)
            for completion in completions
        ]
        with Grader("exact", answer_pattern=dial.ANSWER_PATTERN) as grader:
            rewards = grader.grade(texts, [answer for answer in prefixes.values() for _ in range(num_samples)])
        rates = [sum(rewards[i : i + num_samples]) / num_samples for i in range(0, len(rewards), num_samples)]
        path.write_text(json.dumps([[*key, rate] for key, rate in zip(prefixes, rates, strict=True)]))
    known = {(question, prefix): rate for question, prefix, rate in json.loads(path.read_text())}
    return [known[row.question, row.prefix(length)] for row in rows for length in range(1, len(row.steps))]


def errors(labels, reference, eta):
    """RMS, MAE and bias of labels, compared with the values of the reference's success rates."""
    import torch

    difference = torch.tensor(labels).double() - soft_value_from_rate(torch.tensor(reference).double(), eta)
    return {
        "rms": difference.square().mean().sqrt().item(),
        "mae": difference.abs().mean().item(),
        "bias": difference.mean().item(),
    }


def summarize(runs, etas):
    """Means over seeds with half-widths of their intervals, by method and eta, in the order of budgets. `ratio` is the
    number of rollouts that a fixed K needs for the same RMS error, divided by the method's."""
    points = {}
    for eta in etas:
        by_seed = [[point for point in run if point["eta"] == eta] for run in runs]
        curves = [[(p["rollouts"], p["rms"]) for p in points if p["method"] == "fixed"] for points in by_seed]
        for same in zip(*by_seed, strict=True):
            ratios = [
                fixed_rollouts(curve, entry["rms"]) / entry["rollouts"]
                for curve, entry in zip(curves, same, strict=True)
            ]
            point = {name: interval([entry[name] for entry in same]) for name in ("rollouts", *FIGURES)}
            point["ratio"] = interval(ratios)
            point["beyond_fixed"] = any(entry["rms"] < c[-1][1] for c, entry in zip(curves, same, strict=True))
            points.setdefault(same[0]["method"], {}).setdefault(f"{eta:g}", []).append(point)
    return points


def fixed_rollouts(curve, rms):
    """Number of rollouts at which the fixed curve has this error, interpolated on logarithmic scales. For a smaller
    error than the curve's, its last point."""
    for (n0, e0), (n1, e1) in zip(curve[:-1], curve[1:], strict=True):
        if e1 <= rms:
            share = (math.log(e0) - math.log(rms)) / (math.log(e0) - math.log(e1))
            return math.exp(math.log(n0) + share * (math.log(n1) - math.log(n0)))
    return curve[-1][0]


def print_table(points, etas):
    """Prints one line per method and budget: RMS, MAE, bias, and the ratio to fixed K at equal RMS, for each eta."""
    print(f"{'':<24}{'rollouts':>9}" + "".join(f"   eta = {eta:<6g}rms      mae     bias    ratio   " for eta in etas))
    for method, by_eta in points.items():
        for same in zip(*by_eta.values(), strict=True):
            line = f"{method:<24}{same[0]['rollouts'][0]:>9.2f}"
            for entry in same:
                more = ">" if entry["beyond_fixed"] else " "
                line += (
                    f"   {entry['rms'][0]:.4f} ± {entry['rms'][1]:.4f}  {entry['mae'][0]:.4f}  {entry['bias'][0]:+.4f}"
                    f"  {more}{entry['ratio'][0]:4.1f} ± {entry['ratio'][1]:.1f}"
                )
            print(line)


def plot(points, etas, path):
    """Plots the RMS error against the rollouts per prefix, with one panel per eta."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(etas), figsize=(5 * len(etas), 4.5), squeeze=False)
    for panel, eta in zip(panels[0], etas, strict=True):
        for method, by_eta in points.items():
            curve = by_eta[f"{eta:g}"]
            panel.errorbar(
                [point["rollouts"][0] for point in curve],
                [point["rms"][0] for point in curve],
                yerr=[point["rms"][1] for point in curve],
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=2.5 if method in ("fixed", "adaptive") else 1.0,
                label=method,
            )
        panel.set(xscale="log", yscale="log", title=f"eta = {eta:g}", xlabel="generated rollouts per prefix")
        panel.grid(alpha=0.3, which="both")
    panels[0][0].set_ylabel("RMS error of labels compared with K = 512")
    panels[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
