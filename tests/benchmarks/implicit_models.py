"""Compares implicit reward models with ER-PRM and outcome reward models on dial, at the same number of sampled tokens:
`python tests/benchmarks/implicit_models.py`.

ER-PRM learns from two solutions per question and the continuations of their prefixes. The other models learn from
solutions only, to more questions of the same kind. All models have the same number of training steps and select among
the same test samples. Intervals are 95% t-intervals over seeds, and differences to ER-PRM are paired by seed. A run
that is started again continues after the last finished arm.
"""

import argparse
import json
import os
import shutil
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

from intervals import interval

from erprm_trl import ERPRMConfig, ERPRMTrainer, StepScorer, dial
from erprm_trl.dial.experiments.chain import FORMAT, TEST_SEED
from erprm_trl.io.atomic_files import replace_file
from erprm_trl.rollouts import RolloutDataset, TransformersSampler, collect_rollouts, load_questions
from erprm_trl.rollouts.outcomes import outcome_labels
from erprm_trl.selection import score_rollouts, selection_curves


METHODS = ("min", "last")
VERDICTS = {name: getattr(FORMAT, name) for name in ("good_token", "bad_token", "prompt_template")}
# Options of the reward model, and whether it learns from continuations
ARMS = {
    "ER-PRM, eta = 2": ({"eta": 2.0, **VERDICTS}, True),
    "outcome only": (VERDICTS, False),
    "implicit, beta = 0.05": ({"head": "implicit", "beta": 0.05, "prompt_template": "{question}"}, False),
    "implicit, beta = 0.5": ({"head": "implicit", "beta": 0.5, "prompt_template": "{question}"}, False),
}


class TokenCounter:
    """A sampler that counts the tokens that another sampler returns."""

    def __init__(self, sampler):
        self.sampler, self.settings, self.tokens = sampler, sampler.settings, 0

    def sample(self, prompts, num_samples, seed):
        """See [`Sampler`]."""
        completions = self.sampler.sample(prompts, num_samples, seed)
        self.tokens += sum(completion.num_tokens for group in completions for completion in group)
        return completions


def main():
    """Runs each seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--questions", type=int, default=200, help="Number of questions with continuations.")
    parser.add_argument("--num_continuations", type=int, default=8)
    parser.add_argument("--max_steps", type=int, default=150)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench/implicit_models"))
    arguments = parser.parse_args()
    samples, _ = collect(arguments.output_dir / "samples", 200, TEST_SEED, 16, 0)
    file = arguments.output_dir / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for seed in map(str, arguments.seeds):
        finished = results.setdefault(seed, {})
        for arm in ARMS:
            if arm not in finished:
                finished[arm] = run(arguments, arm, int(seed), samples)
                replace_file(file, json.dumps(results, indent=1))
    print_table([results[str(seed)] for seed in arguments.seeds], arguments.max_steps)


def collect(folder, num_questions, seed, num_solutions, num_continuations):
    """The rollouts and the number of sampled tokens. An unfinished folder is collected again, to count its tokens."""
    counted = folder / "num_tokens.json"
    if counted.exists():
        return RolloutDataset(folder), json.loads(counted.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    sampler = TokenCounter(TransformersSampler.from_pretrained(dial.BASE_PATH, max_new_tokens=64, batch_size=512))
    rollouts = collect_rollouts(
        load_questions(dial.make_questions(num_questions, seed)), sampler, folder, num_solutions=num_solutions,
        num_continuations=num_continuations, splitter=dial.SEPARATOR, grading="exact",
        answer_pattern=dial.ANSWER_PATTERN, seed=seed, chunk_size=50, show_progress=False,
    )  # fmt: skip
    counted.write_text(json.dumps(sampler.tokens))
    return rollouts, sampler.tokens


def run(arguments, arm, seed, samples):
    """Trains an arm, and returns its accuracies, its AUC within questions, and the size of its data."""
    options, has_continuations = ARMS[arm]
    folder = arguments.output_dir / f"seed-{seed}"
    data, tokens = collect(folder / "rollouts", arguments.questions, seed, 2, arguments.num_continuations)
    if not has_continuations:
        per_solution = sum(row.num_tokens for row in data) / len(data)
        num_questions = round(tokens / per_solution / 8)
        data, tokens = collect(folder / "solutions", num_questions, seed, 8, 0)
    training = ERPRMConfig(
        str(folder / "model"), separator=FORMAT.separator, splitter=FORMAT.splitter, **options,
        max_steps=arguments.max_steps, per_device_train_batch_size=64, learning_rate=3e-4, warmup_steps=10,
        logging_steps=50, save_strategy="no", report_to="none", bf16=False, gradient_checkpointing=False, seed=seed,
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = ERPRMTrainer(dial.BASE_PATH, training, train_dataset=data if has_continuations else outcome_labels(data))
    trainer.train()
    reference = None
    if trainer.prm_format.head == "implicit":
        reference = type(trainer.model).from_pretrained(dial.BASE_PATH)
    scorer = StepScorer(
        trainer.model, trainer.processing_class, trainer.prm_format, batch_size=256, reference_model=reference
    )
    curves = selection_curves(samples.solutions(), {arm: score_rollouts(scorer, samples)}, [1, 16])
    by_method = curves["models"][arm]
    return {
        "best_of_16": {method: by_method[method]["best_of_n"][16]["mean"] for method in METHODS},
        "auc_within_questions": {method: by_method[method]["auc_within_questions"] for method in METHODS},
        "majority@16": curves["majority"][16]["mean"],
        "pass@1": curves["pass"][1]["mean"],
        "tokens": tokens,
        "solutions": len(data),
    }


def print_table(runs, max_steps):
    """Prints the means over seeds with their intervals."""
    first = next(iter(ARMS))
    print(f"{len(runs)} seeds, {max_steps} steps of 64 solutions, pass@1 {runs[0][first]['pass@1']:.3f}, ", end="")
    print(f"majority@16 {runs[0][first]['majority@16']:.3f}")
    heads = [f"best of 16 by {method}" for method in METHODS] + [f"- ({first}), each by its best", "AUC by last"]
    print(f"{'':<24}{'tokens':>9}{'solutions':>11}   " + "".join(f"{head:<34}" for head in heads))
    best = {arm: {m: [run[arm]["best_of_16"][m] for run in runs] for m in METHODS} for arm in ARMS}

    def strongest(arm):
        return max(best[arm].values(), key=sum)

    for arm in ARMS:
        columns = [best[arm][method] for method in METHODS]
        columns.append([a - b for a, b in zip(strongest(arm), strongest(first), strict=True)])
        columns.append([run[arm]["auc_within_questions"]["last"] for run in runs])
        sizes = [sum(run[arm][size] for run in runs) / len(runs) for size in ("tokens", "solutions")]
        shown = "".join("{:<34}".format("{:.3f} ± {:.3f}".format(*interval(column))) for column in columns)
        print(f"{arm:<24}{sizes[0]:>9.0f}{sizes[1]:>11.0f}   {shown}")


if __name__ == "__main__":
    main()
