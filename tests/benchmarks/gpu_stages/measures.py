"""Measures of a training run: model FLOP/s utilisation, a profile of one update, and the time of each part."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def simple_mfu(
    tokens_per_second: float, parameters: int, layers: int, width: int, length: float, peak: float
) -> float:
    """
    Model FLOP/s utilisation by the usual rule: tokens/s (6 P + 12 L W T) / peak.

    P is the number of parameters, L the number of layers, W the width of all attention heads and T the mean length of
    the sequences, weighted by tokens. It counts the output head at every token, which the reward model does not
    compute, and counts no recomputation. It applies if all parameters are trained.
    """
    return tokens_per_second * (6 * parameters + 12 * layers * width * length) / peak


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def top_kernels(events: Sequence[tuple[str, float, float]], seconds: float, count: int = 12) -> dict[str, Any]:
    """
    The longest kernels of a profile and the share of the time in which none ran.

    Args:
        events (`Sequence[tuple[str, float, float]]`):
            Name, start and end of each kernel, in seconds.
        seconds (`float`):
            Duration of the profile.
        count (`int`, *optional*, defaults to `12`):
            Number of kernels to list.
    """
    by_name: dict[str, list[float]] = defaultdict(list)
    for name, start, end in events:
        by_name[name].append(end - start)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:count]
    return {
        "seconds": seconds,
        "kernels": len(events),
        "idle_share": 1 - covered([(start, end) for _, start, end in events]) / seconds,
        "top": [
            {"name": name, "ms": 1e3 * sum(times), "calls": len(times), "share": sum(times) / seconds}
            for name, times in longest
        ],
    }


class ProfileUpdate(TrainerCallback):
    """
    Profiles one update of a trainer, from the end of the update before it.

    Args:
        update (`int`):
            Number of the profiled update, from 2.
    """

    def __init__(self, update: int):
        self.update, self.summary = update, None
        self._profile, self._started = None, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        """Starts the profile after the update before, and ends it after the profiled update."""
        if state.global_step == self.update - 1:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            synchronize()
            self._profile = torch.profiler.profile(activities=activities)
            self._profile.__enter__()
            self._started = time.perf_counter()
        elif state.global_step == self.update:
            synchronize()
            seconds = time.perf_counter() - self._started
            self._profile.__exit__(None, None, None)
            self.summary = self._summarize(seconds)

    def _summarize(self, seconds: float) -> dict[str, Any]:
        on_gpu = torch.cuda.is_available()
        kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
        events = []
        for event in self._profile.events():
            # Annotations such as "Optimizer.step" cover many kernels and the time between them.
            if event.device_type == kind and not getattr(event, "is_user_annotation", False):
                start = event.time_range.start
                # On a CPU, operators contain other operators, whose time is counted once.
                end = event.time_range.end if on_gpu else start + event.self_cpu_time_total
                events.append((event.name, start / 1e6, end / 1e6))
        return top_kernels(events, seconds) | {"device": "GPU" if on_gpu else "CPU"}


class Clock:
    """
    Time of the named parts of a run. A part inside another part is not counted for the outer one.

    Args:
        now (`Callable`, *optional*):
            Function that returns the time in seconds, after waiting for the GPU.
    """

    def __init__(self, now: Callable[[], float] | None = None):
        self.seconds: dict[str, float] = defaultdict(float)
        self._now = now or _now
        self._stack: list[str] = []
        self._mark = 0.0

    def part(self, name: str, function: Callable) -> Callable:
        """A function that does the same and is measured as a part."""

        def measured(*args, **kwargs):
            self._switch()
            self._stack.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._stack.pop()

        return measured

    def _switch(self) -> None:
        now = self._now()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._mark
        self._mark = now


def _now() -> float:
    synchronize()
    return time.perf_counter()


class PeakMemory:
    """Peak memory of the GPU in a `with` block, in GiB. 0 without a GPU."""

    def __enter__(self):
        self.gib = 0.0
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *error):
        if torch.cuda.is_available():
            self.gib = torch.cuda.max_memory_allocated() / 2**30
