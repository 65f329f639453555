"""Loads recipes from their files, and parses command-line arguments like a user's call."""

import importlib.util
from pathlib import Path

from trl import ModelConfig, TrlParser

from erprm_trl import ERPRMConfig


RECIPES = Path(__file__).parents[2] / "recipes"
SMALL_POLICY = {
    "train_raft": ["--num_rounds", "1", "--questions_per_round", "3", "--num_generations", "4"],
    "train_step_grpo": ["--per_device_train_batch_size", "8", "--num_generations", "4"],
    "train_step_ppo": ["--per_device_train_batch_size", "8", "--num_generations", "4"],
}


def load(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(name, arguments):
    recipe = load(name)
    classes = {
        "collect_rollouts": lambda: (recipe.CollectConfig,),
        "train_erprm": lambda: (recipe.DataArguments, ERPRMConfig, ModelConfig),
        "best_of_n": lambda: (recipe.BestOfNArguments,),
        "calibration": lambda: (recipe.CalibrationArguments,),
        "processbench": lambda: (recipe.ProcessBenchArguments,),
        "guided_search": lambda: (recipe.GuidedSearchArguments,),
        "quickstart": lambda: (recipe.QuickstartArguments,),
        "report": lambda: (recipe.ReportArguments,),
        "serve_scorer": lambda: (recipe.ServeArguments,),
        "train_raft": lambda: (recipe.DataArguments, recipe.RAFTConfig, ModelConfig),
        "train_step_grpo": lambda: (
            recipe.PromptArguments,
            recipe.RewardArguments,
            recipe.StepGRPOConfig,
            ModelConfig,
        ),
        "train_step_ppo": lambda: (recipe.PromptArguments, recipe.RewardArguments, recipe.StepPPOConfig, ModelConfig),
    }[name]()
    return recipe, TrlParser(classes).parse_args_and_config(arguments)
