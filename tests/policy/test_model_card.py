"""The model cards of policies name the base model, the reward model and the settings of the rewards."""

import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig

from erprm_trl import RAFTConfig, RAFTTrainer, StepGRPOConfig, StepGRPOTrainer, StepPPOConfig, StepPPOTrainer, dial
from erprm_trl.dial.experiments.chain import FORMAT


QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "per_device_train_batch_size": 4, "num_generations": 4}
ROWS = [
    {"prompt": row["question"], "question": row["question"], "answer": row["answer"]}
    for row in dial.make_questions(4, seed=0)
]


@pytest.fixture
def reward_model(tmp_path):
    shutil.copytree(dial.BASE_PATH, tmp_path / "my-prm")
    FORMAT.save(tmp_path / "my-prm")
    return str(tmp_path / "my-prm")


def card_of(trainer):
    trainer.create_model_card(model_name="policy")
    return Path(trainer.args.output_dir, "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("trainer_class", "config_class"), [(StepGRPOTrainer, StepGRPOConfig), (StepPPOTrainer, StepPPOConfig)]
)
def test_step_trainers(trainer_class, config_class, reward_model, tmp_path):
    args = config_class(str(tmp_path / "policy"), credit="sum", **QUIET)
    card = card_of(trainer_class(dial.BASE_PATH, reward_model, args, Dataset.from_list(ROWS)))
    assert "fine-tuned from `base`" in card and 'model="policy"' in card and "None" not in card
    assert "| reward model | `my-prm` |\n| credit | `sum` |" in card
    assert str(tmp_path) not in card


def test_a_policy_without_a_reward_model(tmp_path):
    args = StepGRPOConfig(str(tmp_path / "policy"), credit="log_ratio", eta=20.0, **QUIET)
    card = card_of(StepGRPOTrainer(dial.BASE_PATH, None, args, Dataset.from_list(ROWS)))
    assert "reward model" not in card and "| credit | `log_ratio` |" in card


def test_an_adapter_whose_base_model_is_in_a_folder(reward_model, tmp_path):
    args = StepGRPOConfig(str(tmp_path / "policy"), **QUIET)
    trainer = StepGRPOTrainer(
        reward_model, reward_model, args, Dataset.from_list(ROWS), peft_config=LoraConfig(target_modules=["q_proj"])
    )
    for card in (card_of(trainer), saved_card(trainer)):
        assert "my-prm" in card and str(tmp_path) not in card


def saved_card(trainer):
    trainer.save_model()
    return Path(trainer.args.output_dir, "README.md").read_text(encoding="utf-8")


def test_raft(reward_model, tmp_path):
    args = RAFTConfig(str(tmp_path / "policy"), num_rounds=2, **QUIET)
    card = card_of(RAFTTrainer(dial.BASE_PATH, reward_model, args, Dataset.from_list(ROWS)))
    assert "| reward model | `my-prm` |" in card and "| num_rounds | `2` |" in card and "None" not in card
