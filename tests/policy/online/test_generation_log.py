"""Logs of a generation: infinite rewards are named, and values are read from the device together."""

import pytest
from step_fakes import FakeScorer, by_text, encode, generate_fixed, questions, settings, tiny_llama, word_level
from synchronisation_counts import count_updates
from trl import GRPOConfig, GRPOTrainer

from erprm_trl import StepGRPOConfig, StepGRPOTrainer, StepPPOConfig, StepPPOTrainer


COMPLETIONS = ("4 ки 8 </s>", "2 </s>", "6 ки 1 </s>", "9 ки 3 ки 5 </s>")


def make(trainer_class, config, folder, rewards, **options):
    tokenizer = word_level()
    trainer = trainer_class(
        tiny_llama(len(tokenizer)), rewards, config(**settings(folder, **options)),
        questions(16, answer=["2"] * 16), processing_class=tokenizer,
    )  # fmt: skip
    generate_fixed(trainer, encode(tokenizer, *COMPLETIONS) * 4)
    return trainer


@pytest.mark.parametrize(
    ("trainer_class", "config"), [(StepGRPOTrainer, StepGRPOConfig), (StepPPOTrainer, StepPPOConfig)]
)
def test_an_infinite_reward_is_named_before_the_update(trainer_class, config, tmp_path):
    def with_infinity(completions, **columns):
        return [1.0, float("inf"), *[0.0] * (len(completions) - 2)]

    trainer = make(trainer_class, config, tmp_path, [FakeScorer(by_text), with_infinity], max_steps=1)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    with pytest.raises(FloatingPointError, match="the reward of with_infinity for completion 1 is inf"):
        trainer.train()
    assert all(weight.equal(before[name]) for name, weight in trainer.model.named_parameters())


@pytest.mark.slow("trains three policies")
def test_an_update_waits_at_most_three_times_more_than_trls(tmp_path):
    def constant(completions, **columns):
        return [float(len(completion) % 3) for completion in completions]

    counts = {}
    for name, trainer_class, config, rewards in (
        ("grpo", GRPOTrainer, GRPOConfig, [constant, constant]),
        ("step grpo", StepGRPOTrainer, StepGRPOConfig, [FakeScorer(by_text)]),
        ("step ppo", StepPPOTrainer, StepPPOConfig, [FakeScorer(by_text)]),
    ):
        options = {"max_steps": 2, "gradient_accumulation_steps": 2, "logging_steps": 10}
        trainer = make(trainer_class, config, tmp_path / name, rewards, **options)
        counts[name] = count_updates(trainer)[1].total()
    assert max(counts["step grpo"], counts["step ppo"]) <= counts["grpo"] + 3, counts
