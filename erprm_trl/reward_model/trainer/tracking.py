"""Logs the labels, the calibration and scored solutions of a reward model's training to the trackers."""

import logging
from typing import Any

from datasets import IterableDataset
from torch import Tensor

from ...training.tracking.coloured_steps import ColouredSteps, solutions_table
from ...training.tracking.figures import label_histogram, reliability_diagram
from ...training.tracking.training_tracker import TrainingTracker
from ..collator import unpacked
from .fast_paths import missing_fast_paths
from .metrics import StepRecords
from .packed_dataset import unpacked_dataset


logger = logging.getLogger(__name__)


class ERPRMTracking:
    """
    Logs the options for speed that are off, `labels/by_position` and `labels/all` when a training run starts, and
    `calibration/eval` and `solutions/eval` at each evaluation. With several evaluation sets, the name of the set
    replaces `eval`.

    Args:
        trainer ([`ERPRMTrainer`]):
            The trainer to log for.
        manifests (`dict[str, dict]`):
            Manifest of each dataset that was made from rollouts, by the name of the dataset.
    """

    def __init__(self, trainer, manifests: dict[str, dict]):
        self._trainer, self._manifests = trainer, manifests
        self._tracker = TrainingTracker(trainer, self._manifest, self._at_start)
        self._solutions: list[tuple[str, ColouredSteps]] = []
        self.throughput = self._tracker.throughput

    def keep_solutions(self, inputs: dict[str, Tensor], table: Tensor) -> None:
        """
        Keeps the first solutions of an evaluation, from the first batches of the main process.

        Args:
            inputs (`dict[str, torch.Tensor]`):
                Batch of this process, see [`DataCollatorForStepLabels`].
            table (`torch.Tensor`):
                Scores, labels and losses of shape (B, 3, S).
        """
        args = self._trainer.args
        missing = args.num_logged_solutions - len(self._solutions)
        if missing <= 0 or not args.report_to or not self._trainer.is_world_process_zero():
            return
        decode = self._trainer.processing_class.decode
        prm_format = self._trainer.prm_format
        before, after = prm_format.render_prompt("\0", self._trainer.processing_class.bos_token).split("\0")
        between, separator = prm_format.between_steps.strip(), prm_format.separator.strip()
        for row in range(min(missing, len(inputs["rows"]))):
            ids, ends = unpacked(inputs, row)
            start = int(inputs["prompt_lengths"][row])
            starts = [start, *(end + 1 for end in ends[:-1])]
            steps = [decode(ids[first : end + 1]).strip() for first, end in zip(starts, ends, strict=True)]
            steps = [step.removeprefix(between).removesuffix(separator).strip() for step in steps]
            scores, labels = (table[row, column, : len(ends)].tolist() for column in (0, 1))
            question = decode(ids[:start]).strip().removeprefix(before.strip()).removesuffix(after.strip()).strip()
            self._solutions.append((question, ColouredSteps(steps, scores, labels)))

    def forget_solutions(self) -> None:
        """Discards the kept solutions after a prediction, so that an evaluation does not log them."""
        self._solutions = []

    def log_evaluation(self, name: str, records: StepRecords) -> None:
        """Logs the calibration and the kept solutions of the evaluation set `name`, and discards the solutions."""
        trackers, step = self._tracker.trackers, self._trainer.state.global_step
        trackers.figure(
            f"calibration/{name}", lambda: reliability_diagram(*records.steps()[:2], f"calibration, {name}"), step
        )
        shown, self._solutions = self._solutions, []
        if shown:
            trackers.table(f"solutions/{name}", lambda: solutions_table(*zip(*shown, strict=True)), step)

    def _at_start(self) -> None:
        trainer = self._trainer
        on_gpu = trainer.accelerator.device.type == "cuda"
        missing = missing_fast_paths(trainer.model, trainer.args, on_gpu)
        if missing and trainer.is_world_process_zero():
            logger.info("Options for speed that are off: %s. See docs/scaling.md.", ", ".join(missing))
        self._log_labels()

    def _log_labels(self) -> None:
        trackers, step = self._tracker.trackers, self._trainer.state.global_step
        if isinstance(self._trainer.train_dataset, IterableDataset):  # the labels of a stream are not known yet
            return
        labels = unpacked_dataset(self._trainer.train_dataset)["step_labels"]
        trackers.figure("labels/by_position", lambda: label_histogram(labels[:], "labels of the training steps"), step)
        trackers.histogram("labels/all", lambda: [label for row in labels[:] for label in row], step)

    def _manifest(self) -> dict[str, Any]:
        return {"counts": self._trainer.data_counts, "rollouts": self._manifests}
