"""Markdown tables of the records of a GPU day."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any


Record = dict[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table. `None` is an empty cell, and "|" is escaped."""
    cells = [["" if value is None else str(value).replace("|", "\\|") for value in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in [list(header), ["---"] * len(header), *cells]]


def rounded(value: float | None, digits: int = 0) -> str | None:
    """A number with separators of thousands, or `None`."""
    return None if value is None else f"{value:,.{digits}f}"


def report(records: Sequence[Record]) -> str:
    """The page of all stages that have records."""
    lines = ["# GPU day", ""]
    environments = {str(record["environment"]): record for record in records if record["kind"] == "start"}
    for record in environments.values():
        about = record["environment"]
        versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
        machine = f"{about['device']}, {about['cores']} CPU cores, Python {about['python']}"
        sizes = "Tiny sizes on a CPU: the numbers mean nothing" if record["rehearse"] else "Full sizes"
        lines += [f"{machine}; commit {record['commit']}. {versions}. {sizes}.", ""]
    ends = [record for record in records if record["kind"] == "end"]
    lines += table(
        ["stage", "limit", "seconds", "ended"],
        [(end["stage"], f"{end['limit']:.0f}", f"{end['seconds']:.0f}", end["ended"]) for end in ends],
    )
    for title, kinds, section in SECTIONS:
        chosen = [record for record in records if record["kind"] in kinds]
        if chosen:
            lines += ["", f"## {title}", "", *section(chosen)]
    return "\n".join(lines) + "\n"


def experiment(records: Sequence[Record]) -> list[str]:
    """Collections, reward models and the last comparison."""
    lines = table(
        ["collection", "solutions", "labels", "seconds", "tokens/s", "labels per GPU-hour", "cut by the time limit"],
        [
            (r["name"], r["solutions"], r["labels"], rounded(r["seconds"]), rounded(r["tokens_per_second"]),
             rounded(r["labels_per_hour"]), "yes" if r["is_cut"] else "no")
            for r in records if r["kind"] == "collection"
        ],
    )  # fmt: skip
    models = [record for record in records if record["kind"] == "reward model"]
    if models:
        lines += ["", *table(
            ["reward model", "seed", "training, s", "scoring, s", "scored solutions"],
            [
                (r["objective"], r["seed"], rounded(r["training_seconds"], 1), rounded(r["scoring_seconds"], 1),
                 r["scored"])
                for r in models
            ],
        )]  # fmt: skip
    for record in [record for record in records if record["kind"] == "comparison"][-1:]:
        lines += ["", record["headline"], "", record["table"]]
    return lines


def training(records: Sequence[Record]) -> list[str]:
    """Speed and memory of each variant, and the profiles."""
    lines = table(
        ["model", "variant", "tokens/s", "MFU", "MFU by 6 P", "peak memory, GiB", "GPU idle", "note"],
        [
            (r["model"], r["variant"], rounded(r.get("tokens_per_second")), rounded(r.get("mfu"), 3),
             rounded(r.get("simple_mfu"), 3), rounded(r.get("memory_gib"), 1), idle(r.get("profile")), r.get("note"))
            for r in records
        ],
    )  # fmt: skip
    peaks = sorted({f"{record['peak_tflops']:,.3g}" for record in records if "peak_tflops" in record})
    if peaks:
        lines += [
            "",
            f"MFU is relative to {', '.join(peaks)} TFLOP/s, without recomputation and without logits that the loss "
            'does not need. "MFU by 6 P" counts 6 FLOPs per parameter and token, plus attention.',
        ]
    for record in records:
        if profile := record.get("profile"):
            title = f"One update: {record['model']}, {record['variant']}"
            lines += ["", f"### {title}", "", f"{1e3 * profile['seconds']:,.0f} ms, {profile['kernels']} "
                      f"{'kernels' if profile['device'] == 'GPU' else 'operators'}.", ""]  # fmt: skip
            lines += table(
                ["longest", "ms", "calls", "share of the update"],
                [(f"`{top['name'][:90]}`", rounded(top["ms"], 1), top["calls"], f"{100 * top['share']:.1f}%")
                 for top in profile["top"]],
            )  # fmt: skip
    return lines


def idle(profile: Record | None) -> str | None:
    """The idle share of the GPU in a profile."""
    return f"{100 * profile['idle_share']:.0f}%" if profile and profile["device"] == "GPU" else None


def policy(records: Sequence[Record]) -> list[str]:
    """Accuracies, speed, and the parts of the time."""
    lines = table(
        ["accuracy", "mean", "95% interval over questions"],
        [(r["when"], rounded(r["mean"], 3), f"[{r['low']:.3f}, {r['high']:.3f}]")
         for r in records if r["kind"] == "accuracy"],
    )  # fmt: skip
    for record in records:
        if record["kind"] == "policy":
            lines += ["", f"{record['updates']} updates in {record['seconds']:.0f} s, reward model: "
                      f"{record['reward_model']}. {record['sampled_tokens_per_second']:,.0f} tokens/s while sampling, "
                      f"{record['trained_tokens_per_second']:,.0f} tokens/s of the whole training, peak memory "
                      f"{record['memory_gib']:.1f} GiB.", ""]  # fmt: skip
            lines += table(
                ["part", "seconds", "share"],
                [(part, rounded(seconds, 1), f"{100 * seconds / record['seconds']:.0f}%")
                 for part, seconds in sorted(record["parts"].items(), key=lambda item: -item[1])],
            )  # fmt: skip
    return lines


def throughput(records: Sequence[Record]) -> list[str]:
    """Scoring and labelling."""
    scored = [record for record in records if record["kind"] == "scoring"]
    lines = table(
        ["reward model", "tokens per batch", "solutions/s", "tokens/s", "peak memory, GiB", "note"],
        [(r["model"], rounded(r.get("max_batch_tokens")), rounded(r.get("solutions_per_second"), 1),
          rounded(r.get("tokens_per_second")), rounded(r.get("memory_gib"), 1), r.get("note")) for r in scored],
    )  # fmt: skip
    return [*lines, "", *table(
        ["labelling with", "questions", "labels", "seconds", "labels per GPU-hour"],
        [(r["backend"], r["questions"], r["labels"], rounded(r["seconds"], 1), rounded(r["labels_per_hour"]))
         for r in records if r["kind"] == "labelling"],
    )]  # fmt: skip


def sharding(records: Sequence[Record]) -> list[str]:
    """Losses and speed under each configuration."""
    return table(
        ["configuration, 1 process", "losses", "tokens/s", "peak memory, GiB", "seconds with start-up", "note"],
        [(r["name"], ", ".join(f"{loss:.4f}" for loss in r["losses"]) if "losses" in r else None,
          rounded(r.get("tokens_per_second")), rounded(r.get("memory_gib"), 1), rounded(r.get("seconds")),
          r.get("note"))
         for r in records],
    )  # fmt: skip


SECTIONS: tuple[tuple[str, set[str], Callable], ...] = (
    ("The experiment on GSM8K", {"collection", "reward model", "comparison"}, experiment),
    ("Training of reward models", {"training"}, training),
    ("Step GRPO on GSM8K", {"accuracy", "policy"}, policy),
    ("Scoring and labelling", {"scoring", "labelling"}, throughput),
    ("ZeRO-3 and FSDP2", {"sharding"}, sharding),
)
