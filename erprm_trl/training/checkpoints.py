"""Writes checkpoints that survive a crash at any moment, and resumes training from them.

A checkpoint is complete if its `trainer_state.json` exists. This file is written last, after all processes have
written their files and all files are on the disk. A complete checkpoint is damaged if a file in it cannot be read.
Training resumes only from checkpoints that are complete and not damaged.
"""

import errno
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

from ..io.adapters import shorten_base_in_card
from ..io.atomic_files import make_folder
from ..io.file_checks import damaged_file
from ..io.paths import local_path
from .synced_reference import load_synced_reference, save_synced_reference


logger = logging.getLogger(__name__)

UNFINISHED = "unfinished-"
TEMPORARY = ".tmp"
READ_ERRORS = (OSError, EOFError, KeyError, RuntimeError, ValueError, UnpicklingError, SafetensorError)
CANNOT_FLUSH_FOLDERS = (errno.EINVAL, errno.ENOTSUP)  # raised by some network file systems
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def checkpoint_damage(checkpoint: str | Path) -> str | None:
    """Describes why a checkpoint is incomplete or damaged. `None` if training can resume from it."""
    if not Path(checkpoint, TRAINER_STATE_NAME).is_file():
        return f"{TRAINER_STATE_NAME}, which is written last, is missing"
    return damaged_file(Path(checkpoint).rglob("*"))


def set_unfinished_aside(folder: str | Path) -> None:
    """Renames all checkpoints that are newer than the newest usable checkpoint, and logs the reason."""
    while (checkpoint := _newest(folder)) is not None and (damage := checkpoint_damage(checkpoint)) is not None:
        aside = Path(folder, f"{UNFINISHED}{Path(checkpoint).name}")
        logger.warning("%s cannot be resumed from: %s. It is moved to %s.", checkpoint, damage, aside)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(checkpoint, aside)


@contextmanager
def writing(folder: str | Path) -> Iterator[None]:
    """Context in which files are saved into a folder. A write error is raised with advice on how to resume."""
    try:
        yield
    except WRITE_ERRORS as error:
        raise OSError(
            f"{folder} could not be written ({error}). Earlier checkpoints are intact. Make room, and train with "
            "resume_from_checkpoint=True (--resume true on the command line; RAFT resumes automatically)."
        ) from error


def flush_folder(folder: str | Path) -> None:
    """Waits until a folder is on the disk, with all files in it and all directory entries."""
    folder = Path(folder)
    if not folder.is_dir():
        return
    folders = [folder.parent, folder]
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            folders.append(path)
    for path in folders:
        _flush_entries(path)


def _flush_entries(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows cannot open folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def _newest(folder: str | Path) -> str | None:
    return get_last_checkpoint(folder) if os.path.isdir(folder) else None


class EpochOrder(Sampler):
    """
    A sampler whose order depends only on the seed and the epoch. A resumed epoch therefore continues in its original
    order, and no example is used twice.

    Args:
        sampler (`Sampler`):
            Sampler that draws from its attribute `generator`.
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
    Mixin for trainers. It comes before [`~transformers.Trainer`] in the bases.

    `resume_from_checkpoint=True` resumes from the newest complete checkpoint, or starts at the first step if there is
    none. A checkpoint counts as complete only after all its files are on the disk. A resumed run uses no example twice
    and repeats no update.

    A trainer saves its own files in `_save_own_files`, which every process calls. Files that belong to the model, such
    as a value head, are saved by `save_model`.
    """

    _train_sampler: Sampler | None = None

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Trains as [`~transformers.Trainer.train`] does.

        Args:
            resume_from_checkpoint (`str`, `Path` or `bool`, *optional*):
                Checkpoint to resume from. `True` resumes from the newest complete checkpoint in the output folder.
            trial, ignore_keys_for_eval (*optional*):
                See [`~transformers.Trainer.train`].

        Raises:
            `ValueError`: if `resume_from_checkpoint` is the path of an incomplete or damaged checkpoint.
            `OSError`: if the output folder cannot be written to.
        """
        folder = self._get_output_dir(None)  # seam
        if self.args.should_save:
            make_folder(folder)
        if isinstance(resume_from_checkpoint, (str, os.PathLike)):
            resume_from_checkpoint = local_path(resume_from_checkpoint)
        if resume_from_checkpoint is True:
            if self.args.should_save:
                set_unfinished_aside(folder)
            self.accelerator.wait_for_everyone()
            resume_from_checkpoint = _newest(folder)
            if resume_from_checkpoint is None:
                logger.warning("%s contains no complete checkpoint. Training starts at the first step.", folder)
        elif resume_from_checkpoint and (damage := checkpoint_damage(resume_from_checkpoint)) is not None:
            raise ValueError(
                f"{resume_from_checkpoint}: {damage}, expected a complete checkpoint. Resume from another checkpoint, "
                "or pass resume_from_checkpoint=True to resume from the newest complete one."
            )
        elif not resume_from_checkpoint and self.args.should_save and (earlier := _newest(folder)) is not None:
            logger.warning(
                "%s is of an earlier training. This one starts at the first step, and a later resumption may continue "
                "from there. Use a new output_dir, or resume_from_checkpoint=True to continue the earlier training.",
                earlier,
            )
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _get_train_sampler(self, *dataset):  # seam
        sampler = super()._get_train_sampler(*dataset)
        # Accelerate already seeds a RandomSampler by the seed and the epoch.
        if hasattr(sampler, "generator") and not isinstance(sampler, RandomSampler):
            sampler = EpochOrder(sampler, self.args.seed)
        self._train_sampler = sampler
        return sampler

    def _run_epoch(self, **arguments):  # seam
        if self.state.global_step >= self.state.max_steps:  # a run resumed at its end would make one more update
            self.control.should_training_stop = True
            return
        if isinstance(self._train_sampler, EpochOrder):
            self._train_sampler.epoch = arguments["epoch"]
        super()._run_epoch(**arguments)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Saves the model, without the absolute path of an adapter's base model in its model card."""
        super().save_model(output_dir, _internal_call=_internal_call)
        if self.args.should_save:
            shorten_base_in_card(Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, model, trial):  # seam
        folder = Path(self._get_output_dir(trial))  # seam
        checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        state = checkpoint / TRAINER_STATE_NAME
        if self.args.should_save and state.exists():  # overwriting a checkpoint makes it incomplete from here on
            state.unlink(missing_ok=True)
            _flush_entries(checkpoint)
        self.accelerator.wait_for_everyone()
        with self._state_last(checkpoint), writing(checkpoint):
            super()._save_checkpoint(model, trial)

    @contextmanager
    def _state_last(self, checkpoint: Path) -> Iterator[None]:
        """Context in which the trainer state is written only after all processes have written their files and every
        file is on the disk. transformers deletes older checkpoints after that. All processes must enter it."""
        state, finished = self.state, False

        def save_to_json(path):
            nonlocal finished
            self._finish_files(checkpoint)
            finished = True
            temporary = Path(f"{path}{TEMPORARY}")
            type(state).save_to_json(state, str(temporary))
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _flush_entries(checkpoint)

        state.save_to_json = save_to_json
        try:
            yield
        finally:
            del state.save_to_json
        if not finished:
            if self.args.should_save:
                raise RuntimeError(
                    f"{checkpoint}: got no call of `TrainerState.save_to_json`, expected a call by "
                    "`Trainer._save_checkpoint`. Install the version of transformers in constraints.txt."
                )
            with writing(checkpoint):
                self._finish_files(checkpoint)

    def _finish_files(self, checkpoint: Path) -> None:
        """Saves the trainer's own files and flushes the checkpoint. All processes must call it."""
        self._save_own_files(checkpoint)
        if not self.args.save_only_model:
            save_synced_reference(self, checkpoint)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_local_main_process:  # each node can flush only its own writes
            flush_folder(checkpoint)
        self.accelerator.wait_for_everyone()

    def _save_own_files(self, checkpoint: Path) -> None:
        """Saves files that a trainer adds to a checkpoint. Called on every process."""

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):  # seam
        with _reading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint):  # seam
        with _reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None:
                load_synced_reference(self, checkpoint)

    def _load_rng_state(self, checkpoint):  # seam
        with _reading(checkpoint):
            super()._load_rng_state(checkpoint)


@contextmanager
def _reading(checkpoint: str | Path | None) -> Iterator[None]:
    try:
        yield
    except READ_ERRORS as error:
        raise ValueError(
            f"{checkpoint} cannot be loaded: {error}. It is damaged, or belongs to another model. Move it away and "
            "resume. The run then continues from the previous checkpoint."
        ) from error
