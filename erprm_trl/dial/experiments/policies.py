"""Policies on the embedded task, before and after RAFT, step GRPO and step PPO. The quickstart and the benchmarks run
it."""

import random
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

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
from ...reward_model import StepScorer
from ...rollouts import Grader, TransformersSampler, load_questions
from ...rollouts.sampling.base import Prompt
from ...selection import bootstrap_interval
from .. import BASE_PATH
from ..pretrain import tokenized_example
from ..task import ANSWER_PATTERN, make_questions, random_question
from .chain import TEST_SEED


COMPLETIONS = 256  # an update
# A critic that begins at 0 has 40 updates to learn in: faster than the defaults. Whitened advantages stay as large
# when little is left to learn, so the learning rate has to fall.
PPO = {"vf_coef": 0.5, "critic_learning_rate": 1e-2, "value_clip_range": None, "lr_scheduler_type": "linear"}
CPU_QUIET = {
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def accuracy_per_question(
    model, tokenizer, questions: list[dict[str, str]], num_samples: int, seed: int = 0
) -> list[float]:
    """Share of each question's samples at temperature 1 whose answer is the true one."""
    sampler = TransformersSampler(
        model, tokenizer, max_new_tokens=_longest_completion(questions), batch_size=COMPLETIONS
    )
    samples = sampler.sample([Prompt(row["question"]) for row in questions], num_samples, seed)
    with Grader("exact", answer_pattern=ANSWER_PATTERN) as grader:
        rewards = grader.grade(
            [completion.text for completions_N in samples for completion in completions_N],
            [row["answer"] for row in questions for _ in range(num_samples)],
        )
    groups = [rewards[start : start + num_samples] for start in range(0, len(rewards), num_samples)]
    return [sum(group) / num_samples for group in groups]


def accuracy(model, tokenizer, questions: list[dict[str, str]], num_samples: int, seed: int = 0) -> float:
    """The mean of [`accuracy_per_question`]: pass@1."""
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
    The shipped policy before and after RAFT, step GRPO and step PPO, which learn from step scores alone.

    Returns:
        `dict`: for `before`, `raft`, `step_grpo` and `step_ppo` the accuracy on fresh questions, 4 samples each:
        `mean`, and the ends `low` and `high` of its 95% bootstrap interval over questions.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    questions = make_questions(test_questions, TEST_SEED)
    folder = Path(output_dir)
    learned = {
        "before": lambda: (AutoModelForCausalLM.from_pretrained(BASE_PATH), AutoTokenizer.from_pretrained(BASE_PATH)),
        "raft": lambda: _policy(
            train_raft(
                reward_model, folder / "raft", rounds=rounds, questions_per_round=questions_per_round, seed=seed
            )
        ),
        "step_grpo": lambda: _policy(
            train_online("step_grpo", reward_model, folder / "step-grpo", updates=updates, seed=seed)
        ),
        "step_ppo": lambda: _policy(
            train_online("step_ppo", reward_model, folder / "step-ppo", updates=updates, seed=seed, **PPO)
        ),
    }
    results = {}
    for name, make in learned.items():
        per_question = accuracy_per_question(*make(), questions, 4, seed=1)
        low, high = bootstrap_interval(per_question)
        results[name] = {"mean": sum(per_question) / len(per_question), "low": low, "high": high}
    return results


def _policy(trainer):
    return trainer.model, trainer.processing_class


def make_noisy_policy(folder: str | Path, *, slip: float = 0.6, steps: int = 60, seed: int = 0) -> str:
    """
    Trains the shipped policy on solutions with a share `slip` of wrong results, and returns its folder: a start from
    which few samples are right, and graded answers say little.
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
    rows = [tokenized_example(tokenizer, rng, random_question(rng), False, slip) for _ in range(64 * steps)]
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
    model.config.use_cache = True  # Trainer switches it off
    trainer.save_model()
    return str(folder)


class LearningCurve(TrainerCallback):
    """
    The accuracy on fresh questions every `every` updates: `points` are pairs (rollouts used, accuracy), the shipped
    policy's first.
    """

    def __init__(self, questions: list[dict[str, str]], num_samples: int, every: int):
        self.questions, self.num_samples, self.every = questions, num_samples, every
        self.points: list[tuple[int, float]] = []

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        """Measures the policy as it is."""
        if state.global_step == 0 and not self.points:
            self._measure(0, model, processing_class)

    def on_step_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        """Measures every `every` updates."""
        if state.global_step % self.every == 0:
            self._measure(state.global_step, model, processing_class)

    def _measure(self, updates: int, model, tokenizer) -> None:
        self.points.append((updates * COMPLETIONS, accuracy(model, tokenizer, self.questions, self.num_samples)))


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
    **settings: Any,
):
    """
    Trains a policy with an online method, 256 completions an update.

    Args:
        method (`str`):
            `"step_grpo"`, `"step_ppo"`, or `"grpo"`: TRL's own `GRPOTrainer` with graded answers.
        reward_model ([`StepScorer`] or `str`, *optional*):
            The reward model of the step methods.
        output_dir (`str` or `Path`):
            Where it logs.
        updates (`int`), answers (`bool`), policy (`str`), seed (`int`):
            Updates; whether the true answers are used; the policy to start from; seed of questions, order and samples.
        callbacks (`list`, *optional*):
            More callbacks, e.g. a [`PolicyGuard`] for a step method.
        settings:
            Further fields of the configuration.

    Returns:
        The trainer, after training.
    """
    questions = load_questions(make_questions(2000, 10_000 + seed))
    dataset = prompt_dataset(questions, answers=answers or method == "grpo")
    common = {
        "output_dir": str(output_dir),
        "max_steps": updates,
        "per_device_train_batch_size": COMPLETIONS,
        "num_generations": 8,
        "max_completion_length": _longest_completion(dataset),
        "learning_rate": 3e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 5,
        "seed": seed,
        **CPU_QUIET,
    }
    if method == "grpo":
        from trl import GRPOConfig, GRPOTrainer

        reward = AnswerReward("answer", "exact", ANSWER_PATTERN)
        trainer = GRPOTrainer(policy, [reward], GRPOConfig(**common, **settings), dataset, callbacks=callbacks)
    else:
        config, trainer_class = {
            "step_grpo": (StepGRPOConfig, StepGRPOTrainer),
            "step_ppo": (StepPPOConfig, StepPPOTrainer),
        }[method]
        args = config(**{**common, **settings}, grading="exact", answer_pattern=ANSWER_PATTERN)
        trainer = trainer_class(policy, reward_model, args, dataset, callbacks=callbacks)
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
    eval_questions: list[dict[str, str]] | None = None,
    **settings: Any,
):
    """
    Trains the shipped policy with RAFT on step scores alone, 8 samples a question; the arguments are those of
    [`train_online`]. Returns the trainer, after training.
    """
    from datasets import Dataset

    rows = [{"question": row["question"]} for row in make_questions(rounds * questions_per_round, 10_000 + seed)]
    defaults = {
        "num_generations": 8,
        "per_device_train_batch_size": 64,
        "learning_rate": 1e-3,
        "logging_steps": 5,
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
        **{**defaults, **CPU_QUIET, **settings},
    )
    evaluation = Dataset.from_list(eval_questions) if eval_questions else None
    trainer = RAFTTrainer(BASE_PATH, reward_model, args, Dataset.from_list(rows), evaluation)
    trainer.train()
    trainer.save_state()
    return trainer


def _longest_completion(questions) -> int:
    # An equation is six tokens and its separator, the answer three; a little more than the longest right solution.
    longest = max(row["question"].count(" .") for row in questions)
    return 16 + 7 * longest
