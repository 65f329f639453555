"""Collects rollouts: questions, solutions, and graded continuations of every step prefix.

erprm collect --recipe dial
erprm collect --recipe qwen2.5-math-1.5b-gsm8k --max_questions 100
erprm collect --solutions solutions.jsonl --model_name_or_path MODEL --output_dir ROLLOUTS

After a kill, the same command continues where it was.
"""

from typing import Any

from ..io.counts import counted
from ..io.paths import path_in_package
from ..rollouts import CollectConfig
from .outcome import print_outcome


MANY_UNFINISHED = 0.2  # share of solutions at the token limit from which the summary advises a higher limit


def main(config: CollectConfig) -> None:
    """Runs a collection and prints its summary."""
    summary = config.run().manifest["summary"]
    lines = describe(summary, config.output_dir)
    if config.num_continuations:
        lines.append(
            "If the questions are held out, measure a reward model on them with erprm calibrate instead of training."
        )
    print_outcome(*lines, next_command=next_command(config))


def next_command(config: CollectConfig) -> str:
    """The command that usually follows a collection."""
    if not config.num_continuations:
        return f"erprm best-of-n --samples {config.output_dir} --reward_models REWARD_MODEL --output_dir RESULTS"
    if config.model_name_or_path == path_in_package("erprm_trl/dial/base"):
        return f"erprm train --recipe dial --rollouts {config.output_dir}"
    command = f"erprm train --rollouts {config.output_dir} --model_name_or_path MODEL --output_dir REWARD_MODEL"
    if config.splitter != "whole_lines":
        return command
    # Steps of whole_lines may contain the default separator, a line break.
    return f"{command} --separator '<|step|>' --add_missing_tokens true --splitter whole_lines"


def describe(summary: dict[str, Any], folder: str) -> list[str]:
    """
    The summary of a collection in sentences.

    Args:
        summary (`dict[str, Any]`):
            From the manifest of a [`~erprm_trl.rollouts.RolloutDataset`].
        folder (`str`):
            Folder of the rollouts.
    """
    right = summary["mean_outcome_reward"]
    share = "" if right is None else f", {right:.1%} of them right"
    steps = counted(summary["steps"], "step")
    lines = [f"{folder} holds {counted(summary['solutions'], 'solution')} with {steps}{share}."]
    if summary["unfinished_share"]:
        advice = " Raise --max_new_tokens." if summary["unfinished_share"] >= MANY_UNFINISHED else ""
        lines.append(
            f"{summary['unfinished_share']:.1%} of the solutions reached the token limit before they ended.{advice}"
        )
    if summary["prefixes"]:
        lines.append(
            f"{counted(summary['prefixes'], 'prefix has', 'prefixes have')} continuations, "
            f"{summary['mean_prefix_reward']:.1%} of which are right. "
            f"{counted(summary['rollouts'], 'text was', 'texts were')} sampled in all."
        )
    of_given = summary.get("given", {})
    if of_given.get("repeated"):
        repeat = counted(of_given["repeated"], "solution repeats", "solutions repeat")
        lines.append(f"{repeat} the text of another solution to the same question.")
    if of_given.get("graded_differently"):
        were = counted(of_given["graded_differently"], "solution was", "solutions were")
        lines.append(f"{were} graded differently by the source.")
    for reason, count in summary["unusable"].items():
        lines.append(f"{counted(count, 'solution has', 'solutions have')} no labels: {reason}.")
    sharing = summary.get("sharing", {})
    if sharing:
        lines.append(f"Continuations that count for several prefixes saved {counted(sharing['saved'], 'sample')}.")
    for eta, spread in sharing.get("label_std", {}).items():
        if spread is not None:
            lines.append(
                f"Standard deviation of a label at eta = {eta}: {spread['mean']:.3f} on average, "
                f"{spread['largest']:.3f} at most."
            )
    return lines + describe_speed(summary.get("speed", {}))


def describe_speed(speed: dict[str, float]) -> list[str]:
    """
    The speed of the last run of a collection in sentences.

    Args:
        speed (`dict[str, float]`):
            `speed` in the summary of a collection, see [`~erprm_trl.rollouts.speed.RunSpeed`]. Older collections do
            not have it.
    """
    if not speed:
        return []
    unit = "labels" if "labels_per_hour" in speed else "solutions"
    rates = [f"{speed[f'{unit}_per_hour']:,} {unit} per hour"]
    if f"{unit}_per_gpu_hour" in speed:
        rates.append(f"{speed[f'{unit}_per_gpu_hour']:,} {unit} per GPU-hour")
    if "tokens_per_second" in speed:
        rates.append(f"{speed['tokens_per_second']:,.0f} tokens per second")
    lines = [f"Speed: {', '.join(rates)}. The sampler was idle for {speed['sampler_idle_share']:.1%} of the time."]
    if "prefix_cache_hit_rate" in speed:
        lines.append(f"{speed['prefix_cache_hit_rate']:.1%} of the prompt tokens came from the prefix cache.")
    return lines
