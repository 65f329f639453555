"""Pretrains the base model of the dial task: `python -m erprm_trl.dial.pretrain --output_dir outputs/dial-base`.

The result is shipped in the package, so this runs again only if the task changes. The corpus is generated from a seed
and has no end. Half of it are solutions with random and systematic mistakes, so that the policy makes mistakes too.
The other half are solutions with a verdict after every step, so that the base model can check steps, as a language
model can whose corpus has texts that check others. No rollouts and no rewards are used.
"""

import argparse
import random
from collections.abc import Iterator

from .task import POSITIONS, SEPARATOR, DialQuestion, habitual_mistake, random_question, turn
from .tokenizer import BAD_MARK, GOOD_MARK, build_tokenizer


PLAIN_SLIP = 0.08  # share of random mistakes in plain solutions, which continue from the wrong value
MARKED_SLIP = 0.30  # share of random mistakes in solutions with verdicts
HABIT = 0.65  # share of wrong results where an equation has a habitual mistake
LONG_SHARE = 0.1  # share of batches with 8 to 16 moves


def write_solution(rng: random.Random, question: DialQuestion, marked: bool, slip: float | None = None) -> str:
    """
    Writes a solution with mistakes.

    Args:
        rng (`random.Random`):
            Source of the mistakes.
        question ([`DialQuestion`]):
            Question to solve.
        marked (`bool`):
            Whether each separator is followed by the verdict on its step.
        slip (`float`, *optional*):
            Share of random mistakes. Defaults to `PLAIN_SLIP` or `MARKED_SLIP`.

    Returns:
        `str`: the solution, whose last step states the answer.
    """
    if slip is None:
        slip = MARKED_SLIP if marked else PLAIN_SLIP
    position, parts = question.start, []
    for operator, amount in question.moves:
        right = turn(position, operator, amount)
        habit = habitual_mistake(position, operator, amount)
        result = right
        if habit is not None and rng.random() < HABIT:
            result = habit
        elif rng.random() < slip:
            result = rng.choice([value for value in range(POSITIONS) if value != right])
        # The corpus marks habitual mistakes as good, so that only outcomes can show that they are wrong.
        verdict = f" {GOOD_MARK if result in (right, habit) else BAD_MARK}" if marked else ""
        parts.append(f"{position} {operator} {amount} = {result} {SEPARATOR}{verdict}")
        position = result
    return " ".join([*parts, f"answer {position} {SEPARATOR}" + (f" {GOOD_MARK}" if marked else "")])


def tokenized_example(
    tokenizer, rng: random.Random, question: DialQuestion, marked: bool, slip: float | None = None
) -> dict[str, list[int]]:
    """Tokenizes a question and a solution of [`write_solution`], without loss on the question's tokens."""
    prompt = tokenizer.encode(f"check {question.text}" if marked else question.text)
    solution = tokenizer.encode(write_solution(rng, question, marked, slip)) + [tokenizer.eos_token_id]
    return {"input_ids": prompt + solution, "labels": [-100] * len(prompt) + solution}


def corpus(seed: int, batch_size: int) -> Iterator[dict[str, list[int]]]:
    """Generates tokenized examples without end. The questions of a batch are either all short or all long."""
    tokenizer = build_tokenizer()
    rng = random.Random(f"dial-corpus-{seed}")
    while True:
        moves = (8, 16) if rng.random() < LONG_SHARE else (3, 7)
        for index in range(batch_size):
            question, marked = random_question(rng, *moves), index % 2 == 1
            yield tokenized_example(tokenizer, rng, question, marked)


def build_model(tokenizer):
    """Makes the untrained base model, with the generation settings that are saved with it."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=4,
            num_attention_heads=4,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def main() -> None:
    """Trains the base model with `transformers.Trainer`, and saves it with its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default="outputs/dial-base")
    parser.add_argument("--max_steps", type=int, default=3000, help="Number of optimizer steps.")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    from datasets import IterableDataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

    set_seed(arguments.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    training_arguments = TrainingArguments(
        output_dir=arguments.output_dir,
        max_steps=arguments.max_steps,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=3e-3,
        lr_scheduler_type="warmup_stable_decay",
        warmup_steps=100,
        weight_decay=0.0,
        lr_scheduler_kwargs={"num_decay_steps": int(0.3 * arguments.max_steps), "decay_type": "linear"},
        max_grad_norm=1.0,
        logging_steps=100,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        seed=arguments.seed,
    )
    trainer = Trainer(
        model=model,
        args=training_arguments,
        train_dataset=IterableDataset.from_generator(
            corpus, gen_kwargs={"seed": arguments.seed, "batch_size": arguments.batch_size}
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    model.config.use_cache = True  # Trainer sets it to False
    model.save_pretrained(arguments.output_dir)
    tokenizer.save_pretrained(arguments.output_dir)


if __name__ == "__main__":
    main()
