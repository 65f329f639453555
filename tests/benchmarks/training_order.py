"""Quality of reward models trained in random order and grouped by length: `python tests/benchmarks/training_order.py`.

On dial, each seed trains one reward model per order on the same rollouts, with the same learning rate and number of
updates. The script reports the loss on held-out steps, the accuracy of the best of 16 solutions and the AUC within
questions. Intervals are 95% t-intervals over seeds, and differences are paired by seed. Finished runs are kept in
`results.json` and skipped.
"""

import argparse
import json
import os
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from intervals import interval

from erprm_trl import ERPRMConfig, ERPRMTrainer, RolloutDataset, StepScorer, dial
from erprm_trl.dial.experiments.chain import FORMAT, TEST_SEED, DialChain
from erprm_trl.io.atomic_files import replace_file
from erprm_trl.selection import score_rollouts, selection_curves


ORDERS = ("group_by_length", "random")
FIGURES = ("held-out loss", "best of 16", "AUC within questions")


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--questions", type=int, default=200, help="Number of questions with continuations per seed.")
    parser.add_argument("--max_steps", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument(
        "--rollouts_of", type=Path, help="Folder with samples/ and seed-N/rollouts/ of such rollouts, to use again."
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench/training_order"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.output_dir / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for seed in arguments.seeds:
        for order in ORDERS:
            if f"{order} {seed}" not in results:
                results[f"{order} {seed}"] = run(arguments, order, seed)
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, json.dumps(results, indent=1))
                print(order, seed, results[f"{order} {seed}"], flush=True)
    print_table(results, arguments.seeds)


def rollouts(arguments, seed):
    """The rollouts of a seed, and the solutions of the test questions."""
    if arguments.rollouts_of is not None:
        folders = (arguments.rollouts_of / f"seed-{seed}" / "rollouts", arguments.rollouts_of / "samples")
        return tuple(map(RolloutDataset, folders))
    chain = DialChain(str(arguments.output_dir / f"seed-{seed}"))
    test = DialChain(str(arguments.output_dir))
    return (
        chain.collect("rollouts", arguments.questions, seed, 2, 8),
        test.collect("samples", 200, TEST_SEED, 16, 0),
    )


def run(arguments, order, seed):
    """Trains a reward model in one order and returns its figures. It is held out from the rollouts of the next
    seed."""
    (data, samples), (held_out, _) = rollouts(arguments, seed), rollouts(arguments, seed + 1)
    training = ERPRMConfig(
        str(arguments.output_dir / "model"), separator=FORMAT.separator, good_token=FORMAT.good_token,
        bad_token=FORMAT.bad_token, prompt_template=FORMAT.prompt_template, splitter=FORMAT.splitter,
        train_sampling_strategy=order, max_steps=arguments.max_steps, learning_rate=arguments.learning_rate,
        per_device_train_batch_size=arguments.batch_size, per_device_eval_batch_size=64, warmup_steps=10,
        logging_steps=50, save_strategy="no", report_to="none", bf16=False, gradient_checkpointing=False, seed=seed,
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = ERPRMTrainer(dial.BASE_PATH, training, train_dataset=data)
    trainer.train()
    loss = trainer.evaluate(held_out)["eval_loss"]
    scorer = StepScorer(trainer.model, trainer.processing_class, trainer.prm_format, batch_size=256)
    curves = selection_curves(samples.solutions(), {order: score_rollouts(scorer, samples)}, [1, 16])
    by_min = curves["models"][order]["min"]
    return dict(zip(FIGURES, (loss, by_min["best_of_n"][16]["mean"], by_min["auc_within_questions"]), strict=True))


def print_table(results, seeds):
    """Prints the means over seeds and the paired differences."""
    rows = {order: [results[f"{order} {seed}"] for seed in seeds] for order in ORDERS}
    first, second = rows.values()
    rows["random - grouped"] = [
        {name: b[name] - a[name] for name in FIGURES} for a, b in zip(first, second, strict=True)
    ]
    print(f"{f'{len(seeds)} seeds':<20}" + "".join(f"{name:>24}" for name in FIGURES))
    for name, runs in rows.items():
        shown = ["{:.4f} ± {:.4f}".format(*interval([run[figure] for run in runs])) for figure in FIGURES]
        print(f"{name:<20}" + "".join(f"{text:>24}" for text in shown))


if __name__ == "__main__":
    main()
