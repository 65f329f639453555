"""A callback that monitors a policy's training on a reward model, and stops the run if the policy exploits the model.

It only reads metrics that the policy trainers of this package log. TRL's trainers log some of them.
"""

import json
import logging
import math
import os
import statistics
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..io.atomic_files import replace_file


logger = logging.getLogger(__name__)

FILE_NAME = "guard.json"
RATIOS = ("steps/per_answer", "steps/tokens_per_step")
SHARES = ("steps/unfinished_share", "steps/repeated_share", "steps/unscorable_share")
KL, AGREEMENT, SCORE, ACCURACY = "kl", "steps/agreement", "steps/mean_score", "steps/accuracy"
DIVERGENCE = "score_and_accuracy"  # computed from SCORE and ACCURACY
PLATEAU = "score_plateau"  # computed from the scores of logs without an accuracy
IMPROVEMENT = 0.003  # of a score in [0, 1]
ADVICE = {
    "steps/per_answer": "The number of steps collapses, or grows for its reward. Read completions, use the credit "
    "`difference`, and grade answers.",
    "steps/tokens_per_step": "The length of steps changes. Read completions, and grade answers.",
    "steps/unfinished_share": "More answers are unfinished. Mask truncated completions, or allow more tokens.",
    "steps/repeated_share": "Steps are repeated for their reward. Use the credit `difference`, and grade answers.",
    "steps/unscorable_share": "More answers cannot be split and scored. Read completions.",
    KL: "The policy writes text that the reward model was not trained on. Raise beta, or lower the learning rate.",
    AGREEMENT: "The reward model prefers wrong answers. Train it on solutions of this policy.",
    DIVERGENCE: "The accuracy falls, but the score does not. Grade more answers, or train the reward model on "
    "solutions of this policy.",
    PLATEAU: "The score no longer improves. From here on, the policy learns from the errors of the reward model. Use "
    "the last good checkpoint, grade answers, or train the reward model on solutions of this policy.",
}


class _Standing(NamedTuple):
    value: float
    reference: float
    low: float
    high: float


class PolicyGuard(TrainerCallback):
    r"""
    Warns when a signal is outside its limits, saves no checkpoint in the meantime, and stops the run if the signal
    stays outside.

    The reference of a signal is the median of its first `warmup` logged values. Its value is the median of its last
    `window` logged values, so that a single outlier has no effect (estimates of the KL have long tails). `NaN` and
    `None` are skipped, and signals that are not logged are ignored.

    | signal | outside its limits if | possible cause |
    |---|---|---|
    | `steps/per_answer`, `steps/tokens_per_step` | more than `max_ratio` × or ÷ the reference | reward hacking |
    | `steps/unfinished_share` (TRL: `completions/clipped_ratio`) | above reference + `max_increase` | endless text |
    | `steps/repeated_share`, `steps/unscorable_share` | above reference + `max_increase` | degenerate text |
    | `kl` | above `max_kl` | text that the reward model was not trained on |
    | `steps/agreement` | below `min_agreement` | wrong answers have higher scores than right answers |
    | `score_and_accuracy` | above `max_divergence` | the reward model is exploited |
    | `score_plateau` | above `max_plateau` | the policy learns from the errors of the reward model |

    `steps/agreement` is the AUC within questions of the score for right answers, where 0.5 is chance. It is ignored
    if fewer than 5% of the answers are right, or fewer than 5% are wrong, because it is too noisy then.
    `score_and_accuracy` is the decrease of `steps/accuracy` from its reference minus the decrease of
    `steps/mean_score`, which counts as 0 if the score did not decrease. `score_plateau` is the number of logs since
    the median of `steps/mean_score` last improved by 0.003. It is only checked if the accuracy is not known. Without
    it, a policy with saturated scores may become wrong while all other signals stay the same.

    Args:
        warmup (`int`, *optional*, defaults to `5`):
            Number of logged values for the reference of a signal. Signals are checked after that.
        window (`int`, *optional*, defaults to `5`):
            Number of logged values for the current value of a signal.
        patience (`int`, *optional*, defaults to `10`):
            Number of consecutive logs with a signal outside its limits after which the run stops.
        max_ratio (`float`, *optional*, defaults to `2.0`):
            Maximum ratio to the reference, above 1. The length of answers also changes in healthy runs, but mostly by
            less than this.
        max_increase (`float`, *optional*, defaults to `0.2`):
            Maximum increase of a share.
        max_kl (`float`, *optional*, defaults to `2.0`):
            Maximum KL per token, as TRL logs it. At 2, the reference model gives the policy's tokens a probability
            that is e² times smaller than the policy's.
        min_agreement (`float`, *optional*, defaults to `0.45`):
            Minimum agreement, slightly below chance. It is not relative to the reference, because the agreement also
            falls in healthy runs: when a policy improves, the remaining wrong answers look right.
        max_divergence (`float`, *optional*, defaults to `0.2`):
            Maximum decrease of the accuracy that the score does not show.
        max_plateau (`int`, *optional*, defaults to `10`):
            Maximum number of logs without an improvement of the score.

    A limit of `None` disables its check.

    Attributes:
        stopped_because (`str`, *optional*):
            Reason why the run was stopped. It is also written to `guard.json` in the output folder, with every signal
            and its history.
        last_good_checkpoint (`str`, *optional*):
            Folder of the last checkpoint that was saved while every signal was within its limits.

    Only logs of the training loop, which have a `loss`, are read. The values of process zero are used on all
    processes. After a resume, the state is rebuilt from the trainer's log history. With `save_strategy="best"` the
    trainer also saves while a signal is outside its limits, but such a checkpoint does not count as good.
    """

    def __init__(
        self,
        *,
        warmup: int = 5,
        window: int = 5,
        patience: int = 10,
        max_ratio: float | None = 2.0,
        max_increase: float | None = 0.2,
        max_kl: float | None = 2.0,
        min_agreement: float | None = 0.45,
        max_divergence: float | None = 0.2,
        max_plateau: int | None = 10,
    ):
        for name, count in {"warmup": warmup, "window": window, "patience": patience}.items():
            if count < 1:
                raise ValueError(f"`{name}` of the guard: got {count}, expected at least 1. Raise it.")
        if max_ratio is not None and max_ratio <= 1:
            raise ValueError(f"`max_ratio` of the guard: got {max_ratio}, expected more than 1, or None. Raise it.")
        self.warmup, self.window, self.patience = warmup, window, patience
        self.max_ratio = math.inf if max_ratio is None else max_ratio
        self.max_increase = math.inf if max_increase is None else max_increase
        self.max_kl = math.inf if max_kl is None else max_kl
        self.min_agreement = -math.inf if min_agreement is None else min_agreement
        self.max_divergence = math.inf if max_divergence is None else max_divergence
        self.max_plateau = math.inf if max_plateau is None else max_plateau
        self._reset()

    @property
    def outside(self) -> list[str]:
        """Signals that are currently outside their limits."""
        return [signal for signal, count in self._logs_outside.items() if count]

    def signals(self) -> dict[str, float]:
        """The current value of each signal, by its name without `steps/`, and the number of signals `outside` their
        limits. For plots."""
        standings = {signal.removeprefix("steps/"): self._standing(signal) for signal in ADVICE}
        values = {name: standing.value for name, standing in standings.items() if standing is not None}
        return {**values, "outside": float(len(self.outside))} if values else {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Resets the state, or rebuilds it from the log history of a resumed run."""
        self._reset()
        for entry in state.log_history:
            if "loss" in entry:
                self._observe(_watched(entry), entry["step"])
        checkpoint = _checkpoint(args, state)
        if os.path.isdir(checkpoint) and not self.outside:
            self.last_good_checkpoint = checkpoint

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Checks the signals of a log of the training loop. Warns and stops the run."""
        if logs and "loss" in logs and self.stopped_because is None:
            # If a metric differs between processes, all processes must still stop together.
            (values,) = broadcast_object_list([_watched(logs)])
            for signal in self._observe(values, state.global_step):
                self._warn(state, f"{self._describe(signal)} No checkpoint is saved until it is within its limits.")
            if any(count >= self.patience for count in self._logs_outside.values()):
                self._stop(args, state, control)
        return self._hold_back(state, control)  # the training loop saves after it logs

    def on_step_end(self, args, state, control, **kwargs):
        """Prevents a checkpoint while a signal is outside its limits."""
        return self._hold_back(state, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        """Prevents a checkpoint while a signal is outside its limits."""
        return self._hold_back(state, control)

    def on_save(self, args, state, control, **kwargs):
        """Records the last good checkpoint."""
        if not self.outside:
            self.last_good_checkpoint = _checkpoint(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        """Warns if a run that was not stopped ends with a signal outside its limits."""
        if self.outside and self.stopped_because is None:
            described = " ".join(self._describe(signal) for signal in self.outside)
            self._warn(state, f"The last state of the run was not saved: {described} {self._last_good()}")

    def _reset(self) -> None:
        self.stopped_because: str | None = None
        self.last_good_checkpoint: str | None = None
        self._history: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._logs_outside: dict[str, int] = {}
        self._held_at: int | None = None  # step whose checkpoint was held back
        self._best_score, self._logs_since_best = -math.inf, 0

    def _observe(self, values: dict[str, float], step: int) -> list[str]:
        # Records a log, and returns the signals that have just left their limits.
        if not 0.05 <= values.get(ACCURACY, 0.5) <= 0.95:
            values = {name: value for name, value in values.items() if name != AGREEMENT}
            self._logs_outside[AGREEMENT] = 0
        for name, value in values.items():
            self._history[name].append((step, value))
        if PLATEAU in values:
            self._observe_score()
        left = []
        for signal in ADVICE:
            standing = self._standing(signal) if (SCORE if signal == DIVERGENCE else signal) in values else None
            if standing is not None:
                is_outside = not standing.low <= standing.value <= standing.high
                self._logs_outside[signal] = self._logs_outside.get(signal, 0) + 1 if is_outside else 0
                left += [signal] if self._logs_outside[signal] == 1 else []
        return left

    def _observe_score(self) -> None:
        medians = self._medians(PLATEAU)
        if medians is not None:
            self._logs_since_best += 1
            if medians[1] >= self._best_score + IMPROVEMENT:
                self._best_score, self._logs_since_best = medians[1], 0

    def _standing(self, signal: str) -> _Standing | None:
        if signal == PLATEAU:
            if self._history[ACCURACY] or not math.isfinite(self._best_score):
                return None
            return _Standing(self._logs_since_best, 0.0, -math.inf, self.max_plateau)
        if signal == DIVERGENCE:
            score, accuracy = self._medians(SCORE), self._medians(ACCURACY)
            if score is None or accuracy is None:
                return None
            unseen = (accuracy[0] - accuracy[1]) - max(score[0] - score[1], 0.0)
            return _Standing(unseen, 0.0, -math.inf, self.max_divergence)
        medians = self._medians(signal)
        return medians and _Standing(medians[1], medians[0], *self._band(signal, medians[0]))

    def _medians(self, name: str) -> tuple[float, float] | None:
        # Returns the reference and the current value.
        history = self._history[name]
        if len(history) < self.warmup:
            return None
        parts = history[: self.warmup], history[-self.window :]
        return tuple(statistics.median(value for _, value in part) for part in parts)

    def _band(self, signal: str, reference: float) -> tuple[float, float]:
        if signal in RATIOS:  # a reference of 0 has no multiples, so nothing is checked
            return (reference / self.max_ratio, reference * self.max_ratio) if reference > 0 else (0.0, math.inf)
        if signal in SHARES:
            return -math.inf, reference + self.max_increase
        return (-math.inf, self.max_kl) if signal == KL else (self.min_agreement, math.inf)

    def _describe(self, signal: str) -> str:
        value, reference, low, high = self._standing(signal)
        band = " and ".join(
            [f"at least {low:.4g}"] * math.isfinite(low) + [f"at most {high:.4g}"] * math.isfinite(high)
        )
        return f"`{signal}` is {value:.4g}, expected {band} (reference {reference:.4g}). {ADVICE[signal]}"

    def _last_good(self) -> str:
        return f"Last good checkpoint: {self.last_good_checkpoint or 'none'}."

    def _hold_back(self, state, control):
        if self.outside:
            self._held_at = state.global_step if control.should_save else self._held_at
            control.should_save = False
        elif self._held_at == state.global_step:  # the log of this step brought all signals back within their limits
            control.should_save, self._held_at = True, None
        return control

    def _warn(self, state, message: str) -> None:
        if state.is_world_process_zero:
            logger.warning(f"PolicyGuard, step {state.global_step}: {message}")

    def _stop(self, args, state, control) -> None:
        control.should_training_stop = True
        lasting = [signal for signal, count in self._logs_outside.items() if count >= self.patience]
        described = " ".join(self._describe(signal) for signal in lasting)
        self.stopped_because = f"Outside the limits for {self.patience} consecutive logs: {described}"
        self._warn(state, f"The run is stopped. {self.stopped_because} {self._last_good()}")
        if state.is_world_process_zero:
            self._write(args.output_dir, state.global_step)

    def _write(self, folder: str, step: int) -> None:
        signals = {}
        for signal in ADVICE:
            standing = self._standing(signal)
            if standing is not None:
                numbers = {name: _number(value) for name, value in standing._asdict().items()}
                signals[signal] = {**numbers, "logs_outside": self._logs_outside.get(signal, 0)}
        report = {
            "reason": self.stopped_because,
            "step": step,
            "last_good_checkpoint": self.last_good_checkpoint,
            "signals": signals,
            "history": {
                name: [[at, _number(value)] for at, value in logged] for name, logged in self._history.items()
            },
        }
        os.makedirs(folder, exist_ok=True)
        replace_file(Path(folder, FILE_NAME), json.dumps(report, indent=2, allow_nan=False))


def _watched(logs: dict) -> dict[str, float]:
    # The signals of a log. A score and an accuracy are compared only if they are from the same logs.
    names = (*RATIOS, *SHARES, KL, AGREEMENT, SCORE, ACCURACY)
    values = {name: logs.get(name) for name in names}
    if "steps/unfinished_share" not in logs:
        values["steps/unfinished_share"] = logs.get("completions/clipped_ratio")
    values = {name: float(value) for name, value in values.items() if value is not None and not math.isnan(value)}
    if SCORE in values and ACCURACY not in values:
        values[PLATEAU] = values.pop(SCORE)
    return values


def _checkpoint(args, state) -> str:
    return os.path.join(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity
