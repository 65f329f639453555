"""The page on migrating from TRL names every old argument, and every replacement that it names exists."""

import ast
import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch

from erprm_trl import ERPRMConfig, ERPRMTrainer, StepPPOConfig, StepPPOTrainer
from erprm_trl.functional import soft_step_cross_entropy, step_log_odds


PAGE = Path(__file__).parents[2] / "docs" / "migrating_from_trl.md"
REQUIRED = "required"

# The arguments in TRL 1.12 with their defaults. Of the configurations these are the fields that TRL defined itself,
# because our classes have all fields of `TrainingArguments` too.
COMMON = {
    "logging_steps": 10,
    "gradient_checkpointing": True,
    "bf16": None,
    "lr_scheduler_kwargs": None,
    "use_liger_kernel": False,
    "torch_empty_cache_steps": None,
}
OLD = {
    "PRMConfig": {
        "learning_rate": 1e-5,
        "max_length": 1024,
        "max_completion_length": None,
        "disable_dropout": True,
        "step_separator": "\n",
        "train_on_last_step_only": False,
        "dataset_num_proc": None,
        **COMMON,
    },
    "PRMTrainer": {
        "model": None,
        "args": None,
        "data_collator": None,
        "train_dataset": None,
        "eval_dataset": None,
        "processing_class": None,
        "model_init": None,
        "compute_metrics": "compute_accuracy",
        "callbacks": None,
        "optimizers": (None, None),
        "preprocess_logits_for_metrics": None,
        "peft_config": None,
    },
    "PPOConfig": {
        "learning_rate": 3e-6,
        "dataset_num_proc": None,
        "num_mini_batches": 1,
        "total_episodes": None,
        "local_rollout_forward_batch_size": 64,
        "num_sample_generations": 10,
        "response_length": 53,
        "stop_token": None,
        "stop_token_id": None,
        "temperature": 0.7,
        "missing_eos_penalty": None,
        "sft_model_path": "EleutherAI/pythia-160m",
        "world_size": None,
        "num_total_batches": None,
        "micro_batch_size": None,
        "local_batch_size": None,
        "batch_size": None,
        "local_mini_batch_size": None,
        "mini_batch_size": None,
        "push_to_hub": False,
        "reward_model_path": "EleutherAI/pythia-160m",
        "model_adapter_name": None,
        "ref_adapter_name": None,
        "num_ppo_epochs": 4,
        "whiten_rewards": False,
        "kl_coef": 0.05,
        "kl_estimator": "k1",
        "cliprange": 0.2,
        "vf_coef": 0.1,
        "cliprange_value": 0.2,
        "gamma": 1.0,
        "lam": 0.95,
        "ds3_gather_for_generation": True,
        **COMMON,
    },
    "PPOTrainer": {
        "args": REQUIRED,
        "processing_class": REQUIRED,
        "model": REQUIRED,
        "ref_model": REQUIRED,
        "reward_model": REQUIRED,
        "train_dataset": REQUIRED,
        "value_model": REQUIRED,
        "data_collator": None,
        "eval_dataset": None,
        "optimizers": (None, None),
        "callbacks": None,
        "peft_config": None,
    },
}
NEW = {
    "PRMConfig": ERPRMConfig,
    "PRMTrainer": ERPRMTrainer,
    "PPOConfig": StepPPOConfig,
    "PPOTrainer": StepPPOTrainer,
}


def defaults_of(new):
    """Names and defaults of a configuration's fields or a trainer's arguments."""
    if new in (ERPRMConfig, StepPPOConfig):
        return {field.name: REQUIRED if field.default is MISSING else field.default for field in fields(new)}
    parameters = list(inspect.signature(new).parameters.values())
    return {entry.name: REQUIRED if entry.default is entry.empty else entry.default for entry in parameters}


def rows_of(name):
    """The table under a class's heading: old argument, old default, replacements, their defaults."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## `{name}`\n", 1)[1].split("\n## ", 1)[0]
    rows = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 5 and cells[0].startswith("`") and cells[1] != "default there":
            old, default, new, new_default, _ = cells
            assert old.strip("`") not in rows, f"{name}: {old} stands twice"
            rows[old.strip("`")] = (value(default), re.findall(r"`(\w+)`", new), new, new_default)
    return rows


def value(text):
    """A default as the page writes it."""
    if not text.startswith("`"):
        return text
    try:
        return ast.literal_eval(text.strip("`"))
    except ValueError:  # a function's name
        return text.strip("`")


@pytest.mark.parametrize("name", OLD)
def test_every_old_argument_is_named_with_its_default(name):
    assert {argument: row[0] for argument, row in rows_of(name).items()} == OLD[name]


@pytest.mark.parametrize("name", OLD)
def test_what_takes_its_place_exists_with_the_default_that_the_page_says(name):
    known = defaults_of(NEW[name])
    for argument, (_, replacements, cell, new_default) in rows_of(name).items():
        assert replacements or cell == "nothing", f"{argument}: got {cell!r}, expected `names` or nothing"
        assert [new for new in replacements if new not in known] == [], argument
        shown = [value(text) for text in re.findall(r"`[^`]*`|required", new_default)]
        assert shown == [known[new] for new in replacements], argument


def test_the_table_of_other_defaults():
    text = PAGE.read_text(encoding="utf-8")
    for name in ("train_sampling_strategy", "logging_nan_inf_filter"):
        line = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert value(line.split("|")[3].strip()) == defaults_of(ERPRMConfig)[name]
    ppo = defaults_of(StepPPOConfig)
    assert (ppo["loss_type"], ppo["disable_dropout"], ppo["remove_unused_columns"]) == ("dapo", False, False)
    assert ppo["logging_nan_inf_filter"] is False and ppo["whiten_advantages"] is True


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_two_classes_move_twice_as_far_as_one_logit(optimizer):
    """What the page says about the speed of the two heads, for one step from equal logits."""
    hidden = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.3, -0.7]])
    labels = torch.tensor([0.9, 0.2, 1.0])
    moved = []
    for rows in (1, 2):
        weight = torch.zeros(rows, 2, requires_grad=True)
        soft_step_cross_entropy(hidden @ weight.T, labels).backward()
        optimizer([weight], lr=0.1).step()
        moved.append(step_log_odds(hidden @ weight.T))
    torch.testing.assert_close(moved[1], 2 * moved[0], rtol=1e-4, atol=1e-6)
