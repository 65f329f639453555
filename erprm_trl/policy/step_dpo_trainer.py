"""DPO on pairs of solutions or of single steps, with checkpoints that survive a crash."""

from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import DataCollator, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer

from .._trl import get_config_model_id
from ..training.checkpoints import CrashSafeCheckpoints
from ..training.nonfinite import StopOnNonFinite
from .trainer_arguments import policy_model


if TYPE_CHECKING:
    from datasets import IterableDataset
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig, EvalPrediction


class StepDPOTrainer(StopOnNonFinite, CrashSafeCheckpoints, DPOTrainer):
    """
    [`~trl.DPOTrainer`] for the pairs of [`~erprm_trl.selection.preference_pairs`].

    It differs from [`~trl.DPOTrainer`] in three points. No EOS token follows a step in the middle of a solution
    ([`without_end_tokens`]). A run that was killed at any moment resumes from its newest complete checkpoint, and
    makes the same updates as an uninterrupted run. Non-finite losses, gradients and weights stop the training.

    Args:
        model (`str` or `Path` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy that sampled the solutions. If it is the folder or Hub id of a saved adapter, the training of the
            adapter continues.
        ref_model, args, data_collator, train_dataset, eval_dataset, processing_class, compute_metrics, callbacks,
        optimizers, quantization_config, peft_config (*optional*):
            As in [`~trl.DPOTrainer`].

    Raises:
        `ValueError`: for pairs of steps with `precompute_ref_log_probs=True`, or if a saved adapter is combined with a
            `peft_config`.

    Example:

    ```python
    >>> from erprm_trl import preference_pairs
    >>> from erprm_trl.policy import StepDPOTrainer

    >>> pairs = preference_pairs("outputs/rollouts", level="step", completion="step", pairs_per_question=4)
    >>> trainer = StepDPOTrainer("Qwen/Qwen2.5-Math-1.5B-Instruct", train_dataset=pairs)
    >>> trainer.train()
    ```
    """

    _tag_names = ["trl", "erprm-trl", "dpo"]

    def __init__(
        self,
        model: "str | PathLike | PreTrainedModel | PeftModel",
        ref_model: PreTrainedModel | None = None,
        args: DPOConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: "Dataset | IterableDataset | None" = None,
        eval_dataset: "Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None" = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: "Callable[[EvalPrediction], dict] | None" = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
    ):
        if args is None:
            name = str(model) if isinstance(model, (str, PathLike)) else get_config_model_id(model.config)
            args = DPOConfig(f"{name.rstrip('/').rpartition('/')[2]}-DPO")
        model, processing_class, quantization_config = policy_model(
            model,
            args,
            subject=type(self).__name__,
            processing_class=processing_class,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self.train_dataset = without_end_tokens(self.train_dataset)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: without_end_tokens(dataset) for name, dataset in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = without_end_tokens(self.eval_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns the loss of [`~trl.DPOTrainer`]. A non-finite loss is an error."""
        outcome = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._checked_loss(outcome[0] if return_outputs else outcome)
        return outcome


def without_end_tokens(dataset: "Dataset | IterableDataset") -> "Dataset | IterableDataset":
    """
    Removes the EOS token from completions that do not end a solution.

    [`~trl.DPOTrainer`] adds an EOS token to every completion. After a step in the middle of a solution, it would teach
    the policy to stop there. With [`~trl.DPOTrainer`], apply this function to the datasets that the trainer has
    prepared: `trainer.train_dataset = without_end_tokens(trainer.train_dataset)`.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Dataset that the trainer has tokenized, with the columns `chosen_ids` and `rejected_ids`. Without the
            columns `chosen_ends` and `rejected_ends`, it is returned unchanged.

    Returns:
        The dataset with shorter `chosen_ids` and `rejected_ids`.

    Raises:
        `ValueError`: if the dataset holds log-probabilities of the reference model, which were computed with the EOS
            token.
    """
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if "chosen_ends" not in columns:
        return dataset
    if "ref_chosen_logps" in columns:
        raise ValueError(
            "Pairs of steps: got log-probabilities of the reference model, expected none, because they were computed "
            "with the EOS tokens that are removed here. Set precompute_ref_log_probs=False."
        )
    return dataset.map(_shortened)


def _shortened(row: dict[str, Any]) -> dict[str, list[int]]:
    return {
        f"{name}_ids": row[f"{name}_ids"] if row[f"{name}_ends"] else row[f"{name}_ids"][:-1]
        for name in ("chosen", "rejected")
    }
