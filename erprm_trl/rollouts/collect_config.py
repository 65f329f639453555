"""Everything a collection is made of, as one configuration: what the recipe and its YAML name."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import rollouts  # its names are loaded on first use: a command line is read without torch
from ..io.config_values import read_json_fields, refuse_escapes


if TYPE_CHECKING:
    from .dataset import RolloutDataset
    from .sampling.base import Sampler


# Arguments of every sampler.
SAMPLER_SETTINGS = (
    "temperature top_p top_k max_new_tokens "
    "prompt_template system_prompt use_chat_template chat_template_kwargs examples"
).split()


@dataclass
class CollectConfig:
    """
    Configuration of a collection, read by `TrlParser` from YAML and the command line.

    The fields are the arguments of [`load_questions`], [`TransformersSampler`], [`VLLMSampler`] or
    [`EndpointSampler`] and [`collect_rollouts`], which describe them.
    """

    model_name_or_path: str = field(metadata={"help": "The policy: a Hub id or a folder."})
    dataset_name: str = field(
        metadata={"help": "Hub id, .jsonl/.json/.csv/.parquet file, folder, or package.module:function."}
    )
    output_dir: str = field(metadata={"help": "Folder of the rollouts."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset, e.g. main."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    dataset_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "More arguments of the dataset."}
    )
    question_column: str | None = field(
        default=None, metadata={"help": "Column of the question; guessed if not given."}
    )
    answer_column: str | None = field(
        default=None, metadata={"help": "Column of the reference answer; guessed if not given."}
    )
    max_questions: int | None = field(default=None, metadata={"help": "Take the first questions only."})
    num_solutions: int = field(default=2, metadata={"help": "Solutions per question."})
    num_continuations: int = field(
        default=16, metadata={"help": "K, continuations per prefix; 0 for best-of-N samples."}
    )
    allocation: str = field(
        default="fixed",
        metadata={
            "help": "fixed: K for each prefix. adaptive: at most K on average, more where labels are uncertain.",
            "choices": ["fixed", "adaptive"],
        },
    )
    target_etas: list[float] = field(
        default_factory=lambda: [0.0, 2.0, 10.0], metadata={"help": "Etas whose labels should be precise (adaptive)."}
    )
    tolerance: float = field(
        default=0.02,
        metadata={"help": "Standard deviation of a label below which sampling stops (adaptive)."},
    )
    reuse_continuations: bool | None = field(
        default=None, metadata={"help": "Count continuations for longer prefixes too. Default: if adaptive."}
    )
    include_question: bool = field(default=False, metadata={"help": "Also continue the bare question K times."})
    splitter: str = field(
        default="newline", metadata={"help": "whole_lines, newline, raw_lines, blank_line, step, or a separator."}
    )
    grading: str = field(default="math", metadata={"help": "math, exact, or package.module:function."})
    answer_pattern: str | None = field(default=None, metadata={"help": "Regex whose first group is the final answer."})
    reasoning: bool | None = field(
        default=None, metadata={"help": "Grade only the text after </think>. Default: if a text has <think>."}
    )
    steps_of: str = field(
        default="both",
        metadata={
            "help": "Part of a text with <think> that is split into steps.",
            "choices": ["both", "thinking", "answer"],
        },
    )
    stop: list[str] | None = field(
        default=None, metadata={"help": "Strings before which a solution ends. For few-shot prompts."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the whole collection."})
    chunk_size: int = field(default=16, metadata={"help": "Questions written at a time."})
    backend: str = field(
        default="transformers",
        metadata={"help": "transformers, vllm or endpoint.", "choices": ["transformers", "vllm", "endpoint"]},
    )
    base_url: str | None = field(default=None, metadata={"help": "Server, e.g. http://localhost:8000/v1 (endpoint)."})
    max_concurrency: int = field(default=64, metadata={"help": "Requests at a time (endpoint)."})
    request_timeout: float = field(default=600.0, metadata={"help": "Seconds for one attempt (endpoint)."})
    api_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable with the server's key (endpoint)."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling: probability mass kept."})
    top_k: int = field(default=0, metadata={"help": "0 keeps the whole vocabulary."})
    max_new_tokens: int = field(default=512, metadata={"help": "Maximum tokens per completion."})
    batch_size: int = field(default=64, metadata={"help": "Sequences generated at a time (transformers)."})
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
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained, vllm.LLM or EndpointSampler."}
    )

    def __post_init__(self):
        read_json_fields(self, "dataset_kwargs", "model_init_kwargs", "chat_template_kwargs", "examples")
        for name, text in [("splitter", self.splitter), *(("stop", text) for text in self.stop or ())]:
            refuse_escapes(name, text)
        if self.backend == "endpoint" and self.base_url is None:
            raise ValueError("base_url: got none with backend='endpoint', expected e.g. http://localhost:8000/v1.")

    def run(self) -> "RolloutDataset":
        """Loads questions and policy, and collects."""
        questions = rollouts.load_questions(
            self.dataset_name,
            config_name=self.dataset_config,
            split=self.dataset_split,
            question_column=self.question_column,
            answer_column=self.answer_column,
            max_questions=self.max_questions,
            dataset_kwargs=self.dataset_kwargs,
        )
        return rollouts.collect_rollouts(
            questions,
            self._sampler(),
            self.output_dir,
            num_solutions=self.num_solutions,
            num_continuations=self.num_continuations,
            allocation=self.allocation,
            target_etas=self.target_etas,
            tolerance=self.tolerance,
            reuse_continuations=self.reuse_continuations,
            include_question=self.include_question,
            splitter=self.splitter,
            grading=self.grading,
            answer_pattern=self.answer_pattern,
            reasoning=self.reasoning,
            steps_of=self.steps_of,
            stop=self.stop,
            seed=self.seed,
            chunk_size=self.chunk_size,
        )

    def _sampler(self) -> "Sampler":
        settings = {name: getattr(self, name) for name in SAMPLER_SETTINGS}
        init_kwargs = self.model_init_kwargs or {}
        if self.backend == "vllm":
            return rollouts.VLLMSampler(self.model_name_or_path, engine_kwargs=init_kwargs, **settings)
        if self.backend == "endpoint":
            settings |= {name: getattr(self, name) for name in ("max_concurrency", "request_timeout", "api_key_env")}
            return rollouts.EndpointSampler(self.model_name_or_path, self.base_url, **settings, **init_kwargs)
        settings["batch_size"] = self.batch_size
        return rollouts.TransformersSampler.from_pretrained(
            self.model_name_or_path, model_init_kwargs=init_kwargs, **settings
        )
