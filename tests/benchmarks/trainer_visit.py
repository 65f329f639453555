"""Trains a reward model with one trainer in a process of its own, and writes speed, memory and losses as JSON. Speed
is per second of processor time, on one thread of a CPU.

`training_speed.py --rival` runs it in this package's environment and in the environment of TRL 1.12, so it imports
only the package of the trainer that it visits.
"""

import argparse
import ctypes
import gc
import json
import os
import threading
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForTokenClassification, LlamaConfig, LlamaForCausalLM, TrainerCallback


WARM_UP = 2  # updates that are not measured
LABELS = 1, 2  # ids of the good and the bad token


class Watch(TrainerCallback):
    """Notes the processor time at the end of each update and the logged losses, and reads the memory."""

    def __init__(self):
        self.times, self.losses, self.peak, self.over = [], [], 0, threading.Event()

    def held(self):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def on_train_begin(self, *_, **__):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.before = self.held()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self):
        while not self.over.wait(0.01):
            self.peak = max(self.peak, self.held())

    def on_step_end(self, *_, **__):
        self.times.append(time.process_time())  # one thread, so that other programs on the machine do not count

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def on_train_end(self, *_, **__):
        self.over.set()


def counting(collate, counts):
    """A collator that also notes the number of real tokens and of all tokens of each batch."""

    def collated(examples):
        batch = collate(examples)
        packed = [part for example in examples for part in example.get("packed_examples", [example])]
        counts.append((sum(len(part["input_ids"]) for part in packed), batch["input_ids"].numel()))
        return batch

    return collated


def to_512(pad):
    """Pads every row to 512 tokens."""

    def collated(examples):
        batch = pad(examples)
        missing = 512 - batch["input_ids"].shape[1]
        fills = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {key: torch.nn.functional.pad(batch[key], (0, missing), value=fill) for key, fill in fills.items()}

    return collated


def model_of(config, is_classifier):
    """The model with the same random weights in every process."""
    torch.manual_seed(0)
    config = LlamaConfig(**config, num_labels=2)
    return AutoModelForTokenClassification.from_config(config) if is_classifier else LlamaForCausalLM(config)


def settings(options):
    """Arguments that are the same for all trainers. Everything else has the trainer's default."""
    return {
        "output_dir": str(options.output.with_suffix("")), "per_device_train_batch_size": options.batch_size,
        "max_steps": options.max_steps, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "lr_scheduler_type": "constant", **json.loads(options.arguments),
    }  # fmt: skip


def of_this_package(options, config, tokenizer):
    """`ERPRMTrainer` with its defaults."""
    from erprm_trl import ERPRMConfig, ERPRMTrainer

    data = Dataset.from_json(str(options.data))
    args = ERPRMConfig(separator="ки", **settings(options))
    return ERPRMTrainer(model_of(config, args.head == "token"), args, train_dataset=data, processing_class=tokenizer)


def of_trl(options, config, tokenizer):
    """TRL 1.12's `PRMTrainer` with its defaults."""
    from trl.experimental.prm import PRMConfig, PRMTrainer

    data = Dataset.from_json(str(options.data))
    args = PRMConfig(**settings(options))
    return PRMTrainer(model_of(config, True), args, train_dataset=data, processing_class=tokenizer)


def padded_script(options, config, tokenizer):
    """A training script like the paper's: rows of 512 tokens and the logits of the whole vocabulary at all of them.
    Precision and gradient checkpointing are those of the other trainers."""
    from transformers import DataCollatorForTokenClassification, Trainer, TrainingArguments

    data = Dataset.from_json(str(options.data))
    data = data.map(
        lambda row: {"labels": [LABELS[1 - label] if label in (0, 1) else -100 for label in row["labels"]]}
    )

    class FullLogits(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            logits = model(**inputs, use_cache=False).logits.float()
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)

    args = TrainingArguments(**{"bf16": True, "gradient_checkpointing": True, **settings(options)})
    collate = to_512(DataCollatorForTokenClassification(tokenizer))
    return FullLogits(model_of(config, False), args, train_dataset=data, data_collator=collate)


TRAINERS = {"ours": of_this_package, "trl": of_trl, "padded": padded_script}


def main() -> None:
    """Trains and writes the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainer", choices=TRAINERS, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--arguments", default="{}")
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--max_steps", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    trainer = TRAINERS[options.trainer](options, json.loads(options.config), tokenizer)
    watch, counts = Watch(), []
    trainer.data_collator = counting(trainer.data_collator, counts)
    trainer.add_callback(watch)
    trainer.train()
    measured = counts[WARM_UP : options.max_steps]
    seconds = watch.times[-1] - watch.times[WARM_UP - 1]
    real, total = (sum(column) for column in zip(*measured, strict=True))
    result = {
        "tokens_per_second": real / seconds, "padding": 1 - real / total, "losses": watch.losses,
        "memory_gib": (watch.peak - watch.before) / 2**30, "tokens": real, "seconds": seconds,
    }  # fmt: skip
    options.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
