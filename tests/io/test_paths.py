"""Tests paths with `~`, and names that are not paths."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from recipe_runs import RECIPES, parse
from transformers import AutoModelForCausalLM
from zoo import byte_level_bpe, save_tiny

from erprm_trl import PRMFormat, StepScorer, dial
from erprm_trl.io import check_model_folder, load_tokenizer, local_path, local_paths, make_folder, replace_file
from erprm_trl.io.adapters import adapter_config
from erprm_trl.io.paths import path_in_package
from erprm_trl.report import plot_selection_curves, write_report
from erprm_trl.reward_model.scoring.loading import load_format
from erprm_trl.training.tracking import Trackers


@pytest.mark.parametrize("kind", [str, Path])
def test_the_home_directory_is_filled_in(kind, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert local_path(kind("~/outputs/model")) == "/home/ada/outputs/model"
    assert local_path(kind("~")) == "/home/ada"


def test_paths_of_the_package_are_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert path_in_package("erprm_trl/dial/base") == dial.BASE_PATH
    for path in ("erprm_trl/nothing", "other/dial", "/erprm_trl/dial"):
        assert path_in_package(path) == path
    (tmp_path / "erprm_trl").mkdir()
    assert path_in_package("erprm_trl/") == "erprm_trl/"


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-Math-PRM-7B", "https://host:8100/~ada", "outputs/~copy", "./model", "~nobody-here/x"]
)
def test_other_names_do_not_change(name):
    assert local_path(name) == name


def test_several_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert local_paths("models", ["~/a", Path("~/b"), "http://host"]) == ["/home/ada/a", "/home/ada/b", "http://host"]
    with pytest.raises(TypeError, match="models: got the str '~/a', expected a list of folders, Hub ids or addresses"):
        local_paths("models", "~/a")


def test_recipes_take_a_list_of_reward_models(tmp_path):
    """`reward_models: path` in a YAML file is a string, and raises an error."""
    config = tmp_path / "report.yaml"
    config.write_text(f"folder: {tmp_path}\nreward_models: ~/model\n")
    recipe, (arguments,) = parse("report", ["--config", str(config)])
    with pytest.raises(TypeError, match="reward_models: got the str '~/model', expected a list of folders"):
        recipe.main(arguments)
    scripts = (RECIPES.parent / "erprm_trl" / "scripts").glob("*.py")
    with_models = [path.read_text() for path in scripts if "\n    reward_models: list" in path.read_text()]
    assert len(with_models) == 4 and all('local_paths("reward_models"' in source for source in with_models)


def saved_model(folder):
    tokenizer = byte_level_bpe()
    save_tiny(folder, tokenizer)
    PRMFormat(separator="\n").save(folder)


def saved_adapter(folder):
    tokenizer = byte_level_bpe()
    model = AutoModelForCausalLM.from_pretrained(save_tiny(folder / "base", tokenizer))
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    PRMFormat(separator="\n").save(folder)


def damaged_model(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{")


def run(folder):
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 1.0}] * 2}))


def tracked(folder):
    with Trackers.start("tensorboard", folder, {}) as trackers:
        trackers.scalars({"x": 1.0}, 1)


CURVES = {
    "pass": {1: {"mean": 0.5, "low": 0.4, "high": 0.6}}, "majority": {1: {"mean": 0.5, "low": 0.4, "high": 0.6}},
    "models": {},
}  # fmt: skip
USES = {
    "make_folder": (None, make_folder, ""),
    "replace_file": (Path.mkdir, lambda path: replace_file(type(path)(f"{path}/file"), "x"), "file"),
    "check_model_folder": (
        damaged_model, lambda path: pytest.raises(ValueError, check_model_folder, path), "config.json"
    ),
    "load_tokenizer": (saved_model, load_tokenizer, ""),
    "adapter_config": (saved_adapter, lambda path: adapter_config(path)["peft_type"] == "LORA" or pytest.fail(), ""),
    "PRMFormat.save": (Path.mkdir, PRMFormat().save, "prm_format.json"),
    "PRMFormat.load": (saved_model, PRMFormat.load, ""),
    "load_format": (saved_model, load_format, ""),
    "StepScorer.from_pretrained": (saved_model, StepScorer.from_pretrained, ""),
    "StepScorer.from_pretrained, an adapter": (saved_adapter, StepScorer.from_pretrained, ""),
    "write_report": (run, write_report, "report.html"),
    "write_report, path": (run, lambda path: write_report(Path(path).expanduser(), f"{path}/page.html"), "page.html"),
    "plot_selection_curves": (Path.mkdir, lambda path: plot_selection_curves(CURVES, f"{path}/x.svg"), "x.svg"),
    "Trackers.start": (Path.mkdir, tracked, "runs"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("use", USES)
def test_every_argument_that_takes_a_path_fills_in_the_home_directory(use, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    prepare, call, expected = USES[use]
    if prepare is not None:
        prepare(tmp_path / "place")
    call(kind("~/place"))
    assert (tmp_path / "place" / expected).exists() and not Path("~").exists()
