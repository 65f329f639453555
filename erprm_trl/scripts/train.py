"""Trains a process reward model on rollouts, on a dataset with step labels, or on a mixture of both.

erprm train --recipe dial
erprm train --recipe dial/train_mixture
erprm train --recipe qwen2.5-math-1.5b-gsm8k --eta inf --accelerate_config zero2 --num_processes 8
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import trl

import erprm_trl

from .. import scripts
from ..io import local_path
from ..io.counts import counted
from ..rollouts.shards import MANIFEST
from .console import stage
from .outcome import first_and_last, print_outcome
from .scoring import load_scorer
from .training import model_options, save


METRICS = {
    "loss": "training loss",
    "auc": "AUC on the training steps",
    "eval_loss": "evaluation loss",
    "eval_auc": "AUC on the evaluation steps",
    "eval_auc_within_questions": "the same within questions",
}


@dataclass
class MixtureSource:
    """
    A source of a mixture, as an entry of `mixture` or `eval_mixture` in a YAML file.

    Args:
        path (`str`):
            Rollout folder, or a source of labelled steps: a Hub id, a file, a folder, or `package.module:function`.
        eta, weight, name (*optional*):
            See [`~erprm_trl.LabelledSource`].
        config (`str`, *optional*):
            Configuration of a Hub dataset.
        split (`str`, *optional*, defaults to `"train"`):
            Split of the labelled steps.
    """

    path: str
    eta: float | None = None
    weight: float | None = None
    name: str | None = None
    config: str | None = None
    split: str = "train"

    def load(self) -> "erprm_trl.LabelledSource":
        """The source with its data."""
        data, name = self.path, self.name
        if not Path(local_path(data), MANIFEST).is_file():
            data = erprm_trl.load_labelled_steps(self.path, config_name=self.config, split=self.split)
            name = name or Path(self.path).name.partition(".")[0]
        eta = None if self.eta is None else float(self.eta)  # YAML reads `inf` as a text
        return erprm_trl.LabelledSource(data, eta=eta, weight=self.weight, name=name)


@dataclass
class DataArguments:
    """The labelled steps."""

    EVALUATION_DATA: ClassVar = ("eval_rollouts", "eval_dataset_name", "dataset_test_split", "eval_mixture")

    rollouts: str | None = field(default=None, metadata={"help": "Rollout folder, labelled at --eta."})
    eval_rollouts: str | None = field(
        default=None, metadata={"help": "Rollout folder of other questions, for evaluation."}
    )
    agree_with: str | None = field(
        default=None,
        metadata={
            "help": "Scorer that must find the same first error as the continuations, or else a solution is left "
            "out: a folder, Hub id, scoring server or scorer file."
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Source of labelled steps instead of rollouts: a Hub id, a file, a folder, or "
            "package.module:function."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset, e.g. main."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split with the training data."})
    dataset_test_split: str | None = field(default=None, metadata={"help": "Split with the evaluation data."})
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Whether to stream the dataset. It needs --max_steps."}
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Source of the evaluation data, if it is another dataset."}
    )
    mixture: list[MixtureSource] = field(
        default_factory=list,
        metadata={
            "help": "Several sources of training data: paths, or in a YAML file a list of mappings with path and "
            "optionally eta, weight, name, config and split."
        },
    )
    eval_mixture: list[MixtureSource] = field(
        default_factory=list,
        metadata={"help": "Several sources of evaluation data, in the same form. Each is evaluated separately."},
    )
    resume: bool = field(default=False, metadata={"help": "Whether to resume from the last checkpoint in output_dir."})

    def __post_init__(self):
        self.mixture = _sources("mixture", self.mixture)
        self.eval_mixture = _sources("eval_mixture", self.eval_mixture)
        training = {name: getattr(self, name) for name in ("rollouts", "dataset_name", "mixture")}
        if sum(bool(value) for value in training.values()) != 1:
            shown = ", ".join(f"{name}={value!r}" for name, value in training.items())
            raise ValueError(
                f"Training data: got {shown}, expected exactly one of --rollouts, --dataset_name and mixture."
            )
        named = {"dataset_test_split": self.dataset_test_split} if self.eval_dataset_name is None else {}
        named |= {name: getattr(self, name) for name in ("eval_rollouts", "eval_dataset_name", "eval_mixture")}
        named = {name: value for name, value in named.items() if value}
        if len(named) > 1:
            shown = " and ".join(f"{name}={value!r}" for name, value in named.items())
            raise ValueError(
                f"Evaluation data: got {shown}, expected one of them. Name several sources in eval_mixture."
            )
        if "dataset_test_split" in named and self.dataset_name is None:
            raise ValueError(
                f"dataset_test_split: got {self.dataset_test_split!r} without --dataset_name and --eval_dataset_name, "
                "expected the dataset of this split. Pass --eval_dataset_name DATASET."
            )

    def evaluation(self) -> Any:
        """The evaluation data, `None` if none is named."""
        if self.eval_mixture:
            return [source.load() for source in self.eval_mixture]
        if self.eval_dataset_name is None and self.dataset_test_split is None:
            return self.eval_rollouts
        name, split = self.eval_dataset_name or self.dataset_name, self.dataset_test_split or "train"
        return erprm_trl.load_labelled_steps(name, config_name=self.dataset_config, split=split)


def metrics(eval_dataset: Any) -> dict[str, str]:
    """Titles of the metrics in the table at the end. Each of several evaluation sources has its own."""
    if not isinstance(eval_dataset, Mapping):
        return METRICS
    names = {name: title for name, title in METRICS.items() if not name.startswith("eval_")}
    for source in eval_dataset:
        for name, title in METRICS.items():
            if name.startswith("eval_"):
                names[f"eval_{source}_{name.removeprefix('eval_')}"] = f"{title}, {source}"
    return names


def left_out(counts: Mapping[str, Any]) -> list[str]:
    """
    The training data that was not used, in sentences.

    Args:
        counts (`Mapping`):
            `trainer.data_counts["train"]`, empty for a stream.
    """
    lines = []
    for name, own in (counts.get("sources") or {"": counts}).items():
        of_source = f" of {name}" if name else ""
        labels = own.get("labels") or {"dropped": {}}
        if labels["dropped"]:
            solutions = f"{sum(labels['dropped'].values()):,} of {counted(labels['solutions'], 'solution')}{of_source}"
            lines.append(f"The label options left out {solutions}: {_reasons(labels['dropped'])}.")
        if dropped := own.get("dropped_rows"):
            rows = counted(sum(dropped.values()), f"row{of_source} was", f"rows{of_source} were")
            lines.append(f"{rows} dropped: {_reasons(dropped)}.")
    return lines


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} with {reason}" for reason, count in sorted(dropped.items()))


def _sources(option: str, entries: list[Any]) -> list[MixtureSource]:
    """The entries of a mixture. An entry of a YAML file is a path, or a mapping with the fields of a source."""
    known = {entry.name for entry in fields(MixtureSource)}
    sources = []
    for index, entry in enumerate(entries):
        if isinstance(entry, str):
            entry = {"path": entry}
        if isinstance(entry, dict):
            if "path" not in entry or not entry.keys() <= known:
                raise ValueError(
                    f"{option}[{index}]: got the keys {sorted(map(str, entry))}, expected path and some of "
                    f"{', '.join(sorted(known - {'path'}))}. Correct the entry."
                )
            entry = MixtureSource(**entry)
        sources.append(entry)
    return sources


def main(data: DataArguments, training: "erprm_trl.ERPRMConfig", model: "trl.ModelConfig") -> "erprm_trl.ERPRMTrainer":
    """Trains a reward model and saves it."""
    stage("Loading the training data and the model")
    train_dataset = data.rollouts
    if data.dataset_name is not None:
        train_dataset = erprm_trl.load_labelled_steps(
            data.dataset_name,
            config_name=data.dataset_config,
            split=data.dataset_train_split,
            streaming=data.dataset_streaming,
        )
    if data.mixture:
        train_dataset = [source.load() for source in data.mixture]
    judge = None if data.agree_with is None else load_scorer(data.agree_with, training.per_device_eval_batch_size)
    trainer = erprm_trl.ERPRMTrainer(
        train_dataset=train_dataset,
        eval_dataset=data.evaluation(),
        agree_with=judge,
        **model_options(model, training),
    )
    scripts.show_training(trainer, "Training the reward model")
    trainer.train(resume_from_checkpoint=data.resume or None)
    save(trainer)
    print_outcome(
        f"The reward model was saved in {training.output_dir} after {counted(trainer.state.global_step, 'update')}.",
        *left_out(trainer.data_counts.get("train", {})),
        *first_and_last(trainer.state.log_history, metrics(trainer.eval_dataset)),
        next_command=f"erprm score --reward_model {training.output_dir} --dataset_name SOLUTIONS.jsonl "
        "--output_dir SCORES",
    )
    return trainer
