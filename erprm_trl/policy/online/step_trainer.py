"""Base class of the step trainers: gathers the step scores of a batch, and replaces TRL's advantages by the subclass'
advantages.

TRL samples, forms batches and computes the loss.
"""

import json
import logging
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOTrainer

from ..._trl import get_config_model_id
from ...functional.advantages import center_wrong_solutions, group_mean, step_rewards
from ...functional.score_metrics import auc_within_groups
from ...io.atomic_files import replace_file
from ...io.paths import local_path
from ...reward_model.scoring.eta import eta_or_as_trained
from ...reward_model.scoring.loading import load_format
from ...reward_model.scoring.scorer import StepScorer
from ...rollouts.grading.grader import Grader
from ...rollouts.questions import ANSWER_COLUMNS
from ...training.arguments import as_config
from ...training.checkpoints import CrashSafeCheckpoints
from ...training.nonfinite import StopOnNonFinite
from ...training.trainable import check_trainable
from ..answer_reward import AnswerReward
from ..completions import opens_thinking
from ..model_card import PolicyModelCard
from ..reward_function import QUESTION_COLUMN, StepRewardFunction
from ..scored_batch import Handoff, ScoredBatch
from ..trainer_arguments import check_columns, check_kept_columns, columns_of, policy_model
from .credit_options import LOG_RATIO
from .generation_buffer import load_generation, save_generation
from .generation_log import log_generation
from .global_steps import GlobalSteps
from .log_ratio import REWARD_MODEL, refuse_no_outcome, split_completions, step_splitter
from .metrics import mean_over_processes, read_metrics
from .policy_continuations import PolicyContinuations
from .reward_model_updates import FOLDER, check_updates, updated_scores, updates_of
from .step_config import StepGRPOConfig, StepPPOConfig
from .tool_tokens import with_tool_masks
from .tracking import PolicyTracking


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel

logger = logging.getLogger(__name__)

# Default of `beta` if there are step scores of a reward model and no outcomes. Policies on dial collapsed without a KL
# term (tests/benchmarks/credit_study.py).
BETA_OF_STEP_SCORES = 0.1

ENTROPY_FILE = "entropy_ctrl_state.json"
NOT_A_REWARD_MODEL = (
    "{name}: got {count} process reward models in `reward_funcs` (--reward_model on the command line), expected "
    "exactly one. Pass a StepRewardFunction, a StepScorer, the path or id of a model that ERPRMTrainer saved, or the "
    "address of a scoring server.{reasons}"
)


class StepTrainer(StopOnNonFinite, CrashSafeCheckpoints, PolicyModelCard, GRPOTrainer):
    """
    Base class of the trainers that compute an advantage per token from step scores. For the arguments see
    [`StepGRPOTrainer`].
    """

    _config_class = StepGRPOConfig
    _other_configs: tuple[type, ...] = (StepPPOConfig,)  # their defaults were chosen for another algorithm

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: Any = None,
        args: StepGRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
        tools: list[Callable] | None = None,
        rollout_func: Callable[..., dict[str, Any]] | None = None,
        environment_factory: Callable[[], Any] | dict[str, Callable[[], Any]] | None = None,
    ):
        subject = type(self).__name__
        if args is None:
            name = local_path(model) if isinstance(model, (str, PathLike)) else get_config_model_id(model.config)
            suffix = self._config_class.__name__.removesuffix("Config")
            args = self._config_class(f"{name.rstrip('/').split('/')[-1]}-{suffix}")
        # TRL derives `steps_per_generation` from the generation's batch size, and does not accept both. The other two
        # have other defaults in TRL.
        args = as_config(
            args,
            self._config_class,
            subject=subject,
            derived=("steps_per_generation",),
            redefined=("beta", "scale_rewards"),
            excluded=self._other_configs,
        )
        funcs = list(reward_funcs) if isinstance(reward_funcs, list) else [reward_funcs][: reward_funcs is not None]
        classes = reward_processing_classes if isinstance(reward_processing_classes, list) else None
        funcs = [_as_step_reward(func, args) for func in funcs]
        steps = [func for func in funcs if isinstance(func, StepRewardFunction)]
        scores_steps = args.credit != LOG_RATIO
        if scores_steps and len(steps) != 1:
            reasons = "".join(f" {_why_no_reward_model(func)}" for func in funcs if isinstance(func, str))
            raise ValueError(NOT_A_REWARD_MODEL.format(name=subject, count=len(steps), reasons=reasons))
        if not scores_steps and steps:
            raise ValueError(REWARD_MODEL.format(subject=subject))
        self.step_reward = steps[0] if scores_steps else step_splitter(args)
        if self.step_reward.unscorable_reward is not None:
            raise ValueError(
                f"{subject}: got a StepRewardFunction with unscorable_reward={self.step_reward.unscorable_reward}, "
                "expected None, because a completion without step scores has no step rewards. Do not set it."
            )
        self.answer_reward = next((func for func in funcs if isinstance(func, AnswerReward)), None)
        columns = columns_of(train_dataset)
        adds_answers = self.answer_reward is None and args.answer_column in columns
        if adds_answers:
            self.answer_reward = AnswerReward(
                args.answer_column, args.grading, args.answer_pattern, reasoning=args.reasoning
            )
            if args.reward_weights is not None:
                args.reward_weights = _with_answer_weight(args.reward_weights, len(funcs))
            funcs.append(self.answer_reward)
            classes = [*classes, None] if classes is not None else None
        needed = args.named_columns
        if self.step_reward.question_column != QUESTION_COLUMN:
            needed["question_column"] = self.step_reward.question_column
        if self.answer_reward is not None:
            needed["answer_column"] = self.answer_reward.answer_column
        check_columns(subject, needed, train_dataset, eval_dataset, needs_prompt=environment_factory is None)
        if args.remove_unused_columns:
            check_kept_columns(subject, [self.step_reward.question_column, args.answer_column], columns)
        check_outcome = _check_outcome if scores_steps else refuse_no_outcome
        if len(funcs) == scores_steps and environment_factory is None:
            check_outcome(subject, args, columns)
        if args.beta_is_default:
            has_outcome = len(funcs) > scores_steps or environment_factory is not None
            is_graded = (has_outcome and args.outcome_weight != 0) or self.step_reward.samples_policy
            args.beta = 0.0 if is_graded else self._beta_on_step_scores(model, peft_config)
        if args.update_reward_model is not None:
            check_updates(subject, self.step_reward.prm_format, self.answer_reward is not None)
        model, processing_class, quantization_config = policy_model(
            model,
            args,
            subject=subject,
            processing_class=processing_class,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        super().__init__(
            model=model,
            reward_funcs=funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=classes if classes is not None else reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
        )
        # TRL has added the `get_reward` of environments to the reward functions.
        if len(self.reward_funcs) == scores_steps and environment_factory is not None:
            check_outcome(subject, args, columns)
        # Continuations of the policy are graded like the answers, so that answers are already in the step scores.
        in_scores = (self.step_reward, self.answer_reward if self.step_reward.samples_policy else None)
        has_outcome = any(func not in in_scores for func in self.reward_funcs)
        self.outcome_weight = args.outcome_weight if args.outcome_weight is not None else float(has_outcome)
        check_trainable(self.model, subject=subject)
        if args.shard_reward_model:
            self.step_reward.shard(self.accelerator)
        self.step_reward.processing_class = self._tokenizer
        self.step_reward.eos_token_ids = self.eos_token_ids
        self.step_reward.chat_template_kwargs = self.chat_template_kwargs
        self.step_reward.accelerator = self.accelerator
        self.aggregation = args.aggregation or self.step_reward.aggregation
        # `None` if there is no reward model
        self._step_index = next((i for i, func in enumerate(self.reward_funcs) if func is self.step_reward), None)
        is_step = torch.tensor([func is self.step_reward for func in self.reward_funcs])
        self._step_weight = self.reward_weights[is_step].sum().item()
        weights = enumerate(self.reward_weights.tolist())
        self._other_weights = {index: weight for index, weight in weights if index != self._step_index}
        if args.trl_computes_advantages:
            self.reward_weights = torch.where(is_step, 1.0, self.outcome_weight) * self.reward_weights
        if adds_answers and args.reasoning is None:
            prompt = next(iter(train_dataset)).get("prompt")
            if prompt and opens_thinking(prompt, self._tokenizer, self.chat_template_kwargs):
                self.answer_reward.grader = Grader(args.grading, answer_pattern=args.answer_pattern, reasoning=True)
        self._continuations = PolicyContinuations(self) if self.step_reward.samples_policy else None
        self.reward_model_updates = updates_of(self) if args.update_reward_model is not None else None
        self._tracking = PolicyTracking(self)
        # For each completion, which tokens the policy wrote. Set when completions are generated, `None` without tools.
        self._tool_masks: list[list[int]] | None = None
        # Passes batches from the reward function to `_calculate_rewards`, and from there to
        # `_generate_and_score_completions`, because only TRL's code is between them.
        self._handoff: Handoff[ScoredBatch | GlobalSteps] = Handoff()

    def _beta_on_step_scores(self, model: Any, peft_config: Any) -> float:
        """Default of `beta` if the policy learns from step scores alone."""
        name = type(self).__name__
        is_named = isinstance(model, (str, PathLike)) or bool(get_config_model_id(model.config))
        if not is_named and peft_config is None and not hasattr(model, "get_base_model"):
            logger.warning(
                "%s: the policy learns from step scores alone, and `beta` is 0, because TRL cannot load a reference "
                "for a model without a name. Policies collapsed in such runs. Pass the path of the model, or answers.",
                name,
            )
            return 0.0
        logger.warning(
            "%s: the policy learns from step scores alone. Therefore `beta` is %s, and a reference model is loaded. "
            "Add a column of answers to learn from graded answers too (in a shell: --use_answers true), or set beta.",
            name, BETA_OF_STEP_SCORES,
        )  # fmt: skip
        return BETA_OF_STEP_SCORES

    def _generate(self, prompts):  # seam
        generated = super()._generate(prompts)
        _, _, self._tool_masks, *_ = generated
        return generated

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):  # seam
        # Set at each call, because another trainer may use the same reward function.
        self.step_reward.handoff, self.step_reward.continuations = self._handoff, self._continuations
        inputs = with_tool_masks(type(self).__name__, inputs, completion_ids_list, self._tool_masks)
        try:
            rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            self.step_reward.handoff = None
        if self._step_index is None:
            self._handoff.put(split_completions(self, inputs, prompts, completions, completion_ids_list))
        batch = self._handoff.take(len(prompts))
        if self.reward_model_updates is not None and self.model.training:
            batch = updated_scores(self, batch, rewards_per_func, self.answer_index)
        if self._step_index is not None:
            for name, value in mean_over_processes(batch.metrics).items():
                self.metrics_of_mode[name].append(value)
        self._handoff.put(self._gather_steps(batch, rewards_per_func))
        return rewards_per_func

    def _gather_steps(self, batch: ScoredBatch, rewards_per_func: Tensor) -> GlobalSteps:
        scores, token_ends = batch.tensors(self.accelerator.device)
        longest = scores.shape[1]
        # A question's group may be spread over several processes, so group statistics need the steps of all processes.
        if self.accelerator.num_processes > 1:
            scores = self.accelerator.pad_across_processes(scores.contiguous(), dim=1, pad_index=torch.nan)
            scores = self.accelerator.gather(scores)
        start = self.accelerator.process_index * len(batch)
        outcomes = torch.zeros_like(rewards_per_func[:, 0])
        is_known = outcomes.bool()
        for index, weight in self._other_weights.items():
            reward = rewards_per_func[:, index]
            outcomes = outcomes + weight * reward.nan_to_num(0.0)
            is_known = is_known | ~reward.isnan()
        outcomes = outcomes.masked_fill(~is_known, torch.nan)
        mask = ~scores.isnan()
        token_ends = torch.nn.functional.pad(token_ends, (0, scores.shape[1] - longest))
        if self.answer_reward is None:
            wrong = outcomes <= 0
        else:
            wrong = rewards_per_func[:, self.answer_index] < 0.5
        local = slice(start, start + len(batch))
        return GlobalSteps(scores, mask, outcomes, wrong, local, token_ends, rewards_per_func.clone())

    @property
    def answer_index(self) -> int:
        """Index of the reward function that grades answers."""
        return next(i for i, func in enumerate(self.reward_funcs) if func is self.answer_reward)

    def agreement(self, rewards_per_func: Tensor) -> float:
        """AUC within questions of the step reward for right answers, NaN if no question has right and wrong ones."""
        graded, scored = rewards_per_func[:, self.answer_index], rewards_per_func[:, self._step_index]
        both = ~(graded.isnan() | scored.isnan())
        groups = torch.arange(len(graded), device=graded.device) // self._group_size
        return auc_within_groups(scored[both], graded[both] > 0.5, groups[both]).item()

    def _generate_and_score_completions(self, inputs):  # seam
        # Sampling from non-finite weights would end the process on a GPU without a useful message.
        self._check_weights()
        output = super()._generate_and_score_completions(inputs)
        steps = self._handoff.take(len(inputs))
        self._set_advantages(output, steps)
        log_generation(self, output, steps)
        return output

    def _set_advantages(self, output: dict[str, Any], steps: GlobalSteps) -> None:
        """Replaces the advantages (B,) in TRL's batch by the advantages of the tokens (B, T)."""
        raise NotImplementedError(
            f"{type(self).__name__} has no `_set_advantages`. Use StepGRPOTrainer or StepPPOTrainer."
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns the loss of [`~trl.GRPOTrainer`], and raises an error if it is not finite."""
        return self._checked_loss(super().compute_loss(model, inputs, return_outputs, num_items_in_batch))

    def _compute_loss(self, model, inputs):  # seam
        if self.model.training:
            self._tracking.count(inputs)
        loss = super()._compute_loss(model, inputs)
        if self.beta != 0.0:
            self.metrics_of_mode["reward_parts/kl"].append(self._tracking.loss_kl(inputs))
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, adds the throughput to logs of the training loop, and sends tables and signals to the trackers."""
        if self.model.training and "loss" in logs:
            logs.update(self._tracking.throughput())
        read_metrics(self.metrics_of_mode)
        super().log(logs, start_time)
        self._tracking.after_log(logs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Saves the policy. With `update_reward_model`, the reward model is saved in its subfolder `reward_model`."""
        super().save_model(output_dir, _internal_call=_internal_call)
        if self.reward_model_updates is not None and self.args.should_save:
            self.reward_model_updates.save_model(Path(output_dir or self.args.output_dir, FOLDER))

    def _save_own_files(self, checkpoint):
        if self.reward_model_updates is not None and self.args.should_save and not self.args.save_only_model:
            self.reward_model_updates.save_state(Path(checkpoint, FOLDER))
        if self._step % self._passes_per_generation and not self.args.save_only_model:
            save_generation(checkpoint, self.args, self.accelerator, self._buffered_inputs)
        if self.use_adaptive_entropy and self.args.should_save:
            # TRL writes this file after the trainer's state, so that a killed run could resume without it.
            entropy = {"entropy_coef": self.entropy_coef, "last_world_entropy": self._last_world_entropy}
            replace_file(Path(checkpoint, ENTROPY_FILE), json.dumps(entropy))

    def _load_optimizer_and_scheduler(self, checkpoint):  # seam
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.reward_model_updates is not None:
            self.reward_model_updates.load(Path(checkpoint, FOLDER))
        passes = self.state.global_step * self.args.gradient_accumulation_steps
        if not isinstance(self.train_dataset, IterableDataset):
            # The last update of an epoch may have fewer batches.
            passes = round((self.state.epoch or 0.0) * len(self._train_sampler) / self.args.generation_batch_size)
        self._step = 0 if self.args.ignore_data_skip else passes % self._passes_per_generation
        self._buffered_inputs = load_generation(checkpoint, self.args, self.accelerator) if self._step else None

    @property
    def _passes_per_generation(self) -> int:
        return self.args.steps_per_generation * self.num_iterations

    @property
    def metrics_of_mode(self) -> dict[str, list[float]]:
        """TRL's metrics of training or evaluation. The next log of this mode contains their means."""
        return self._metrics["train" if self.model.training else "eval"]

    @property
    def _group_size(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval

    def _question_values(self, steps: GlobalSteps) -> Tensor:
        """Value of each completion's question, of shape (N,): the mean score of its group's solutions."""
        return group_mean(steps.solution_scores(self.aggregation), steps.mask.any(-1), self._group_size)

    def _centered(self, rewards: Tensor, mask: Tensor, steps: GlobalSteps) -> Tensor:
        """Step rewards (N, S) after the centring of wrong solutions, if `center` asks for it."""
        if self.args.center is None:
            return rewards
        return center_wrong_solutions(rewards, mask, steps.wrong, self._group_size)

    def _step_rewards(self, steps: GlobalSteps, initial_value: Tensor | float = 0.0) -> Tensor:
        return step_rewards(
            steps.scores,
            steps.mask,
            self.args.credit,
            aggregation=self.aggregation,
            initial_value=initial_value,
            temperature=self.args.score_temperature,
        )


def _with_answer_weight(reward_weights: list[float], num_funcs: int) -> list[float]:
    """Adds the weight 1 of the graded answer, unless it has one."""
    if len(reward_weights) not in (num_funcs, num_funcs + 1):
        raise ValueError(
            f"reward_weights: got {len(reward_weights)} weights, expected {num_funcs}, one per reward function in "
            "reward_funcs, or one more for the graded answer. Add the missing weights."
        )
    return reward_weights if len(reward_weights) > num_funcs else [*reward_weights, 1.0]


def _check_outcome(subject: str, args: StepGRPOConfig, columns: list[str]) -> None:
    """Checks `outcome_weight` and the columns if there are no answers and no other reward functions."""
    if args.outcome_weight:
        raise ValueError(
            f"{subject}: got outcome_weight={args.outcome_weight} without an outcome, expected a column "
            f"{args.answer_column!r} in the training dataset, which has {', '.join(columns)}, or another reward "
            "function. Set answer_column to the column of the answers, pass another reward function, or set "
            "outcome_weight=0."
        )
    if args.center is not None:
        raise ValueError(
            f"{subject}: got center={args.center!r} without an outcome, expected a column {args.answer_column!r} in "
            f"the training dataset, which has {', '.join(columns)}, or another reward function. Set answer_column to "
            "the column of the answers, or do not set center."
        )
    unused = [column for column in ANSWER_COLUMNS if column in columns]
    if unused:
        logger.warning(
            "%s: the column %r of the training dataset is not used. Set answer_column=%r to grade answers with it.",
            subject, unused[0], unused[0],
        )  # fmt: skip


def _as_step_reward(func: Any, args: StepGRPOConfig) -> Any:
    if isinstance(func, (str, PathLike)):
        func = local_path(func)
        try:  # TRL loads any other path or id as a sequence classification model
            prm_format = load_format(func)
        except FileNotFoundError:
            return func
    elif hasattr(func, "score") and not callable(func):
        func = StepScorer.of(func)
        prm_format = func.prm_format
    else:
        return func
    eta = eta_or_as_trained(prm_format, args.eta, "The reward model")
    limits = {"max_batch_tokens": args.reward_model_max_batch_tokens}
    return StepRewardFunction(
        func, aggregation=args.aggregation, question_column=args.question_column, eta=eta, scorer_kwargs=limits
    )


def _why_no_reward_model(path: str) -> str:
    try:
        load_format(path)
    except FileNotFoundError as error:
        return str(error)
    return ""
