"""Progress bars of the commands: one for a trainer, in place of its own, and one for a scorer."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from ..io.progress_bars import progress_bar
from ..reward_model.scoring.backend import ScoringBackend, SolutionTooLong
from ..reward_model.scoring.scorer import StepScorer
from . import console


SOLUTIONS_PER_CALL = 512  # a whole number of batches of the usual sizes
SHOWN = ("loss", "reward", "eval_loss")  # logged values that are shown after the bar

logger = logging.getLogger(__name__)


class TrainingBar(TrainerCallback):
    """
    One bar for a training, with the time left and the last loss. The values that the trainer logs go to the log.

    Args:
        title (`str`, *optional*, defaults to `"Training"`):
            Text before the bar.
    """

    def __init__(self, title: str = "Training"):
        self.title = title
        self._training = self._evaluation = None
        self._values: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Opens the bar, at the step from which a resumed training continues."""
        self._is_shown = state.is_world_process_zero and not args.disable_tqdm
        self._training = self._open(state.max_steps, self.title, "updates", initial=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        """Moves the bar."""
        self._training.update(state.global_step - self._training.n)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Moves a second bar while the trainer evaluates."""
        if self._evaluation is None:
            self._is_shown = state.is_world_process_zero and not args.disable_tqdm
            total = len(eval_dataloader) if has_length(eval_dataloader) else None
            self._evaluation = self._open(total, "Evaluating", "batches", leave=False)
        self._evaluation.update()

    def on_evaluate(self, args, state, control, **kwargs):
        """Closes the bar of the evaluation."""
        self._close_evaluation()

    def on_predict(self, args, state, control, **kwargs):
        """Closes the bar of the predictions."""
        self._close_evaluation()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Logs all values, and shows the loss after the bar."""
        if not state.is_world_process_zero:
            return
        values = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in logs.items()}
        logger.info("step %s: %s", state.global_step, ", ".join(f"{key} {value}" for key, value in values.items()))
        self._values |= {key: values[key] for key in SHOWN if key in values}
        if self._training is not None and self._values:
            postfix = ", ".join(f"{key} {value}" for key, value in self._values.items())
            self._training.set_postfix_str(postfix, refresh=False)
            self._training.update(0)

    def on_train_end(self, args, state, control, **kwargs):
        """Closes the bar."""
        self._training.close()
        self._training = None

    def _open(self, total: int | None, title: str, unit: str, **options: Any):
        bar = progress_bar(total, title, unit=unit, show=self._is_shown, **options)
        if (command := console.current()) is not None:
            command.on_exit(bar.close)  # an error does not reach the end of training
        return bar

    def _close_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None


def show_training(trainer: Trainer, title: str = "Training") -> None:
    """
    Shows one bar for a trainer in a quiet command, instead of the trainer's own bar and the values that it prints.
    Elsewhere the trainer keeps its own.

    Args:
        trainer ([`~transformers.Trainer`]):
            Trainer, before it trains.
        title (`str`, *optional*, defaults to `"Training"`):
            Text before the bar.
    """
    if console.is_quiet():
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(TrainingBar(title))


class BackendWithBar:
    """
    A [`ScoringBackend`] that shows a bar while another backend scores more solutions than fit into one call.

    Args:
        backend ([`ScoringBackend`]):
            Backend that computes the scores.
        title (`str`):
            Text before the bar.

    Attributes:
        num_scored (`int`): number of solutions scored so far.
        seconds (`float`): time that this took.
    """

    def __init__(self, backend: ScoringBackend, title: str):
        self._backend, self._title = backend, title
        self.num_scored, self.seconds = 0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool = False
    ) -> list[list[float]]:
        """Scores of every step; see [`ScoringBackend.score`]."""
        scores: list[list[float]] = []
        started = time.perf_counter()
        show = len(questions) > SOLUTIONS_PER_CALL and console.is_main_process()
        with progress_bar(len(questions), self._title, unit="solutions", show=show) as bar:
            for start in range(0, len(questions), SOLUTIONS_PER_CALL):
                part = slice(start, start + SOLUTIONS_PER_CALL)
                try:
                    scores += self._backend.score(questions[part], steps[part], skip_too_long=skip_too_long)
                except SolutionTooLong as error:
                    raise SolutionTooLong(start + error.index, error.reason) from None
                bar.update(len(scores) - bar.n)
        self.num_scored += len(questions)
        self.seconds += time.perf_counter() - started
        return scores


def with_bar(scorer: StepScorer, title: str = "Scoring") -> StepScorer:
    """
    The scorer, with a bar while it scores many solutions.

    Args:
        scorer ([`StepScorer`]):
            Scorer whose backend is in one process or on a server.
        title (`str`, *optional*, defaults to `"Scoring"`):
            Text before the bar.
    """
    backend = BackendWithBar(scorer.backend, title)
    return StepScorer.from_backend(backend, eta=scorer.eta, trained_eta=scorer.trained_eta)
