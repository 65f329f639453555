"""Logs figures, tables, histograms and artifacts to all running trackers with one call.

In training, the callbacks of the trainer start the trackers. Errors while logging are reported once, and never stop
the run.
"""

import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...io.paths import local_path
from ...io.redaction import redacted
from .coloured_steps import ColouredSteps, table_as_html, table_as_markdown


logger = logging.getLogger(__name__)

STEP = "train/global_step"  # the x-axis that transformers' callbacks use


class Trackers:
    """
    The trackers of a run. Content is created only if a tracker is running. Each kind of error is logged once.

    Args:
        running (`Callable`):
            Function that returns the running trackers, `[]` on all processes except the main process.

    Example:

    ```python
    >>> trackers = Trackers.of(trainer)
    >>> trackers.figure("calibration/eval", lambda: reliability_diagram(scores, labels), step=100)
    ```
    """

    def __init__(self, running: Callable[[], list[Any]]):
        self._running = running
        self._failed: set[str] = set()

    @classmethod
    def of(cls, trainer) -> "Trackers":
        """The trackers in `report_to` that the callbacks of a [`~transformers.Trainer`] have started."""
        return cls(lambda: _started_by(trainer) if trainer.is_world_process_zero() else [])

    @classmethod
    @contextmanager
    def start(cls, report_to: str | list[str], folder: str | Path, config: Mapping[str, Any]) -> Iterator["Trackers"]:
        """
        Starts trackers for a run without a trainer, such as an evaluation. They are closed at the end of the context.

        Args:
            report_to (`str` or `list[str]`):
                Trackers to start: `"wandb"`, `"trackio"`, `"tensorboard"`. `"none"` is ignored.
            folder (`str` or `Path`):
                Output folder. Its last part is the name of the run. TensorBoard writes to its subfolder `runs`.
            config (`Mapping`):
                Configuration of the run, which is logged in redacted form.

        Raises:
            `ValueError`: for an unknown tracker.
        """
        report_to = [report_to] if isinstance(report_to, str) else report_to
        names = [name for name in report_to if name != "none"]
        unknown = sorted(set(names) - set(_START))
        if unknown:
            raise ValueError(
                f"report_to: got {unknown}, expected names among {', '.join(_START)}, none. Correct the names."
            )
        running = [_START[name](Path(local_path(folder)), redacted(config)) for name in names]
        try:
            yield cls(lambda: running)
        finally:
            for tracker in running:
                tracker.finish()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Logs numbers by name."""
        self._send("scalars", "scalars", lambda: values, step)

    def figure(self, name: str, draw: Callable[[], Any], step: int) -> None:
        """Logs the matplotlib `Figure` that `draw` returns."""
        self._send("image", name, lambda: _image(draw()), step)

    def histogram(self, name: str, values: Callable[[], Any], step: int) -> None:
        """Logs the distribution of the numbers that `values` returns."""
        self._send("histogram", name, values, step)

    def table(self, name: str, table: Callable[[], tuple[list[str], list[list[Any]]]], step: int) -> None:
        """Logs a table. `table` returns its columns, and its rows of strings, numbers and [`ColouredSteps`]."""
        self._send("table", name, table, step)

    def artifact(self, kind: str, files: Callable[[], Mapping[str, str | Path]]) -> None:
        """Logs an artifact. `files` returns its files by name: a `str` is the text of a file, a `Path` is copied."""
        self._send("artifact", kind, files)

    def _send(self, method: str, name: str, make: Callable[[], Any], *step: int) -> None:
        running = self._running()
        try:
            content = make() if running else None
        except Exception as error:  # no error in a figure may stop training
            return self._warn(f"`{name}` could not be made", error)
        for tracker in running:
            try:
                getattr(tracker, method)(name, content, *step)
            except Exception as error:
                self._warn(f"`{name}` could not be logged to {tracker.name}", error)

    def _warn(self, failure: str, error: Exception) -> None:
        if failure not in self._failed:
            self._failed.add(failure)
            logger.warning("%s: %r. The run continues. Later failures of this kind are not logged.", failure, error)


class _OpenRun:
    """Base class for wandb and trackio, which have media classes with the same names."""

    def __init__(self, run, media):
        self.run, self.media = run, media

    def scalars(self, name: str, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, STEP: step})

    def image(self, name: str, image, step: int) -> None:
        self.run.log({name: self.media.Image(image), STEP: step})

    def histogram(self, name: str, values, step: int) -> None:
        self.run.log({name: self.media.Histogram(values), STEP: step})


class WandbTracker(_OpenRun):
    """Weights & Biases."""

    name = "wandb"

    def __init__(self, run):
        import wandb

        super().__init__(run, wandb)

    def table(self, name: str, table, step: int) -> None:
        columns, rows = table
        cells = [
            [
                self.media.Html(cell.to_html(), inject=False, data_is_not_path=True)
                if isinstance(cell, ColouredSteps)
                else cell
                for cell in row
            ]
            for row in rows
        ]
        self.run.log({name: self.media.Table(columns=columns, data=cells), STEP: step})

    def artifact(self, kind: str, files: Mapping[str, str | Path]) -> None:
        artifact = self.media.Artifact(f"{kind}-{self.run.id}", type=kind)
        for name, content in files.items():
            if isinstance(content, Path):
                artifact.add_file(str(content), name=name)
            else:
                with artifact.new_file(name, encoding="utf-8") as file:
                    file.write(content)
        self.run.log_artifact(artifact)

    def finish(self) -> None:
        self.run.finish()


class TrackioTracker(_OpenRun):
    """Trackio. Its tables truncate texts, so tables with coloured steps are logged as HTML pages."""

    name = "trackio"

    def __init__(self, run):
        import trackio

        super().__init__(run, trackio)

    def table(self, name: str, table, step: int) -> None:
        columns, rows = table
        if any(isinstance(cell, ColouredSteps) for row in rows for cell in row):
            shown = self.media.Html(table_as_html(columns, rows))
        else:
            shown = self.media.Table(columns=columns, data=rows)
        self.run.log({name: shown, STEP: step})

    def artifact(self, kind: str, files: Mapping[str, str | Path]) -> None:
        artifact = self.media.Artifact(f"{kind}-{self.run.name}", type=kind)
        with tempfile.TemporaryDirectory() as folder:
            for index, (name, content) in enumerate(files.items()):
                path = content if isinstance(content, Path) else Path(folder, str(index))
                if not isinstance(content, Path):
                    path.write_text(content, encoding="utf-8")
                artifact.add_file(path, name=name)
            self.run.log_artifact(artifact)

    def finish(self) -> None:
        self.media.finish()


class TensorBoardTracker:
    """TensorBoard. Tables and text artifacts are logged as texts. Other files cannot be logged."""

    name = "tensorboard"

    def __init__(self, writer):
        self.writer = writer

    def scalars(self, name: str, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def image(self, name: str, image, step: int) -> None:
        import numpy

        self.writer.add_image(name, numpy.asarray(image), step, dataformats="HWC")

    def histogram(self, name: str, values, step: int) -> None:
        import numpy

        self.writer.add_histogram(name, numpy.asarray(values), step)

    def table(self, name: str, table, step: int) -> None:
        self.writer.add_text(name, table_as_markdown(*table), step)

    def artifact(self, kind: str, files: Mapping[str, str | Path]) -> None:
        kept = {name: content for name, content in files.items() if isinstance(content, str)}
        for name, content in kept.items():
            # An indented block is shown without formatting.
            self.writer.add_text(f"artifact/{kind}/{name}", "    " + content.replace("\n", "\n    "))
        if len(kept) < len(files):
            raise TypeError("tensorboard: got files, expected texts. Add wandb or trackio to report_to to log files")

    def finish(self) -> None:
        self.writer.close()


def _started_by(trainer) -> list[Any]:
    running: list[Any] = []
    report_to = trainer.args.report_to or []
    if "wandb" in report_to:
        import wandb

        running += [WandbTracker(wandb.run)] if wandb.run is not None else []
    if "trackio" in report_to:
        from trackio.context_vars import current_run

        running += [TrackioTracker(current_run.get())] if current_run.get() is not None else []
    if "tensorboard" in report_to:
        writers = (getattr(callback, "tb_writer", None) for callback in trainer.callback_handler.callbacks)
        running += [TensorBoardTracker(writer) for writer in writers if writer is not None]
    return running


def _start_wandb(folder: Path, config: dict[str, Any]) -> WandbTracker:
    import wandb

    project = os.getenv("WANDB_PROJECT", "huggingface")  # the default project of transformers
    run = wandb.init(project=project, name=folder.name, config=config)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    return WandbTracker(run)


def _start_trackio(folder: Path, config: dict[str, Any]) -> TrackioTracker:
    import trackio

    return TrackioTracker(trackio.init(project="huggingface", name=folder.name, config=config, resume="allow"))


def _start_tensorboard(folder: Path, config: dict[str, Any]) -> TensorBoardTracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "runs"))
    writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in config.items()))
    return TensorBoardTracker(writer)


_START = {"wandb": _start_wandb, "trackio": _start_trackio, "tensorboard": _start_tensorboard}


def _image(figure):
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
