"""Configurations of the step trainers: `GRPOConfig` with the parameters of step rewards."""

import math
from dataclasses import dataclass, field

from trl import GRPOConfig

from ...functional.advantages import CREDITS
from ...functional.aggregation import AGGREGATIONS
from ...training.precision import choose_precision
from ...training.tracking.tracking_config import TrackingConfig
from .completion_options import refuse_options_of_completions
from .credit_options import LOG_RATIO, UPDATES, check_log_ratio


CREDIT_CHOICES = (*CREDITS, LOG_RATIO)


@dataclass
class StepGRPOConfig(TrackingConfig, GRPOConfig):
    r"""
    Configuration class for the [`StepGRPOTrainer`].

    Only the parameters specific to step rewards are listed here; see [`~trl.GRPOConfig`] for the others.

    Parameters:
        > Parameters that control the rewards

        credit (`str`, *optional*, defaults to `"difference"`):
            How step scores become step rewards: `"difference"`, `"min_form"`, `"sum"` or `"outcome"`, see
            [`~erprm_trl.functional.step_rewards`]. `"log_ratio"` needs no reward model. The return of a step is then
            the normalised outcome minus 1/eta times the log-ratio of policy and reference from the step to the end,
            see [`~erprm_trl.functional.log_ratio_returns`]. It needs `eta`, and `gamma` and `aggregation` have no
            effect on it. GRPO only.
        splitter (`str`, *optional*):
            How completions are split into steps with `credit="log_ratio"`, see [`~erprm_trl.rollouts.split_steps`].
            Defaults to `"whole_lines"`. With the other credits, the format of the reward model decides.
        step_tokens (`int`, *optional*):
            Number of tokens per step with `credit="log_ratio"`, instead of `splitter`. With 1, the return of a token
            has the log-ratios from this token on. The metrics `steps/...` still count the steps of `splitter`.
        aggregation (`str`, *optional*):
            How the step scores of a prefix become its value: `"min"`, `"last"`, `"product"` or `"mean"`. Defaults to
            the aggregation of the reward model's format. Only the credits `"difference"` and `"outcome"` use it.
        score_temperature (`float`, *optional*, defaults to `0.1`):
            Temperature of the softmax of `"min_form"`.
        gamma (`float`, *optional*):
            Discount factor of later rewards, per step in GRPO and per token in PPO. In GRPO, 0 credits a step with its
            own reward alone, and 1 also with the rewards of all later steps. Defaults to 0 in GRPO, and to 1 in PPO
            and with the credit `"min_form"`.
        scale_rewards (`str` or `bool`, *optional*, defaults to `"batch"`):
            As in [`~trl.GRPOConfig`], where the default is `"group"`. It applies to the step rewards and to the
            outcomes, which are scaled separately. In a group whose solutions are equally good, the scores differ by
            errors of the reward model alone, and `"group"` would enlarge these errors.
        center (`str`, *optional*):
            `"outcome"` shifts the step rewards of each question's wrong solutions to mean zero, so that plausible
            steps of wrong solutions gain nothing on average (PROGRS). A solution is wrong if its graded answer is.
            Without graded answers, it is wrong if the sum of the other reward functions is 0 or negative. By default,
            step rewards are not shifted.
        outcome_weight (`float`, *optional*):
            Weight of the graded answer and of any other reward functions, in addition to the step rewards. Defaults to
            1.0 if the dataset has answers or there are other reward functions, else to 0. With 0, answers are graded
            and logged, but not trained on. A value above 0 without answers and other reward functions is an error.
        reward_weights (`list[float]`, *optional*):
            One weight per reward function, as in [`~trl.GRPOConfig`]. The weight of the process reward model
            multiplies the step rewards after their normalisation. The weights of the other reward functions apply
            inside the outcome. If the graded answer is added to the reward functions, its weight is 1, or the last one
            if there is one weight more.
        eta (`float`, *optional*):
            The paper's inverse reward temperature \\( \eta \\). The reward model's scores are read at this eta
            ([`StepScorer`]) if the eta of its labels is finite and recorded in its format. Otherwise the scores are
            used as they are, and a warning is logged. It also sets `beta` to 1/eta, unless `beta` is set.
        beta (`float`, *optional*):
            KL coefficient. Defaults to 1/eta if `eta` is set. Otherwise, it defaults to 0, which needs no reference
            model, except on step scores alone, without an outcome. There it defaults to 0.1, because policies
            collapsed without it. With `credit="log_ratio"`, the KL is a part of the returns, and not of the loss.

        shard_reward_model (`bool`, *optional*, defaults to `False`):
            Whether to shard the reward model over the processes of a ZeRO-3 training run. It must be passed by its
            path. By default, every process holds the whole reward model.

        > Parameters that control the updates of the reward model

        update_reward_model (`str`, *optional*):
            Whether and when an implicit reward model (`ERPRMConfig(head="implicit")`) is trained during the training
            of the policy (PRIME). It gets one update per generation, on the graded answers of that generation.
            `"before_scoring"` makes the update before the completions get the scores that the policy is trained on.
            `"after_scoring"` makes it after that, so that no completion is scored by a model that has seen its answer.
            The dataset must have answers. With `outcome_weight=0`, only the reward model is trained on them. Rows
            without an answer, and completions without scores, are left out and counted (`reward_model/unused_share`).
            The weights of a reward model that is passed as a loaded model are changed in place. The reward model is
            saved in the folder `reward_model` next to the policy. By default, the reward model is not trained.
        reward_model_learning_rate (`float`, *optional*, defaults to `1e-6`):
            Constant learning rate of these updates. Their AdamW has the betas and the epsilon of the policy's, and
            `max_grad_norm` limits their gradients.
        reward_model_max_batch_tokens (`int`, *optional*, defaults to `8192`):
            Maximum number of tokens per pass, including padding, when the reward model scores completions, and when it
            is updated. It limits the memory. A reward model that is passed as a loaded scorer scores with its own
            limits.

        > Parameters that control the answers

        question_column (`str`, *optional*, defaults to `"question"`):
            Column of the bare question, for the reward model. If there is no column `"question"`, the prompt is used
            as the question. Any other column must exist.
        answer_column (`str`, *optional*, defaults to `"answer"`):
            Column of the reference answers. If there is no column `"answer"`, only step rewards are used. Any other
            column must exist.
        grading, answer_pattern (`str`, *optional*):
            See [`~erprm_trl.rollouts.Grader`].
        reasoning (`bool`, *optional*):
            Whether to grade only the text after `</think>`, see [`~erprm_trl.rollouts.Grader`]. By default, this is
            decided by the delimiters in each completion. If the first training prompt or the chat template ends with
            `<think>`, a completion without delimiters is unfinished thinking.

        > Parameters that control the tracking

        num_logged_solutions (`int`, *optional*, defaults to `8`), log_artifacts (`list[str]`, *optional*):
            See [`~erprm_trl.training.tracking.TrackingConfig`]. The solutions are logged with `log_completions=True`.
    """

    credit: str = field(
        default="difference",
        metadata={"help": "How step scores become step rewards.", "choices": list(CREDIT_CHOICES)},
    )
    splitter: str | None = field(
        default=None,
        metadata={"help": "How completions are split with the credit 'log_ratio'. Defaults to 'whole_lines'."},
    )
    step_tokens: int | None = field(
        default=None, metadata={"help": "Number of tokens per step with the credit 'log_ratio', instead of splitter."}
    )
    aggregation: str | None = field(
        default=None,
        metadata={
            "help": "How the step scores of a prefix become its value. Defaults to the reward model's aggregation.",
            "choices": list(AGGREGATIONS),
        },
    )
    score_temperature: float = field(
        default=0.1, metadata={"help": "Temperature of the softmax of the credit 'min_form'."}
    )
    gamma: float | None = field(
        default=None,
        metadata={
            "help": "Discount factor of later rewards, per step in GRPO and per token in PPO. Defaults to 0 in GRPO, "
            "and to 1 in PPO and with the credit 'min_form'."
        },
    )
    scale_rewards: str = field(
        default="batch",
        metadata={"help": "How rewards are scaled: 'batch', 'group' or 'none', as in GRPOConfig."},
    )
    center: str | None = field(
        default=None,
        metadata={
            "help": "'outcome' shifts the step rewards of each question's wrong solutions to mean zero.",
            "choices": ["outcome"],
        },
    )
    outcome_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of graded answers and other reward functions. Defaults to 1.0 if there are any, else to 0."
        },
    )
    eta: float | None = field(
        default=None,
        metadata={
            "help": "Inverse reward temperature, at which the reward model's scores are read. It sets beta to 1/eta, "
            "unless beta is set."
        },
    )
    beta: float | None = field(
        default=None,
        metadata={"help": "KL coefficient. Defaults to 1/eta. Without eta, it is 0, or 0.1 without outcomes."},
    )
    shard_reward_model: bool = field(
        default=False,
        metadata={"help": "Whether to shard the reward model over the processes of a ZeRO-3 training run."},
    )
    update_reward_model: str | None = field(
        default=None,
        metadata={
            "help": "When an implicit reward model is updated on the graded answers of each generation. By default, "
            "it is not updated.",
            "choices": list(UPDATES),
        },
    )
    reward_model_learning_rate: float = field(
        default=1e-6, metadata={"help": "Learning rate of the updates of the reward model."}
    )
    reward_model_max_batch_tokens: int = field(
        default=8192, metadata={"help": "Maximum number of tokens per pass of the reward model."}
    )
    question_column: str = field(default="question", metadata={"help": "Column of the bare question."})
    answer_column: str = field(default="answer", metadata={"help": "Column of the reference answers."})
    grading: str = field(
        default="math", metadata={"help": "How answers are graded: math, exact, or package.module:function."}
    )
    answer_pattern: str | None = field(
        default=None, metadata={"help": "Regular expression whose first group is the final answer."}
    )
    reasoning: bool | None = field(
        default=None,
        metadata={"help": "Whether to grade only the text after </think>. Defaults to true for texts with <think>."},
    )

    def __post_init__(self):
        check_log_ratio(self)
        choose_precision(self)
        if self.gamma is None:
            self.gamma = self._default_gamma
        # Without an outcome, the trainer chooses another default.
        self.beta_is_default = self.beta is None and self.eta is None
        if self.beta is None:
            if self.eta is not None and not self.eta > 0:
                raise ValueError(
                    f"eta: got {self.eta} without beta, expected a positive number, because the KL coefficient is "
                    "then 1/eta. Set beta, too, to read the scores at another eta."
                )
            self.beta = 0.0 if self.eta is None else 1.0 / self.eta
        super().__post_init__()
        if self.credit not in CREDIT_CHOICES:
            raise ValueError(f"credit: got {self.credit!r}, expected one of {', '.join(CREDIT_CHOICES)}. Choose one.")
        if self.aggregation is not None and self.aggregation not in AGGREGATIONS:
            raise ValueError(
                f"aggregation: got {self.aggregation!r}, expected one of {', '.join(AGGREGATIONS)}. Choose one."
            )
        if self.center not in (None, "outcome"):
            raise ValueError(f"center: got {self.center!r}, expected 'outcome' or None. Choose one.")
        if not self.score_temperature > 0:
            raise ValueError(
                f"score_temperature: got {self.score_temperature}, expected a positive number. Set e.g. 0.1."
            )
        if self.outcome_weight is not None and not 0 <= self.outcome_weight < math.inf:
            raise ValueError(
                f"outcome_weight: got {self.outcome_weight}, expected a finite number of at least 0. Set e.g. 1.0."
            )
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma: got {self.gamma}, expected a number from 0 to 1. Set e.g. 1.0.")
        self._check_positive("reward_model_max_batch_tokens")
        if self.update_reward_model is not None:
            self._check_updates()
        if not self.trl_computes_advantages:
            refuse_options_of_completions(self)

    @property
    def _default_gamma(self) -> float:
        return 1.0 if self.credit == "min_form" else 0.0

    @property
    def trl_computes_advantages(self) -> bool:
        """Whether TRL computes the advantages, which are then one per completion, and not one per step."""
        return self.credit == "outcome"

    def _check_updates(self) -> None:
        if self.update_reward_model not in UPDATES:
            raise ValueError(
                f"update_reward_model: got {self.update_reward_model!r}, expected one of {', '.join(UPDATES)}, or "
                "None. Choose one."
            )
        if self.shard_reward_model:
            raise ValueError(
                "update_reward_model: got shard_reward_model=True, expected False, because every process updates a "
                "whole reward model. Set shard_reward_model=False."
            )
        self._check_positive("reward_model_learning_rate")

    def _check_positive(self, name: str) -> None:
        if not 0 < getattr(self, name) < math.inf:
            raise ValueError(f"{name}: got {getattr(self, name)}, expected a positive number. Raise it.")

    @property
    def named_columns(self) -> dict[str, str]:
        """`question_column` and `answer_column` if they differ from the defaults. These columns must exist."""
        names = ("question_column", "answer_column")
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(type(self), name)}


class _SingleGeneration(int):
    """The number 1, which passes TRL's check that GRPO has at least two completions per group (`1 < 2`)."""

    def __lt__(self, other):
        return False


@dataclass
class StepPPOConfig(StepGRPOConfig):
    r"""
    Configuration class for the [`StepPPOTrainer`].

    Only the parameters specific to PPO are listed here; see [`StepGRPOConfig`] and [`~trl.GRPOConfig`] for the others.
    There, `epsilon` is the clip range of the policy, `num_iterations` the number of epochs per batch, and `beta` the
    KL coefficient. With `critic="head"`, `num_generations` may be 1, because the critic is the baseline.

    Parameters:
        critic (`str`, *optional*, defaults to `"head"`):
            Critic that estimates the values. `"head"` is a value head on the policy's last hidden state, trained in
            the same backward pass. `"erprm"` is the frozen reward model's own prefix values, which need the credit
            `"difference"` or `"outcome"`.
        gae_lambda (`float`, *optional*, defaults to `0.95`):
            Lambda of generalised advantage estimation, per token.
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the value loss.
        value_clip_range (`float` or `None`, *optional*, defaults to `0.2`):
            Maximum change of a value from its value at the rollout. `None` disables the clipping.
        critic_learning_rate (`float`, *optional*):
            Learning rate of the value head. Defaults to `learning_rate`.
        whiten_advantages (`bool`, *optional*, defaults to `True`):
            Whether to normalise advantages to zero mean and unit variance over all tokens of the generation batch.
        kl_in_reward (`bool`, *optional*, defaults to `True`):
            Whether to subtract `beta` times the KL from each token's reward. Otherwise it is a term of the loss, as in
            GRPO.
    """

    critic: str = field(
        default="head",
        metadata={
            "help": "Critic that estimates the values: a trained value head ('head') or the reward model ('erprm').",
            "choices": ["head", "erprm"],
        },
    )
    gae_lambda: float = field(
        default=0.95, metadata={"help": "Lambda of generalised advantage estimation, per token."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    value_clip_range: float | None = field(
        default=0.2,
        metadata={"help": "Maximum change of a value from its value at the rollout. None disables the clipping."},
    )
    critic_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the value head. Defaults to learning_rate."}
    )
    whiten_advantages: bool = field(
        default=True,
        metadata={"help": "Whether to normalise advantages over all tokens of the generation batch."},
    )
    kl_in_reward: bool = field(
        default=True, metadata={"help": "Whether the KL is part of the reward instead of the loss."}
    )

    @property
    def trl_computes_advantages(self) -> bool:
        """Whether TRL computes the advantages: never, because they depend on the critic."""
        return False

    @property
    def _default_gamma(self) -> float:
        return 1.0

    def __post_init__(self):
        if self.credit == LOG_RATIO:
            raise ValueError(
                "credit: got 'log_ratio' with StepPPOConfig, expected a credit of step scores, because PPO already "
                "subtracts beta times the log-ratio from every token's reward (kl_in_reward=True), and would count it "
                "twice. Choose another credit, or train with StepGRPOTrainer."
            )
        num_generations = self.num_generations
        if num_generations == 1 and self.critic == "erprm":
            raise ValueError(
                "num_generations: got 1 with critic='erprm', expected at least 2, because this critic estimates the "
                "value of a question by the mean score of its completions. Raise it, or set critic='head'."
            )
        if num_generations == 1:
            self.num_generations = _SingleGeneration(1)
        super().__post_init__()
        self.num_generations = num_generations
        if self.critic not in ("head", "erprm"):
            raise ValueError(f"critic: got {self.critic!r}, expected 'head' or 'erprm'. Choose one.")
        if self.critic == "erprm" and self.credit not in ("difference", "outcome"):
            raise ValueError(
                f"critic='erprm': got credit={self.credit!r}, expected 'difference' or 'outcome', because the reward "
                "model estimates a solution's final score, and not the sum of this credit's rewards. Change the "
                "credit, or set critic='head'."
            )
        if self.critic == "erprm" and self.update_reward_model is not None:
            raise ValueError(
                f"critic='erprm': got update_reward_model={self.update_reward_model!r}, expected None, because this "
                "critic is a frozen reward model. Set critic='head', or remove update_reward_model."
            )
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gae_lambda: got {self.gae_lambda}, expected a number from 0 to 1. Set e.g. 0.95.")
        if self.value_clip_range is not None and not self.value_clip_range > 0:
            raise ValueError(
                f"value_clip_range: got {self.value_clip_range}, expected a positive number, or None. Set e.g. 0.2."
            )
