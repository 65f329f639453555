"""Tests of the speed in the summary of a collection, with values worked by hand."""

from types import SimpleNamespace

import torch

from erprm_trl.rollouts.records import RolloutRow
from erprm_trl.rollouts.speed import RunSpeed, num_accelerators, prefix_cache_counts


def row(**values):
    return RolloutRow(chunk=0, question_index=0, solution_index=0, question="q", steps=["a\n", "b\n", "c"], **values)


def test_rates_worked_by_hand():
    speed = RunSpeed(seconds=1800.0, process_seconds=1800.0, sampling_seconds=1350.0, tokens=90_000)
    speed.count([row(prefix_rewards=[[1.0, 0.0], [1.0, 1.0]]), row()])
    # Two labels in half an hour; 90,000 tokens in 1,800 seconds; 450 of 1,800 seconds without a sample.
    expected = {"labels_per_hour": 4, "tokens_per_second": 50.0, "sampler_idle_share": 0.25}
    assert speed.to_json() == expected
    speed.gpu_seconds = 4 * 1800.0
    speed.cached_tokens, speed.prompt_tokens = 30, 40
    assert speed.to_json() == {**expected, "labels_per_gpu_hour": 1, "prefix_cache_hit_rate": 0.75}


def test_without_continuations_solutions_are_counted():
    speed = RunSpeed(seconds=360.0, process_seconds=360.0, sampling_seconds=360.0, gpu_seconds=720.0)
    speed.count([row(), row(), row()])
    assert speed.to_json() == {"solutions_per_hour": 30, "solutions_per_gpu_hour": 15, "sampler_idle_share": 0.0}
    assert RunSpeed(seconds=1.0, process_seconds=1.0).to_json() == {}  # a process without chunks


def test_processes_are_added_up_and_the_longest_counts(monkeypatch):
    ours, other = RunSpeed(10.0, 10.0, 8.0, 10.0, 3, 6, 100, 1, 4), RunSpeed(30.0, 30.0, 12.0, 30.0, 5, 9, 300, 2, 4)
    monkeypatch.setattr(
        "accelerate.utils.gather",
        lambda values: torch.cat([values, torch.tensor([list(vars(other).values())], dtype=values.dtype)]),
    )
    total = ours.of_all_processes(SimpleNamespace(num_processes=2, device="cpu"))
    assert total == RunSpeed(30.0, 40.0, 20.0, 40.0, 8, 15, 400, 3, 8)
    assert total.to_json()["labels_per_hour"] == 15 * 120 and total.to_json()["sampler_idle_share"] == 0.5
    assert ours.of_all_processes(SimpleNamespace(num_processes=1)) is ours


def test_accelerators_and_prefix_caches_of_samplers():
    policy = SimpleNamespace(accelerators=["cuda:0", "cuda:1"], prefix_cache_counts=lambda: (3, 4))
    completer = SimpleNamespace(accelerators=["cuda:1"], prefix_cache_counts=lambda: (1, 8))
    assert num_accelerators((policy, completer)) == 2 and num_accelerators((None, SimpleNamespace())) == 0
    assert prefix_cache_counts((policy, completer)) == (4, 12)
    assert prefix_cache_counts((policy, policy)) == (3, 4)  # one engine, counted once
    assert prefix_cache_counts((None, SimpleNamespace())) == (0, 0)
