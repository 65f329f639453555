"""Agents on the embedded task: teaches the shipped policy to move a dial with a tool, labels its turns, and trains it
with the outcome alone or with the credit of each turn."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ...functional import auc_within_groups
from ...policy import StepGRPOConfig, StepGRPOTrainer, StepRewardFunction
from ...reward_model import ERPRMConfig, ERPRMTrainer, StepScorer
from ...rollouts import RolloutDataset, TransformersSampler, collect_rollouts, load_questions
from .. import BASE_PATH
from ..environment import ASSISTANT, TOOL, USER, DialByHand, build_agent_tokenizer, render_by_hand
from ..task import POSITIONS, SEPARATOR, DialQuestion, check_steps, make_questions, random_question, turn
from .chain import FORMAT
from .policies import CPU_QUIET


MIN_MOVES, MAX_MOVES = 3, 6
SLIP = 0.6  # share of moves with a wrong result
COMPLETIONS = 64  # per update
MAX_TOKENS = 9 * MAX_MOVES + 12  # a turn and the text after it have 9 tokens
AGENT_FORMAT = replace(FORMAT, splitter="turns")


def make_agent_policy(
    folder: str | Path,
    *,
    slip: float = SLIP,
    steps: int = 60,
    min_moves: int = MIN_MOVES,
    max_moves: int = MAX_MOVES,
    seed: int = 0,
) -> str:
    """
    Trains the shipped policy on conversations in which some moves are wrong.

    The words of tool calls are added to its vocabulary. The shipped policy itself does not change.

    Args:
        folder (`str` or `Path`):
            Folder for the trained policy and its tokenizer.
        slip (`float`, *optional*, defaults to `0.6`):
            Share of moves with a wrong result.
        steps (`int`, *optional*, defaults to `60`):
            Number of training steps, with batches of 64 conversations.
        min_moves, max_moves (`int`, *optional*, default to `3` and `6`):
            Range of the number of moves per question.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the conversations and of the training.

    Returns:
        `str`: the folder.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

    set_seed(seed)
    tokenizer, model = build_agent_tokenizer(by_hand=True), AutoModelForCausalLM.from_pretrained(BASE_PATH)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    # A tool's result is like the result of an equation, and the next turn like the next equation.
    for new, known in ((TOOL, "="), (ASSISTANT, SEPARATOR)):
        new_id, known_id = tokenizer.convert_tokens_to_ids([new, known])
        for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
            embeddings.weight.data[new_id] = embeddings.weight.data[known_id]
    rng = random.Random(f"dial-agent-{seed}")
    rows = [
        tokenized_conversation(tokenizer, rng, random_question(rng, min_moves, max_moves), slip)
        for _ in range(64 * steps)
    ]
    args = TrainingArguments(
        str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=64,
        learning_rate=3e-3,
        lr_scheduler_type="linear",
        logging_steps=20,
        **CPU_QUIET,
    )
    collator = DataCollatorForSeq2Seq(tokenizer)
    trainer = Trainer(model, args, collator, Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    model.config.use_cache = True  # Trainer sets it to False
    trainer.save_model()
    return str(folder)


def tokenized_conversation(tokenizer, rng: random.Random, question: DialQuestion, slip: float) -> dict[str, list[int]]:
    """Tokenizes a question and a conversation about it, with loss on the agent's own tokens only."""
    ids = tokenizer.encode(f"{USER} {question.text} {ASSISTANT}")
    labels = [-100] * len(ids)
    position = question.start
    for operator, amount in question.moves:
        result = turn(position, operator, amount)
        if rng.random() < slip:
            result = rng.choice([value for value in range(POSITIONS) if value != result])
        own = tokenizer.encode(f"{position} {operator} {amount} = {result} </s>")
        read = tokenizer.encode(f"{TOOL} {result} {ASSISTANT}")
        ids, labels, position = ids + own + read, labels + own + [-100] * len(read), result
    own = tokenizer.encode(f"answer {position} </s>")
    return {"input_ids": ids + own, "labels": labels + own}


def collect_conversations(
    policy: str,
    folder: str | Path,
    *,
    questions: int = 100,
    num_solutions: int = 2,
    num_continuations: int = 4,
    temperature: float = 0.5,
    seed: int = 0,
) -> RolloutDataset:
    """
    Samples conversations of an agent, and continues each of them after every turn.

    Args:
        policy (`str`):
            Folder of the agent, from [`make_agent_policy`].
        folder (`str` or `Path`):
            Folder for the rollouts.
        questions (`int`, *optional*, defaults to `100`):
            Number of questions.
        num_solutions (`int`, *optional*, defaults to `2`):
            Number of conversations per question.
        num_continuations (`int`, *optional*, defaults to `4`):
            Number of continuations per turn.
        temperature (`float`, *optional*, defaults to `0.5`):
            Temperature of the samples. At 1, nearly all continuations are wrong, whether the turn before them is right
            or not, so that labels carry little information.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the questions and of the samples.
    """
    return collect_rollouts(
        load_questions(make_questions(questions, seed, MIN_MOVES, MAX_MOVES)),
        TransformersSampler.from_pretrained(
            policy, max_new_tokens=MAX_TOKENS, temperature=temperature, batch_size=256
        ),
        folder,
        num_solutions=num_solutions,
        num_continuations=num_continuations,
        grading="environment",
        environment_factory=DialByHand,
        render_message=render_by_hand,
        seed=seed,
        chunk_size=20,
        show_progress=False,
    )


def turn_auc(reward_model: str | StepScorer, conversations: RolloutDataset) -> float:
    """
    How well a reward model tells conversations without a mistake so far from others: AUC of its scores over pairs of
    conversations of the same question, after the same turn. 0.5 is chance.

    Args:
        reward_model (`str` or [`StepScorer`]):
            Reward model for turns.
        conversations ([`RolloutDataset`]):
            Conversations, several per question.
    """
    scorer = reward_model
    if isinstance(scorer, str):
        scorer = StepScorer.from_pretrained(scorer, batch_size=256)
    rows = [row for row in conversations if row.is_usable]
    all_scores = scorer.score([row.question for row in rows], [row.steps for row in rows])
    scores, right, groups = [], [], []
    for row, of_turns in zip(rows, all_scores, strict=True):
        verdicts = check_steps(row.question, row.steps)
        scores += of_turns
        right += [all(verdicts[: index + 1]) for index in range(len(verdicts))]
        groups += [row.question_index * (MAX_TOKENS + 1) + index for index in range(len(verdicts))]
    return float(auc_within_groups(torch.tensor(scores), torch.tensor(right), torch.tensor(groups)))


def train_turn_model(
    rollouts: RolloutDataset, folder: str | Path, *, eta: float = 2.0, max_steps: int = 100, seed: int = 0
) -> str:
    """Trains a reward model for turns from the shipped model, with batches of 64 conversations, and returns its
    folder."""
    names = ("separator", "good_token", "bad_token", "prompt_template", "splitter")
    args = ERPRMConfig(
        str(folder),
        **{name: getattr(AGENT_FORMAT, name) for name in names},
        eta=eta,
        max_steps=max_steps,
        per_device_train_batch_size=64,
        learning_rate=3e-4,
        warmup_steps=10,
        logging_steps=20,
        seed=seed,
        **CPU_QUIET,
    )
    trainer = ERPRMTrainer(BASE_PATH, args, train_dataset=rollouts)
    trainer.train()
    trainer.save_model()
    return str(folder)


def train_agent(
    policy: str,
    folder: str | Path,
    reward_model: str | None = None,
    *,
    updates: int = 40,
    callbacks: list[TrainerCallback] | None = None,
    seed: int = 0,
    **settings: Any,
):
    """
    Trains an agent on the rewards of its environment, with 64 conversations per update.

    Args:
        policy (`str`):
            Folder of the agent, from [`make_agent_policy`].
        folder (`str` or `Path`):
            Folder for the trainer's state.
        reward_model (`str`, *optional*):
            Reward model for turns. With it, the agent is trained with [`StepGRPOTrainer`], and otherwise with TRL's
            `GRPOTrainer`.
        updates (`int`, *optional*, defaults to `40`):
            Number of updates.
        callbacks (`list`, *optional*):
            Further callbacks.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the questions, their order and the samples.
        settings:
            Further fields of the configuration.

    Returns:
        The trainer, after training. `rewards/DialByHand/mean` in its log is the accuracy in each update.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    questions = make_questions(2000, 10_000 + seed, MIN_MOVES, MAX_MOVES)
    # Without a column of answers, the environment's reward is the only outcome.
    rows = [
        {"prompt": [{"role": "user", "content": row["question"]}], "question": row["question"]} for row in questions
    ]
    common = {
        "output_dir": str(folder),
        "max_steps": updates,
        "per_device_train_batch_size": COMPLETIONS,
        "num_generations": 8,
        "max_completion_length": MAX_TOKENS,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "seed": seed,
        **CPU_QUIET,
    }
    options = {"train_dataset": Dataset.from_list(rows), "environment_factory": DialByHand}
    if reward_model is None:
        trainer = GRPOTrainer(policy, None, GRPOConfig(**{**common, **settings}), callbacks=callbacks, **options)
    else:
        reward = StepRewardFunction(reward_model, render_message=render_by_hand)
        args = StepGRPOConfig(**{**common, **settings})
        trainer = StepGRPOTrainer(policy, reward, args, callbacks=callbacks, **options)
    trainer.train()
    return trainer
