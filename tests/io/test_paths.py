"""Paths with `~`, and names that are not paths."""

from pathlib import Path

import pytest

from erprm_trl.io import local_path


@pytest.mark.parametrize("kind", [str, Path])
def test_the_home_directory_is_filled_in(kind, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert local_path(kind("~/outputs/model")) == "/home/ada/outputs/model"
    assert local_path(kind("~")) == "/home/ada"


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-Math-PRM-7B", "https://host:8100/~ada", "outputs/~copy", "./model", "~nobody-here/x"]
)
def test_other_names_stay_as_they_are(name):
    assert local_path(name) == name
