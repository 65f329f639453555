"""Configuration of [`RAFTTrainer`]: [`~trl.SFTConfig`] with the parameters of rounds, sampling and selection."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import SFTConfig

from ...functional.aggregation import AGGREGATIONS
from ...io.config_values import read_json_fields
from ...training.precision import choose_precision
from ...training.tracking.tracking_config import TrackingConfig


# The arguments of `PromptFormat`.
PROMPT_SETTINGS = ("prompt_template", "system_prompt", "use_chat_template", "chat_template_kwargs", "examples")
# The settings of the refresh of the reward model.
REFRESH_SETTINGS = tuple(
    f"refresh_{name}"
    for name in ("reward_model", "num_solutions", "num_continuations", "learning_rate", "rollouts", "old_share")
)
# Settings that must be the same when a run is resumed. Logging, saving, and the numbers of rounds and processes may
# differ.
COMPARED = (
    "questions_per_round start_from num_generations top_k aggregation score_threshold drop_uniform deduplicate "
    "scoring_batch_size temperature top_p max_completion_length generation_batch_size chunk_size prompt_template "
    "system_prompt use_chat_template chat_template_kwargs examples stop use_vllm grading answer_pattern reasoning "
    "num_generations_eval num_train_epochs max_steps learning_rate lr_scheduler_type warmup_steps optim "
    "weight_decay max_grad_norm loss_type packing max_length seed"
).split()


@dataclass
class RAFTConfig(TrackingConfig, SFTConfig):
    r"""
    Configuration class for the [`RAFTTrainer`].

    Only the parameters specific to RAFT are listed here; see [`~trl.SFTConfig`] for the others. Those apply to the
    training of each round, because every round has its own optimizer, schedule and `max_steps`.

    Parameters:
        > Parameters that control the rounds

        num_rounds (`int`, *optional*, defaults to `3`):
            Number of rounds of sampling, selection and training. To extend a finished run, start it again with more
            rounds.
        questions_per_round (`int`, *optional*):
            Number of questions per round. Each round takes the next block of a seeded shuffle, which starts again at
            its end. Defaults to all questions.
        start_from (`str`, *optional*, defaults to `"last"`):
            Policy that each round trains: the `"last"` policy, or the `"first"` policy. Solutions are always sampled
            from the last policy.

        > Parameters that control the selection

        num_generations (`int`, *optional*, defaults to `16`):
            Number of sampled solutions per question.
        top_k (`int`, *optional*, defaults to `1`):
            Number of selected solutions per question. It is not the sampler's top-k: the sampler always uses the whole
            vocabulary.
        aggregation (`str`, *optional*):
            How step scores become one score per solution: `"min"`, `"last"`, `"product"` or `"mean"`. Defaults to the
            aggregation of the reward model's format.
        eta (`float`, *optional*):
            Eta at which the reward model's scores are read, see [`StepScorer`]. By default, scores are used as the
            model gives them.
        trained_eta (`float`, *optional*):
            Eta of the labels of a reward model whose format does not record it.
        score_threshold (`float`, *optional*):
            Minimum score of a selected solution.
        drop_uniform (`bool`, *optional*):
            Whether to drop questions whose solutions are all right or all wrong, because training on the solutions of
            easy questions collapses the entropy over rounds. It needs answers. Defaults to `True` if there are
            answers.
        deduplicate (`bool`, *optional*, defaults to `True`):
            Whether to select equal solutions of a question only once.
        scoring_batch_size (`int`, *optional*, defaults to `32`):
            Maximum number of solutions per scoring batch, if the reward model is a path or id.
        shard_reward_model (`bool`, *optional*, defaults to `False`):
            Whether to shard the reward model over the processes of a ZeRO-3 training run. It must be passed by its
            path or id. By default, every process holds the whole reward model.

        > Parameters that control the refresh of the reward model

        refresh_reward_model (`int`, *optional*, defaults to `0`):
            Number of each round's questions that the new policy labels after the round, to continue the training of
            the reward model on them. It needs answers, and a reward model whose weights are in this process. The
            fresh labels of all rounds so far are used, for one epoch. A quarter of all questions, chosen by a hash of
            their text, is never labelled. As many of those are solved to measure the reward model before and after,
            and a reward model that got worse is not used. 0 keeps the reward model as it is.
        refresh_num_solutions (`int`, *optional*, defaults to `2`):
            Number of solutions per labelled question.
        refresh_num_continuations (`int`, *optional*, defaults to `8`):
            Number of continuations per prefix of a labelled solution. An implicit reward model needs none.
        refresh_learning_rate (`float`, *optional*, defaults to `1e-5`):
            Learning rate of the reward model, with a linear schedule per round. Batch sizes, precision, optimizer and
            checkpoints are set as for the policy.
        refresh_rollouts (`str`, *optional*):
            Rollout folder that the reward model was trained on, to mix its labels with the fresh ones.
        refresh_old_share (`float`, *optional*, defaults to `0.5`):
            Share of solutions from `refresh_rollouts` among the training examples. It is smaller if the folder has too
            few, because none is used twice in a round.

        > Parameters that control the questions

        question_column (`str`, *optional*):
            Column of the bare question. Defaults to the first column with a usual name (`question`, `problem`, ...).
        answer_column (`str`, *optional*):
            Column of the reference answers. Defaults to the first column with a usual name (`answer`, `solution`,
            ...), if there is one.

        > Parameters that control the sampling

        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature of the solutions to select from. Evaluation always uses 1.
        top_p (`float`, *optional*, defaults to `1.0`):
            Probability mass kept by nucleus sampling of the solutions to select from. Evaluation always uses 1.
        max_completion_length (`int`, *optional*, defaults to `512`):
            Maximum number of tokens per solution. A solution that reaches it is never selected.
        generation_batch_size (`int`, *optional*, defaults to `64`):
            Number of sequences that each process generates at a time.
        chunk_size (`int`, *optional*, defaults to `16`):
            Number of questions that are sampled before they are written to disk. A killed process loses at most two
            chunks.
        prompt_template, system_prompt, use_chat_template, chat_template_kwargs, examples (*optional*):
            See [`PromptFormat`].
        stop (`list[str]`, *optional*):
            Strings that end a solution, see [`collect_rollouts`]. Such a solution is finished, but has no end-of-text
            token, so the policy is not trained to stop there.
        use_vllm (`bool`, *optional*, defaults to `False`):
            Whether to sample with vLLM. Each process has an engine on its own device, which loads the round's saved
            policy and is freed before the training. A LoRA adapter is merged for the engine.
        vllm_kwargs (`dict[str, Any]`, *optional*):
            Arguments of `vllm.LLM`. An engine can only use several devices in a run with a single process.

        > Parameters that control grading and evaluation

        grading, answer_pattern, reasoning (*optional*):
            See [`collect_rollouts`]. They are not used without answers.
        num_generations_eval (`int`, *optional*, defaults to `4`):
            Number of sampled solutions per evaluation question. The accuracy is their mean.

        > Parameters that control the tracking

        num_logged_solutions (`int`, *optional*, defaults to `8`), log_artifacts (`list[str]`, *optional*):
            See [`~erprm_trl.training.tracking.TrackingConfig`]. Every round logs its last checkpoint.
        run_name (`str`, *optional*):
            Name of the run in trackers. With trackio, it defaults to the last part of `output_dir`, so that every
            round continues the same run.

    > [!NOTE]
    > `num_train_epochs` (per round) defaults to 2, unlike in [`~trl.SFTConfig`].
    """

    _VALID_DICT_FIELDS = SFTConfig._VALID_DICT_FIELDS + ["vllm_kwargs", "chat_template_kwargs"]

    num_train_epochs: float = field(
        default=2.0, metadata={"help": "Number of epochs per round over the selected solutions."}
    )

    # Parameters that control the rounds
    num_rounds: int = field(default=3, metadata={"help": "Number of rounds of sampling, selection and training."})
    questions_per_round: int | None = field(
        default=None,
        metadata={"help": "Number of questions per round, in a seeded shuffle. Defaults to all questions."},
    )
    start_from: str = field(
        default="last",
        metadata={
            "help": "Policy that each round trains: the 'last' policy, or the 'first' policy.",
            "choices": ["last", "first"],
        },
    )

    # Parameters that control the selection
    num_generations: int = field(default=16, metadata={"help": "Number of sampled solutions per question."})
    top_k: int = field(
        default=1, metadata={"help": "Number of selected solutions per question (not the sampler's top-k)."}
    )
    aggregation: str | None = field(
        default=None,
        metadata={
            "help": "How step scores become one score per solution. Defaults to the reward model's aggregation.",
            "choices": list(AGGREGATIONS),
        },
    )
    eta: float | None = field(
        default=None,
        metadata={"help": "Eta at which the scores are read. Defaults to the scores as the model gives them."},
    )
    trained_eta: float | None = field(
        default=None,
        metadata={"help": "Eta of the labels of a reward model whose format does not record it."},
    )
    score_threshold: float | None = field(default=None, metadata={"help": "Minimum score of a selected solution."})
    drop_uniform: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to drop questions whose solutions are all right or all wrong. Defaults to true if there "
            "are answers."
        },
    )
    deduplicate: bool = field(
        default=True, metadata={"help": "Whether to select equal solutions of a question only once."}
    )
    scoring_batch_size: int = field(default=32, metadata={"help": "Maximum number of solutions per scoring batch."})
    shard_reward_model: bool = field(
        default=False,
        metadata={"help": "Whether to shard the reward model over the processes of a ZeRO-3 training run."},
    )

    # Parameters that control the refresh of the reward model
    refresh_reward_model: int = field(
        default=0,
        metadata={
            "help": "Number of each round's questions that the new policy labels, to continue the training of the "
            "reward model. 0 keeps the reward model as it is."
        },
    )
    refresh_num_solutions: int = field(default=2, metadata={"help": "Number of solutions per labelled question."})
    refresh_num_continuations: int = field(
        default=8, metadata={"help": "Number of continuations per prefix of a labelled solution."}
    )
    refresh_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of the reward model."})
    refresh_rollouts: str | None = field(
        default=None,
        metadata={"help": "Rollout folder that the reward model was trained on, to mix with the fresh labels."},
    )
    refresh_old_share: float = field(
        default=0.5, metadata={"help": "Share of solutions from refresh_rollouts among the training examples."}
    )

    # Parameters that control the questions
    question_column: str | None = field(
        default=None,
        metadata={"help": "Column of the bare question. Defaults to the first column with a usual name."},
    )
    answer_column: str | None = field(
        default=None,
        metadata={"help": "Column of the reference answers. Defaults to the first column with a usual name."},
    )

    # Parameters that control the sampling
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature of the solutions to select from."})
    top_p: float = field(
        default=1.0, metadata={"help": "Probability mass kept by nucleus sampling of the solutions to select from."}
    )
    max_completion_length: int = field(default=512, metadata={"help": "Maximum number of tokens per solution."})
    generation_batch_size: int = field(
        default=64, metadata={"help": "Number of sequences that each process generates at a time."}
    )
    chunk_size: int = field(
        default=16, metadata={"help": "Number of questions per chunk. Solutions are written after each chunk."}
    )
    prompt_template: str | None = field(default=None, metadata={"help": "Text of a prompt, with {question}."})
    system_prompt: str | None = field(default=None, metadata={"help": "System message. It needs a chat template."})
    use_chat_template: bool | None = field(
        default=None,
        metadata={"help": "Whether to apply the chat template. Defaults to true if the tokenizer has a template."},
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'Additional arguments of the chat template, e.g. {"enable_thinking": false}.'}
    )
    examples: list[dict[str, str]] | str | None = field(
        default=None, metadata={"help": "Solved examples before the question, each with question and solution."}
    )
    stop: list[str] | None = field(
        default=None,
        metadata={"help": "Strings before which a solution ends, for few-shot prompts."},
    )
    use_vllm: bool = field(
        default=False,
        metadata={"help": "Whether to sample with vLLM, with an engine per process that loads the round's policy."},
    )
    vllm_kwargs: dict[str, Any] | str | None = field(default=None, metadata={"help": "Arguments of vllm.LLM."})

    # Parameters that control grading and evaluation
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
    num_generations_eval: int = field(
        default=4, metadata={"help": "Number of sampled solutions per evaluation question."}
    )

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()
        read_json_fields(self, "vllm_kwargs", "chat_template_kwargs", "examples")
        if self.run_name is None and "trackio" in self.report_to:
            self.run_name = Path(self.output_dir).name
        for name in (
            "num_rounds",
            "questions_per_round",
            "num_generations",
            "top_k",
            "max_completion_length",
            "generation_batch_size",
            "scoring_batch_size",
            "chunk_size",
            "num_generations_eval",
            "refresh_num_solutions",
            "refresh_num_continuations",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1. Raise it.")
        for name, allowed in (("start_from", ("last", "first")), ("aggregation", (None, *AGGREGATIONS))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {allowed}. Choose one.")
        if self.top_k > self.num_generations:
            raise ValueError(
                f"top_k: got {self.top_k}, expected at most num_generations={self.num_generations}. Lower top_k, or "
                "raise num_generations."
            )
        if self.temperature <= 0:
            raise ValueError(
                f"temperature: got {self.temperature}, expected a positive number, because all greedy solutions of a "
                "question are equal. Set e.g. 1.0."
            )
        self._check_refresh()
        if self.eval_strategy != "no":
            raise ValueError(
                f"eval_strategy: got {self.eval_strategy.value!r}, expected 'no', because RAFTTrainer evaluates the "
                "first policy and the policy of every round on `eval_dataset`. Do not set it."
            )
        if self.completion_only_loss is False or self.assistant_only_loss:
            raise ValueError(
                f"RAFTTrainer: got completion_only_loss={self.completion_only_loss} and "
                f"assistant_only_loss={self.assistant_only_loss}, expected the defaults, because it always trains on "
                "all sampled tokens and only on them. Do not set them."
            )

    def _check_refresh(self) -> None:
        if self.refresh_reward_model < 0:
            raise ValueError(
                f"refresh_reward_model: got {self.refresh_reward_model}, expected a number of questions per round, or "
                "0 to keep the reward model as it is. Raise it."
            )
        if self.questions_per_round is not None and self.refresh_reward_model > self.questions_per_round:
            raise ValueError(
                f"refresh_reward_model: got {self.refresh_reward_model}, expected at most "
                f"questions_per_round={self.questions_per_round}. Lower it."
            )
        if not 0 <= self.refresh_old_share < 1:
            raise ValueError(
                f"refresh_old_share: got {self.refresh_old_share}, expected a share from 0 to below 1. Set e.g. 0.5."
            )
        if self.refresh_rollouts is not None and not self.refresh_reward_model:
            raise ValueError(
                f"refresh_rollouts: got {self.refresh_rollouts!r} with refresh_reward_model=0, which uses no labels, "
                "expected a number of questions. Set refresh_reward_model, or remove refresh_rollouts."
            )

    @property
    def refresh_settings(self) -> dict[str, Any]:
        """The settings of the refresh, which must be the same when a run is resumed. Empty without a refresh, as in
        runs of earlier releases."""
        return {name: getattr(self, name) for name in REFRESH_SETTINGS} if self.refresh_reward_model else {}

    @property
    def prompt_settings(self) -> dict[str, Any]:
        """The arguments of [`PromptFormat`]."""
        return {name: getattr(self, name) for name in PROMPT_SETTINGS}
