"""The summary of a collection in sentences, and the command that follows."""

from types import SimpleNamespace

import pytest

from erprm_trl.io.paths import path_in_package
from erprm_trl.scripts.collect import describe, describe_speed, next_command


SUMMARY = {
    "solutions": 12,
    "solutions_with_labels": 11,
    "unusable": {"no step": 1},
    "unfinished_share": 0.25,
    "mean_outcome_reward": 0.75,
    "steps": 72,
    "prefixes": 60,
    "mean_prefix_reward": 0.5,
    "rollouts": 132,
}


def test_rollouts_with_continuations():
    assert describe(SUMMARY, "out") == [
        "out holds 12 solutions with 72 steps, 75.0% of them right.",
        "25.0% of the solutions reached the token limit before they ended. Raise --max_new_tokens.",
        "60 prefixes have continuations, 50.0% of which are right. 132 texts were sampled in all.",
        "1 solution has no labels: no step.",
    ]


def test_few_unfinished_solutions_need_no_advice():
    lines = describe({**SUMMARY, "unfinished_share": 0.1}, "out")
    assert lines[1] == "10.0% of the solutions reached the token limit before they ended."


def test_samples_without_continuations_or_grades():
    plain = {**SUMMARY, "unusable": {}, "unfinished_share": 0.0, "prefixes": 0, "mean_outcome_reward": None}
    assert describe(plain, "out") == ["out holds 12 solutions with 72 steps."]


def test_adaptive_allocation():
    sharing = {"saved": 8, "label_std": {"0": {"mean": 0.0125, "largest": 0.5}, "2": None}}
    assert describe({**SUMMARY, "sharing": sharing}, "out")[-2:] == [
        "Continuations that count for several prefixes saved 8 samples.",
        "Standard deviation of a label at eta = 0: 0.013 on average, 0.500 at most.",
    ]


def test_the_speed_is_the_last_line():
    speed = {"labels_per_hour": 12345, "tokens_per_second": 410.6, "sampler_idle_share": 0.0312}
    expected = "Speed: 12,345 labels per hour, 411 tokens per second. The sampler was idle for 3.1% of the time."
    assert describe({**SUMMARY, "speed": speed}, "out")[-1] == expected
    on_gpus = {"solutions_per_hour": 80, "solutions_per_gpu_hour": 10, "sampler_idle_share": 0.0}
    assert describe_speed({**on_gpus, "prefix_cache_hit_rate": 0.875}) == [
        "Speed: 80 solutions per hour, 10 solutions per GPU-hour. The sampler was idle for 0.0% of the time.",
        "87.5% of the prompt tokens came from the prefix cache.",
    ]
    assert describe_speed({}) == []  # a collection of an older release


@pytest.mark.parametrize(
    ("num_continuations", "splitter", "model", "start", "end"),
    [
        (0, "whole_lines", "m", "erprm best-of-n --samples out ", "--output_dir RESULTS"),
        (4, "newline", "m", "erprm train --rollouts out ", "--output_dir REWARD_MODEL"),
        (4, "whole_lines", "m", "erprm train --rollouts out ", "--add_missing_tokens true --splitter whole_lines"),
        (4, "ки", None, "erprm train --recipe dial --rollouts out", "out"),
    ],
)
def test_the_next_command_fits_the_steps(num_continuations, splitter, model, start, end, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"output_dir": "out", "num_continuations": num_continuations, "splitter": splitter}
    model = model or path_in_package("erprm_trl/dial/base")
    command = next_command(SimpleNamespace(**options, model_name_or_path=model))
    assert command.startswith(start) and command.endswith(end)
