"""Trains a process reward model on soft step labels, with the constructor and the conventions of TRL's trainers."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import EvalPrediction

from ..._trl import BaseTrainer, get_config_model_id
from ...functional.step_losses import soft_step_cross_entropy, step_log_odds
from ...rollouts.dataset import RolloutDataset
from ...training.checkpoints import CrashSafeCheckpoints
from ...training.nonfinite import StopOnNonFinite
from ..collator import DataCollatorForStepLabels, check_packing
from ..step_logits import step_logits
from .erprm_config import ERPRMConfig
from .metrics import StepRecords
from .model_setup import longest_text, prepare_model
from .preprocessing import check_encoded_labels, encode_examples
from .tracking import ERPRMTracking


if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig

CITATION = """@article{zhang2025entropy,
    title  = {{Entropy-Regularized Process Reward Model}}, author = {Hanning Zhang and Pengcheng Wang and Shizhe Diao
    and Yong Lin and Rui Pan and Hanze Dong and Dylan Zhang and
              Pavlo Molchanov and Tong Zhang},
    year   = 2025,
    eprint = {arXiv:2412.11006}
}"""


class ERPRMTrainer(StopOnNonFinite, CrashSafeCheckpoints, BaseTrainer):
    """
    Trainer for Entropy-Regularized Process Reward Models (ER-PRM) and, with other labels, for any soft- or hard-label
    PRM.

    Example:

    ```python
    >>> from erprm_trl import ERPRMConfig, ERPRMTrainer

    >>> trainer = ERPRMTrainer(
    ...     model="Qwen/Qwen2.5-Math-1.5B",
    ...     args=ERPRMConfig("my-erprm", eta=2.0),
    ...     train_dataset="outputs/rollouts",
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A model id, a folder, or a model: causal language model for `head="lm"`, token classification with one
            label for `head="token"`. A string is loaded in `float32` unless `args.model_init_kwargs` says otherwise.
        args ([`ERPRMConfig`], *optional*):
            Configuration. Defaults to `ERPRMConfig("<model>-ERPRM")`.
        data_collator (`Callable`, *optional*):
            Defaults to [`DataCollatorForStepLabels`]. Labels are checked in the dataset, once: a collator of your own
            must keep them in [0, 1].
        train_dataset ([`~datasets.Dataset`], [`RolloutDataset`] or `str`):
            Labelled steps in a form of [`to_stepwise`], or rollouts (a folder or the dataset), labelled at `args.eta`.
        eval_dataset (the same, or a `dict` of them, *optional*):
            Dataset for evaluation.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. Defaults to the model's own.
        compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics (*optional*):
            As in [`~transformers.Trainer`].
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Used when `model` is a string.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Trains an adapter.

    Raises:
        `ValueError`: for data that cannot be used (row, column and remedy are named), or a separator or token that is
        not one id. `TypeError`: for a dataset or PEFT configuration of another type. `FloatingPointError`, while
        training or evaluating: if a loss, gradient or weight is not finite.
    """

    loss_is_scaled_for_ga = True

    _tag_names = ["trl", "erprm-trl", "process-reward-model"]
    _name = "ER-PRM"
    _paper = {"title": "Entropy-Regularized Process Reward Model", "id": "2412.11006", "citation": CITATION}

    def __init__(
        self,
        model: "str | PreTrainedModel",
        args: ERPRMConfig | None = None,
        data_collator: Callable | None = None,
        train_dataset: "Dataset | RolloutDataset | str | None" = None,
        eval_dataset: "Dataset | RolloutDataset | str | dict[str, Any] | None" = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = ERPRMConfig(f"{name.rstrip('/').split('/')[-1]}-ERPRM")
        if train_dataset is None:
            raise ValueError("`train_dataset` is required")
        model, processing_class, self.prm_format = prepare_model(
            model, args, processing_class, quantization_config, peft_config
        )
        self.format_token_ids = self.prm_format.token_ids(processing_class)
        self._max_length = longest_text(model, args.max_length)
        self.data_counts: dict[str, dict] = {}
        self._manifests: dict[str, dict] = {}
        train_dataset = self._prepare_dataset(train_dataset, processing_class, args, "train")
        if isinstance(eval_dataset, dict):
            eval_dataset = {
                key: self._prepare_dataset(dataset, processing_class, args, key)
                for key, dataset in eval_dataset.items()
            }
        elif eval_dataset is not None:
            eval_dataset = self._prepare_dataset(eval_dataset, processing_class, args, "eval")
        if data_collator is None:
            data_collator = DataCollatorForStepLabels(
                processing_class.pad_token_id, args.pad_to_multiple_of, args.packing
            )

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if args.n_gpu > 1:
            raise ValueError(
                f"ERPRMTrainer: got {args.n_gpu} GPUs visible to one process, expected one. Launch with `accelerate "
                "launch` or `torchrun`, or make one GPU visible with CUDA_VISIBLE_DEVICES."
            )
        # Evaluation calls compute_loss only if the model can return a loss and there are no label columns.
        self.can_return_loss = True
        self.label_names = []
        self._records = {"train": StepRecords(), "eval": StepRecords()}
        self._num_tokens: int | None = None
        self._packing_checked = False
        self._tracking = ERPRMTracking(self, self._manifests)
        self.model.add_model_tags(self._tag_names)

    def _prepare_dataset(self, dataset, processing_class, args: ERPRMConfig, name: str) -> Dataset:
        if isinstance(dataset, str):
            dataset = RolloutDataset(dataset)
        if isinstance(dataset, RolloutDataset):
            self._manifests[name] = dataset.manifest
            dataset = dataset.labels(args.eta, args.label_estimator)
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"The {name} dataset is a {type(dataset).__name__}, expected a datasets.Dataset, a RolloutDataset or "
                "a rollout folder. Turn a streaming dataset into one with Dataset.from_generator or .take(n)."
            )
        if {"input_ids", "step_positions", "step_labels"}.issubset(dataset.column_names):
            check_encoded_labels(dataset, name)
            return dataset
        encoded, self.data_counts[name] = encode_examples(
            dataset,
            processing_class,
            self.prm_format,
            name=name,
            max_length=self._max_length,
            last_step_only=args.train_on_last_step_only,
            invalid_rows=args.invalid_rows,
            label_weighting=args.label_weighting if name == "train" else "none",
            num_proc=args.dataset_num_proc,
        )
        return encoded

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = [
                "input_ids", "step_positions", "step_labels", "step_weights", "question_id", "prompt_length", "length",
            ]  # fmt: skip

    def evaluate(self, eval_dataset=None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"):
        """Evaluates; `eval_dataset` may have any form that the constructor accepts."""
        if isinstance(eval_dataset, dict):
            eval_dataset = {
                key: self._prepare_dataset(dataset, self.processing_class, self.args, key)
                for key, dataset in eval_dataset.items()
            }
        elif eval_dataset is not None and not (isinstance(eval_dataset, str) and isinstance(self.eval_dataset, dict)):
            # With several evaluation sets a string is the name of one that is already prepared.
            eval_dataset = self._prepare_dataset(eval_dataset, self.processing_class, self.args, "eval")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of an update, and the number of labelled steps in them over all processes, by which the loss is
        divided."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        num_steps = torch.tensor(sum(int(batch["step_mask"].sum()) for batch in batches), device=device)
        return batches, self.accelerator.gather(num_steps).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean soft cross-entropy over the labelled steps of the whole update, whatever the number of processes and
        batches."""
        mask = inputs["step_mask"]
        logits = self._step_logits(model, inputs)
        losses = soft_step_cross_entropy(logits, inputs["step_labels"][mask], reduction="none")
        weighted = losses * inputs["step_weights"][mask] if "step_weights" in inputs else losses
        if num_items_in_batch is None:
            loss = weighted.sum() / max(1, len(weighted))  # rows of an evaluation may have no labels
        else:
            # Gradients are averaged over processes: times their number, so that the sum is divided by the global count
            # once.
            loss = weighted.sum() / num_items_in_batch.clamp(min=1) * self.accelerator.num_processes
        if self.model.training:
            self._tracking.throughput.count(inputs["lengths"])  # the head computes two columns alone
        self._record(inputs, logits, losses)
        self._checked_loss(loss)
        if self.args.packing and not self._packing_checked:
            check_packing(inputs, lambda batch: self._step_logits(model, batch))
            self._packing_checked = True
        return (loss, {"logits": logits}) if return_outputs else loss

    def _step_logits(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return step_logits(
            model,
            self.prm_format.head,
            self.format_token_ids,
            inputs["input_ids"],
            inputs.get("attention_mask"),
            inputs["step_positions"],
            inputs["step_mask"],
            unwrapped=self.accelerator.unwrap_model(model),
            rows=inputs["rows"],
            position_ids=inputs.get("position_ids"),
        )

    @torch.no_grad()
    def _record(self, inputs: dict[str, torch.Tensor], logits: torch.Tensor, losses: torch.Tensor) -> None:
        mask = inputs["step_mask"]
        table = torch.full((3, *mask.shape), torch.nan, device=mask.device)
        table[0, mask], table[1, mask], table[2, mask] = (
            step_log_odds(logits.detach()).sigmoid(),
            inputs["step_labels"][mask],
            losses.detach(),
        )
        # (B, 3, S): rows can then be gathered, and the copies that fill an uneven last batch left out.
        table = self.accelerator.pad_across_processes(table.transpose(0, 1).contiguous(), dim=2, pad_index=torch.nan)
        gathered = self.accelerator.gather_for_metrics((table, inputs["question_ids"], inputs["lengths"]))
        self._records["train" if self.model.training else "eval"].add(*gathered)
        if not self.model.training:
            self._tracking.keep_solutions(inputs, table)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the step metrics gathered since the last log."""
        mode = "train" if self.model.training else "eval"
        records = self._records[mode]
        evaluated = None
        if len(records):
            metrics = records.metrics()
            num_tokens = metrics.pop("num_tokens")
            loss = metrics.pop("loss", None)
            if mode == "eval":
                if loss is None:
                    raise ValueError("The evaluation dataset has no labelled step, expected at least one.")
                # One prefix for each evaluation set; the exact mean over steps replaces the mean over batches.
                prefix = next((key.removesuffix("loss") for key in logs if key.endswith("_loss")), "eval_")
                logs.update({f"{prefix}{key}": value for key, value in metrics.items()})
                logs[f"{prefix}loss"] = loss
                evaluated = prefix.rstrip("_")
            else:
                logs.update(metrics)
                logs["num_tokens"] = self._num_tokens = self._tokens_before() + num_tokens
        if mode == "train" and "loss" in logs:
            logs.update(self._tracking.throughput.metrics())
        super().log(logs, start_time)
        if evaluated is not None:
            self._tracking.log_evaluation(evaluated, records)
        records.clear()

    def _tokens_before(self) -> int:
        if self._num_tokens is None:  # after a resume the count goes on
            counts = [entry["num_tokens"] for entry in self.state.log_history if "num_tokens" in entry]
            self._num_tokens = int(counts[-1]) if counts else 0
        return self._num_tokens

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Saves the model, its tokenizer, the format and the model card."""
        super().save_model(output_dir, _internal_call=_internal_call)
        if self.args.should_save:
            self.prm_format.save(output_dir or self.args.output_dir)

    def _save_checkpoint(self, model, trial):
        name = self.args.hub_model_id or Path(self.args.output_dir).name
        self.create_model_card(model_name=name.split("/")[-1])
        super()._save_checkpoint(model, trial)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ):
        """Writes `README.md`: the format, eta, counts of the data and how to score with the model."""
        if not self.is_world_process_zero():
            return
        base_model = get_config_model_id(self.model.config)
        if not base_model or Path(base_model).is_dir():
            base_model = None
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        card = ModelCard.from_template(
            ModelCardData(
                base_model=base_model,
                datasets=dataset_name,
                library_name="transformers",
                model_name=model_name,
                tags=["generated_from_trainer", *self._tag_names, *tags],
            ),
            template_path=str(Path(__file__).with_name("model_card.md")),
            base_model=base_model,
            model_name=model_name,
            model_id=self.hub_model_id or model_name,
            labels_from_rollouts="train" in self._manifests,
            args=self.args,
            prm_format=self.prm_format,
            data_counts=self.data_counts,
            paper=self._paper,
            shown=repr,
        )
        card.save(Path(self.args.output_dir) / "README.md")
