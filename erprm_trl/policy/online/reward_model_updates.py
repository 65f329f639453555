"""Trains an implicit reward model during the training of a policy: one update per generation, on the graded answers of
that generation (PRIME, arXiv 2502.01456)."""

import logging
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..._trl import get_config_model_id
from ...functional.implicit_rewards import implicit_reward
from ...functional.step_losses import soft_step_cross_entropy
from ...reward_model.prm_format import PRMFormat
from ...reward_model.reference_model import unpartitioned
from ...reward_model.scoring.implicit import ImplicitBackend
from ...reward_model.scoring.local import LocalBackend
from ...reward_model.scoring.scorer import StepScorer
from ...reward_model.scoring.weights import load_reward_model
from ...reward_model.solution_log_probs import solution_sums
from ...training.checkpoints import writing
from ...training.nonfinite import not_finite
from ...training.trainable import check_trainable
from ..scored_batch import ScoredBatch


logger = logging.getLogger(__name__)

FOLDER, STATE_FILE = "reward_model", "optimizer.safetensors"
MASTER = "float32"
SUBJECT = "update_reward_model"


class Update(NamedTuple):
    """
    An update of the reward model, measured over all processes before its weights changed.

    Attributes:
        loss (`float`):
            Mean cross-entropy of the solutions' rewards against the outcomes.
        accuracy (`float`):
            Share of solutions whose probability of being right is above 0.5 exactly if the outcome is.
        grad_norm (`float`):
            Norm of the gradients before clipping.
    """

    loss: float
    accuracy: float
    grad_norm: float


def check_updates(subject: str, prm_format: PRMFormat, has_answers: bool) -> None:
    """
    Checks that a reward model can be updated on graded answers.

    Args:
        subject (`str`):
            Name of the trainer, for error messages.
        prm_format ([`PRMFormat`]):
            Format of the reward model.
        has_answers (`bool`):
            Whether the trainer grades answers.

    Raises:
        `ValueError`: if the reward model is not an implicit one, or if there are no answers.
    """
    if prm_format.head != "implicit":
        raise ValueError(
            f"{subject}: got {SUBJECT} with a reward model of head={prm_format.head!r}, expected head='implicit', "
            "because graded answers are the labels of implicit reward models only. Train one with "
            f"ERPRMConfig(head='implicit'), or remove {SUBJECT}."
        )
    if not has_answers:
        raise ValueError(
            f"{subject}: got {SUBJECT} without answers, expected a column of answers in the training dataset or an "
            "AnswerReward in `reward_funcs`, because the reward model is trained on graded answers. Set answer_column "
            "to the column of the answers. With outcome_weight=0, the policy itself is not trained on them."
        )


def updatable_backend(scorer: StepScorer, subject: str) -> ImplicitBackend:
    """
    Returns the backend of an implicit reward model whose weights can be trained in this process.

    Args:
        scorer ([`StepScorer`]):
            The policy's reward model.
        subject (`str`):
            Name of the trainer, for error messages.

    Raises:
        `ValueError`: if the model is in another process or in an engine, if its weights are partitioned or offloaded,
            or if they have the dtype float16.
    """
    backend = scorer.backend
    if scorer.weights is None or backend.prm_format.head != "implicit":
        raise ValueError(
            f"{subject}: got {SUBJECT} with a {type(backend).__name__}, whose weights cannot be trained here, "
            "expected an implicit reward model in this process. Pass its folder or Hub id as the reward model."
        )
    if any(hasattr(weight, "ds_id") or weight.device.type == "meta" for weight in backend.model.parameters()):
        raise ValueError(
            f"{subject}: got {SUBJECT} with a reward model whose weights are partitioned or offloaded, expected all "
            "weights on the device of each process. Pass its folder or Hub id as the reward model, without device_map."
        )
    if any(weight.dtype == torch.float16 for weight in backend.model.parameters()):
        raise ValueError(
            f"{subject}: got {SUBJECT} with a reward model in float16, expected bfloat16 or float32, because its "
            'gradients are not scaled. Load it with dtype="bfloat16" or dtype="float32".'
        )
    return backend


class RewardModelUpdates:
    r"""
    Trains an implicit reward model on graded solutions, with AdamW.

    The loss is that of the training of implicit reward models: the cross-entropy of \\( \sigma(\beta \sum_t \log
    \pi_\phi(y_t) - \log \pi_{ref}(y_t)) \\) against the outcome, in float32. It is the mean over the solutions of all
    processes, and does not depend on how they are divided into processes and batches. The model is in evaluation mode,
    so dropout is off. Weights in bfloat16 have a copy in float32, which the optimizer changes, because small changes
    would be rounded away. An adapter's weights are trained alone.

    Every process holds the whole model and the state of its optimizer. The weights stay equal, because gradients are
    summed over processes.

    Args:
        backend ([`ImplicitBackend`]):
            The reward model. Its weights are changed in place.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the policy's training run.
        learning_rate (`float`):
            Constant learning rate.
        max_batch_tokens (`int`):
            Maximum number of tokens per forward and backward pass, including padding. A longer solution is in its own
            batch.
        betas (`tuple[float, float]`), eps (`float`), max_grad_norm (`float`) (*optional*):
            Settings of AdamW, and the maximum norm of the gradients, 0 for no limit.

    Raises:
        `ValueError`: if all weights are frozen.
    """

    def __init__(
        self,
        backend: ImplicitBackend,
        accelerator: Accelerator,
        *,
        learning_rate: float,
        max_batch_tokens: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        max_grad_norm: float = 0.0,
    ):
        self._backend, self._accelerator, self._max_grad_norm = backend, accelerator, max_grad_norm
        self._model, self._format = backend.model, backend.prm_format
        self._batches = LocalBackend(
            self._model, backend.tokenizer, self._format, batch_size=sys.maxsize, max_batch_tokens=max_batch_tokens
        )
        if hasattr(self._model, "peft_config"):  # an adapter that was loaded for scoring is frozen
            self._model.set_adapter(self._model.active_adapter)
        check_trainable(self._model, subject=SUBJECT)
        self._weights = {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}
        self._masters = {
            name: weight if weight.dtype == torch.float32 else weight.detach().float()
            for name, weight in self._weights.items()
        }
        self._optimizer = torch.optim.AdamW(
            list(self._masters.values()), lr=learning_rate, betas=betas, eps=eps, weight_decay=0.0
        )

    def step(
        self,
        questions: Sequence[str],
        steps: Sequence[Sequence[str]],
        outcomes: Sequence[float],
        global_step: int | None = None,
    ) -> Update | None:
        """
        Makes one update on the solutions of all processes. All processes must call it together.

        Args:
            questions (`Sequence[str]`):
                One question per solution of this process.
            steps (`Sequence[Sequence[str]]`):
                Steps of each solution. Solutions that exceed the model's context are left out.
            outcomes (`Sequence[float]`):
                Outcome of each solution, in [0, 1].
            global_step (`int`, *optional*):
                Number of updates of the policy so far, for error messages.

        Returns:
            [`Update`] or `None`: `None` if no process has a solution, and the weights have not changed.

        Raises:
            `FloatingPointError`: if the loss or the norm of the gradients is not finite, on all processes.
        """
        # Equal solutions have equal gradients, so each is computed once and weighted by its count.
        counts = Counter(zip(questions, map(tuple, steps), outcomes, strict=True))
        solutions = list(counts)
        plan = self._batches.plan([key[0] for key in solutions], [key[1] for key in solutions], skip_too_long=True)
        kept = sum(counts[solutions[row]] for rows in plan.rows for row in rows)
        num_solutions = int(self._sum(torch.tensor(float(kept))))
        if num_solutions == 0:
            return None
        totals = torch.zeros(2)
        for encoded, rows in zip(plan.batches, plan.rows, strict=True):
            batch_outcomes = torch.tensor([solutions[row][2] for row in rows])
            repeats = torch.tensor([float(counts[solutions[row]]) for row in rows])
            totals += self._backward(self._batches.collate(encoded), batch_outcomes, repeats, num_solutions)
        loss, accuracy = (self._sum(totals) / num_solutions).tolist()
        self._check("the loss", loss, global_step)
        return Update(loss, accuracy, self._change_weights(global_step))

    def _sum(self, tensor: Tensor) -> Tensor:
        return self._accelerator.reduce(tensor.to(self._accelerator.device), reduction="sum")

    def _backward(self, batch: dict[str, Tensor], outcomes: Tensor, repeats: Tensor, num_solutions: int) -> Tensor:
        """Adds the gradients of a batch, and returns the sum of its losses and the number of right predictions."""
        with torch.no_grad():
            reference = solution_sums(self._backend.reference_model, batch)
        outcomes, repeats = outcomes.to(reference.device), repeats.to(reference.device)
        with torch.enable_grad():
            rewards = implicit_reward(solution_sums(self._model, batch), reference, self._format.beta)
            losses = soft_step_cross_entropy(rewards[:, None], outcomes, reduction="none") * repeats
            (losses.sum() / num_solutions).backward()
        for name, weight in self._weights.items():
            master = self._masters[name]
            if master is not weight and weight.grad is not None:
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                weight.grad = None
        is_right = (rewards.detach() > 0) == (outcomes > 0.5)  # sigmoid(reward) > 0.5
        return torch.stack([losses.detach().sum(), (is_right * repeats).sum()]).cpu()

    def _change_weights(self, global_step: int | None) -> float:
        masters = list(self._masters.values())
        for master in masters:
            master.grad = self._sum(torch.zeros_like(master) if master.grad is None else master.grad)
        norm = torch.nn.utils.clip_grad_norm_(masters, self._max_grad_norm or math.inf).item()
        self._check("the norm of the gradients", norm, global_step)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._copy_masters()
        return norm

    @torch.no_grad()
    def _copy_masters(self) -> None:
        for name, weight in self._weights.items():
            if self._masters[name] is not weight:
                weight.copy_(self._masters[name])

    def _check(self, what: str, value: float, global_step: int | None) -> None:
        if not math.isfinite(value):
            subject = f"{what} of the reward model in {SUBJECT}"
            raise not_finite(subject, value, global_step, self._model, self._accelerator)

    def save_model(self, folder: str | Path) -> None:
        """Saves the reward model, its tokenizer and its format, for [`StepScorer.from_pretrained`]."""
        reference = self._format.reference_model or get_config_model_id(self._backend.reference_model.config)
        with writing(folder):
            self._model.save_pretrained(folder)
            self._backend.tokenizer.save_pretrained(folder)
            replace(self._format, reference_model=reference).save(folder)

    def save_state(self, folder: str | Path) -> None:
        """Saves the state of the optimizer, and the float32 copies of weights in bfloat16."""
        state = self._optimizer.state
        tensors = {
            f"{name}/{key}": value
            for name, master in self._masters.items()
            for key, value in {**state.get(master, {}), **self._own_copy(name)}.items()
        }
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        with writing(folder):
            save_file(tensors, Path(folder, STATE_FILE))

    def _own_copy(self, name: str) -> dict[str, Tensor]:
        return {} if self._masters[name] is self._weights[name] else {MASTER: self._masters[name]}

    def load(self, folder: str | Path) -> None:
        """
        Loads the weights and the state of the optimizer from a checkpoint. A checkpoint of `save_only_model=True` has
        no such state. A warning is logged then.

        Args:
            folder (`str` or `Path`):
                The checkpoint's folder of the reward model.

        Raises:
            `FileNotFoundError`: if the checkpoint has no reward model.
        """
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"{Path(folder).parent} has no folder {FOLDER!r}, expected a checkpoint of a run with {SUBJECT}. "
                "Resume from another checkpoint, or start a new run from its weights with model=<the checkpoint>."
            )
        options = {"dtype": "auto", "revision": None, "trust_remote_code": False}
        with unpartitioned():
            saved = load_reward_model(str(folder), self._format, options)
        self._model.load_state_dict(saved.state_dict())
        file = Path(folder, STATE_FILE)
        if not file.is_file():
            logger.warning("%s has no %s. The optimizer of the reward model starts from zero.", folder, STATE_FILE)
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in self._masters}
        for name, value in (load_file(file) if file.is_file() else {}).items():
            weight_name, key = name.rsplit("/", 1)
            parts[weight_name][key] = value
        with torch.no_grad():
            for name in self._masters:
                if copy := self._own_copy(name):
                    copy[MASTER].copy_(parts[name].pop(MASTER, self._weights[name]))
        states = {index: part for index, part in enumerate(parts.values()) if part}
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": states})


def updates_of(trainer) -> RewardModelUpdates:
    """The updates of a step trainer's reward model, with the settings of its configuration. Loads the reward model."""
    args = trainer.args
    return RewardModelUpdates(
        updatable_backend(trainer.step_reward.scorer, type(trainer).__name__),
        trainer.accelerator,
        learning_rate=args.reward_model_learning_rate,
        max_batch_tokens=args.reward_model_max_batch_tokens,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        max_grad_norm=args.max_grad_norm,
    )


def updated_scores(trainer, batch: ScoredBatch, rewards_per_func: Tensor, answer_index: int) -> ScoredBatch:
    """
    Updates the reward model of a step trainer on a generation, and scores the generation again. Logs
    `reward_model/...`.

    Args:
        trainer ([`StepTrainer`]):
            The trainer, with `reward_model_updates`.
        batch ([`ScoredBatch`]):
            This process's completions with the scores of the current reward model.
        rewards_per_func (`torch.Tensor`):
            Rewards of all processes, of shape (N, number of reward functions). With `"before_scoring"`, the step
            rewards are replaced in place.
        answer_index (`int`):
            Column of the graded answers.

    Returns:
        [`ScoredBatch`]: the completions with the scores that the policy is trained on.

    Raises:
        `FloatingPointError`: if a loss, gradient or score is not finite.
        `ValueError`: if a graded answer is outside [0, 1].
    """
    answers, metrics, global_step = (
        rewards_per_func[:, answer_index],
        trainer.metrics_of_mode,
        trainer.state.global_step,
    )
    if bool(((answers < 0) | (answers > 1)).any()):
        raise ValueError(
            f"{SUBJECT}: got graded answers from {answers[~answers.isnan()].min():g} to "
            f"{answers[~answers.isnan()].max():g}, expected outcomes in [0, 1], because the reward model predicts the "
            f"probability of a right answer. Let the grader return values in [0, 1], or remove {SUBJECT}."
        )
    scored = ~rewards_per_func[:, trainer._step_index].isnan()
    metrics["reward_model/unused_share"].append(1 - (scored & ~answers.isnan()).float().mean().item())
    start = trainer.accelerator.process_index * len(batch)
    outcomes = answers[start : start + len(batch)].tolist()
    rows = [row for row, part in enumerate(batch.completions) if part.scores and not math.isnan(outcomes[row])]
    update = trainer.reward_model_updates.step(
        [batch.questions[row] for row in rows],
        [batch.completions[row].steps for row in rows],
        [outcomes[row] for row in rows],
        global_step,
    )
    if update is None:
        return batch
    rescored = trainer.step_reward.rescore(batch, global_step)
    rewards = [math.nan if reward is None else reward for reward in rescored.rewards]
    after = rewards_per_func.clone()
    after[:, trainer._step_index] = trainer.accelerator.gather(torch.tensor(rewards, device=after.device))
    logged = {**update._asdict(), "agreement_before": trainer.agreement(rewards_per_func)}
    for name, value in {**logged, "agreement_after": trainer.agreement(after)}.items():
        if not math.isnan(value):  # the agreement, if no question has right and wrong answers
            metrics[f"reward_model/{name}"].append(value)
    if trainer.args.update_reward_model == "after_scoring":
        return batch
    rewards_per_func.copy_(after)
    # The reward function has logged the first scores, which TRL has not read yet.
    trainer._pending_extra_logs.update({name: list(values) for name, values in rescored.extras.items()})
    return rescored
