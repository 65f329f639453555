"""Trains a process reward model on rollouts, on a dataset with step labels, or on a mixture of both.

erprm train --recipe dial
erprm train --recipe dial/train_mixture
erprm train --recipe qwen2.5-math-1.5b-gsm8k --eta inf --accelerate_config zero2 --num_processes 8
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import trl

import erprm_trl

from .. import scripts
from ..io import local_path
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
        if self.eval_mixture and (self.eval_rollouts or self.eval_dataset_name or self.dataset_test_split):
            raise ValueError(
                "Evaluation data: got eval_mixture with other evaluation data, expected one of them. Add the other "
                "data to eval_mixture."
            )


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
    train_dataset, eval_dataset = data.rollouts, data.eval_rollouts
    if data.dataset_name is not None:
        load, config = erprm_trl.load_labelled_steps, data.dataset_config
        train_dataset = load(
            data.dataset_name, config_name=config, split=data.dataset_train_split, streaming=data.dataset_streaming
        )
        if data.eval_dataset_name is not None or data.dataset_test_split is not None:
            name, split = data.eval_dataset_name or data.dataset_name, data.dataset_test_split or "train"
            eval_dataset = load(name, config_name=config, split=split)
    if data.mixture:
        train_dataset = [source.load() for source in data.mixture]
    if data.eval_mixture:
        eval_dataset = [source.load() for source in data.eval_mixture]
    judge = None if data.agree_with is None else load_scorer(data.agree_with, training.per_device_eval_batch_size)
    trainer = erprm_trl.ERPRMTrainer(
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        agree_with=judge,
        **model_options(model, training),
    )
    scripts.show_training(trainer, "Training the reward model")
    trainer.train(resume_from_checkpoint=data.resume or None)
    save(trainer)
    print_outcome(
        f"The reward model was saved in {training.output_dir} after {trainer.state.global_step} updates.",
        *first_and_last(trainer.state.log_history, METRICS),
        next_command=f"erprm score --reward_model {training.output_dir} --dataset_name SOLUTIONS.jsonl "
        "--output_dir SCORES",
    )
    return trainer
