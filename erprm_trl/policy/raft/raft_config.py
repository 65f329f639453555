"""Configuration of [`RAFTTrainer`]: what [`~trl.SFTConfig`] has, and what rounds of sampling and picking add."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import SFTConfig

from ...functional.aggregation import AGGREGATIONS
from ...io.config_values import read_json_fields
from ...training.tracking.tracking_config import TrackingConfig


# The arguments of `PromptFormat`.
PROMPT_SETTINGS = ("prompt_template", "system_prompt", "use_chat_template", "chat_template_kwargs", "examples")
# What may differ when a run is continued is not listed: logging, saving, the number of rounds and of processes.
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

    Only the parameters specific to RAFT are listed here; see [`~trl.SFTConfig`] for the others, which hold for the
    training of each round: every round has its own optimizer, schedule and `max_steps`.

    Parameters:
        > Parameters that control the rounds

        num_rounds (`int`, *optional*, defaults to `3`):
            Rounds of sampling, picking and training. A finished run goes on if it is started again with more.
        questions_per_round (`int`, *optional*):
            Questions a round: the next block of a seeded shuffle, which begins anew at its end. All of them by
            default.
        start_from (`str`, *optional*, defaults to `"last"`):
            What each round trains: the `"last"` policy or the `"first"` one. Solutions always come from the last.

        > Parameters that control the picks

        num_generations (`int`, *optional*, defaults to `16`):
            Solutions sampled for each question.
        top_k (`int`, *optional*, defaults to `1`):
            Solutions kept of each question, the best first. It is no setting of the sampler, which draws from the
            whole vocabulary.
        aggregation (`str`, *optional*):
            From step scores to one score: `"min"`, `"last"`, `"product"` or `"mean"`. Defaults to that of the reward
            model's format.
        score_threshold (`float`, *optional*):
            Least score of a solution that is kept.
        drop_uniform (`bool`, *optional*):
            Drop questions whose solutions are all right or all wrong: keeping only positives of easy questions
            collapses the entropy over rounds. Needs answers. Defaults to True where there are any.
        deduplicate (`bool`, *optional*, defaults to `True`):
            Keep a text only once a question.
        scoring_batch_size (`int`, *optional*, defaults to `32`):
            Solutions scored at a time, where the reward model is given as a string.
        shard_reward_model (`bool`, *optional*, defaults to `False`):
            Splits the reward model's weights over the processes of a ZeRO-3 training, where it is given as a string.
            Otherwise each process holds it whole.

        > Parameters that control the questions

        question_column (`str`, *optional*):
            Column of the bare question. Defaults to the first of the usual names (`question`, `problem`, ...).
        answer_column (`str`, *optional*):
            Column of the reference answers. Defaults to the first of the usual names (`answer`, `solution`, ...), if
            there is one.

        > Parameters that control the sampling

        temperature (`float`, *optional*, defaults to `1.0`), top_p (`float`, *optional*, defaults to `1.0`):
            Of the solutions to pick from. Evaluation always samples at 1.
        max_completion_length (`int`, *optional*, defaults to `512`):
            Longest solution in tokens. One that reaches it is never kept.
        generation_batch_size (`int`, *optional*, defaults to `64`):
            Sequences generated at a time, on each process.
        chunk_size (`int`, *optional*, defaults to `16`):
            Questions that are sampled and then written at once: what a killed process loses.
        prompt_template, system_prompt, use_chat_template, chat_template_kwargs, examples (*optional*):
            See [`PromptFormat`].
        stop (`list[str]`, *optional*):
            Strings that end a solution, see [`collect_rollouts`]. The solution is finished, and its last token is
            trained on without an end token behind it: the policy is not trained to stop there.
        use_vllm (`bool`, *optional*, defaults to `False`):
            Sample with vLLM, loaded from the round's saved policy and freed before the training. One process, full
            fine-tuning.
        vllm_kwargs (`dict[str, Any]`, *optional*):
            Arguments of `vllm.LLM`.

        > Parameters that control grading and evaluation

        grading (`str`, *optional*, defaults to `"math"`), answer_pattern, reasoning (*optional*):
            See [`collect_rollouts`]. Not used without answers.
        num_generations_eval (`int`, *optional*, defaults to `4`):
            Solutions sampled for each evaluation question; the accuracy is their mean.

        > Parameters that control the tracking

        num_logged_solutions (`int`, *optional*, defaults to `8`), log_artifacts (`list[str]`, *optional*):
            See [`~erprm_trl.training.tracking.TrackingConfig`]. Every round logs its last checkpoint.
        run_name (`str`, *optional*):
            With trackio it defaults to the last part of `output_dir`, by which each round finds the run of the last.

    > [!NOTE]
    > `num_train_epochs` (of each round) defaults to 2, unlike in [`~trl.SFTConfig`].
    """

    _VALID_DICT_FIELDS = SFTConfig._VALID_DICT_FIELDS + ["vllm_kwargs", "chat_template_kwargs"]

    num_train_epochs: float = field(default=2.0, metadata={"help": "Epochs over the picks of each round."})

    # Parameters that control the rounds
    num_rounds: int = field(default=3, metadata={"help": "Rounds of sampling, picking and training."})
    questions_per_round: int | None = field(
        default=None, metadata={"help": "Questions a round, the next block of a seeded shuffle; all by default."}
    )
    start_from: str = field(
        default="last",
        metadata={"help": "Each round trains the 'last' policy or the 'first' one.", "choices": ["last", "first"]},
    )

    # Parameters that control the picks
    num_generations: int = field(default=16, metadata={"help": "Solutions sampled for each question."})
    top_k: int = field(default=1, metadata={"help": "Solutions kept of each question (not the sampler's top-k)."})
    aggregation: str | None = field(
        default=None,
        metadata={
            "help": "From step scores to one score; defaults to the reward model's own.",
            "choices": list(AGGREGATIONS),
        },
    )
    score_threshold: float | None = field(default=None, metadata={"help": "Least score of a solution that is kept."})
    drop_uniform: bool | None = field(
        default=None,
        metadata={
            "help": "Drop questions whose solutions are all right or all wrong. Default: where answers are known."
        },
    )
    deduplicate: bool = field(default=True, metadata={"help": "Keep a text only once a question."})
    scoring_batch_size: int = field(default=32, metadata={"help": "Solutions scored at a time."})
    shard_reward_model: bool = field(
        default=False, metadata={"help": "Split the reward model over the processes of a ZeRO-3 training."}
    )

    # Parameters that control the questions
    question_column: str | None = field(
        default=None, metadata={"help": "Column of the bare question; default: the first of the usual names."}
    )
    answer_column: str | None = field(
        default=None, metadata={"help": "Column of the reference answers; default: the first of the usual names."}
    )

    # Parameters that control the sampling
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the solutions to pick from."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus mass."})
    max_completion_length: int = field(default=512, metadata={"help": "Longest solution in tokens."})
    generation_batch_size: int = field(default=64, metadata={"help": "Sequences generated at a time."})
    chunk_size: int = field(default=16, metadata={"help": "Questions sampled and written at once."})
    prompt_template: str | None = field(default=None, metadata={"help": "Text around {question}."})
    system_prompt: str | None = field(default=None, metadata={"help": "System message, with a chat template."})
    use_chat_template: bool | None = field(
        default=None, metadata={"help": "Apply the chat template. Default: whether the tokenizer has one."}
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'Arguments of the chat template, e.g. {"enable_thinking": false}.'}
    )
    examples: list[dict[str, str]] | str | None = field(
        default=None, metadata={"help": "Solved examples before the question, each with question and solution."}
    )
    stop: list[str] | None = field(
        default=None, metadata={"help": "Strings that end a solution; it ends before them. For few-shot prompts."}
    )
    use_vllm: bool = field(default=False, metadata={"help": "Sample with vLLM (one process, full fine-tuning)."})
    vllm_kwargs: dict[str, Any] | str | None = field(default=None, metadata={"help": "Arguments of vllm.LLM."})

    # Parameters that control grading and evaluation
    grading: str = field(default="math", metadata={"help": "math, exact, or package.module:function."})
    answer_pattern: str | None = field(
        default=None, metadata={"help": "Regular expression whose first group is the final answer."}
    )
    reasoning: bool | None = field(
        default=None, metadata={"help": "Grade what follows </think>. Default: where a text has <think>."}
    )
    num_generations_eval: int = field(default=4, metadata={"help": "Solutions for each evaluation question."})

    def __post_init__(self):
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
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1.")
        for name, allowed in (("start_from", ("last", "first")), ("aggregation", (None, *AGGREGATIONS))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {allowed}.")
        if self.top_k > self.num_generations:
            raise ValueError(
                f"top_k: got {self.top_k} picks of {self.num_generations} solutions a question. Lower it, or raise "
                "num_generations."
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature: got {self.temperature}: greedy solutions are all alike. Set it above 0.")
        if self.eval_strategy != "no":
            raise ValueError(
                f"eval_strategy: got {self.eval_strategy.value!r}, expected 'no': RAFTTrainer evaluates the first "
                "policy and the policy of every round on `eval_dataset` by itself."
            )
        if self.completion_only_loss is False or self.assistant_only_loss:
            raise ValueError(
                "RAFTTrainer trains on the sampled tokens, all of them and nothing else: leave completion_only_loss "
                "and assistant_only_loss unset."
            )

    @property
    def prompt_settings(self) -> dict[str, Any]:
        """The arguments of [`PromptFormat`]."""
        return {name: getattr(self, name) for name in PROMPT_SETTINGS}
