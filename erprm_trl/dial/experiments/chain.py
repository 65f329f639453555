"""All stages up to best-of-N on the embedded task: collect rollouts, label them at several eta, train reward models,
score solutions and select answers. The quickstart and the benchmarks run it."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...io.atomic_files import replace_file
from ...reward_model import ERPRMConfig, ERPRMTrainer, PRMFormat, StepScorer
from ...reward_model.prm_format import FORMAT_FILE
from ...rollouts import RolloutDataset, TransformersSampler, collect_rollouts, load_questions
from ...scripts import console
from ...scripts.progress import show_training
from ...selection import score_rollouts, selection_curves
from .. import BASE_PATH
from ..task import ANSWER_PATTERN, SEPARATOR, make_questions
from ..tokenizer import BAD_MARK, GOOD_MARK


BASE = "base, not trained"
OUTCOME = "outcome only"
TEST_SEED = 1_000_003  # of the test questions; far from every training seed
FORMAT = PRMFormat(
    separator=SEPARATOR,
    good_token=GOOD_MARK,
    bad_token=BAD_MARK,
    prompt_template="check {question}",
    splitter=SEPARATOR,
)


@dataclass
class DialChain:
    """
    The stages and their sizes.

    Args:
        output_dir (`str`):
            Output folder. Rollouts are in `rollouts/`, the solutions of the test questions with their step scores in
            `samples/`, and reward models in `erprm-eta-0/` and so on.
        train_questions (`int`, *optional*, defaults to `400`):
            Number of questions to collect rollouts for.
        num_solutions (`int`, *optional*, defaults to `2`):
            Number of solutions per training question.
        num_continuations (`int`, *optional*, defaults to `8`):
            Number of continuations per prefix.
        test_questions (`int`, *optional*, defaults to `200`):
            Number of test questions.
        num_samples (`int`, *optional*, defaults to `16`):
            Number of solutions per test question to select from.
        etas (`list[float]`, *optional*, defaults to `[0.0, 2.0, 8.0, inf]`):
            Values of eta, with one reward model each. One more reward model is trained on outcomes alone.
        max_steps (`int`, *optional*, defaults to `100`):
            Number of training steps per reward model, with batches of 64 solutions.
        learning_rate (`float`, *optional*, defaults to `3e-4`):
            Learning rate of the reward models.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the training questions, the rollouts and the reward models. The test questions and their solutions
            are the same for every seed.
        policy (`str`, *optional*):
            Policy that samples, and base of the reward models. Defaults to the shipped policy.
        moves (`tuple[int, int]`, *optional*, defaults to `(3, 7)`):
            Minimum and maximum number of moves per question.
    """

    output_dir: str
    train_questions: int = 400
    num_solutions: int = 2
    num_continuations: int = 8
    test_questions: int = 200
    num_samples: int = 16
    etas: list[float] = field(default_factory=lambda: [0.0, 2.0, 8.0, math.inf])
    max_steps: int = 100
    learning_rate: float = 3e-4
    seed: int = 0
    policy: str = BASE_PATH
    moves: tuple[int, int] = (3, 7)

    def run(self) -> dict[str, Any]:
        """Runs all stages and returns the curves of [`~erprm_trl.selection.selection_curves`]."""
        console.stage(
            f"Rollouts of {self.train_questions} questions: {self.num_solutions} solutions per question, "
            f"{self.num_continuations} continuations per prefix"
        )
        rollouts = self.collect(
            "rollouts", self.train_questions, self.seed, self.num_solutions, self.num_continuations
        )
        console.stage(f"Solutions of {self.test_questions} other questions: {self.num_samples} per question")
        samples = self.collect("samples", self.test_questions, TEST_SEED, self.num_samples, 0)
        console.stage("Scoring the solutions with the base model")
        base = StepScorer.from_pretrained(self.policy, prm_format=FORMAT, batch_size=256)
        scores = {BASE: score_rollouts(base, samples)}
        for eta in self.etas:
            scores[f"eta = {eta:g}"] = score_rollouts(self.train(rollouts, eta=eta), samples)
        scores[OUTCOME] = score_rollouts(self.train(rollouts, eta=0.0, train_on_last_step_only=True), samples)
        replace_file(Path(self.output_dir, "samples", "step_scores.json"), json.dumps(scores))
        ns = [2**power for power in range(self.num_samples.bit_length()) if 2**power <= self.num_samples]
        return selection_curves(samples.solutions(), scores, ns)

    def collect(
        self, name: str, num_questions: int, seed: int, num_solutions: int, num_continuations: int
    ) -> RolloutDataset:
        """Samples and grades solutions and their continuations with the policy."""
        return collect_rollouts(
            load_questions(make_questions(num_questions, seed, *self.moves)),
            TransformersSampler.from_pretrained(
                self.policy, max_new_tokens=max(64, 16 + 7 * self.moves[1]), batch_size=256
            ),
            Path(self.output_dir, name),
            num_solutions=num_solutions,
            num_continuations=num_continuations,
            splitter=SEPARATOR,
            grading="exact",
            answer_pattern=ANSWER_PATTERN,
            seed=seed,
            chunk_size=25,
        )

    def train_once(self, eta: float, num_questions: int | None = None) -> str:
        """Folder of the reward model of an eta. It is trained if it does not exist, on the rollouts of `num_questions`
        questions (default: `train_questions`)."""
        folder = Path(self.output_dir, f"erprm-eta-{eta:g}")
        if not (folder / FORMAT_FILE).exists():
            num_questions = self.train_questions if num_questions is None else num_questions
            rollouts = self.collect("rollouts", num_questions, self.seed, self.num_solutions, self.num_continuations)
            self.train(rollouts, eta=eta)
        return str(folder)

    def train(self, rollouts: RolloutDataset, **labels: Any) -> StepScorer:
        """Trains a reward model from the policy and saves it."""
        outcome = labels.get("train_on_last_step_only", False)
        name = "outcome" if outcome else f"eta-{labels['eta']:g}"
        console.stage(f"Reward model, {OUTCOME if outcome else 'eta = ' + format(labels['eta'], 'g')}")
        args = ERPRMConfig(
            str(Path(self.output_dir, f"erprm-{name}")),
            **{
                key: getattr(FORMAT, key)
                for key in ("separator", "good_token", "bad_token", "prompt_template", "splitter")
            },
            **labels,
            max_steps=self.max_steps,
            per_device_train_batch_size=64,
            learning_rate=self.learning_rate,
            warmup_steps=10,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=torch.accelerator.is_available(),
            seed=self.seed,
        )
        trainer = ERPRMTrainer(self.policy, args, train_dataset=rollouts)
        show_training(trainer)
        trainer.train()
        trainer.save_model()
        trainer.save_state()
        return StepScorer(trainer.model, trainer.processing_class, trainer.prm_format, batch_size=256)


def summarize(curves: dict[str, Any]) -> dict[str, Any]:
    """
    Summarizes a run in a few numbers.

    Args:
        curves (`dict`):
            From [`DialChain.run`].

    Returns:
        `dict`: `pass@1`, `pass@N`, `majority@N`, `best_of_N` (accuracy by eta and aggregation), `baselines` (the same
        for the base model and the model trained on outcomes alone), `auc_within_questions` (by eta and aggregation)
        and `gap_closed`, the share of the distance from pass@1 to pass@N that the best model and aggregation gains.
    """
    n = max(curves["pass"])
    models = curves["models"]
    best = {
        name: {method: values["best_of_n"][n]["mean"] for method, values in methods.items()}
        for name, methods in models.items()
    }
    by_eta = {
        name.removeprefix("eta = "): accuracies for name, accuracies in best.items() if name.startswith("eta = ")
    }
    lowest, highest = curves["pass"][1]["mean"], curves["pass"][n]["mean"]
    top = max(accuracy for accuracies in by_eta.values() for accuracy in accuracies.values())
    return {
        "pass@1": lowest,
        f"pass@{n}": highest,
        f"majority@{n}": curves["majority"][n]["mean"],
        f"best_of_{n}": by_eta,
        "baselines": {name: best[name] for name in (BASE, OUTCOME)},
        "auc_within_questions": {
            name.removeprefix("eta = "): {method: values["auc_within_questions"] for method, values in methods.items()}
            for name, methods in models.items()
        },
        "gap_closed": (top - lowest) / (highest - lowest),
    }
