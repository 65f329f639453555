"""Configurations of the step trainers: `GRPOConfig` and what step rewards add to it."""

import math
from dataclasses import dataclass, field

from trl import GRPOConfig

from ...functional.advantages import CREDITS
from ...functional.aggregation import AGGREGATIONS
from ...training.tracking.tracking_config import TrackingConfig


@dataclass
class StepGRPOConfig(TrackingConfig, GRPOConfig):
    r"""
    Configuration class for the [`StepGRPOTrainer`].

    Only the parameters specific to step rewards are listed here; see [`~trl.GRPOConfig`] for the others.

    Parameters:
        > Parameters that control the rewards

        credit (`str`, *optional*, defaults to `"difference"`):
            What a step is paid, from the scores of the steps: `"difference"`, `"min_form"`, `"sum"` or `"outcome"`,
            see [`~erprm_trl.functional.step_rewards`].
        aggregation (`str`, *optional*):
            What a prefix is worth, from the scores of its steps: `"min"`, `"last"`, `"product"` or `"mean"`. Defaults
            to the reward model's own. Of `"difference"` and `"outcome"`.
        score_temperature (`float`, *optional*, defaults to `0.1`):
            Temperature of `"min_form"`'s softmax.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of the rewards to come: a step in GRPO (1 credits a step with all that follows, 0 with its own
            reward alone), a token in PPO.
        outcome_weight (`float`, *optional*):
            Weight of the graded answer, and of any other reward function, in addition to the step rewards. Defaults to
            1.0 where the dataset has answers or there are other reward functions, else to 0. At 0 answers are graded
            and logged, and have no influence. Above 0 without answers and other reward functions is an error.
        eta (`float`, *optional*):
            The paper's inverse reward temperature \\( \eta \\): sets `beta` to 1/eta unless `beta` is given.
        beta (`float`, *optional*):
            KL coefficient. Defaults to 1/eta if `eta` is given, else to 0: no reference model.

        shard_reward_model (`bool`, *optional*, defaults to `False`):
            Splits the reward model's weights over the processes of a ZeRO-3 training, where it is given by its path.
            Otherwise each process holds it whole.

        > Parameters that control the answers

        question_column (`str`, *optional*, defaults to `"question"`):
            Column of the bare question, for the reward model. Without a column `"question"` the prompt is the
            question. Any other column must exist.
        answer_column (`str`, *optional*, defaults to `"answer"`):
            Column of the reference answers. A dataset without a column `"answer"` is trained on step rewards alone.
            Any other column must exist.
        grading (`str`, *optional*, defaults to `"math"`), answer_pattern (`str`, *optional*):
            See [`~erprm_trl.rollouts.Grader`].
        reasoning (`bool`, *optional*):
            Whether only what follows `</think>` is graded, see [`~erprm_trl.rollouts.Grader`]. By default the
            delimiters are looked for in each completion, and a completion without any is thinking that is not closed
            where the first training prompt, or the chat template, ends with `<think>`.

        > Parameters that control the tracking

        num_logged_solutions (`int`, *optional*, defaults to `8`), log_artifacts (`list[str]`, *optional*):
            See [`~erprm_trl.training.tracking.TrackingConfig`]. The solutions are logged with `log_completions=True`.
    """

    credit: str = field(default="difference", metadata={"help": "What a step is paid.", "choices": list(CREDITS)})
    aggregation: str | None = field(
        default=None,
        metadata={
            "help": "From step scores to the value of a prefix; default: the reward model's own.",
            "choices": list(AGGREGATIONS),
        },
    )
    score_temperature: float = field(default=0.1, metadata={"help": "Temperature of min_form's softmax."})
    gamma: float = field(default=1.0, metadata={"help": "Discount: a step in GRPO, a token in PPO."})
    outcome_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of graded answers and other reward functions; default 1.0 where there are any."},
    )
    eta: float | None = field(
        default=None, metadata={"help": "Inverse reward temperature: sets beta to 1/eta unless beta is given."}
    )
    beta: float | None = field(default=None, metadata={"help": "KL coefficient; default 1/eta, or 0 without eta."})
    shard_reward_model: bool = field(
        default=False, metadata={"help": "Split the reward model over the processes of a ZeRO-3 training."}
    )
    question_column: str = field(default="question", metadata={"help": "Column of the bare question."})
    answer_column: str = field(default="answer", metadata={"help": "Column of the reference answers."})
    grading: str = field(default="math", metadata={"help": "math, exact, or package.module:function."})
    answer_pattern: str | None = field(default=None, metadata={"help": "Regex whose first group is the final answer."})
    reasoning: bool | None = field(
        default=None, metadata={"help": "Grade what follows </think>. Default: where a text has <think>."}
    )

    def __post_init__(self):
        if self.beta is None:
            if self.eta is not None and not self.eta > 0:
                raise ValueError(
                    f"eta: got {self.eta}, expected a positive number (its KL coefficient is 1/eta). Give beta itself "
                    "to train with another."
                )
            self.beta = 0.0 if self.eta is None else 1.0 / self.eta
        super().__post_init__()
        if self.credit not in CREDITS:
            raise ValueError(f"credit: got {self.credit!r}, expected one of {', '.join(CREDITS)}.")
        if self.aggregation is not None and self.aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation: got {self.aggregation!r}, expected one of {', '.join(AGGREGATIONS)}.")
        if not self.score_temperature > 0:
            raise ValueError(f"score_temperature: got {self.score_temperature}, expected a positive number.")
        if self.outcome_weight is not None and not 0 <= self.outcome_weight < math.inf:
            raise ValueError(f"outcome_weight: got {self.outcome_weight}, expected a number that is not negative.")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma: got {self.gamma}, expected a number from 0 to 1.")
        # These read one advantage a completion.
        if self.loss_type == "vespo" or self.off_policy_mask_threshold is not None:
            raise ValueError(
                "loss_type='vespo' and off_policy_mask_threshold want one advantage a completion, steps have many: "
                "choose another loss_type, leave off_policy_mask_threshold unset, or train with trl.GRPOTrainer."
            )
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                f"multi_objective_aggregation: got {self.multi_objective_aggregation!r}, expected "
                "'sum_then_normalize'. Step rewards are normalized apart from the others in any case."
            )

    @property
    def named_columns(self) -> dict[str, str]:
        """`question_column` and `answer_column`, as far as they are not the defaults. These columns have to exist."""
        names = ("question_column", "answer_column")
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(type(self), name)}


@dataclass
class StepPPOConfig(StepGRPOConfig):
    r"""
    Configuration class for the [`StepPPOTrainer`].

    Only the parameters specific to PPO are listed here; see [`StepGRPOConfig`] and [`~trl.GRPOConfig`] for the others:
    `epsilon` clips the policy, `num_iterations` is the number of epochs over a batch, `beta` the KL coefficient.

    Parameters:
        critic (`str`, *optional*, defaults to `"head"`):
            `"head"`: a value head on the policy's last hidden state, trained in the same backward pass. `"erprm"`: the
            frozen reward model's own prefix values; for `credit` `"difference"` or `"outcome"`.
        gae_lambda (`float`, *optional*, defaults to `0.95`):
            Lambda of generalised advantage estimation, a token.
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the value loss.
        value_clip_range (`float` or `None`, *optional*, defaults to `0.2`):
            How far values may move from those stored with the rollout; `None` does not clip.
        critic_learning_rate (`float`, *optional*):
            Learning rate of the value head's own weights. Defaults to `learning_rate`.
        whiten_advantages (`bool`, *optional*, defaults to `True`):
            Whether advantages get zero mean and unit variance over the tokens of the whole generation batch.
        kl_in_reward (`bool`, *optional*, defaults to `True`):
            Whether `beta` times the KL is taken off each token's reward; otherwise it is a term of the loss, as in
            GRPO.
    """

    critic: str = field(
        default="head", metadata={"help": "A learned value head, or the reward model.", "choices": ["head", "erprm"]}
    )
    gae_lambda: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    value_clip_range: float | None = field(
        default=0.2, metadata={"help": "How far values may move from the rollout's; None does not clip."}
    )
    critic_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the value head; default: learning_rate."}
    )
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Zero mean and unit variance over the global batch's tokens."}
    )
    kl_in_reward: bool = field(default=True, metadata={"help": "KL as part of the reward; else of the loss."})

    def __post_init__(self):
        super().__post_init__()
        if self.critic not in ("head", "erprm"):
            raise ValueError(f"critic: got {self.critic!r}, expected 'head' or 'erprm'.")
        if self.critic == "erprm" and self.credit not in ("difference", "outcome"):
            raise ValueError(
                f"critic='erprm' with credit={self.credit!r}: the reward model's value estimates a solution's final "
                "score, not this credit's sum of rewards. Choose credit 'difference' or 'outcome', or critic='head'."
            )
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gae_lambda: got {self.gae_lambda}, expected a number from 0 to 1.")
        if self.value_clip_range is not None and not self.value_clip_range > 0:
            raise ValueError(f"value_clip_range: got {self.value_clip_range}, expected a positive number or None.")
