"""Loads recipes from their files, and parses command-line arguments like a user's call."""

import importlib.util
from pathlib import Path

from erprm_trl.cli import COMMANDS
from erprm_trl.scripts.parser import StageParser, split_options


RECIPES = Path(__file__).parents[2] / "recipes"
SMALL_POLICY = {
    "train_raft": ["--num_rounds", "1", "--questions_per_round", "3", "--num_generations", "4"],
    "train_step_grpo": ["--per_device_train_batch_size", "8", "--num_generations", "4"],
    "train_step_ppo": ["--per_device_train_batch_size", "8", "--num_generations", "4"],
}
OTHER_NAMES = {
    "collect_rollouts": "collect",
    "estimate_memory": "memory",
    "inspect_labels": "inspect-labels",
    "report": "report",
}


def load(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command_of(name):
    """The command that a recipe stands for."""
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    return next(command for command, parts in COMMANDS.items() if parts.stage == name)


def parse(name, arguments):
    """The module of a recipe, and the dataclasses that its `main` gets from these arguments."""
    recipe, command = load(name), command_of(name)
    parser = StageParser(command, recipe.main, COMMANDS[command].stage)
    options, arguments = split_options([str(argument) for argument in arguments])
    _, others = parser.set_config(options)
    assert others == [] and parser.unknown_words(arguments) == []
    return recipe, parser.read(arguments)


def save_base_as_reward_model(folder):
    """The shipped base stands for a reward model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from erprm_trl import dial
    from erprm_trl.dial.experiments.chain import FORMAT

    AutoModelForCausalLM.from_pretrained(dial.BASE_PATH).save_pretrained(folder)
    AutoTokenizer.from_pretrained(dial.BASE_PATH).save_pretrained(folder)
    FORMAT.save(folder)
    return str(folder)
