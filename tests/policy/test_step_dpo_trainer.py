"""DPO on pairs: the EOS token after a step, resuming, adapters, and non-finite weights."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import DPOConfig

from erprm_trl import dial
from erprm_trl.policy import StepDPOTrainer, without_end_tokens


PAIRS = Dataset.from_list(
    [
        {
            "prompt": f"Tom dial {index} . right 2 . ?",
            "chosen": f" {index} + 2 = {index + 2} ки answer {index + 2} ки",
            "rejected": f" {index} + 2 = {index + 3} ки answer {index + 3} ки",
        }
        for index in range(8)
    ]
)
STEPS = Dataset.from_list(
    [
        {"prompt": "Tom dial 1 . right 2 . ?", "chosen": " 1 + 2 = 3 ки", "rejected": " 1 + 2 = 4 ки"}
        | {"chosen_ends": False, "rejected_ends": True}
    ]
    * 2
)


def config(folder, **options):
    defaults = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return DPOConfig(str(folder), **{**defaults, **options})


class Killed(Exception):
    """Ends a training at an update."""


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def test_no_eos_token_follows_a_step_in_the_middle_of_a_solution(tmp_path):
    trainer = StepDPOTrainer(dial.BASE_PATH, args=config(tmp_path), train_dataset=STEPS, eval_dataset={"test": STEPS})
    tokenizer = trainer.processing_class
    for dataset in (trainer.train_dataset, trainer.eval_dataset["test"]):
        row = dataset[0]
        assert tokenizer.decode(row["chosen_ids"]).strip() == "1 + 2 = 3 ки"
        assert row["rejected_ids"][-1] == tokenizer.eos_token_id
        assert len(row["rejected_ids"]) == len(row["chosen_ids"]) + 1
    whole = StepDPOTrainer(dial.BASE_PATH, args=config(tmp_path), train_dataset=PAIRS)
    assert all(row["chosen_ids"][-1] == tokenizer.eos_token_id for row in whole.train_dataset)


def test_precomputed_log_probabilities_of_steps_are_refused():
    dataset = STEPS.add_column("ref_chosen_logps", [0.0, 0.0])
    with pytest.raises(ValueError, match=r"Pairs of steps: got log-probabilities.*precompute_ref_log_probs=False"):
        without_end_tokens(dataset)


@pytest.mark.slow("trains twice")
def test_a_killed_and_resumed_run_equals_an_uninterrupted_run(tmp_path):
    def trainer(folder, *callbacks):
        args = config(tmp_path / folder, save_strategy="steps", save_steps=1, num_train_epochs=2)
        return StepDPOTrainer(dial.BASE_PATH, args=args, train_dataset=PAIRS, callbacks=list(callbacks))

    straight = trainer("a")
    straight.train()
    with pytest.raises(Killed):
        trainer("b", KillAt(6)).train()  # in the second epoch, before the checkpoint of this update
    again = trainer("b")
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == straight.state.global_step == 8
    for left, right in zip(straight.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(left, right)
    log = [entry["rewards/margins"] for entry in straight.state.log_history if "rewards/margins" in entry]
    assert log[-1] > log[0]


@pytest.mark.slow("trains an adapter twice")
def test_an_adapter_is_trained_and_its_training_continues(tmp_path):
    lora = LoraConfig(r=2, target_modules="all-linear")
    trainer = StepDPOTrainer(dial.BASE_PATH, args=config(tmp_path / "a"), train_dataset=PAIRS, peft_config=lora)
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    again = StepDPOTrainer(tmp_path / "adapter", args=config(tmp_path / "b"), train_dataset=PAIRS)
    again.train()
    first = next(entry["loss"] for entry in again.state.log_history if "loss" in entry)
    assert first == pytest.approx(0.6931, abs=1e-3)  # the reference is the saved adapter
    with pytest.raises(ValueError, match="together with `peft_config`"):
        StepDPOTrainer(tmp_path / "adapter", args=config(tmp_path / "b"), train_dataset=PAIRS, peft_config=lora)


def test_a_non_finite_weight_stops_the_training(tmp_path):
    trainer = StepDPOTrainer(dial.BASE_PATH, args=config(tmp_path), train_dataset=PAIRS)
    with torch.no_grad():
        next(trainer.model.parameters())[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="weight"):
        trainer.train()
