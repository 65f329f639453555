"""The page about policies: its credits, its example and its defaults are those of the code."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from erprm_trl import PolicyGuard
from erprm_trl.functional import CREDITS, step_rewards


TEXT = Path(__file__).parents[2].joinpath("docs", "policies.md").read_text(encoding="utf-8")
IN_ONE_LINE = " ".join(TEXT.split())


def test_every_credit_has_a_row():
    assert re.findall(r'^\| `"(\w+)"`', TEXT, re.MULTILINE) == list(CREDITS)


def test_the_example_of_the_credits():
    sentence = re.search(r"For the scores (.*?)\. \[Concepts\]", IN_ONE_LINE)[1].replace("−", "-")
    *_, values = sentence.partition("these are ")
    shown = {
        name: [float(value) for value in re.findall(r"-?\d+(?:\.\d+)?", part)]
        for part, name in re.findall(r"([-\d., and]+) \(`(\w+)`\)", values)
    }
    assert set(shown) == {"difference", "min_form", "outcome"}  # those of `sum` are the scores
    scores, mask = torch.tensor([[0.9, 0.4, 0.8]]), torch.ones(1, 3, dtype=torch.bool)
    for credit, rewards in shown.items():
        expected = step_rewards(scores, mask, credit, aggregation="min")[0].tolist()
        assert rewards == pytest.approx(expected, abs=0.006)


def test_the_defaults_of_the_guard():
    parameters = inspect.signature(PolicyGuard).parameters
    limits = {name: str(entry.default) for name, entry in parameters.items() if name.startswith(("max_", "min_"))}
    assert dict(re.findall(r"\| `(m[axin]{2}_\w+)=([\d.]+)` \|", TEXT)) == limits
    assert f"`patience` logs (default {parameters['patience'].default})" in IN_ONE_LINE
