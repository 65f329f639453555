"""Teaches the shipped policy to solve dial questions with a tool, and trains such agents with TRL's trainers."""

import random
from pathlib import Path

from .. import BASE_PATH
from ..environment import ASSISTANT, TOOL, USER, build_agent_tokenizer
from ..task import MOVES, POSITIONS, SEPARATOR, DialQuestion, random_question, turn
from .policies import CPU_QUIET


MIN_MOVES, MAX_MOVES = 3, 5
SLIP = 0.3  # share of calls with a mistake


def make_agent_policy(
    folder: str | Path,
    *,
    slip: float = SLIP,
    steps: int = 100,
    min_moves: int = MIN_MOVES,
    max_moves: int = MAX_MOVES,
    seed: int = 0,
) -> str:
    """
    Trains the shipped policy on conversations in which some tool calls are wrong.

    The words of tool calls are added to its vocabulary. The shipped policy itself does not change.

    Args:
        folder (`str` or `Path`):
            Folder for the trained policy and its tokenizer.
        slip (`float`, *optional*, defaults to `0.3`):
            Share of calls with a wrong position, operator or amount.
        steps (`int`, *optional*, defaults to `100`):
            Number of training steps, with batches of 64 conversations.
        min_moves, max_moves (`int`, *optional*, default to `3` and `5`):
            Range of the number of moves per question.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the conversations and of the training.

    Returns:
        `str`: the folder.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

    set_seed(seed)
    tokenizer, model = build_agent_tokenizer(), AutoModelForCausalLM.from_pretrained(BASE_PATH)
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
    for move in question.moves:
        called = position, *move
        if rng.random() < slip:
            called = _mistake(rng, called)
        own = tokenizer.encode(" ".join(map(str, called)) + " </s>")
        position = turn(*called)
        read = tokenizer.encode(f"{TOOL} {position} {ASSISTANT}")
        ids, labels = ids + own + read, labels + own + [-100] * len(read)
    own = tokenizer.encode(f"answer {position} </s>")
    return {"input_ids": ids + own, "labels": labels + own}


def _mistake(rng: random.Random, call: tuple[int, str, int]) -> tuple[int, str, int]:
    """The call with another position, operator or amount."""
    position, operator, amount = call
    kind = rng.randrange(3)
    if kind == 0:
        return rng.choice([value for value in range(POSITIONS) if value != position]), operator, amount
    if kind == 1:
        return position, rng.choice([sign for sign in MOVES.values() if sign != operator]), amount
    return position, operator, rng.choice([value for value in range(1, POSITIONS) if value != amount])
