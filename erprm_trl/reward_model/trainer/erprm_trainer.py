"""Trains a process reward model on soft step labels, with the constructor and conventions of TRL's trainers."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalPrediction, PredictionOutput

from ..._trl import BaseTrainer, get_config_model_id
from ...functional.step_losses import smoothed_labels, soft_step_cross_entropy, step_log_odds
from ...io.paths import local_path
from ...rollouts.dataset import RolloutDataset
from ...training.arguments import as_config
from ...training.checkpoints import CrashSafeCheckpoints
from ...training.nonfinite import StopOnNonFinite
from ..attention import uses_flash_attention
from ..collator import (
    PACKED,
    VARIABLE_LENGTH,
    DataCollatorForStepLabels,
    check_packing,
    num_own_rows,
    padding_id,
    with_step_index,
)
from ..prm_format import PRMFormat
from ..step_logits import step_logits
from .data_setup import labels_eta, open_rollouts, prepare_dataset, rollouts_in
from .erprm_config import ERPRMConfig
from .metrics import StepRecords, padded_logits
from .mixture import LabelledSource, named_sources
from .model_setup import check_arguments, longest_text, prepare_model
from .reference_log_probs import ReferenceLogProbs, solution_rewards
from .tracking import ERPRMTracking


if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig

    from ...rollouts.label_options import Judge

TrainingData = Dataset | IterableDataset | RolloutDataset | LabelledSource | str | Path

CITATION = """@article{zhang2025entropy,
    title  = {{Entropy-Regularized Process Reward Model}},
    author = {Hanning Zhang and Pengcheng Wang and Shizhe Diao and Yong Lin and Rui Pan and Hanze Dong and
              Dylan Zhang and Pavlo Molchanov and Tong Zhang},
    year   = 2025,
    eprint = {arXiv:2412.11006}
}"""


class ERPRMTrainer(StopOnNonFinite, CrashSafeCheckpoints, BaseTrainer):
    """
    Trainer for Entropy-Regularized Process Reward Models (ER-PRM). It also trains any process reward model on other
    soft or hard step labels.

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
        model (`str`, `Path`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to train: a Hub id, a folder or a loaded model. `head="lm"` and `head="implicit"` need a causal
            language model, and `head="token"` a token classification model with one or two labels. A token
            classification model keeps its head if it has no saved format and `args` sets none. A saved adapter is
            loaded with its base model, and its training continues. A [`~peft.PeftModel`] must have trainable weights.
            A model from a path or id is loaded in `float32`, unless `args.model_init_kwargs` sets another dtype.
        args ([`ERPRMConfig`] or [`~transformers.TrainingArguments`], *optional*):
            Configuration. Defaults to `ERPRMConfig("<model>-ERPRM")`.
        data_collator (`Callable`, *optional*):
            Function that forms batches. Defaults to [`DataCollatorForStepLabels`]. Labels are checked only in the
            dataset, so a custom collator must keep them in [0, 1].
        train_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`], [`RolloutDataset`], `str` or `Path`):
            Dataset for training, in one of these forms:

            - Labelled steps in a form of [`to_stepwise`].
            - Token ids in the form of TRL's `PRMTrainer`: `input_ids`, and `labels` with -100 where no step ends.
            - Rollouts: a folder or a [`RolloutDataset`], labelled at `args.eta`.
            - A list of these, or of [`LabelledSource`], which sets the eta and the weight of a source.

            A streaming dataset is checked and encoded while it is read, and needs `args.max_steps`. It cannot be in a
            list.
        eval_dataset (the same, or a `dict` of them, *optional*):
            Dataset for evaluation. A streaming dataset is read into memory. Each dataset of a list or `dict` is
            evaluated separately, with its name in the metrics, such as `eval_<name>_auc`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. Defaults to the model's own tokenizer.
        compute_metrics (`Callable`, *optional*):
            As in [`~transformers.Trainer`]. It gets `predictions` of shape (B, S, 2) with the logits of a bad and of a
            good step, and `label_ids` of shape (B, S), for B solutions of up to S steps in the order of the dataset.
            Both are -100 where a solution has no step.
        callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics (*optional*):
            As in [`~transformers.Trainer`].
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantization to load the model with, if `model` is a string.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Configuration of a new adapter to train. It cannot be used with a model that already has an adapter.
        agree_with ([`StepScorer`] or any object with `score` and `model_name`, *optional*):
            Judge of the training rollouts, see [`~erprm_trl.rollouts.LabelOptions`].

    Raises:
        `ValueError`: for unusable data (the message names the row, the column and the fix), for a token of the format
            that the tokenizer does not know, or for a model without trainable weights.
        `FileNotFoundError`: if an adapter's base model has moved, or if a path holds no rollouts.
        `TypeError`: for arguments, a dataset or a PEFT configuration of a wrong type.
        `FloatingPointError`: during training or evaluation, if a loss, gradient or weight is not finite.
    """

    loss_is_scaled_for_ga = True

    _tag_names = ["trl", "erprm-trl", "process-reward-model"]
    _name = "ER-PRM"
    _paper = {"title": "Entropy-Regularized Process Reward Model", "id": "2412.11006", "citation": CITATION}

    def __init__(
        self,
        model: "str | Path | PreTrainedModel",
        args: ERPRMConfig | TrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: "TrainingData | list[TrainingData] | None" = None,
        eval_dataset: "TrainingData | list[TrainingData] | dict[str, TrainingData] | None" = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
        agree_with: "Judge | None" = None,
    ):
        check_arguments(model, data_collator)
        if isinstance(model, (str, os.PathLike)):
            model = local_path(model)
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = ERPRMConfig(f"{name.rstrip('/').split('/')[-1]}-ERPRM")
        else:
            args = as_config(args, ERPRMConfig, subject="ERPRMTrainer")
        if train_dataset is None:
            raise ValueError("`train_dataset` is required")
        if isinstance(train_dataset, IterableDataset):
            args.accelerator_config.dispatch_batches = False  # dispatched batches must have the same width
        if args.dataloader_pin_memory and args.device.type == "cuda":
            args.accelerator_config.non_blocking = True  # otherwise the GPU waits for the copy of each batch
        train_dataset, default_format = open_rollouts(train_dataset, "train"), None
        for rollouts in rollouts_in(train_dataset)[:1]:  # the model will score texts that are split in the same way
            default_format = PRMFormat(splitter=rollouts.settings.splitter, steps_of=rollouts.settings.steps_of)
        model, processing_class, self.prm_format = prepare_model(
            model, args, processing_class, quantization_config, peft_config, default_format
        )
        is_implicit = self.prm_format.head == "implicit"
        self.prm_format = self.prm_format.with_eta(
            None if is_implicit else labels_eta(train_dataset, args, agree_with)
        )
        self.format_token_ids = self.prm_format.token_ids(processing_class)
        self.data_counts: dict[str, dict] = {}
        self._manifests: dict[str, dict] = {}
        self._prepare = partial(
            prepare_dataset,
            tokenizer=processing_class,
            prm_format=self.prm_format,
            args=args,
            max_length=longest_text(model, args.max_length),
            reference=ReferenceLogProbs(
                model, self.prm_format, args, get_config_model_id(model.config), padding_id(processing_class)
            )
            if is_implicit
            else None,
            agree_with=agree_with,
        )
        train_dataset = self._prepare_dataset(train_dataset, "train", is_training=True)
        if eval_dataset is not None:
            eval_dataset = self._prepare_evaluation(eval_dataset)
        if data_collator is None:
            data_collator = DataCollatorForStepLabels(
                padding_id(processing_class), args.pad_to_multiple_of, args.packing, uses_flash_attention(model)
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
                "launch` or `torchrun`, or make only one GPU visible with CUDA_VISIBLE_DEVICES."
            )
        if args.packing and "inputs" in args.include_for_metrics:
            raise ValueError(
                "include_for_metrics: got 'inputs' with packing=True, which puts several solutions into a row, "
                "expected one solution per row. Set packing=False."
            )
        self.label_names = ["step_labels"]
        self._records = {"train": StepRecords(), "eval": StepRecords()}
        self._num_tokens: int | None = None
        self._packing_checked = False
        self._tracking = ERPRMTracking(self, self._manifests)
        self.model.add_model_tags(self._tag_names)

    def _prepare_dataset(self, dataset: Any, name: str, is_training: bool = False) -> Dataset | IterableDataset:
        prepared = self._prepare(dataset, name=name, is_training=is_training)
        if prepared.counts is not None:
            self.data_counts[name] = prepared.counts
        self._manifests.update(prepared.manifests)
        return prepared.examples

    def _prepare_evaluation(self, dataset: Any, name: str = "eval") -> Any:
        if isinstance(dataset, (list, tuple)):
            dataset = {source.name: source for source in named_sources(dataset, name)}
        if isinstance(dataset, dict):
            # An evaluation dataset named "train" must not overwrite the counts of the training dataset.
            names = {key: "eval_train" if key == "train" else key for key in dataset}
            return {key: self._prepare_dataset(part, names[key]) for key, part in dataset.items()}
        return self._prepare_dataset(dataset, name)

    def _set_signature_columns_if_needed(self):  # seam
        if self._signature_columns is None:
            self._signature_columns = [
                "input_ids", "step_positions", "step_labels", "step_weights", "question_id", "prompt_length", "length",
                "ref_logps", PACKED,
            ]  # fmt: skip

    def evaluate(self, eval_dataset=None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"):
        """Evaluates the model. `eval_dataset` may have any form that the constructor accepts."""
        # With several evaluation sets, a string is the name of a set that is already prepared.
        is_name = isinstance(eval_dataset, str) and isinstance(self.eval_dataset, dict)
        if eval_dataset is not None and not is_name:
            eval_dataset = self._prepare_evaluation(eval_dataset)
        self._forget_evaluation()  # removes the records of an interrupted evaluation
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """
        Predicts the step scores of a dataset.

        Args:
            test_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`], [`RolloutDataset`], `str` or `Path`):
                Labelled steps, in any form that the constructor accepts.
            ignore_keys, metric_key_prefix (*optional*):
                See [`~transformers.Trainer.predict`].

        Returns:
            [`~transformers.trainer_utils.PredictionOutput`]: `predictions` and `label_ids` in the form that
            `compute_metrics` gets, and `metrics`, which include the metrics of an evaluation.
        """
        self._forget_evaluation()
        output = super().predict(self._prepare_evaluation(test_dataset, "test"), ignore_keys, metric_key_prefix)
        records = self._records["eval"]
        metrics = records.metrics()
        del metrics["num_tokens"]
        self._forget_evaluation()
        output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in metrics.items()})
        return output

    def _forget_evaluation(self) -> None:
        self._records["eval"].clear()
        self._tracking.forget_solutions()

    def _get_eval_sampler(self, eval_dataset):  # seam
        return None  # keeps the dataset's order, so that row i of the predictions belongs to row i of the dataset

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Returns the batches of an update and their number of labelled steps over all processes. The loss is divided
        by this number."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [with_step_index(batch) for batch in batches]
        state = self.accelerator.gradient_state
        if batches and state.end_of_dataloader and state.remainder > 0:
            # The last batches of an epoch are filled with copies of its first rows, which the metrics leave out.
            batches[-1]["num_own_rows"] = num_own_rows(batches[-1], state.remainder, self.accelerator.process_index)
        # Filled on the device, because the device would wait for a copy from the host.
        num_steps = torch.full((), sum(len(batch["step_index"]) for batch in batches), device=device)
        return batches, self.accelerator.gather(num_steps).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns the mean soft cross-entropy over the labelled steps of the update. It does not depend on how the
        update is divided into processes and batches. The outputs hold `logits` in the form that `compute_metrics`
        gets."""
        inputs = with_step_index(inputs)
        index = inputs["step_index"]
        logits = self._step_logits(model, inputs)
        labels = inputs["step_labels"].flatten()[index]
        if self.model.training:
            labels = smoothed_labels(labels, self.args.label_smoothing_factor)
        losses = soft_step_cross_entropy(logits, labels, reduction="none")
        weighted = losses * inputs["step_weights"].flatten()[index] if "step_weights" in inputs else losses
        if num_items_in_batch is None:
            loss = weighted.sum() / max(1, len(weighted))  # evaluation rows may have no labels
        else:
            # DDP averages gradients over processes. The factor turns the average into a sum, which is divided once by
            # the number of steps over all processes.
            loss = weighted.sum() / num_items_in_batch.clamp(min=1) * self.accelerator.num_processes
        if self.model.training:
            # The other heads compute only one or two columns.
            head_tokens = inputs["lengths"] - inputs["prompt_lengths"] if "ref_logps" in inputs else None
            self._tracking.throughput.count(inputs["lengths"], head_tokens)
        self._record(inputs, logits, losses)
        self._checked_loss(loss)
        if self.args.packing and not self._packing_checked:
            check_packing(inputs, lambda batch: self._step_logits(model, batch))
            self._packing_checked = True
        return (loss, {"logits": padded_logits(logits, inputs["step_mask"])}) if return_outputs else loss

    def _step_logits(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.prm_format.head == "implicit":
            return solution_rewards(model, inputs, self.prm_format.beta, self.accelerator.unwrap_model(model))
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
            step_index=inputs.get("step_index"),
            attention_kwargs={name: inputs[name] for name in VARIABLE_LENGTH if name in inputs},
        )

    @torch.no_grad()
    def _record(self, inputs: dict[str, torch.Tensor], logits: torch.Tensor, losses: torch.Tensor) -> None:
        index, shape = inputs["step_index"], inputs["step_mask"].shape
        table = torch.full((3, shape.numel()), torch.nan, device=index.device)
        table[:, index] = torch.stack(
            [step_log_odds(logits.detach()).sigmoid(), inputs["step_labels"].flatten()[index], losses.detach()]
        )
        table = table.view(3, *shape).transpose(0, 1)  # rows first
        rows = (table, inputs["question_ids"], inputs["lengths"])
        if self.model.training:
            # Nothing is gathered over processes before the metrics are logged.
            own = inputs.get("num_own_rows")
            self._records["train"].add(*(values[:own] for values in rows))
            return
        table = self.accelerator.pad_across_processes(table.contiguous(), dim=2, pad_index=torch.nan)
        # Leaves out the copies that fill the last batch.
        self._records["eval"].add(*self.accelerator.gather_for_metrics((table, *rows[1:])))
        self._tracking.keep_solutions(inputs, table)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, and adds the step metrics that were recorded since the last log."""
        mode = "train" if self.model.training else "eval"
        records = self._records[mode]
        evaluated = None
        if len(records):
            if mode == "train":
                records.gather(self.accelerator)
            metrics = records.metrics()
            num_tokens = metrics.pop("num_tokens")
            loss = metrics.pop("loss", None)
            if mode == "eval":
                if loss is None:
                    raise ValueError(
                        "The evaluation dataset has no labelled step, expected at least one. Label its steps."
                    )
                # Every evaluation set has its own prefix. The mean over steps replaces the mean over batches.
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
        if self._num_tokens is None:  # a resumed run continues the count
            counts = [entry["num_tokens"] for entry in self.state.log_history if "num_tokens" in entry]
            self._num_tokens = int(counts[-1]) if counts else 0
        return self._num_tokens

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Saves the model, its tokenizer, its format and the model card."""
        super().save_model(output_dir, _internal_call=_internal_call)
        if self.args.should_save:
            self.prm_format.save(output_dir or self.args.output_dir)

    def _save_checkpoint(self, model, trial):  # seam
        name = self.args.hub_model_id or Path(self.args.output_dir).name
        self.create_model_card(model_name=name.split("/")[-1])
        super()._save_checkpoint(model, trial)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ):
        """Writes the model card `README.md`, with the usage, the labels, the size of the data, and the format."""
        if not self.is_world_process_zero():
            return
        model_name = model_name or Path(self.args.output_dir).name
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
            labels_from_rollouts=any(name.split("/")[0] == "train" for name in self._manifests),
            args=self.args,
            prm_format=self.prm_format,
            data_counts=self.data_counts,
            sources=self.data_counts.get("train", {}).get("sources"),
            paper=self._paper,
            shown=repr,
        )
        card.save(Path(self.args.output_dir) / "README.md")
