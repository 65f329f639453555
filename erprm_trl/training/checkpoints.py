"""Checkpoints that a crash cannot spoil: which are whole, and how trainers write and resume them.

A checkpoint is whole once its `trainer_state.json` is: it is written last, when the disk has everything else. Which
files are damaged is told by `rollouts/damaged_files.py`.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import RandomSampler, Sampler
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, get_last_checkpoint

from ..io.atomic_files import make_folder
from ..io.file_checks import damaged_file


logger = logging.getLogger(__name__)

UNFINISHED = "unfinished-"
READ_ERRORS = (OSError, EOFError, KeyError, RuntimeError, ValueError, UnpicklingError, SafetensorError)
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def checkpoint_damage(checkpoint: str | Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or `None` if it is whole."""
    if not Path(checkpoint, TRAINER_STATE_NAME).is_file():
        return f"{TRAINER_STATE_NAME}, which is written last, is missing"
    return damaged_file(Path(checkpoint).rglob("*"))


def set_unfinished_aside(folder: str | Path) -> None:
    """Renames checkpoints newer than the newest whole one, so that nothing takes them for one, and says so."""
    while (checkpoint := _newest(folder)) is not None and (found := checkpoint_damage(checkpoint)) is not None:
        aside = Path(folder, f"{UNFINISHED}{Path(checkpoint).name}")
        logger.warning("%s is not whole: %s. It is moved to %s.", checkpoint, found, aside)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(checkpoint, aside)


@contextmanager
def writing(folder: str | Path) -> Iterator[None]:
    """Errors of what is saved into the folder meanwhile say what is left, and what to do."""
    try:
        yield
    except WRITE_ERRORS as error:
        raise OSError(
            f"{folder} could not be written whole ({error}). What was saved before it is not touched: make room and "
            "train with resume_from_checkpoint=True (recipes: --resume true; RAFT resumes by itself)."
        ) from error


def flush_folder(folder: str | Path) -> None:
    """Waits until the disk has all files of a folder."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            with open(path, "r+b") as file:
                os.fsync(file.fileno())


def _newest(folder: str | Path) -> str | None:
    return get_last_checkpoint(folder) if os.path.isdir(folder) else None


class EpochOrder(Sampler):
    """
    A sampler whose order depends on the seed and the epoch alone, not on what was drawn before: an epoch that is
    resumed goes on in the order in which it began, and no example comes twice.

    Args:
        sampler (`Sampler`):
            A sampler that draws from its `generator`.
        seed (`int`):
            Seed of the run.
    """

    def __init__(self, sampler: Sampler, seed: int):
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.sampler)


class CrashSafeCheckpoints:
    """
    Put before a [`~transformers.Trainer`]: `resume_from_checkpoint=True` finds the newest whole checkpoint, or begins
    anew where there is none, no checkpoint looks whole before it is, and no example or update is made twice.
    """

    _train_sampler: Sampler | None = None

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        As [`~transformers.Trainer.train`].

        Raises:
            `ValueError`: if `resume_from_checkpoint` names a checkpoint that is not whole.
            `OSError`: if nothing can be written to the output folder.
        """
        folder = self._get_output_dir(None)
        if self.args.should_save:
            make_folder(folder)
        if resume_from_checkpoint is True:
            if self.args.should_save:
                set_unfinished_aside(folder)
            self.accelerator.wait_for_everyone()
            resume_from_checkpoint = _newest(folder)
            if resume_from_checkpoint is None:
                logger.warning("%s holds no whole checkpoint: the training begins at its first step.", folder)
        elif resume_from_checkpoint and (found := checkpoint_damage(resume_from_checkpoint)) is not None:
            raise ValueError(
                f"{resume_from_checkpoint}: {found}, expected a whole checkpoint. Resume from another one, or pass "
                "resume_from_checkpoint=True for the newest whole one."
            )
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _get_train_sampler(self, *dataset):
        sampler = super()._get_train_sampler(*dataset)
        if hasattr(sampler, "generator") and not isinstance(sampler, RandomSampler):  # Accelerate seeds that one so
            sampler = EpochOrder(sampler, self.args.seed)
        self._train_sampler = sampler
        return sampler

    def _run_epoch(self, **arguments):
        if self.state.global_step >= self.state.max_steps:  # resumed at its end: the loop would make one more update
            self.control.should_training_stop = True
            return
        if isinstance(self._train_sampler, EpochOrder):
            self._train_sampler.epoch = arguments["epoch"]
        super()._run_epoch(**arguments)

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial))
        checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:  # one of an earlier run is no longer whole from here on
            Path(checkpoint, TRAINER_STATE_NAME).unlink(missing_ok=True)
        with writing(checkpoint):
            super()._save_checkpoint(model, trial)

    # What all processes write last, before the first one writes the state.
    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            flush_folder(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with _reading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint):
        with _reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint):
        with _reading(checkpoint):
            super()._load_rng_state(checkpoint)


@contextmanager
def _reading(checkpoint: str | Path | None) -> Iterator[None]:
    try:
        yield
    except READ_ERRORS as error:
        raise ValueError(
            f"{checkpoint} cannot be loaded: {error}. It is damaged, or of another model. Move it away and resume: "
            "the run goes on from the checkpoint before it."
        ) from error
