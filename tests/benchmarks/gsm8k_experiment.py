"""The paper's experiment on a real language model and GSM8K, in stages. An interrupted run can be resumed.

    python tests/benchmarks/gsm8k_experiment.py --scale cpu --policy FOLDER --output outputs/gsm8k-cpu \
        --train_data gsm8k_train.jsonl --test_data gsm8k_test.jsonl

Rollouts are collected for questions of the training set. Reward models are trained on their labels at several etas,
and on outcomes alone, over seeds. Each model scores the same solutions of test questions. Best-of-N, majority voting
and pass@N are compared, with intervals paired by question. The output folder holds the rollouts, models, scores,
`results.md`, `costs.json` and the page `report.html`.
"""

import argparse
import dataclasses
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from intervals import interval

from erprm_trl import ERPRMConfig, ERPRMTrainer, RolloutDataset, report, rollouts, selection
from erprm_trl.io.atomic_files import make_folder, replace_file
from erprm_trl.selection.best_of import best_of_n_per_question
from erprm_trl.selection.curves import rank_solutions
from erprm_trl.selection.evaluation import JudgedSolution, score_judged
from erprm_trl.steps import clean_steps


PROMPT = "{question}\nReason step by step in short lines, one step per line. Put the final answer in \\boxed{}."
SPLITTER = "whole_lines"
OUTCOME = "outcome only"
AGGREGATIONS = ("min", "last", "product", "mean")

logger = logging.getLogger("gsm8k_experiment")


@dataclass(frozen=True)
class Scale:
    """Sizes of an experiment."""

    train_questions: int
    num_solutions: int
    num_continuations: int
    test_questions: int
    num_samples: int
    etas: tuple[float, ...] = (0.0, 2.0, 8.0, math.inf)
    seeds: tuple[int, ...] = (0,)
    max_new_tokens: int = 256
    num_train_epochs: float = 2.0
    batch_size: int = 128
    chunk_questions: int = 4


SCALES = {
    # Runs every stage in a few minutes on any machine. The results are not meaningful.
    "smoke": Scale(4, 2, 2, 4, 4, etas=(0.0, math.inf), max_new_tokens=48, num_train_epochs=1.0, batch_size=32),
    # About three hours on two cores with a policy of 0.4B parameters.
    "cpu": Scale(40, 2, 4, 64, 8, seeds=(0, 1)),
    # For one 80 GB GPU and a policy of 0.4B parameters. gpu_day.py runs a part in four minutes.
    "gpu": Scale(1000, 2, 8, 300, 16, seeds=(0, 1, 2), max_new_tokens=320, batch_size=1024, chunk_questions=50),
}


class Experiment:
    """
    The experiment in one folder. Each stage skips the parts that are complete in the folder.

    Args:
        scale ([`Scale`]):
            Sizes of the experiment.
        arguments (`argparse.Namespace`):
            Arguments of the command line.
    """

    def __init__(self, scale: Scale, arguments: argparse.Namespace):
        self.scale, self.arguments = scale, arguments
        self.output = make_folder(arguments.output)
        self._check_settings()
        self.objectives = {**{f"eta = {eta:g}": eta for eta in scale.etas}, OUTCOME: 0.0}

    def _check_settings(self) -> None:
        """Writes the settings into a new folder, and refuses other settings in an old one."""
        names = (
            "policy",
            "reward_base",
            "train_data",
            "test_data",
            "dtype",
            "temperature",
            "learning_rate",
            "separator",
        )
        settings = {"scale": dataclasses.asdict(self.scale), **{name: getattr(self.arguments, name) for name in names}}
        settings = json.loads(json.dumps(settings))
        path = self.output / "experiment.json"
        if path.exists() and (before := json.loads(path.read_text())) != settings:
            changed = {
                name: (before.get(name), value) for name, value in settings.items() if before.get(name) != value
            }
            raise ValueError(
                f"{path}: got other settings than before ({changed}), expected the same. Choose another --output."
            )
        replace_file(path, json.dumps(settings, indent=2))

    def run(self) -> None:
        """Runs all stages in order."""
        for stage in ("samples", "rollouts"):
            with self.timed(stage):
                self.collect(stage)
        for count, seed in enumerate(self.scale.seeds, start=1):
            for objective in self.objectives:
                with self.timed("training"):
                    self.train(objective, seed)
                with self.timed("scoring"):
                    self.score(objective, seed)
            with self.timed("comparison"):
                self.compare(self.scale.seeds[:count])

    @contextmanager
    def timed(self, stage: str):
        """Adds the seconds of a stage to `costs.json`, also if the stage ends with an error."""
        started = time.monotonic()
        try:
            yield
        finally:
            path = self.output / "costs.json"
            costs = json.loads(path.read_text()) if path.exists() else {}
            costs[stage] = round(costs.get(stage, 0.0) + time.monotonic() - started, 1)
            replace_file(path, json.dumps(costs, indent=2))

    def collect(self, stage: str) -> RolloutDataset:
        """Collects `rollouts` of training questions with continuations, or `samples` of test questions without."""
        scale, arguments, is_train = self.scale, self.arguments, stage == "rollouts"
        source, config, split = (
            (arguments.train_data, arguments.dataset_config, "train")
            if is_train
            else (arguments.test_data, arguments.dataset_config, "test")
        )
        is_file = Path(source).expanduser().exists()
        questions = rollouts.load_questions(
            source,
            config_name=None if is_file else config,
            split="train" if is_file else split,
            max_questions=scale.train_questions if is_train else scale.test_questions,
        )
        folder = self.output / stage
        if self._is_complete(folder):
            return RolloutDataset(folder)
        return rollouts.collect_rollouts(
            questions,
            self.sampler(),
            folder,
            num_solutions=scale.num_solutions if is_train else scale.num_samples,
            num_continuations=scale.num_continuations if is_train else 0,
            splitter=SPLITTER,
            seed=0 if is_train else 1,
            chunk_size=scale.chunk_questions * (1 if is_train else 4),
        )

    def _is_complete(self, folder: Path) -> bool:
        try:
            dataset = RolloutDataset(folder)
        except FileNotFoundError:
            return False
        settings = dataset.settings
        return len(dataset) == settings.num_questions * settings.num_solutions and "summary" in dataset.manifest

    def sampler(self):
        """The policy, which is only loaded if there is something to sample."""
        arguments, settings = (
            self.arguments,
            {
                "temperature": self.arguments.temperature,
                "max_new_tokens": self.scale.max_new_tokens,
                "prompt_template": PROMPT,
            },
        )
        if arguments.backend == "vllm":
            return rollouts.VLLMSampler(arguments.policy, engine_kwargs={"dtype": arguments.dtype}, **settings)
        return rollouts.TransformersSampler.from_pretrained(
            arguments.policy,
            model_init_kwargs={"dtype": arguments.dtype},
            batch_size=arguments.batch_size or self.scale.batch_size,
            **settings,
        )

    def train(self, objective: str, seed: int) -> None:
        """Trains a reward model: a LoRA adapter on the weights of the policy or of `--reward_base`."""
        folder = self.model_folder(objective, seed)
        if (folder / "prm_format.json").exists():
            return
        from peft import LoraConfig

        on_cpu = not torch.accelerator.is_available()
        args = ERPRMConfig(
            str(folder.with_name(f"{folder.name}-training")),
            eta=self.objectives[objective],
            train_on_last_step_only=objective == OUTCOME,
            separator=self.arguments.separator,
            add_missing_tokens=True,
            splitter=SPLITTER,
            max_length=1024,
            # Long solutions are often wrong, so batches of one length would alternate between low and high labels.
            train_sampling_strategy="random",
            num_train_epochs=self.scale.num_train_epochs,
            per_device_train_batch_size=4 if on_cpu else 16,
            gradient_accumulation_steps=1,
            learning_rate=self.arguments.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            logging_steps=2,
            save_strategy="steps",
            save_steps=5 if on_cpu else 100,  # a killed run loses this many updates
            save_total_limit=1,
            report_to="none",
            bf16=self.arguments.dtype == "bfloat16",
            use_cpu=on_cpu,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": self.arguments.dtype},
            seed=seed,
        )
        trainer = ERPRMTrainer(
            self.arguments.reward_base or self.arguments.policy,
            args,
            train_dataset=RolloutDataset(self.output / "rollouts"),
            peft_config=LoraConfig(
                task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"
            ),
        )
        trainer.train(resume_from_checkpoint=any(Path(args.output_dir).glob("checkpoint-*")) or None)
        trainer.save_model()
        trainer.save_state()
        for checkpoint in Path(args.output_dir).glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        os.replace(args.output_dir, folder)  # the folder exists once the model is complete

    def score(self, objective: str, seed: int) -> list[list[list[float]]]:
        """
        Scores the steps of the test solutions, by question and solution. Writes after every 32 solutions.

        Solutions of questions whose solutions are all right or all wrong are not scored, because selection cannot
        change the result of these questions.
        """
        solutions = RolloutDataset(self.output / "samples").solutions()
        judged = [
            [JudgedSolution("", row.question, tuple(clean_steps(row.steps, SPLITTER)), -1) for row in question]
            for question in solutions
        ]
        is_mixed = [len({row.is_right for row in question}) == 2 for question in solutions]
        folder = self.model_folder(objective, seed)
        scores = score_judged(
            str(folder),
            [
                solution
                for question, mixed in zip(judged, is_mixed, strict=True)
                for solution in question
                if mixed and solution.steps
            ],
            folder / "scores",
            batch_size=8 if not torch.accelerator.is_available() else 64,
            chunk_size=32 if not torch.accelerator.is_available() else 1024,
        )
        return [[scores.get(solution, []) for solution in question] for question in judged]

    def model_folder(self, objective: str, seed: int) -> Path:
        """The folder of a reward model."""
        name = "outcome" if objective == OUTCOME else f"eta-{self.objectives[objective]:g}"
        return self.output / f"erprm-{name}-seed-{seed}"

    def compare(self, seeds: Sequence[int]) -> None:
        """Writes and prints the table, the curves and the page for the models of these seeds."""
        samples = RolloutDataset(self.output / "samples")
        solutions = samples.solutions()
        ns = [2**power for power in range(self.scale.num_samples.bit_length()) if 2**power <= self.scale.num_samples]
        scores = {objective: [self.score(objective, seed) for seed in seeds] for objective in self.objectives}
        with rollouts.Grader(samples.settings.grading) as grader:
            curves = mean_curves(solutions, scores, ns, grader.equivalent)
        first_seed = {objective: by_seed[0] for objective, by_seed in scores.items()}
        folder = make_folder(self.output / "comparison")
        replace_file(folder / "curves.json", json.dumps(curves, indent=2))
        replace_file(self.output / "samples" / "step_scores.json", json.dumps(first_seed))
        report.plot_selection_curves(curves, folder / "best_of_n.png", title=f"{len(solutions)} test questions")
        table = "\n".join(results_table(solutions, scores, max(ns), curves))
        costs = json.loads((self.output / "costs.json").read_text())
        about = [
            f"`{' '.join(['python', *sys.argv])}`",
            "",
            f"Scale: `{dataclasses.asdict(self.scale)}`",
            "",
            table,
            "",
            "| stage | seconds |",
            "|---|---|",
            *(f"| {stage} | {seconds:.0f} |" for stage, seconds in costs.items()),
        ]
        replace_file(self.output / "results.md", "\n".join(about) + "\n")
        print("\n".join(about))
        print(f"\n{self.output / 'results.md'}  {report.write_report(self.output, title='GSM8K')}")


def per_question(solutions, by_seed: Sequence, method: str, ns: Sequence[int]) -> np.ndarray:
    """Best-of-n accuracy of every seed's model, of shape (seeds, questions, ns)."""
    correct = [[float(row.is_right) for row in question] for question in solutions]
    return np.stack(
        [
            best_of_n_per_question([rank_solutions(question, method) for question in scores], correct, ns)
            for scores in by_seed
        ]
    )


def mean_curves(solutions, scores, ns, equivalent) -> dict:
    """The curves of `selection_curves`, with best-of-n and AUC averaged over the seeds of each objective."""
    num_seeds = len(next(iter(scores.values())))
    of_seed = [
        selection.selection_curves(
            solutions,
            {objective: by_seed[index] for objective, by_seed in scores.items()},
            ns,
            equivalent=equivalent,
            num_subsets=200,
        )
        for index in range(num_seeds)
    ]
    curves = of_seed[0]
    for objective, by_seed in scores.items():
        for method in AGGREGATIONS:
            accuracy_QN = per_question(solutions, by_seed, method, ns).mean(axis=0)
            aucs = [seed_curves["models"][objective][method]["auc_within_questions"] for seed_curves in of_seed]
            curves["models"][objective][method] = {
                "best_of_n": {n: point(accuracy_QN[:, column]) for column, n in enumerate(ns)},
                "auc_within_questions": None if None in aucs else sum(aucs) / len(aucs),
            }
    return curves


def point(values_Q: np.ndarray) -> dict[str, float]:
    """Mean over questions with its bootstrap interval."""
    low, high = selection.bootstrap_interval(values_Q)
    return {"mean": float(values_Q.mean()), "low": low, "high": high}


def results_table(solutions, scores, n: int, curves) -> list[str]:
    """The best-of-n accuracy of every objective, and its differences to eta = 0, paired by question and by seed."""
    first = next(iter(scores))
    shown = "{mean:.3f} [{low:.3f}, {high:.3f}]".format
    lines = [
        f"pass@1 {shown(**curves['pass'][1])}, majority@{n} {shown(**curves['majority'][n])}, "
        f"pass@{n} {shown(**curves['pass'][n])}; {len(solutions)} questions, {len(scores[first])} seeds",
        "",
        f"| labels | best of {n} by min | minus {first} (paired by question) | minus {first} (over seeds) | "
        f"by last | by product | by mean | AUC within questions (min) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    reference_SQ = per_question(solutions, scores[first], "min", [n])[:, :, 0]
    for objective, by_seed in scores.items():
        accuracy_SQ = per_question(solutions, by_seed, "min", [n])[:, :, 0]
        low, high = selection.paired_bootstrap_interval(accuracy_SQ.mean(0), reference_SQ.mean(0))
        difference_S = (accuracy_SQ - reference_SQ).mean(1)
        by_method = curves["models"][objective]
        auc = by_method["min"]["auc_within_questions"]
        cells = [
            objective,
            shown(**by_method["min"]["best_of_n"][n]),
            f"{difference_S.mean():+.3f} [{low:+.3f}, {high:+.3f}]",
            over_seeds(difference_S),
            *(f"{by_method[method]['best_of_n'][n]['mean']:.3f}" for method in AGGREGATIONS[1:]),
            "n/a" if auc is None else f"{auc:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def over_seeds(values_S: np.ndarray) -> str:
    """Mean over seeds with the half-width of its 95% t-interval."""
    mean, half_width = interval(values_S.tolist())
    return f"{mean:+.3f} (one seed)" if math.isnan(half_width) else f"{mean:+.3f} ± {half_width:.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, required=True)
    parser.add_argument("--policy", required=True, help="Folder or Hub id of the policy.")
    parser.add_argument("--output", type=Path, required=True, help="Output folder of the experiment.")
    parser.add_argument("--reward_base", help="Base model of the reward models. Defaults to the policy.")
    parser.add_argument("--train_data", default="openai/gsm8k", help="Hub id or file of the training questions.")
    parser.add_argument("--test_data", default="openai/gsm8k", help="Hub id or file of the test questions.")
    parser.add_argument("--dataset_config", default="main", help="Configuration of the Hub dataset.")
    parser.add_argument("--dtype", default="bfloat16", help="Dtype of the policy and the reward models.")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument(
        "--separator", default="<|step|>", help="Text after each step. It is added if it is not one token."
    )
    parser.add_argument("--backend", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--batch_size", type=int, help="Sequences sampled at a time. Defaults to the scale's.")
    parser.add_argument("--threads", type=int, help="Number of PyTorch threads on a CPU.")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    Experiment(SCALES[arguments.scale], arguments).run()


if __name__ == "__main__":
    main()
