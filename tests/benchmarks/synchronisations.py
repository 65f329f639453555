"""Synchronisations per update of the trainers: `python tests/benchmarks/synchronisations.py`.

Counts, on the CPU, the operations after which an accelerator waits for the host: reads of values, indexing whose
result's shape depends on values, and copies from the host. It prints their numbers per optimizer update for the
trainers of this package and for TRL's own, with 1 and 4 accumulated batches, without a log and with a log after every
update. All models are tiny. The policies' completions are fixed, so that generation is not counted.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from datasets import Dataset
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import trl  # noqa: E402
from step_fakes import (  # noqa: E402
    DIAL_FORMAT,
    FakeScorer,
    by_text,
    encode,
    generate_fixed,
    questions,
    settings,
    tiny_llama,
    word_level,
)
from synchronisation_counts import count_updates  # noqa: E402

from erprm_trl import (  # noqa: E402
    ERPRMConfig,
    ERPRMTrainer,
    RAFTConfig,
    RAFTTrainer,
    StepGRPOConfig,
    StepGRPOTrainer,
    StepPPOConfig,
    StepPPOTrainer,
    dial,
)


ROWS = [
    {"prompt": "Tom dial 7 . right 15 . ?", "completions": ["7 + 15 = 2", "answer 2"], "labels": [0.9, 1.0]},
    {"prompt": "Ann dial 1 . left 2 . ?", "completions": ["answer 3"], "labels": [0.0]},
] * 64
FORMAT = {name: getattr(DIAL_FORMAT, name) for name in ("separator", "good_token", "bad_token", "prompt_template")}
COMPLETIONS = ("4 ки 8 </s>", "2 </s>", "6 ки 1 </s>", "9 ки 3 ки 5 </s>")
UPDATES = 4


def reward_model(folder, head="lm", **options):
    """A trainer of a reward model."""
    tokenizer = word_level()
    options = settings(folder, max_steps=UPDATES, **options)
    options = {key: options[key] for key in options if key not in ("num_generations", "max_completion_length")}
    args = ERPRMConfig(**options, **FORMAT, head=head)
    model = tiny_llama(len(tokenizer), head)
    return ERPRMTrainer(model, args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)


def supervised(folder, **options):
    """TRL's trainer for supervised fine-tuning."""
    tokenizer = word_level()
    options = settings(folder, max_steps=UPDATES, **options)
    options = {key: options[key] for key in options if key not in ("num_generations", "max_completion_length")}
    rows = [{"prompt": row["prompt"], "completion": " " + " ".join(row["completions"])} for row in ROWS]
    return trl.SFTTrainer(
        tiny_llama(len(tokenizer)), trl.SFTConfig(**options), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip


def policy(trainer_class, config, folder, **options):
    """An online trainer of a policy with answers, on fixed completions."""
    tokenizer = word_level()
    data = questions(64, answer=["2"] * 64)
    rewards = [FakeScorer(by_text)] if trainer_class is not trl.GRPOTrainer else [trls_reward, trls_reward]
    trainer = trainer_class(
        tiny_llama(len(tokenizer)), rewards, config(**settings(folder, max_steps=UPDATES, **options)), data,
        processing_class=tokenizer,
    )  # fmt: skip
    generate_fixed(trainer, encode(tokenizer, *COMPLETIONS) * 4)
    return trainer


def trls_reward(completions, **columns):
    """A reward function for TRL's own trainer."""
    return [float(len(completion) % 3) for completion in completions]


def raft(folder, **options):
    """A trainer that fine-tunes on selected solutions. Only its fine-tuning is counted."""
    model, tokenizer = load_policy()
    args = RAFTConfig(
        **settings(folder, max_steps=UPDATES, num_generations=4, drop_uniform=False, num_rounds=1, **options)
        | {"max_completion_length": 48, "per_device_train_batch_size": 2}
    )
    data = Dataset.from_list([{"question": row["question"]} for row in dial.make_questions(32, 0, 1, 2)])
    return RAFTTrainer(model, FakeScorer(by_text), args, data, processing_class=tokenizer)


def load_policy():
    """A tiny policy with dial's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(dial.BASE_PATH)
    return tiny_llama(len(tokenizer)), tokenizer


def trainers():
    """Functions that make a trainer in a folder, by name."""
    return {
        "trl.SFTTrainer": supervised,
        "ERPRMTrainer": reward_model,
        "ERPRMTrainer, head=token": lambda folder, **options: reward_model(folder, "token", **options),
        "ERPRMTrainer, packing": lambda folder, **options: reward_model(folder, packing=True, **options),
        "RAFTTrainer, fine-tuning": raft,
        "trl.GRPOTrainer": lambda folder, **options: policy(trl.GRPOTrainer, trl.GRPOConfig, folder, **options),
        "StepGRPOTrainer": lambda folder, **options: policy(StepGRPOTrainer, StepGRPOConfig, folder, **options),
        "StepPPOTrainer": lambda folder, **options: policy(StepPPOTrainer, StepPPOConfig, folder, **options),
    }


def measure(make, accumulated, logging_steps):
    """Synchronisations of the third update by site. Once-only checks are in the first one."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(folder, gradient_accumulation_steps=accumulated, logging_steps=logging_steps)
        return count_updates(trainer)[2]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="Trainers whose names contain this text.")
    parser.add_argument("--sites", action="store_true", help="Print the lines at which the synchronisations are.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    columns = [(accumulated, steps) for steps in (100, 1) for accumulated in (1, 4)]
    print(f"{'synchronisations per update':<28}{'no log':>16}{'log every update':>20}")
    print(f"{'accumulated batches':<28}" + "".join(f"{accumulated:>10}" for accumulated, _ in columns))
    for name, make in trainers().items():
        if options.only not in name:
            continue
        counts = [measure(make, *column) for column in columns]
        print(f"{name:<28}" + "".join(f"{count.total():>10}" for count in counts), flush=True)
        if options.sites:
            for column, count in zip(columns, counts, strict=True):
                for site, times in Counter(count).most_common():
                    print(f"    {column}: {times:>4} {site}")


if __name__ == "__main__":
    main()
