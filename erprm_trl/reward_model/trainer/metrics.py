"""Collects the scores, labels and losses of steps between two logs and computes their metrics. Also pads the logits of
steps for `compute_metrics`."""

import math

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import pad

from ...functional.score_metrics import auc, auc_within_groups, brier_score, expected_calibration_error
from ..collator import LABEL_PADDING


MAX_POSITIONS = 10  # number of steps whose mean scores are logged, because means of later steps are noisy


class StepRecords:
    """
    Scores, labels and losses of steps: one table (B, 3, S) per batch, with NaN where a solution has no step.

    The tables stay on the device until the metrics are computed, and are copied to the host together.
    """

    def __init__(self):
        self._tables: list[Tensor] = []
        self._counts: list[Tensor] = []  # question ids and numbers of tokens, (B, 2)

    def __len__(self) -> int:
        return len(self._tables)

    def add(self, table: Tensor, question_ids: Tensor, num_tokens: Tensor) -> None:
        """Adds a batch: `table` (B, 3, S) of scores, labels and losses, `question_ids` (B,) and `num_tokens` (B,)."""
        self._tables.append(table)
        self._counts.append(torch.stack([question_ids, num_tokens], dim=1))

    def clear(self) -> None:
        """Removes all batches."""
        self._tables.clear()
        self._counts.clear()

    def gather(self, accelerator: Accelerator) -> None:
        """Adds the batches of the other processes. All processes must call it, with at least one batch each."""
        self._merge()
        if accelerator.num_processes > 1:
            table = accelerator.pad_across_processes(self._tables[0], dim=2, pad_index=torch.nan)
            table = accelerator.gather(accelerator.pad_across_processes(table.contiguous(), pad_index=torch.nan))
            counts = accelerator.gather(accelerator.pad_across_processes(self._counts[0], pad_index=-1))
            is_real = counts[:, 1] >= 0
            self._tables, self._counts = [table[is_real]], [counts[is_real]]

    def _merge(self) -> None:
        """Makes one batch of all batches."""
        width = max(table.shape[2] for table in self._tables)
        padded = [pad(table, (0, width - table.shape[2]), value=torch.nan) for table in self._tables]
        self._tables, self._counts = [torch.cat(padded)], [torch.cat(self._counts)]

    def metrics(self) -> dict[str, float]:
        """
        Metrics over all added steps: `loss`, `brier`, `mae`, `accuracy` (score and label are on the same side of 0.5),
        `auc` and `auc_within_questions` (labels above 0.5 are positive), `ece`, `score/step_1` ... and `num_tokens`.
        Undefined metrics are left out, such as an AUC with only one class, or all metrics if there is no step.
        """
        scores, labels, losses, groups, positions = self.steps()
        num_tokens = {"num_tokens": int(self._counts[0][:, 1].sum())}
        if not len(scores):
            return num_tokens
        good = labels > 0.5
        metrics = {
            "loss": losses.mean(),
            "brier": brier_score(scores, labels),
            "mae": (scores - labels).abs().mean(),
            "accuracy": ((scores > 0.5) == good).float().mean(),
            "auc": auc(scores, good),
            "auc_within_questions": auc_within_groups(scores, good, groups),
            "ece": expected_calibration_error(scores, labels),
        }
        for position in range(min(int(positions.max()) + 1, MAX_POSITIONS)):
            metrics[f"score/step_{position + 1}"] = scores[positions == position].mean()
        values = {name: float(value) for name, value in metrics.items()}
        values = {name: value for name, value in values.items() if not math.isnan(value) or name == "loss"}
        return {**values, **num_tokens}

    def steps(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The score, label, loss, question id and position of all added steps, as flat tensors on the CPU."""
        self._merge()
        self._tables, self._counts = [self._tables[0].cpu()], [self._counts[0].cpu()]
        table, question_ids = self._tables[0], self._counts[0][:, :1]
        present = ~table[:, 1].isnan()
        scores, labels, losses = (table[:, index][present] for index in range(3))
        positions = torch.arange(table.shape[2]).expand_as(present)[present]
        return scores, labels, losses, question_ids.expand_as(present)[present], positions


def padded_logits(logits: Tensor, step_mask: Tensor) -> Tensor:
    """
    Pads the logits of steps for `compute_metrics` and `predict`, in the columns of a classifier with two classes.

    Args:
        logits (`torch.Tensor`):
            Logits of shape (number of steps, 2) as (good, bad), or of shape (number of steps, 1).
        step_mask (`torch.Tensor`):
            Mask of shape (B, S), True at real steps.

    Returns:
        `torch.Tensor`: logits of shape (B, S, 2) as (bad, good), -100 where there is no step. A single logit becomes
        (0, logit), so that a softmax over the two columns gives the score.
    """
    columns = torch.cat([torch.zeros_like(logits), logits], dim=-1) if logits.shape[-1] == 1 else logits.flip(-1)
    padded = columns.new_full((*step_mask.shape, 2), LABEL_PADDING)
    padded[step_mask] = columns
    return padded
