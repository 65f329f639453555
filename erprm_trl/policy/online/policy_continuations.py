"""Scores the completions of a step trainer by graded continuations of the policy that it trains.

The trainer's own generation engine continues the tokens that it sampled: vLLM if it is used, else the model. The
prefixes of all processes are divided among them, because engines with sharded weights need all processes to generate
equally often.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from accelerate.utils import gather_object

from ...reward_model.scoring.eta import scores_at_eta
from ...reward_model.scoring.monte_carlo import eta_of_scores
from ...reward_model.scoring.trained_policy import OwnCompletion, OwnPrefix
from ...rollouts.reference_answers import reference_text
from ...rollouts.sampling.base import Completion
from ..completions import completion_text


METRICS = ("prefixes", "continuations", "tokens", "unfinished")


class _Job(NamedTuple):
    """A prefix to continue, with its place in the call of its process."""

    process: int
    index: int
    prefix: OwnPrefix


class PolicyContinuations:
    """
    The policy of a step trainer, as [`MonteCarloScorer`] samples from it.

    It logs `monte_carlo/prefixes`, `monte_carlo/continuations`, `monte_carlo/tokens`, `monte_carlo/seconds`,
    `monte_carlo/per_prefix` and `monte_carlo/unfinished_share` for each batch of generations of all processes.

    Args:
        trainer ([`StepTrainer`]):
            The constructed trainer, whose `step_reward` has the sampler `"policy"`.

    Raises:
        `ValueError`: if the trainer has no answers, tools, an environment or an output grammar, or if the scores
            cannot be read at the trainer's eta.
    """

    def __init__(self, trainer):
        self._trainer, self._scorer = trainer, trainer.step_reward.scorer
        subject = f"{type(trainer).__name__}: got MonteCarloScorer('policy')"
        if trainer.answer_reward is None:
            raise ValueError(
                f"{subject} without answers, expected the column {trainer.args.answer_column!r} in the training "
                "dataset, because continuations are graded. Set answer_column to the column of the answers."
            )
        refused = {
            "tools": trainer.tools,
            "environment_factory": trainer.environment_factories,
            "rollout_func": trainer.rollout_func,
            "vllm_structured_outputs_regex": trainer.args.use_vllm and trainer.args.vllm_structured_outputs_regex,
        }
        for name, value in refused.items():
            if value:
                raise ValueError(
                    f"{subject} together with {name}, expected completions that the policy writes alone, because a "
                    "continuation begins in the middle of a completion. Use a reward model instead."
                )
        method = trainer.answer_reward.grader.method
        if self._scorer.eta is not None and eta_of_scores(method, 0.0) is None:
            raise ValueError(
                f"{subject} with a grading function and eta={self._scorer.eta}, expected grading='math' or 'exact', "
                "because other rewards may not be 0 or 1. Set MonteCarloScorer('policy', grading, eta=...), and "
                "beta instead of eta in the trainer's configuration."
            )

    def score(
        self,
        prompts: list,
        completions: list,
        completion_ids: list[list[int]],
        token_ends: Sequence[list[int] | None],
        columns: dict[str, Any],
    ) -> list[list[float]]:
        """
        Scores the steps of this process's completions. All processes call it together.

        Args:
            prompts, completions, completion_ids, columns:
                As TRL passes them to a reward function.
            token_ends (`Sequence[list[int]]`):
                Index of each step's last token. `None` for a completion whose steps have no tokens of their own.

        Returns:
            `list[list[float]]`: the scores of each completion. Empty without steps or without an answer.
        """
        started = time.monotonic()
        prompt_ids, images, _ = self._trainer._tokenize_prompts(prompts)  # seam
        if images is not None:
            raise ValueError(
                "MonteCarloScorer('policy'): got prompts with images, expected texts. Use a reward model instead."
            )
        column = self._trainer.answer_reward.answer_column
        answers = [reference_text(answer, f"{column}[{row}]") for row, answer in enumerate(columns[column])]
        own = [
            OwnCompletion(
                [OwnPrefix(tuple(prompt), tuple(ids[: end + 1])) for end in ends[:-1]], completion_text(text), answer
            )
            if ends and answer is not None
            else None
            for prompt, text, ids, ends, answer in zip(
                prompt_ids, completions, completion_ids, token_ends, answers, strict=True
            )
        ]
        before = self._scorer.backend.costs
        scores = self._scorer.backend.score_completions(own, self)
        after = self._scorer.backend.costs
        self._log({name: after[name] - before[name] for name in METRICS}, time.monotonic() - started)
        if self._scorer.eta is not None:
            scores = scores_at_eta(scores, self._scorer.trained_eta, self._scorer.eta)
        return scores

    def total(self, count: int) -> int:
        """The sum of a number over all processes."""
        return sum(gather_object([count]))

    def grade(self, texts: list[str], answers: list[str]) -> list[float]:
        """Grades texts as the trainer grades its completions."""
        return self._trainer.answer_reward.grader.grade(texts, answers)

    def continue_prefixes(self, prefixes: Sequence[OwnPrefix], num_samples: int) -> list[list[Completion]]:
        """Samples continuations with the current weights. The text of a completion begins with the prefix."""
        accelerator = self._trainer.accelerator
        world, rank = accelerator.num_processes, accelerator.process_index
        jobs = [
            _Job(process, index, prefix)
            for process, those in enumerate(gather_object([list(prefixes)]))
            for index, prefix in enumerate(those)
        ]
        if not jobs:
            return []
        # Prefixes of similar length are generated together, because they have the same room for a continuation.
        jobs.sort(key=lambda job: -len(job.prefix.token_ids))
        share = jobs[rank::world]
        # All processes generate for the same number of prefixes. The results of the additional ones are not used.
        filled = share + [jobs[0]] * (-(-len(jobs) // world) - len(share))
        samples = self._generate([job.prefix for job in filled], num_samples)
        own: list[list[Completion]] = [[] for _ in prefixes]
        done = [(job.process, job.index, completions) for job, completions in zip(share, samples, strict=False)]
        for part in gather_object([done]):
            for process, index, completions in part:
                if process == rank:
                    own[index] = completions
        return own

    def _generate(self, prefixes: Sequence[OwnPrefix], num_samples: int) -> list[list[Completion]]:
        trainer, args = self._trainer, self._trainer.args
        size = len(prefixes)
        if not (trainer.use_vllm or trainer.use_transformers_continuous_batching):
            # As many sequences at once as in the trainer's own generation, so that the memory suffices
            sequences = args.per_device_eval_batch_size
            if trainer.model.training:
                sequences = args.per_device_train_batch_size * args.steps_per_generation
            size = max(1, sequences // num_samples)
        samples: list[list[Completion]] = []
        for start in range(0, len(prefixes), size):
            part = prefixes[start : start + size]
            rooms = [max(1, trainer.max_completion_length - len(prefix.token_ids)) for prefix in part]
            asked = [[*prefix.prompt_ids, *prefix.token_ids] for prefix in part for _ in range(num_samples)]
            with self._at_most(max(rooms)):
                generated, _ = trainer._generate_single_turn(asked, None, {}, num_samples)  # seam
            for row, (prefix, room) in enumerate(zip(part, rooms, strict=True)):
                those = generated[row * num_samples : (row + 1) * num_samples]
                samples.append([self._completion(prefix, list(ids), room) for ids in those])
        return samples

    def _completion(self, prefix: OwnPrefix, ids: list[int], room: int) -> Completion:
        # Tokens beyond the trainer's limit are cut off, as from the trainer's own completions. They count as sampled.
        kept = ids[:room]
        text = self._trainer._tokenizer.decode([*prefix.token_ids, *kept], skip_special_tokens=True)
        finished = bool(kept) and kept[-1] in self._trainer.eos_token_ids
        return Completion(text, finished, len(ids))

    @contextmanager
    def _at_most(self, num_tokens: int) -> Iterator[None]:
        """Limits the trainer's generation in this context."""
        trainer = self._trainer
        owner, name = (
            (trainer.vllm_generation, "max_completion_length")
            if trainer.use_vllm
            else (trainer.generation_config, "max_new_tokens")
        )
        usual = getattr(owner, name)
        setattr(owner, name, num_tokens)
        try:
            yield
        finally:
            setattr(owner, name, usual)

    def _log(self, costs: dict[str, int], seconds: float) -> None:
        everyone = gather_object([(costs, seconds)])
        totals = {name: sum(each[name] for each, _ in everyone) for name in METRICS}
        metrics = self._trainer.metrics_of_mode
        sampled, unfinished = totals["continuations"], totals.pop("unfinished")
        for name, value in totals.items():
            metrics[f"monte_carlo/{name}"].append(float(value))
        metrics["monte_carlo/seconds"].append(max(each for _, each in everyone))
        metrics["monte_carlo/per_prefix"].append(sampled / max(1, totals["prefixes"]))
        metrics["monte_carlo/unfinished_share"].append(unfinished / max(1, sampled))
