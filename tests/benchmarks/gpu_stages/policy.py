"""Step GRPO on GSM8K with the real model: tokens per second, where the time goes, accuracy before and after."""

import time
from typing import NamedTuple

import numpy as np
import torch
from gsm8k_experiment import PROMPT, SPLITTER
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from erprm_trl import PRMFormat, StepGRPOConfig, StepGRPOTrainer, StepScorer, TransformersSampler
from erprm_trl.policy import StepRewardFunction, prompt_dataset
from erprm_trl.rollouts import Grader, Prompt, load_questions
from erprm_trl.selection import bootstrap_interval, paired_bootstrap_interval

from .measures import Clock, PeakMemory
from .records import Stage


class Sizes(NamedTuple):
    """Sizes of the training and of the test."""

    updates: int
    completions: int  # per update
    updates_per_generation: int
    completion_length: int
    test_questions: int
    test_samples: int


SIZES = Sizes(50, 64, 5, 256, 100, 4)
REHEARSED = Sizes(4, 8, 2, 24, 4, 2)
PARTS = {  # method of the trainer: part of the time
    "_generate_and_score_completions": "log-probabilities and advantages",
    "_generate": "sampling",
    "_calculate_rewards": "reward model and grading",
    "compute_loss": "forward pass",
    "training_step": "backward pass",
}


class StopInTime(TrainerCallback):
    """Ends the training while there is still time for the test."""

    def __init__(self, stage: Stage, reserve: float):
        self.stage, self.reserve = stage, reserve

    def on_step_end(self, args, state, control, **kwargs):
        """Stops if the reserve is reached."""
        control.should_training_stop |= self.stage.seconds_left < self.reserve


def reward_model(stage: Stage) -> tuple[StepScorer, str]:
    """The reward model of the experiment, or the policy's own weights, which have learned nothing."""
    folders = sorted((stage.work / "gsm8k").glob("erprm-eta-*-seed-0"), key=lambda folder: "eta-2-" not in folder.name)
    options = {"batch_size": 64, "max_batch_tokens": 65_536, "dtype": "float32" if stage.rehearse else "bfloat16"}
    for folder in folders[:1]:
        return StepScorer.from_pretrained(folder, **options), f"{folder.name} of the experiment"
    untrained = PRMFormat(separator="\n", splitter=SPLITTER)
    return StepScorer.from_pretrained(stage.model, prm_format=untrained, **options), "not trained (the policy itself)"


def accuracy(trainer: StepGRPOTrainer, sizes: Sizes, stage: Stage) -> np.ndarray:
    """Share of right answers for each test question, at temperature 0.7."""
    questions = load_questions(str(stage.test_data), max_questions=sizes.test_questions)
    model = trainer.accelerator.unwrap_model(trainer.model)
    is_training = model.training
    sampler = TransformersSampler(
        model.eval(), trainer.processing_class, temperature=0.7, max_new_tokens=sizes.completion_length,
        batch_size=512, prompt_template=PROMPT,
    )  # fmt: skip
    samples = sampler.sample([Prompt(question.question) for question in questions], sizes.test_samples, seed=0)
    model.train(is_training)
    texts = [completion.text for completions in samples for completion in completions]
    answers = [question.answer for question in questions for _ in range(sizes.test_samples)]
    with Grader("math") as grader:
        rewards = grader.grade(texts, answers)
    return np.array(rewards, dtype=float).reshape(len(questions), -1).mean(1)


def build(stage: Stage, sizes: Sizes) -> tuple[StepGRPOTrainer, str]:
    """The trainer, and the name of its reward model."""
    on_gpu = torch.cuda.is_available()
    scorer, name = reward_model(stage)
    args = StepGRPOConfig(
        str(stage.work / "grpo"),
        max_steps=sizes.updates,
        per_device_train_batch_size=sizes.completions,
        steps_per_generation=sizes.updates_per_generation,
        num_generations=min(8, sizes.completions),
        max_completion_length=sizes.completion_length,
        temperature=0.7,
        learning_rate=5e-5,
        lr_scheduler_type="constant",
        logging_steps=sizes.updates_per_generation,
        gradient_checkpointing=False,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(stage.model)
    trainer = StepGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(stage.model, dtype=torch.bfloat16 if on_gpu else torch.float32),
        [StepRewardFunction(scorer)],
        args,
        prompt_dataset(
            load_questions(str(stage.train_data)),
            prompt_template=PROMPT,
            conversational=tokenizer.chat_template is not None,
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
    )
    return trainer, name


def run(stage: Stage) -> None:
    """Measures the accuracy, trains, and measures the accuracy again."""
    sizes = REHEARSED if stage.rehearse else SIZES
    trainer, name = build(stage, sizes)
    started = time.monotonic()
    before = accuracy(trainer, sizes, stage)
    test_seconds = time.monotonic() - started
    low, high = bootstrap_interval(before)
    stage.record("accuracy", when="before", mean=float(before.mean()), low=low, high=high, seconds=test_seconds)
    clock, sampled = Clock(), []
    for method, part in PARTS.items():
        setattr(trainer, method, clock.part(part, getattr(trainer, method)))
    generate = trainer._generate

    def counted(prompts):
        generated = generate(prompts)
        sampled.append(sum(map(len, generated[1])))
        return generated

    trainer._generate = counted
    trainer.add_callback(StopInTime(stage, reserve=1.5 * test_seconds + 5))
    started = time.monotonic()
    with PeakMemory() as memory:
        trainer.train()
    seconds = time.monotonic() - started
    updates = trainer.state.global_step
    parts = dict(clock.seconds) | {"optimizer, logs and the rest": seconds - sum(clock.seconds.values())}
    logs = [entry for entry in trainer.state.log_history if "steps/accuracy" in entry]
    stage.record(
        "policy", reward_model=name, updates=updates, seconds=seconds, parts=parts, memory_gib=memory.gib,
        sampled_tokens=sum(sampled), sampled_tokens_per_second=sum(sampled) / clock.seconds["sampling"],
        trained_tokens_per_second=sum(sampled) / seconds, accuracies=[entry["steps/accuracy"] for entry in logs],
        kl=logs[-1].get("kl") if logs else None,
    )  # fmt: skip
    after = accuracy(trainer, sizes, stage)
    low, high = bootstrap_interval(after)
    stage.record("accuracy", when="after", mean=float(after.mean()), low=low, high=high)
    low, high = paired_bootstrap_interval(after, before)
    stage.record("accuracy", when="after minus before", mean=float((after - before).mean()), low=low, high=high)
