"""The paper's experiment on the real model and GSM8K, with its stages cut to the time that there is.

The settings are those of `--scale gpu`, with fewer test questions. The collection ends when its share of the time is
used, and the reward models are trained on the rollouts that exist by then. One seed is completed after the other.
"""

import dataclasses
import time
from argparse import Namespace
from typing import Any

from gsm8k_experiment import SCALES, Experiment

from erprm_trl import RolloutDataset
from erprm_trl.rollouts import Prompt

from .records import Stage


# A share of the time for the samples, and for samples and rollouts together
ENDS = {"samples": 0.25, "rollouts": 0.5}
RESERVE = 10.0  # seconds for the comparison


class OutOfTime(Exception):
    """The time of a part of the stage is over."""


class TimedExperiment(Experiment):
    """
    An [`Experiment`] that records what each part took, and that leaves out the parts for which there is no time.

    Args:
        stage ([`Stage`]):
            The stage.
    """

    def __init__(self, stage: Stage):
        self.stage, self.tokens, self.longest = stage, 0, 0.0
        scale = (
            dataclasses.replace(SCALES["smoke"], max_new_tokens=64, chunk_questions=2)
            if stage.rehearse
            else dataclasses.replace(SCALES["gpu"], test_questions=200, batch_size=2048, chunk_questions=32)
        )
        arguments = Namespace(
            policy=str(stage.model),
            output=stage.work / "gsm8k",
            reward_base=None,
            train_data=str(stage.train_data),
            test_data=str(stage.test_data),
            dataset_config="main",
            dtype="float32" if stage.rehearse else "bfloat16",
            temperature=0.7,
            learning_rate=5e-5,
            separator=stage.separator,
            backend="transformers",
            batch_size=None,
        )
        super().__init__(scale, arguments)

    def collect(self, stage: str) -> RolloutDataset:
        """Collects until the time of this part is over."""
        self._end = self.stage.started + ENDS[stage] * self.stage.limit
        started, self.tokens, is_cut = time.monotonic(), 0, False
        try:
            rollouts = super().collect(stage)
        except OutOfTime:
            rollouts, is_cut = RolloutDataset(self.output / stage), True
        seconds = time.monotonic() - started
        continued = sum(len(rewards) > 0 for row in rollouts for rewards in row.prefix_rewards)
        self.stage.record(
            "collection", name=stage, seconds=seconds, solutions=len(rollouts), labels=continued,
            tokens_per_second=self.tokens / seconds, labels_per_hour=3600 * continued / seconds, is_cut=is_cut,
        )  # fmt: skip
        return rollouts

    def sampler(self):
        """The policy. It begins no chunk after the time of the collection, and counts tokens."""
        sampler = super().sampler()
        sample = sampler.sample

        def sample_in_time(prompts: list[Prompt], *args: Any, **options: Any):
            if self.tokens and time.monotonic() > self._end and not prompts[0].prefix:
                raise OutOfTime
            samples = sample(prompts, *args, **options)
            self.tokens += sum(completion.num_tokens for completions in samples for completion in completions)
            return samples

        sampler.sample = sample_in_time
        return sampler

    def train(self, objective: str, seed: int) -> None:
        """Trains a reward model, if there is time for it and its scores."""
        if self.stage.seconds_left < RESERVE + 1.2 * self.longest:
            raise OutOfTime
        self._begin = time.monotonic()
        super().train(objective, seed)

    def score(self, objective: str, seed: int):
        """Scores the test solutions, and records the time of the first call."""
        started = time.monotonic()
        is_new = not (self.model_folder(objective, seed) / "scores").exists()
        scores = super().score(objective, seed)
        if is_new:
            now = time.monotonic()
            self.longest = max(self.longest, now - self._begin)
            scored = sum(len(steps) > 0 for question in scores for steps in question)
            self.stage.record(
                "reward model", objective=objective, seed=seed, training_seconds=started - self._begin,
                scoring_seconds=now - started, scored=scored,
            )  # fmt: skip
        return scores

    def compare(self, seeds) -> None:
        """Compares the models, and records the table."""
        super().compare(seeds)
        text = (self.output / "results.md").read_text(encoding="utf-8")
        table = text.split("\n\n")
        self.stage.record("comparison", seeds=len(seeds), headline=table[2], table=table[3])


def run(stage: Stage) -> None:
    """Runs the experiment until the time is over."""
    experiment = TimedExperiment(stage)
    try:
        experiment.run()
    except OutOfTime:
        stage.record("note", text="no time for another reward model")
