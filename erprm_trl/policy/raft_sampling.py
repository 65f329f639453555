"""The half of a RAFT round that does not train: solutions from the policy as it is now, their scores, and the picks.

All processes take part, and find the same rows: the first process writes what they read. The other half is
`raft_trainer.py`'s.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer

from ..reward_model.finite_training import not_finite
from ..reward_model.scoring import solution_scores
from ..rollouts.collect import collect_rollouts
from ..rollouts.questions import Question
from ..rollouts.sampling import Prompt
from .live_policy import LivePolicy
from .raft_rounds import (
    RoundFolder,
    accuracy_metrics,
    pick_row,
    pick_solutions,
    questions_of_round,
    read_rows,
    round_metrics,
    round_seed,
    write_rows,
)
from .raft_scores import score_rows, unusable_reasons
from .reward_function import first_not_finite


class RoundSampling:
    """
    What a trainer samples and picks.

    Args:
        trainer ([`RAFTTrainer`]):
            The trainer, with its scorer and prompt format.
        policy ([`LivePolicy`]):
            Its policy.
    """

    def __init__(self, trainer: Trainer, policy: LivePolicy):
        self.trainer = trainer
        self.policy = policy

    def pick(self, folder: RoundFolder, questions: Sequence[Question], step: int) -> None:
        """
        Samples, scores and picks, as far as the folder does not hold it yet.

        Args:
            folder ([`RoundFolder`]):
                The round.
            questions (`Sequence[Question]`):
                All questions of the run; the round's are chosen from them.
            step (`int`):
                Updates made in earlier rounds.

        Raises:
            `FloatingPointError`: if the reward model gives a score that is not finite.
        """
        args, scorer, accelerator = self.trainer.args, self.trainer.scorer, self.trainer.accelerator
        some = questions_of_round(questions, folder.index, args.questions_per_round, args.seed)
        rows = self.sample(folder.samples, some, args.num_generations, round_seed(args.seed, folder.index, "samples"))
        for row in rows:
            row["prompt_ids"] = self.trainer.prompt_format.encode(Prompt(row["question"]))
        unusable = unusable_reasons(rows, args.max_length)
        if folder.scores.exists():
            step_scores = [entry["step_scores"] for entry in read_rows(folder.scores)]
        else:
            step_scores = score_rows(rows, unusable, scorer, accelerator)
            if (bad := first_not_finite(step_scores)) is not None:
                what = f"round {folder.index}, the reward model's score of step {bad[1]} of solution {bad[0]}"
                raise not_finite(what, bad[2], step, getattr(scorer, "model", None), accelerator)
        if accelerator.is_main_process:
            write_rows(folder.scores, [{"step_scores": scores} for scores in step_scores])
            self._keep_best(folder, rows, step_scores, unusable)
        accelerator.wait_for_everyone()

    def _keep_best(
        self,
        folder: RoundFolder,
        rows: list[dict[str, Any]],
        step_scores: list[list[float]],
        unusable: list[str | None],
    ) -> None:
        args = self.trainer.args
        scores = solution_scores(step_scores, args.aggregation or self.trainer.scorer.prm_format.aggregation)
        for index, score in enumerate(scores):
            if unusable[index] is None and score is None:
                unusable[index] = "too_long_for_reward_model"
        kept, dropped = pick_solutions(
            rows,
            scores,
            unusable,
            top_k=args.top_k,
            score_threshold=args.score_threshold,
            drop_uniform=self.trainer.drop_uniform,
            deduplicate=args.deduplicate,
        )
        write_rows(folder.picks, [pick_row(rows[index], scores[index]) for index in kept])
        metrics = round_metrics(rows, scores, kept, dropped)
        folder.add(kept=len(kept), dropped=dropped, metrics={f"raft/{key}": metrics[key] for key in metrics})

    def sample(
        self, path: Path, questions: list[Question], num_solutions: int, seed: int, **settings: float
    ) -> list[dict[str, Any]]:
        """
        Solutions of the policy as it is now, graded where there are answers; those that `path` holds are kept.

        Args:
            path (`Path`), questions (`list[Question]`), num_solutions (`int`), seed (`int`):
                See [`collect_rollouts`].
            settings (`float`):
                `temperature` and `top_p`, where they are not the trainer's.

        Returns:
            `list[dict]`: rows of their own, to which the round adds prompts.
        """
        args = self.trainer.args
        self.trainer._check_weights()  # nothing can be sampled from weights that are not finite
        with self.policy.sampler(**settings) as sampler:
            rollouts = collect_rollouts(
                questions,
                sampler,
                path,
                num_solutions=num_solutions,
                num_continuations=0,
                splitter=self.trainer.scorer.prm_format.splitter,
                grading=None if questions[0].answer is None else args.grading,
                answer_pattern=args.answer_pattern,
                seed=seed,
                chunk_size=args.chunk_size,
                store_token_ids=True,
                show_progress=not args.disable_tqdm,
            )
        return list(rollouts)

    def accuracy(self, path: Path, questions: list[Question], prefix: str) -> dict[str, float]:
        """Metrics of new samples at temperature 1, `num_generations_eval` a question."""
        args = self.trainer.args
        seed = round_seed(args.seed, 0, "evaluation")
        rows = self.sample(path, questions, args.num_generations_eval, seed, temperature=1.0, top_p=1.0)
        return accuracy_metrics(rows, prefix)
