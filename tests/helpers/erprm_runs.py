"""Evaluates and predicts with a reward model's trainer, in one process or in several, and records the results."""

import json
from pathlib import Path

from datasets import Dataset

from erprm_trl import ERPRMConfig, ERPRMTrainer


FORMAT = {"separator": "ки", "good_token": "✓", "bad_token": "✗", "prompt_template": "check {question}"}
# Unordered lengths, 1 to 4 steps, and 7 rows, which do not divide evenly among processes.
NUM_STEPS = [1, 3, 2, 4, 1, 2, 1]
ROWS = [
    {
        "prompt": f"Tom dial {row} . ?" + " right 1 . ?" * (row % 3),
        "completions": [f"{row} + {step} = {step}" for step in range(num_steps)],
        "labels": [(row + step) % 5 / 4 for step in range(num_steps)],
    }
    for row, num_steps in enumerate(NUM_STEPS)
]


def rows():
    """Returns the rows. A command line can name this function."""
    return ROWS


def predict(model_path, folder, packing=False, streaming=False):
    """Writes `folder/RANK-of-WORLD.json` with the input of `compute_metrics`, the metrics, and `predict`'s result."""
    got = {}

    def compute_metrics(evaluated):
        got["evaluated"] = [evaluated.predictions.tolist(), evaluated.label_ids.tolist()]
        return {"rows": len(evaluated.predictions)}

    args = ERPRMConfig(
        str(Path(folder) / "out"),
        per_device_eval_batch_size=2,
        packing=packing,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        **FORMAT,
    )
    data = Dataset.from_list(ROWS)
    trainer = ERPRMTrainer(model_path, args, train_dataset=data, compute_metrics=compute_metrics)
    stream = data.to_iterable_dataset().map(lambda row: row) if streaming else data
    got["metrics"] = trainer.evaluate(stream)
    got["first"] = got["evaluated"]
    predicted = trainer.predict(stream)
    got["predicted"] = [predicted.predictions.tolist(), predicted.label_ids.tolist()]
    got["predicted_metrics"] = predicted.metrics
    got["world"] = args.world_size
    Path(folder, f"{args.process_index}-of-{args.world_size}.json").write_text(json.dumps(got))


def train_and_log(model_path, folder, batch_size, accumulated=1):
    """Trains an epoch of the 7 rows at a learning rate of 0, and writes the logged metrics. Two processes fill the
    last batch with a copy of the first row."""
    args = ERPRMConfig(
        str(Path(folder) / "out"),
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulated,
        train_sampling_strategy="sequential",
        learning_rate=0.0,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        **FORMAT,
    )
    trainer = ERPRMTrainer(model_path, args, train_dataset=Dataset.from_list(ROWS))
    trainer.train()
    Path(folder, f"{args.process_index}-of-{args.world_size}.json").write_text(json.dumps(trainer.state.log_history))


def train_on_stream(model_path, folder, batch_size):
    """Trains on a stream of the rows, with the same 6 solutions in each of 4 updates for any number of processes."""
    args = ERPRMConfig(
        str(Path(folder) / "out"),
        max_steps=4,
        per_device_train_batch_size=batch_size,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        **FORMAT,
    )
    stream = Dataset.from_list(ROWS[:6]).to_iterable_dataset().map(lambda row: row)
    trainer = ERPRMTrainer(model_path, args, train_dataset=stream)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    Path(folder, f"{args.process_index}-of-{args.world_size}.json").write_text(json.dumps(losses))
