"""A step policy that is resumed at any update, in any epoch, equals the policy of an uninterrupted run bitwise."""

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
# Two of four questions per generation, with four rows: an epoch has two generations
QUESTIONS, GENERATIONS = 4, 2


class SaveAt(TrainerCallback):
    """Saves a checkpoint after each of these updates."""

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


# Two batches per generation, and two passes over them
REUSED = {"per_device_train_batch_size": 2, "steps_per_generation": 2, "num_iterations": 2}


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize(
    ("kind", "others", "updates", "resumed_at"),
    [
        # Eight updates per epoch, four per generation: at the first epoch's end, in the middle of the second's
        # first generation, and at the end of the third epoch's
        ("grpo", REUSED, 24, (8, 11, 20)),
        ("ppo", REUSED, 24, (8, 11, 20)),
        # Eight passes per epoch, in updates of five and of three
        ("grpo", {**REUSED, "gradient_accumulation_steps": 5}, 6, (2, 3)),
    ],
    ids=["grpo", "ppo", "uneven updates"],
)
def test_a_resumed_run_equals_the_uninterrupted_run(tmp_path, kind, others, updates, resumed_at):
    straight = make_trainer(kind, tmp_path / "run", resumed_at, **others)
    straight.train()
    assert straight.state.global_step == updates
    first, second, third = (straight.asked[index : index + GENERATIONS] for index in range(0, 3 * GENERATIONS, 2))
    assert first != second != third
    expected = straight.model.state_dict()
    for update in resumed_at:
        torch.manual_seed(update)  # the checkpoint holds the random state that it needs
        resumed = make_trainer(kind, tmp_path / "resumed", **others)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{update}"))
        assert resumed.state.global_step == updates
        assert 0 < len(resumed.asked) < len(straight.asked)
        assert resumed.asked == straight.asked[-len(resumed.asked) :]
        for name, weight in resumed.model.state_dict().items():
            assert torch.equal(weight, expected[name]), (update, name)


def test_the_order_equals_trls_in_the_first_epoch_and_differs_in_later_epochs(tmp_path):
    trainer = make_trainer("grpo", tmp_path)
    ours, theirs = trainer._get_train_sampler(), GRPOTrainer._get_train_sampler(trainer)
    assert list(ours) == list(ours) == list(theirs)  # the order does not depend on the random state
    ours.epoch = 1
    assert list(ours) != list(theirs) and sorted(ours) == sorted(theirs)


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize("lacking", ["file", "sizes"])
def test_a_missing_generation_is_sampled_again(tmp_path, caplog, lacking):
    others = {**REUSED, "num_train_epochs": 1}
    straight = make_trainer("grpo", tmp_path / "run", [3, 4], **others)
    straight.train()
    (file,) = tmp_path.rglob("generation_*.safetensors")  # there is no file at the end of a generation
    assert file == tmp_path / "run" / "checkpoint-3" / "generation_0_of_1.safetensors"
    if lacking == "file":
        file.unlink()
    else:
        save_file(load_file(file), file, {"sizes": "steps_per_generation=2, num_iterations=2, and so on"})
    resumed = make_trainer("grpo", tmp_path / "resumed", **others)
    resumed.train(resume_from_checkpoint=str(file.parent))
    assert (
        "checkpoint-3 was saved between updates that share a generation, and has no generation_0_of_1.safetensors"
        in caplog.text
    )
    assert resumed.asked == straight.asked  # the last update of the first generation, and the second generation
    assert resumed.state.global_step == straight.state.global_step == 8
