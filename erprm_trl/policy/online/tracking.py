"""Logs what step trainers add to TRL's metrics: throughput, the KL part of the reward, the guard's signals, and scored
solutions."""

import torch
from torch import Tensor

from ...conversations import question_text
from ...training.tracking.coloured_steps import ColouredSteps, solutions_table
from ...training.tracking.training_tracker import TrainingTracker
from ..guards import PolicyGuard
from .tool_tokens import loss_mask


class PolicyTracking:
    """
    Logs `perf/...` with the metrics of the training loop. At each log it also sends `guard/...` to the trackers and,
    if `log_completions` is set, the table `solutions/train` or `solutions/eval`.

    Args:
        trainer ([`StepTrainer`]):
            The trainer to log for.
    """

    def __init__(self, trainer):
        self._trainer = trainer
        self._tracker = TrainingTracker(trainer, self._manifest)

    def count(self, inputs: dict[str, Tensor]) -> None:
        """Counts the tokens of a training batch. A batch is counted once per pass over it."""
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        self._tracker.throughput.count(mask.sum(-1), inputs["completion_mask"])

    def loss_kl(self, inputs: dict[str, Tensor]) -> Tensor:
        """
        The KL part of the loss per completion: minus beta times the sum of the KL estimates of its tokens.

        Args:
            inputs (`dict[str, torch.Tensor]`):
                The batch whose loss TRL has just computed and whose mean KL per token it has logged.
        """
        trainer = self._trainer
        mask = loss_mask(inputs)
        counts = trainer.accelerator.reduce(torch.stack([mask.sum(), mask.new_tensor(len(mask))]), reduction="sum")
        return -trainer.beta * trainer.metrics_of_mode["kl"][-1] * counts[0] / counts[1]

    def throughput(self) -> dict[str, float]:
        """Throughput since the last call. All processes must call it together."""
        return self._tracker.throughput.metrics()

    def after_log(self, logs: dict[str, float]) -> None:
        """Sends the guard's signals and the table of solutions to the trackers, after a log of the training loop or of
        an evaluation."""
        trainer, trackers = self._trainer, self._tracker.trackers
        step, training = trainer.state.global_step, trainer.model.training
        if training and "loss" not in logs:
            return
        callbacks = trainer.callback_handler.callbacks
        guard = next((callback for callback in callbacks if isinstance(callback, PolicyGuard)), None)
        signals = guard.signals() if guard is not None and training else {}
        if signals:
            trackers.scalars({f"guard/{name}": value for name, value in signals.items()}, step)
        if trainer.log_completions and trainer.args.num_logged_solutions and trainer._logs["completion"]:
            trackers.table(f"solutions/{'train' if training else 'eval'}", self._solutions, step)

    def _solutions(self):
        trainer = self._trainer
        logs, num_shown = trainer._logs, trainer.args.num_logged_solutions
        by_turns = trainer.environments is not None or trainer._tool_masks is not None
        solutions = []
        # The last solutions are shown, because TRL's log at an evaluation still begins with the training's solutions.
        all_scores = logs["extra"]["step_scores"] or [[]] * len(logs["completion"])  # without a reward model
        for completion, scores in list(zip(logs["completion"], all_scores, strict=True))[-num_shown:]:
            steps, _ = trainer.step_reward.split(completion, by_turns)
            # Steps may not match scores if a parser has removed thinking from the text, because its spacing is
            # unknown, or if a `rollout_func` has marked turns in the tokens, because the text does not show them.
            solutions.append(ColouredSteps(steps, scores if len(scores) == len(steps) else []))
        return solutions_table([question_text(prompt) for prompt in list(logs["prompt"])[-num_shown:]], solutions)

    def _manifest(self) -> dict:
        dataset = self._trainer.train_dataset
        names = ("column_names", "num_rows", "_fingerprint")
        return {name.strip("_"): getattr(dataset, name, None) for name in names}
