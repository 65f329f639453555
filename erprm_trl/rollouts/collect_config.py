"""The configuration of a collection, for YAML files and the command line."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import rollouts  # its names are loaded on first use, so that a command line is parsed without torch
from ..io.config_values import read_json_fields, refuse_escapes
from . import sampling


if TYPE_CHECKING:
    from .dataset import RolloutDataset
    from .sampling.base import Sampler


@dataclass
class CollectConfig:
    """
    Configuration of a collection, read by `TrlParser` from YAML and the command line.

    The fields are the arguments of [`load_questions`], of [`TransformersSampler`], [`VLLMSampler`] or
    [`EndpointSampler`], and of [`collect_rollouts`]. They are described there.
    """

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the policy."})
    dataset_name: str = field(
        metadata={
            "help": "Source of the questions: a Hub id, a .jsonl, .json, .csv or .parquet file, a folder, or "
            "package.module:function."
        }
    )
    output_dir: str = field(metadata={"help": "Folder to which the rollouts are written."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset, e.g. main."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset."})
    dataset_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Additional arguments of datasets.load_dataset or of the function."}
    )
    question_column: str | None = field(
        default=None, metadata={"help": "Column of the question. Defaults to the first column with a usual name."}
    )
    answer_column: str | None = field(
        default=None,
        metadata={"help": "Column of the reference answers. Defaults to the first column with a usual name."},
    )
    max_questions: int | None = field(
        default=None,
        metadata={"help": "Maximum number of questions, from the start of the dataset. Defaults to all questions."},
    )
    num_solutions: int = field(default=2, metadata={"help": "Number of solutions per question."})
    num_continuations: int = field(
        default=16, metadata={"help": "Number K of continuations per prefix. Use 0 for best-of-N samples."}
    )
    allocation: str = field(
        default="fixed",
        metadata={
            "help": "How continuations are allocated to prefixes. fixed: K per prefix. adaptive: at most K on "
            "average, and more for prefixes with uncertain labels.",
            "choices": ["fixed", "adaptive"],
        },
    )
    target_etas: list[float] = field(
        default_factory=lambda: [0.0, 2.0, 10.0],
        metadata={"help": "Etas for which labels should be precise (adaptive allocation)."},
    )
    tolerance: float = field(
        default=0.02,
        metadata={"help": "Standard deviation of a label at which sampling stops (adaptive allocation)."},
    )
    reuse_continuations: bool | None = field(
        default=None,
        metadata={
            "help": "Whether continuations also count for longer prefixes with which they begin. Defaults to true "
            "with adaptive allocation."
        },
    )
    include_question: bool = field(
        default=False, metadata={"help": "Whether the bare question is also continued K times."}
    )
    splitter: str = field(
        default="newline",
        metadata={
            "help": "How solutions are split into steps: whole_lines, newline, raw_lines, blank_line, step, or a "
            "separator string."
        },
    )
    grading: str = field(
        default="math",
        metadata={"help": "How answers are graded: math, exact, or package.module:function."},
    )
    answer_pattern: str | None = field(
        default=None, metadata={"help": "Regular expression whose first group is the final answer."}
    )
    reasoning: bool | None = field(
        default=None,
        metadata={"help": "Whether to grade only the text after </think>. Defaults to true for texts with <think>."},
    )
    steps_of: str = field(
        default="both",
        metadata={
            "help": "Which part of a text with <think> is split into steps.",
            "choices": ["both", "thinking", "answer"],
        },
    )
    stop: list[str] | None = field(
        default=None, metadata={"help": "Strings before which a solution ends, for few-shot prompts."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the collection."})
    chunk_size: int = field(
        default=16, metadata={"help": "Number of questions per chunk. Results are written after each chunk."}
    )
    backend: str = field(
        default="transformers",
        metadata={
            "help": "How the policy is sampled: transformers, vllm (offline engine), or endpoint (server).",
            "choices": ["transformers", "vllm", "endpoint"],
        },
    )
    base_url: str | None = field(
        default=None, metadata={"help": "Address of the server, e.g. http://localhost:8000/v1 (endpoint)."}
    )
    max_concurrency: int = field(
        default=64, metadata={"help": "Maximum number of simultaneous requests per process (endpoint)."}
    )
    request_timeout: float = field(
        default=600.0, metadata={"help": "Timeout of one attempt of a request, in seconds (endpoint)."}
    )
    api_key_env: str = field(
        default="OPENAI_API_KEY",
        metadata={"help": "Name of the environment variable with the API key of the server (endpoint)."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Probability mass kept by nucleus sampling."})
    top_k: int = field(
        default=0, metadata={"help": "Number of most likely tokens to sample from. 0 keeps the whole vocabulary."}
    )
    max_new_tokens: int = field(default=512, metadata={"help": "Maximum number of tokens per completion."})
    batch_size: int = field(
        default=64, metadata={"help": "Number of sequences generated in one batch (transformers)."}
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
        default=None,
        metadata={"help": "Solved examples before the question, each with question and solution."},
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Additional arguments of from_pretrained, vllm.LLM or EndpointSampler."}
    )

    def __post_init__(self):
        read_json_fields(self, "dataset_kwargs", "model_init_kwargs", "chat_template_kwargs", "examples")
        for name, text in [("splitter", self.splitter), *(("stop", text) for text in self.stop or ())]:
            refuse_escapes(name, text)
        if self.backend == "endpoint" and self.base_url is None:
            raise ValueError(
                "base_url: got None with backend='endpoint', expected the address of a server. Pass e.g. "
                "http://localhost:8000/v1."
            )

    def run(self) -> "RolloutDataset":
        """Loads the questions and the policy, and collects rollouts."""
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
        return sampling.load_sampler({name: getattr(self, name) for name in sampling.SETTING_NAMES})
