"""A step policy resumed at any update, past the first epoch too, is the straight run's to the bit."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from step_fakes import FakeScorer, by_text, questions, settings, tiny_llama, word_level
from transformers import TrainerCallback
from trl import GRPOTrainer

from erprm_trl.policy.online.step_config import StepGRPOConfig, StepPPOConfig
from erprm_trl.policy.online.step_grpo_trainer import StepGRPOTrainer
from erprm_trl.policy.online.step_ppo_trainer import StepPPOTrainer


TRAINERS = {"grpo": (StepGRPOTrainer, StepGRPOConfig), "ppo": (StepPPOTrainer, StepPPOConfig)}
# Of four questions two at a time, four rows: an epoch is two generations
QUESTIONS, GENERATIONS = 4, 2


class SaveAt(TrainerCallback):
    """Saves a checkpoint after these updates."""

    def __init__(self, updates):
        self.updates = updates

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.updates


def make_trainer(kind, folder, save_at=(), **others):
    trainer_class, config_class = TRAINERS[kind]
    tokenizer = word_level()
    args = settings(folder, **{"max_steps": -1, "num_train_epochs": 3, "max_completion_length": 6, **others})
    trainer = trainer_class(
        tiny_llama(len(tokenizer)),
        FakeScorer(by_text),
        config_class(**args),
        questions(QUESTIONS),
        processing_class=tokenizer,
        callbacks=[SaveAt(save_at)],
    )
    trainer.asked = []
    generate = trainer._generate_and_score_completions

    def noted(inputs):
        trainer.asked.append([row["prompt"] for row in inputs])
        return generate(inputs)

    trainer._generate_and_score_completions = noted
    return trainer


# Two batches a generation, gone through twice
REUSED = {"per_device_train_batch_size": 2, "steps_per_generation": 2, "num_iterations": 2}


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize(
    ("kind", "others", "updates", "resumed_at"),
    [
        # Eight updates an epoch, four a generation: at the first epoch's end, in the middle of the second one's first
        # generation, and at the end of the third one's
        ("grpo", REUSED, 24, (8, 11, 20)),
        ("ppo", REUSED, 24, (8, 11, 20)),
        # Eight passes an epoch, in updates of five and of three
        ("grpo", {**REUSED, "gradient_accumulation_steps": 5}, 6, (2, 3)),
    ],
    ids=["grpo", "ppo", "uneven updates"],
)
def test_a_resumed_run_is_the_straight_run(tmp_path, kind, others, updates, resumed_at):
    straight = make_trainer(kind, tmp_path / "run", resumed_at, **others)
    straight.train()
    assert straight.state.global_step == updates
    first, second, third = (straight.asked[index : index + GENERATIONS] for index in range(0, 3 * GENERATIONS, 2))
    assert first != second != third
    expected = straight.model.state_dict()
    for update in resumed_at:
        torch.manual_seed(update)  # what it needs it finds in the checkpoint
        resumed = make_trainer(kind, tmp_path / "resumed", **others)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{update}"))
        assert resumed.state.global_step == updates
        assert 0 < len(resumed.asked) < len(straight.asked)
        assert resumed.asked == straight.asked[-len(resumed.asked) :]
        for name, weight in resumed.model.state_dict().items():
            assert torch.equal(weight, expected[name]), (update, name)


def test_the_order_is_trls_in_the_first_epoch_and_another_in_each(tmp_path):
    trainer = make_trainer("grpo", tmp_path)
    ours, theirs = trainer._get_train_sampler(), GRPOTrainer._get_train_sampler(trainer)
    assert list(ours) == list(ours) == list(theirs)  # where it goes on after a resume, whatever was drawn before
    ours.epoch = 1
    assert list(ours) != list(theirs) and sorted(ours) == sorted(theirs)


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize("lacking", ["file", "sizes"])
def test_a_generation_that_cannot_be_had_is_sampled_anew(tmp_path, caplog, lacking):
    others = {**REUSED, "num_train_epochs": 1}
    straight = make_trainer("grpo", tmp_path / "run", [3, 4], **others)
    straight.train()
    (file,) = tmp_path.rglob("generation_*.safetensors")  # none where a generation has ended
    assert file == tmp_path / "run" / "checkpoint-3" / "generation_0_of_1.safetensors"
    if lacking == "file":
        file.unlink()
    else:
        save_file(load_file(file), file, {"sizes": "steps_per_generation=2, num_iterations=2, and so on"})
    resumed = make_trainer("grpo", tmp_path / "resumed", **others)
    resumed.train(resume_from_checkpoint=str(file.parent))
    assert (
        "checkpoint-3: made between updates that share a generation, and without a generation_0_of_1.safetensors"
        in caplog.text
    )
    assert resumed.asked == straight.asked  # the first one's last update, and the second one in its place
    assert resumed.state.global_step == straight.state.global_step == 8
