"""RAFT on dial with a frozen and with a refreshed reward model: `python tests/benchmarks/refresh_reward_model.py`.

Each seed trains a reward model (eta = 0, so that its scores are success rates) on rollouts of the shipped policy, and
runs six rounds of RAFT twice: with this reward model, and with `refresh_reward_model`. Solutions are selected by their
scores alone; answers are only used for the labels of the refresh. In each round, the accuracy is measured on new
questions, and the reward model on the round's own samples, before the policy trains on them:

- agreement: how often a right solution has a higher score than a wrong one of the same question
- calibration error: of all step scores against the outcome of the solution, which is one sample of the success rate

A finished run is a JSON file in the output folder, and an interrupted run resumes. The options `--rounds 2
--questions_per_round 12 --refresh 6 --test_questions 4 --train_questions 8 --train_steps 4` rehearse everything.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from intervals import interval

from erprm_trl import RAFTConfig, RAFTTrainer
from erprm_trl.dial import ANSWER_PATTERN, BASE_PATH, make_questions
from erprm_trl.dial.experiments.chain import TEST_SEED, DialChain
from erprm_trl.dial.experiments.policies import CPU_QUIET
from erprm_trl.functional import expected_calibration_error
from erprm_trl.policy.raft.rounds import read_rows
from erprm_trl.rollouts import RolloutDataset


ARMS = ("frozen", "refreshed")
MEASURES = ("accuracy", "agreement", "calibration_error")


def run(arm, seed, arguments):
    """One run: its measures by round, the accuracy at the end, and its seconds."""
    chain = DialChain(
        str(Path(arguments.output_dir, f"seed-{seed}")),
        train_questions=arguments.train_questions,
        max_steps=arguments.train_steps,
        seed=seed,
    )
    rollouts = chain.collect("rollouts", chain.train_questions, seed, 2, arguments.continuations)
    model = Path(chain.output_dir, "erprm-eta-0")
    if not (model / "prm_format.json").exists():
        chain.train(rollouts, eta=0.0)
    started = time.monotonic()
    refresh = {
        "refresh_reward_model": arguments.refresh,
        "refresh_num_continuations": arguments.continuations,
        "refresh_learning_rate": 1e-4,
        "refresh_rollouts": str(rollouts.path),
    }
    config = RAFTConfig(
        str(Path(chain.output_dir, arm)),
        num_rounds=arguments.rounds,
        questions_per_round=arguments.questions_per_round,
        num_generations=8,
        max_completion_length=72,
        generation_batch_size=256,
        scoring_batch_size=256,
        chunk_size=32,
        drop_uniform=False,
        grading="exact",
        answer_pattern=ANSWER_PATTERN,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        logging_steps=5,
        seed=seed,
        **CPU_QUIET,
        **(refresh if arm == "refreshed" else {}),
    )
    questions = make_questions(arguments.rounds * arguments.questions_per_round, 10_000 + seed)
    test = Dataset.from_list(make_questions(arguments.test_questions, TEST_SEED))
    trainer = RAFTTrainer(BASE_PATH, str(model), config, Dataset.from_list(questions), test)
    trainer.train()
    folders = [Path(config.output_dir, f"round-{index}") for index in range(arguments.rounds)]
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    return {
        "accuracy": [
            manifests[0]["evaluation_before"]["eval_accuracy"],
            *(manifest["evaluation"]["eval_accuracy"] for manifest in manifests),
        ],
        "agreement": [manifest["metrics"].get("raft/agreement") for manifest in manifests],
        "calibration_error": [calibration_error(folder) for folder in folders],
        "accepted": [manifest["refresh"]["accepted"] for manifest in manifests if "refresh" in manifest],
        "seconds": round(time.monotonic() - started, 1),
    }


def calibration_error(folder):
    """Expected calibration error of the step scores of a round's samples against the outcomes of the solutions."""
    rows, scores = RolloutDataset(folder / "samples").rows, read_rows(folder / "scores.jsonl")
    pairs = [
        (score, row.outcome_reward) for row, entry in zip(rows, scores, strict=True) for score in entry["step_scores"]
    ]
    scores, outcomes = torch.tensor(pairs, dtype=torch.float64).T
    return float(expected_calibration_error(scores, outcomes))


def summarize(runs):
    """Means of both arms and 95% t-intervals of their paired differences, by measure and round."""
    seeds = sorted({seed for seed, _ in runs})
    table = {}
    for measure in MEASURES:
        columns = [[runs[seed, arm][measure] for arm in ARMS] for seed in seeds]
        for index in range(len(columns[0][0]) if columns else 0):
            pairs = [[arm[index] for arm in arms] for arms in columns]
            pairs = [pair for pair in pairs if None not in pair]
            if pairs:
                frozen, refreshed = (sum(values) / len(values) for values in zip(*pairs, strict=True))
                table[f"{measure}, round {index}"] = [
                    frozen,
                    refreshed,
                    *interval([right - left for left, right in pairs]),
                ]
    return {"seeds": seeds, "table": table}


def print_table(summary, runs):
    """Prints the summary."""
    print(f"seeds {summary['seeds']}\n{'':<30}{'frozen':>10}{'refreshed':>11}{'difference':>20}")
    for name, (frozen, refreshed, difference, half) in summary["table"].items():
        shown = "" if math.isnan(half) else f" ± {half:.3f}"
        print(f"{name:<30}{frozen:>10.3f}{refreshed:>11.3f}{f'{difference:+.3f}{shown}':>20}")
    for arm in ARMS:
        seconds = [runs[seed, arm]["seconds"] for seed in summary["seeds"]]
        print(f"{arm}: {sum(seconds) / max(1, len(seconds)):.0f} seconds per run")


def main():
    """Runs the missing runs, and prints the table of all finished runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", default="outputs/bench/refresh_reward_model")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--questions_per_round", type=int, default=96)
    parser.add_argument("--refresh", type=int, default=32)
    parser.add_argument("--continuations", type=int, default=6)
    parser.add_argument("--test_questions", type=int, default=100)
    parser.add_argument("--train_questions", type=int, default=150)
    parser.add_argument("--train_steps", type=int, default=60)
    arguments = parser.parse_args()
    runs = {}
    for seed in arguments.seeds:
        for arm in ARMS:
            file = Path(arguments.output_dir, f"seed-{seed}", f"{arm}.json")
            if not file.exists():
                result = run(arm, seed, arguments)
                file.write_text(json.dumps(result))
                print(f"seed {seed}, {arm}: {json.dumps(result)}", flush=True)
            runs[seed, arm] = json.loads(file.read_text())
    summary = summarize(runs)
    Path(arguments.output_dir, "summary.json").write_text(json.dumps(summary, indent=1))
    print_table(summary, runs)


if __name__ == "__main__":
    main()
