"""Measures how fast a collection is, and how long its samplers wait."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

from .records import RolloutRow
from .sampling.base import Sampler


@dataclass
class RunSpeed:
    """
    Counts and times of a run of a collection.

    Args:
        seconds (`float`, *optional*, defaults to `0.0`):
            Elapsed time from the first request to the last row. The longest, with several processes. All others are
            sums over processes.
        process_seconds (`float`, *optional*, defaults to `0.0`):
            Elapsed time.
        sampling_seconds (`float`, *optional*, defaults to `0.0`):
            Time in which samplers sampled.
        gpu_seconds (`float`, *optional*, defaults to `0.0`):
            Elapsed time, multiplied by the number of accelerators that sample.
        solutions (`float`, *optional*, defaults to `0`):
            Number of solutions.
        labels (`float`, *optional*, defaults to `0`):
            Number of prefixes with continuations. Complete solutions have labels too, but do not count.
        tokens (`float`, *optional*, defaults to `0`):
            Number of sampled tokens that samplers have reported.
        cached_tokens (`float`, *optional*, defaults to `0`), prompt_tokens (`float`, *optional*, defaults to `0`):
            Number of prompt tokens that engines took from their prefix caches, and of all their prompt tokens.
    """

    seconds: float = 0.0
    process_seconds: float = 0.0
    sampling_seconds: float = 0.0
    gpu_seconds: float = 0.0
    solutions: float = 0
    labels: float = 0
    tokens: float = 0
    cached_tokens: float = 0
    prompt_tokens: float = 0

    def count(self, rows: Iterable[RolloutRow]) -> None:
        """Counts the solutions and labels of rows."""
        for row in rows:
            self.solutions += 1
            self.labels += len(row.prefix_rewards)

    def of_all_processes(self, state) -> "RunSpeed":
        """The speed of all processes together. All of them must call this."""
        if state.num_processes == 1:
            return self
        import torch
        from accelerate.utils import gather

        values = gather(torch.tensor([astuple(self)], dtype=torch.float64, device=state.device))
        total = RunSpeed(*values.sum(0).tolist())
        total.seconds = values[:, 0].max().item()
        return total

    def to_json(self) -> dict[str, Any]:
        """
        The speed, for the summary of a collection.

        Returns:
            `dict`: `labels_per_hour`, or `solutions_per_hour` without continuations; `labels_per_gpu_hour` (or
            `solutions_per_gpu_hour`) if accelerators sample; `tokens_per_second` if samplers report tokens;
            `sampler_idle_share`, the share of the time in which the sampler of a process waits; and
            `prefix_cache_hit_rate` if engines report it. Empty if nothing was sampled.
        """
        if not self.solutions or not self.seconds:
            return {}
        what = "labels" if self.labels else "solutions"
        count = self.labels or self.solutions
        speed = {f"{what}_per_hour": round(3600 * count / self.seconds)}
        if self.gpu_seconds:
            speed[f"{what}_per_gpu_hour"] = round(3600 * count / self.gpu_seconds)
        if self.tokens:
            speed["tokens_per_second"] = round(self.tokens / self.seconds, 1)
        speed["sampler_idle_share"] = round(1 - self.sampling_seconds / self.process_seconds, 4)
        if self.prompt_tokens:
            speed["prefix_cache_hit_rate"] = round(self.cached_tokens / self.prompt_tokens, 4)
        return speed


def num_accelerators(samplers: Iterable[Sampler | None]) -> int:
    """Number of accelerators that the samplers of this process use. The accelerators of a server are not known."""
    return len({device for sampler in samplers for device in getattr(sampler, "accelerators", ())})


def prefix_cache_counts(samplers: Iterable[Sampler | None]) -> tuple[int, int]:
    """Number of prompt tokens that engines have taken from their prefix caches so far, and of all their prompt
    tokens."""
    engines = {id(sampler): sampler for sampler in samplers if hasattr(sampler, "prefix_cache_counts")}
    counts = [engine.prefix_cache_counts() for engine in engines.values()]
    return sum(cached for cached, _ in counts), sum(prompts for _, prompts in counts)
