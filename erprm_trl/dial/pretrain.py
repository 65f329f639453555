"""Makes the shipped dial base model: `python -m erprm_trl.dial.pretrain --output_dir outputs/dial-base`.

It runs once; tests, recipes and the quickstart only load what it wrote. The corpus is endless and drawn from the seed:
half plain solutions with slips and habits (so that the policy errs when sampled), half solutions with a verdict after
every step (so that the base knows how to check, as a language model does whose corpus held checking). No rollout and
no reward takes part.
"""

import argparse
import random
from collections.abc import Iterator

from .task import POSITIONS, SEPARATOR, DialQuestion, habitual_mistake, random_question, turn
from .tokenizer import BAD_MARK, GOOD_MARK, build_tokenizer


PLAIN_SLIP = 0.08  # wrong results in plain solutions; the chain goes on from the wrong value
MARKED_SLIP = 0.30  # wrong results in solutions with verdicts
HABIT = 0.65  # how often a fact with a habitual mistake comes out wrong
LONG_SHARE = 0.1  # share of batches with 8 to 16 moves


def write_solution(rng: random.Random, question: DialQuestion, marked: bool, slip: float | None = None) -> str:
    """A solution with mistakes, a share `slip` of them by chance; if `marked`, each separator is followed by the
    verdict on the step before it."""
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
        # The teacher lets habitual mistakes pass: what is wrong with them, only outcomes can tell.
        verdict = f" {GOOD_MARK if result in (right, habit) else BAD_MARK}" if marked else ""
        parts.append(f"{position} {operator} {amount} = {result} {SEPARATOR}{verdict}")
        position = result
    return " ".join([*parts, f"answer {position} {SEPARATOR}" + (f" {GOOD_MARK}" if marked else "")])


def tokenized_example(
    tokenizer, rng: random.Random, question: DialQuestion, marked: bool, slip: float | None = None
) -> dict[str, list[int]]:
    """A question and a solution of [`write_solution`]; the question's tokens carry no loss."""
    prompt = tokenizer.encode(f"check {question.text}" if marked else question.text)
    solution = tokenizer.encode(write_solution(rng, question, marked, slip)) + [tokenizer.eos_token_id]
    return {"input_ids": prompt + solution, "labels": [-100] * len(prompt) + solution}


def corpus(seed: int, batch_size: int) -> Iterator[dict[str, list[int]]]:
    """Endless tokenized examples, `batch_size` at a time of one length class."""
    tokenizer = build_tokenizer()
    rng = random.Random(f"dial-corpus-{seed}")
    while True:
        moves = (8, 16) if rng.random() < LONG_SHARE else (3, 7)
        for index in range(batch_size):
            question, marked = random_question(rng, *moves), index % 2 == 1
            yield tokenized_example(tokenizer, rng, question, marked)


def build_model(tokenizer):
    """The untrained base, with the generation settings that are saved with it."""
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
    """Trains the base with `transformers.Trainer` and saves model and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default="outputs/dial-base")
    parser.add_argument("--max_steps", type=int, default=3000, help="optimiser steps of `batch_size` examples")
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
    model.config.use_cache = True  # Trainer switches it off
    model.save_pretrained(arguments.output_dir)
    tokenizer.save_pretrained(arguments.output_dir)


if __name__ == "__main__":
    main()
