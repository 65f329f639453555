"""Trains policies with RAFT, step GRPO and step PPO on the embedded task, and compares their accuracy with the
accuracy of the first policy. The quickstart and the benchmarks run it."""

import random
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ...io.counts import counted
from ...io.progress_bars import progress_bar
from ...policy import (
    AnswerReward,
    RAFTConfig,
    RAFTTrainer,
    StepGRPOConfig,
    StepGRPOTrainer,
    StepPPOConfig,
    StepPPOTrainer,
    prompt_dataset,
)
from ...policy.online.step_trainer import BETA_OF_STEP_SCORES
from ...reward_model import StepScorer
from ...rollouts import Grader, TransformersSampler, load_questions
from ...rollouts.sampling.base import Prompt
from ...scripts import console
from ...scripts.progress import show_training
from ...selection import bootstrap_interval
from .. import BASE_PATH
from ..pretrain import tokenized_example
from ..task import ANSWER_PATTERN, make_questions, random_question
from .chain import TEST_SEED


COMPLETIONS = 256  # per update
ALONE = {"beta": BETA_OF_STEP_SCORES}  # the default without answers, set so that it is no warning
# The critic begins at 0 and has only 40 updates to learn, so it learns faster than by default.
PPO = {"vf_coef": 0.5, "critic_learning_rate": 1e-2, "value_clip_range": None}
CPU_QUIET = {
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": torch.accelerator.is_available(),
}
TITLES = {"grpo": "GRPO with graded answers", "step_grpo": "Step GRPO", "step_ppo": "Step PPO"}


def accuracy_per_question(
    model, tokenizer, questions: list[dict[str, str]], num_samples: int, seed: int = 0
) -> list[float]:
    """Share of correct answers for each question, among `num_samples` solutions at temperature 1."""
    sampler = TransformersSampler(
        model, tokenizer, max_new_tokens=_longest_completion(questions), batch_size=COMPLETIONS
    )
    prompts = [Prompt(row["question"]) for row in questions]
    show = console.is_quiet()
    with progress_bar(len(prompts) * num_samples, "Measuring pass@1", unit="solutions", show=show) as bar:
        samples = sampler.sample(prompts, num_samples, seed, progress=lambda num_texts, _: bar.update(num_texts))
    with Grader("exact", answer_pattern=ANSWER_PATTERN) as grader:
        rewards = grader.grade(
            [completion.text for completions_N in samples for completion in completions_N],
            [row["answer"] for row in questions for _ in range(num_samples)],
        )
    groups = [rewards[start : start + num_samples] for start in range(0, len(rewards), num_samples)]
    return [sum(group) / num_samples for group in groups]


def accuracy(model, tokenizer, questions: list[dict[str, str]], num_samples: int, seed: int = 0) -> float:
    """Mean of [`accuracy_per_question`], which estimates pass@1."""
    per_question = accuracy_per_question(model, tokenizer, questions, num_samples, seed)
    return sum(per_question) / len(per_question)


def compare_policies(
    reward_model: StepScorer,
    output_dir: str | Path,
    test_questions: int,
    *,
    updates: int = 20,
    rounds: int = 2,
    questions_per_round: int = 300,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """
    Trains the shipped policy with RAFT, step GRPO and step PPO on step scores alone, and measures pass@1.

    Args:
        reward_model ([`StepScorer`]):
            Reward model that scores the steps.
        output_dir (`str` or `Path`):
            Folder for the three trainings.
        test_questions (`int`):
            Number of test questions, each answered 4 times.
        updates (`int`, *optional*, defaults to `20`):
            Number of updates of step GRPO and step PPO.
        rounds (`int`, *optional*, defaults to `2`):
            Number of RAFT rounds.
        questions_per_round (`int`, *optional*, defaults to `300`):
            Number of questions per RAFT round.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the training questions, their order and the samples.

    Returns:
        `dict`: for `before`, `raft`, `step_grpo` and `step_ppo` a dictionary with the accuracy (`mean`) and the ends
        of its 95% bootstrap interval over questions (`low` and `high`).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    questions = make_questions(test_questions, TEST_SEED)
    folder = Path(output_dir)
    train = {
        "before": lambda: (AutoModelForCausalLM.from_pretrained(BASE_PATH), AutoTokenizer.from_pretrained(BASE_PATH)),
        "raft": lambda: _policy(
            train_raft(
                reward_model, folder / "raft", rounds=rounds, questions_per_round=questions_per_round, seed=seed
            )
        ),
        "step_grpo": lambda: _policy(
            train_online("step_grpo", reward_model, folder / "step-grpo", updates=updates, seed=seed, **ALONE)
        ),
        "step_ppo": lambda: _policy(
            train_online("step_ppo", reward_model, folder / "step-ppo", updates=updates, seed=seed, **ALONE, **PPO)
        ),
    }
    results = {}
    for name, make_policy in train.items():
        if name == "before":
            console.stage("Policy before training")
        per_question = accuracy_per_question(*make_policy(), questions, 4, seed=1)
        low, high = bootstrap_interval(per_question)
        results[name] = {"mean": sum(per_question) / len(per_question), "low": low, "high": high}
    return results


def _policy(trainer):
    return trainer.model, trainer.processing_class


def make_noisy_policy(
    folder: str | Path, *, slip: float = 0.6, steps: int = 60, seed: int = 0, moves: tuple[int, int] = (3, 7)
) -> str:
    """
    Trains the shipped policy on solutions with many mistakes, so that few of its samples are correct and graded
    answers carry little information.

    Args:
        folder (`str` or `Path`):
            Folder for the trained policy.
        slip (`float`, *optional*, defaults to `0.6`):
            Share of wrong results in the solutions.
        steps (`int`, *optional*, defaults to `60`):
            Number of training steps, with batches of 64 solutions.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the solutions and of the training.
        moves (`tuple[int, int]`, *optional*, defaults to `(3, 7)`):
            Minimum and maximum number of moves per question.

    Returns:
        `str`: the folder.
    """
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(seed)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE_PATH), AutoTokenizer.from_pretrained(BASE_PATH)
    rng = random.Random(f"dial-noisy-{seed}")
    rows = [tokenized_example(tokenizer, rng, random_question(rng, *moves), False, slip) for _ in range(64 * steps)]
    args = TrainingArguments(
        str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        logging_steps=20,
        **CPU_QUIET,
    )
    trainer = Trainer(
        model, args, DataCollatorForSeq2Seq(tokenizer), Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    model.config.use_cache = True  # Trainer sets it to False
    trainer.save_model()
    return str(folder)


def train_online(
    method: str,
    reward_model: "StepScorer | str | None",
    output_dir: str | Path,
    *,
    updates: int = 40,
    answers: bool = False,
    policy: str = BASE_PATH,
    callbacks: list[TrainerCallback] | None = None,
    seed: int = 0,
    completions_per_update: int = COMPLETIONS,
    moves: tuple[int, int] = (3, 7),
    **settings: Any,
):
    """
    Trains a policy with an online method.

    Args:
        method (`str`):
            `"step_grpo"`, `"step_ppo"`, or `"grpo"` for TRL's own `GRPOTrainer` with graded answers.
        reward_model ([`StepScorer`] or `str`, *optional*):
            Reward model of the step methods.
        output_dir (`str` or `Path`):
            Folder for the trainer's state.
        updates (`int`, *optional*, defaults to `40`):
            Number of updates.
        answers (`bool`, *optional*, defaults to `False`):
            Whether the step methods also see the reference answers.
        policy (`str`, *optional*):
            Policy to start from. Defaults to the shipped policy.
        callbacks (`list`, *optional*):
            Further callbacks, such as a [`PolicyGuard`] for a step method.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the training questions, their order and the samples.
        completions_per_update (`int`, *optional*, defaults to `256`):
            Number of completions per update, 8 per question.
        moves (`tuple[int, int]`, *optional*, defaults to `(3, 7)`):
            Minimum and maximum number of moves per question.
        settings:
            Further fields of the configuration.

    Returns:
        The trainer, after training.
    """
    questions = load_questions(make_questions(2000, 10_000 + seed, *moves))
    dataset = prompt_dataset(questions, answers=answers or method == "grpo")
    common = {
        "output_dir": str(output_dir),
        "max_steps": updates,
        "per_device_train_batch_size": completions_per_update,
        "num_generations": 8,
        "max_completion_length": _longest_completion(dataset),
        "learning_rate": 3e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 5,
        "seed": seed,
        **CPU_QUIET,
        "disable_tqdm": not console.is_quiet(),
    }
    if method == "grpo":
        from trl import GRPOConfig, GRPOTrainer

        reward = AnswerReward("answer", "exact", ANSWER_PATTERN)
        trainer = GRPOTrainer(policy, [reward], GRPOConfig(**{**common, **settings}), dataset, callbacks=callbacks)
    else:
        config, trainer_class = {
            "step_grpo": (StepGRPOConfig, StepGRPOTrainer),
            "step_ppo": (StepPPOConfig, StepPPOTrainer),
        }[method]
        args = config(**{**common, **settings}, grading="exact", answer_pattern=ANSWER_PATTERN)
        trainer = trainer_class(policy, reward_model, args, dataset, callbacks=callbacks)
    console.stage(f"{TITLES[method]}: {updates} updates")
    show_training(trainer)
    trainer.train()
    trainer.save_state()
    return trainer


def train_raft(
    reward_model: StepScorer,
    output_dir: str | Path,
    *,
    rounds: int = 3,
    questions_per_round: int = 500,
    seed: int = 0,
    **settings: Any,
):
    """
    Trains the shipped policy with RAFT on step scores alone, with 8 solutions per question.

    Args:
        reward_model ([`StepScorer`]):
            Reward model that selects solutions.
        output_dir (`str` or `Path`):
            Folder for the rounds.
        rounds (`int`, *optional*, defaults to `3`):
            Number of rounds.
        questions_per_round (`int`, *optional*, defaults to `500`):
            Number of questions per round.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the training questions, their order and the samples.
        settings:
            Further fields of [`RAFTConfig`].

    Returns:
        The trainer, after training.
    """
    from datasets import Dataset

    rows = [{"question": row["question"]} for row in make_questions(rounds * questions_per_round, 10_000 + seed)]
    defaults = {
        "num_generations": 8,
        "per_device_train_batch_size": 64,
        "learning_rate": 1e-3,
        "logging_steps": 5,
        **CPU_QUIET,
        "disable_tqdm": not console.is_quiet(),
    }
    args = RAFTConfig(
        str(output_dir),
        num_rounds=rounds,
        questions_per_round=questions_per_round,
        max_completion_length=_longest_completion(rows),
        generation_batch_size=COMPLETIONS,
        chunk_size=25,
        grading="exact",
        answer_pattern=ANSWER_PATTERN,
        seed=seed,
        **{**defaults, **settings},
    )
    trainer = RAFTTrainer(BASE_PATH, reward_model, args, Dataset.from_list(rows))
    console.stage(f"RAFT: {counted(rounds, 'round')} of {counted(questions_per_round, 'question')}")
    show_training(trainer)
    trainer.train()
    trainer.save_state()
    return trainer


def _longest_completion(questions) -> int:
    # A step has 6 tokens and the answer 3. The limit leaves room for more than a correct solution needs.
    longest = max(row["question"].count(" .") for row in questions)
    return 16 + 7 * longest
