"""Recipes and configurations of accelerate by name, in a checkout and in an installed package."""

import pytest
import yaml
from recipe_runs import RECIPES

from erprm_trl.cli import COMMANDS
from erprm_trl.reward_model.scoring import load_format, load_scorer_file
from erprm_trl.scripts import recipes
from erprm_trl.scripts.outcome import UsageError
from erprm_trl.scripts.recipes import find_accelerate_config, find_recipe, read_config, shipped_folder


def test_a_recipe_is_the_stages_file_or_another_file_of_its_folder():
    assert find_recipe("dial", "collect") == RECIPES / "dial" / "collect.yaml"
    assert find_recipe("dial/collect_test", "collect") == RECIPES / "dial" / "collect_test.yaml"
    assert find_recipe("dial/collect_test.yaml", "collect") == RECIPES / "dial" / "collect_test.yaml"


def test_every_yaml_of_the_recipes_is_found_by_a_command():
    stages = {command.stage for command in COMMANDS.values()}
    for path in RECIPES.glob("*/*.yaml"):
        if "scorer" in yaml.safe_load(path.read_text()):  # takes the place of a reward model, and is no stage
            assert load_format(path) == load_scorer_file(path).prm_format
            continue
        stage = "collect" if path.stem.startswith("collect") else path.stem
        stage = "train_erprm" if stage == "train_mixture" else stage
        assert stage in stages
        assert find_recipe(f"{path.parent.name}/{path.stem}", stage) == path


@pytest.mark.parametrize(
    ("name", "stage", "message"),
    [
        ("nope", "train_step_ppo", "got 'nope', expected one of dial, mistral-7b-metamath, qwen2.5-math-1.5b-gsm8k"),
        ("dial/nope", "collect", "got 'dial/nope', expected one of dial/best_of_n, dial/calibration"),
        ("smollm2-135m-gsm8k", "train_raft", "expected one of smollm2-135m-gsm8k/best_of_n"),
        ("../accelerate_configs/zero2", "collect", "expected one of"),
        ("", "collect", "expected one of"),
        ("dail", "collect", "Did you mean dial[?]$"),
        ("dial/colect", "collect", "Did you mean dial/collect[?]$"),
        ("dial", None, "no recipes for this command"),
    ],
)
def test_an_unknown_recipe_lists_what_there_is(name, stage, message):
    with pytest.raises(UsageError, match=message):
        find_recipe(name, stage)


def test_accelerate_configurations(tmp_path):
    assert find_accelerate_config("zero2") == RECIPES.parent / "accelerate_configs" / "zero2.yaml"
    (tmp_path / "mine.yaml").write_text("use_cpu: true\n")
    assert find_accelerate_config(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(UsageError, match="got 'zero9', expected a file, or one of cpu_ddp, cpu_zero2"):
        find_accelerate_config("zero9")


def test_in_an_installed_package_the_files_are_inside_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "PACKAGE", tmp_path / "erprm_trl")
    with pytest.raises(UsageError, match="Install the package again"):
        shipped_folder("recipes")
    (tmp_path / "erprm_trl" / "recipes").mkdir(parents=True)
    (tmp_path / "recipes").mkdir()  # some other package's
    assert shipped_folder("recipes") == tmp_path / "erprm_trl" / "recipes"


def test_files_of_the_package_are_found_from_any_folder(tmp_path, monkeypatch):
    config = tmp_path / "a.yaml"
    config.write_text("model_name_or_path: erprm_trl/dial/base\nother: erprm_trl/nothing\n")
    monkeypatch.chdir(RECIPES.parent)
    assert read_config(config)["model_name_or_path"] == "erprm_trl/dial/base"  # as it was
    monkeypatch.chdir(tmp_path)
    assert read_config(config) == {
        "model_name_or_path": str(RECIPES.parent / "erprm_trl" / "dial" / "base"),
        "other": "erprm_trl/nothing",
    }
