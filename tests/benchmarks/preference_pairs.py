"""DPO on pairs of dial, over seeds: `python tests/benchmarks/preference_pairs.py --seeds 0 1 2 --json FILE`.

Each seed has its own questions and rollouts. From the same rollouts, the shipped policy is trained on pairs of whole
solutions, and on pairs of steps with the rest of the solution or with the step alone. All get the same number of
pairs. `--kinds solutions --continuations 0` samples no continuations. The accuracy is graded by the true answer on new
questions at temperature 1, before and after. Finished runs are saved in FILE.
"""

import argparse
import json
import os
import time
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

from intervals import interval
from transformers import set_seed
from trl import DPOConfig

from erprm_trl import TransformersSampler, collect_rollouts, load_questions
from erprm_trl.dial import ANSWER_PATTERN, BASE_PATH, SEPARATOR, make_questions
from erprm_trl.dial.experiments.chain import TEST_SEED
from erprm_trl.dial.experiments.policies import CPU_QUIET, accuracy
from erprm_trl.policy import StepDPOTrainer
from erprm_trl.selection import find_pairs


KINDS = {
    "solutions": {"level": "solution"},
    "steps, rest of the solution": {"level": "step", "completion": "rest"},
    "steps alone": {"level": "step", "completion": "step"},
}


def collect(seed, folder, arguments):
    """The rollouts of a seed. An interrupted collection continues."""
    return collect_rollouts(
        load_questions(make_questions(arguments.questions, 7_000 + seed)),
        TransformersSampler.from_pretrained(BASE_PATH, max_new_tokens=64, batch_size=256),
        folder,
        num_solutions=arguments.solutions,
        num_continuations=arguments.continuations,
        reuse_continuations=arguments.continuations > 0,
        splitter=SEPARATOR,
        grading="exact",
        answer_pattern=ANSWER_PATTERN,
        chunk_size=50,
        seed=seed,
    )


def train(pairs, seed, folder, arguments):
    """The policy after DPO on pairs, and the seconds of its training."""
    set_seed(seed)
    args = DPOConfig(
        str(folder),
        beta=arguments.beta,
        learning_rate=arguments.learning_rate,
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=32,
        max_length=128,
        logging_steps=1,
        seed=seed,
        use_cpu=True,
        **CPU_QUIET,
    )
    start = time.monotonic()
    trainer = StepDPOTrainer(BASE_PATH, args=args, train_dataset=pairs)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "rewards/accuracies" in entry]
    return trainer, time.monotonic() - start, log[-1]["rewards/accuracies"]


def run(seed, arguments):
    """All figures of a seed."""
    rollouts = collect(seed, Path(arguments.output_dir, f"rollouts-{seed}"), arguments)
    test = make_questions(arguments.test_questions, TEST_SEED + seed)
    made = {name: find_pairs(rollouts, pairs_per_question=arguments.pairs, **KINDS[name]) for name in arguments.kinds}
    size = min(len(pairs) for pairs, _ in made.values())
    figures = {"pairs": size, "right": rollouts.manifest["summary"]["mean_outcome_reward"], "runs": {}}
    for name, (pairs, counts) in made.items():
        chosen = pairs.shuffle(seed=seed).select(range(size))
        trainer, seconds, ahead = train(chosen, seed, Path(arguments.output_dir, "policy"), arguments)
        if "before" not in figures:
            base = TransformersSampler.from_pretrained(BASE_PATH)
            figures["before"] = accuracy(base.model, base.tokenizer, test, arguments.samples, seed)
        after = accuracy(trainer.model, trainer.processing_class, test, arguments.samples, seed)
        figures["runs"][name] = {"after": after, "seconds": seconds, "chosen_ahead": ahead, "counts": str(counts)}
        figures["runs"][name] |= {
            "branching_prefixes": counts.branching_prefixes,
            "branching_after_a_step": counts.branching_after_a_step,
        }
        print(
            f"seed {seed}, {name}: {figures['before']:.3f} -> {after:.3f} ({size} pairs, {seconds:.0f} s)", flush=True
        )
        differing = f"next steps differ after {counts.branching_prefixes} prefixes"
        print(f"  {counts}; {differing}, {counts.branching_after_a_step} of them with a step", flush=True)
    return figures


def main():
    """Runs the seeds that FILE lacks, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", default="outputs/bench/preference_pairs.json")
    parser.add_argument("--output_dir", default="outputs/bench/preference_pairs")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--solutions", type=int, default=8)
    parser.add_argument("--continuations", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=4, help="Maximum number of pairs per question.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--test_questions", type=int, default=200)
    parser.add_argument("--samples", type=int, default=4)
    arguments = parser.parse_args()
    path = Path(arguments.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    for seed in arguments.seeds:
        if str(seed) not in results:
            results[str(seed)] = run(seed, arguments)
            path.write_text(json.dumps(results, indent=2))
    kept = [results[str(seed)] for seed in arguments.seeds]
    mean, half = interval([figures["before"] for figures in kept])
    print(
        f"\n{len(kept)} seeds, {[figures['pairs'] for figures in kept]} pairs\n{'before':<30}{mean:.3f} ± {half:.3f}"
    )
    for name in arguments.kinds:
        after = [figures["runs"][name]["after"] for figures in kept]
        gains = [100 * (value - figures["before"]) for value, figures in zip(after, kept, strict=True)]
        (mean, half), (gain, spread) = interval(after), interval(gains)
        print(f"{name:<30}{mean:.3f} ± {half:.3f}   gain {gain:.1f} ± {spread:.1f} points")


if __name__ == "__main__":
    main()
