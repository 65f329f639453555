"""The configuration of a collection, for YAML files and the command line."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import rollouts  # its names are loaded on first use, so that a command line is parsed without torch
from ..io.config_values import import_function, read_json_fields, refuse_escapes
from ..io.paths import local_path
from . import sampling
from .shards import read_manifest


if TYPE_CHECKING:
    from .dataset import RolloutDataset
    from .sampling.base import Sampler


@dataclass
class CollectConfig:
    """
    Configuration of a collection, read by `TrlParser` from YAML and the command line.

    The fields are the arguments of [`load_questions`] or [`load_solutions`], of [`TransformersSampler`],
    [`VLLMSampler`] or [`EndpointSampler`], and of [`collect_rollouts`]. They are described there.
    """

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of the policy. With solutions, of the policy that continues them."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Source of the questions: a Hub id, a .jsonl, .json, .csv or .parquet file, a folder, or "
            "package.module:function."
        },
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder to which the rollouts are written."})
    solutions: str | None = field(
        default=None,
        metadata={
            "help": "Source of solutions that someone else wrote, in place of dataset_name. They are labelled instead "
            "of the policy's own solutions."
        },
    )
    solution_column: str | None = field(
        default=None,
        metadata={"help": "Column of the text of a solution, or of a list of texts. Defaults to a usual name."},
    )
    steps_column: str | None = field(
        default=None, metadata={"help": "Column of the steps of a solution. Defaults to the column steps, if any."}
    )
    correct_column: str | None = field(
        default=None, metadata={"help": "Column that says whether a solution is correct. Defaults to a usual name."}
    )
    id_column: str | None = field(
        default=None, metadata={"help": "Column of the identifier of a row. Defaults to a usual name."}
    )
    metadata_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns to keep with each solution. They default to all other columns."}
    )
    step_delimiter: str = field(
        default="\n", metadata={"help": "Text between two steps of steps_column that have none between them."}
    )
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
        metadata={
            "help": "Maximum number of questions (or rows of solutions), from the start of the dataset. Defaults to "
            "all."
        },
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
        metadata={
            "help": "How answers are graded: math, exact, environment (its get_reward), or package.module:function."
        },
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
    tools: list[str] | None = field(
        default=None,
        metadata={"help": "Functions that the policy can call, as package.module:function. Its steps are its turns."},
    )
    environment_factory: str | None = field(
        default=None,
        metadata={"help": "Class of the environment whose methods the policy can call, as package.module:Class."},
    )
    max_tool_calling_iterations: int | None = field(
        default=None, metadata={"help": "Maximum number of turns whose tool calls are answered. Defaults to no limit."}
    )
    render_message: str | None = field(
        default=None,
        metadata={
            "help": "Function that returns the text of a message as the reward model reads it, as "
            "package.module:function. Defaults to erprm_trl.rollouts:render_message."
        },
    )
    environment_columns: list[str] | None = field(
        default=None, metadata={"help": "Other columns of the questions, which reset of the environment receives."}
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
    completer_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder of a second policy, which continues the solutions of the first. Defaults to the "
            "same policy."
        },
    )
    completer_backend: str | None = field(
        default=None,
        metadata={
            "help": "How the second policy is sampled. Defaults to backend.",
            "choices": ["transformers", "vllm", "endpoint"],
        },
    )
    completer_settings: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Fields that the second policy does not share with the first, from base_url to model_init_kwargs, "
            'e.g. {"temperature": 0.7, "base_url": "http://localhost:8001/v1"}.'
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
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Dtype of the policy's weights, e.g. bfloat16. Defaults to the dtype of the collection that is "
            "resumed, else to the checkpoint's dtype, or bfloat16 on a CPU that computes faster in it (transformers), "
            "or to the engine's choice (vllm)."
        },
    )
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
        read_json_fields(
            self, "dataset_kwargs", "model_init_kwargs", "chat_template_kwargs", "examples", "completer_settings"
        )
        named = [("splitter", self.splitter), ("step_delimiter", self.step_delimiter)]
        for name, text in [*named, *(("stop", text) for text in self.stop or ())]:
            refuse_escapes(name, text)
        if self.output_dir is None:
            raise ValueError("output_dir: got None, expected a folder for the rollouts. Pass --output_dir FOLDER.")
        if (self.dataset_name is None) == (self.solutions is None):
            pair = "neither" if self.solutions is None else "both"
            raise ValueError(
                f"dataset_name, solutions: got {pair}, expected one of them. Pass --dataset_name QUESTIONS to sample "
                "solutions, or --solutions SOLUTIONS to label existing ones."
            )
        self._check_models()
        if self.completer_model_name_or_path is not None:
            sampling.check_sampler_settings(self._completer_settings())
        backends = {self.backend, self.completer_backend or self.backend}
        if self.dtype is not None and backends == {"endpoint"}:
            raise ValueError(
                f"dtype: got {self.dtype!r} with backend='endpoint', expected None, because the server has loaded the "
                "model. Leave it out, and set the dtype when you start the server."
            )
        needs_address = self.solutions is None or self.completer_model_name_or_path is None
        if needs_address and self.backend == "endpoint" and self.base_url is None:
            raise ValueError(
                "base_url: got None with backend='endpoint', expected the address of a server. Pass e.g. "
                "http://localhost:8000/v1."
            )

    def _check_models(self) -> None:
        model, completer = self.model_name_or_path, self.completer_model_name_or_path
        if self.solutions is None and model is None:
            raise ValueError("model_name_or_path: got None, expected a policy. Pass --model_name_or_path MODEL.")
        if self.solutions is not None and model is not None and completer is not None:
            raise ValueError(
                f"model_name_or_path, completer_model_name_or_path: got {model!r} and {completer!r} with solutions, "
                "expected one of them, because no solutions are sampled. Leave out one of them."
            )
        if self.solutions is not None and self.num_continuations > 0 and model is None and completer is None:
            raise ValueError(
                "model_name_or_path: got None with solutions, expected the policy that continues them. Pass "
                "--model_name_or_path MODEL, or --num_continuations 0 to grade the solutions only."
            )
        for name in ("completer_backend", "completer_settings"):
            if completer is None and getattr(self, name) is not None:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r} without completer_model_name_or_path, expected a second "
                    "policy. Pass --completer_model_name_or_path MODEL."
                )

    def run(self) -> "RolloutDataset":
        """Loads the questions or solutions and the policies, and collects rollouts."""
        rows = {
            "config_name": self.dataset_config,
            "split": self.dataset_split,
            "question_column": self.question_column,
            "answer_column": self.answer_column,
            "dataset_kwargs": self.dataset_kwargs,
        }
        if self.solutions is None:
            columns = self.environment_columns or ()
            questions = rollouts.load_questions(
                self.dataset_name, max_questions=self.max_questions, columns=columns, **rows
            )
            return self._collect(questions=questions, sampler=self._sampler(), completer=self._completer())
        solutions = rollouts.load_solutions(
            self.solutions,
            solution_column=self.solution_column,
            steps_column=self.steps_column,
            correct_column=self.correct_column,
            id_column=self.id_column,
            metadata_columns=self.metadata_columns,
            step_delimiter=self.step_delimiter,
            max_rows=self.max_questions,
            **rows,
        )
        return self._collect(solutions=solutions, completer=self._completer())

    def _collect(self, **source: Any) -> "RolloutDataset":
        return rollouts.collect_rollouts(
            **source,
            output_dir=self.output_dir,
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
            tools=[import_function(path) for path in self.tools or ()] or None,
            environment_factory=self.environment_factory and import_function(self.environment_factory),
            max_tool_calling_iterations=self.max_tool_calling_iterations,
            render_message=self.render_message and import_function(self.render_message),
            stop=self.stop,
            seed=self.seed,
            chunk_size=self.chunk_size,
        )

    def _sampler_settings(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in sampling.SETTING_NAMES}
        model = self.model_name_or_path
        return {**settings, "model_name_or_path": None if model is None else os.fspath(model)}

    def _sampler(self) -> "Sampler":
        return sampling.load_sampler(self._with_dtype(self._sampler_settings(), "sampler"))

    def _completer(self) -> "Sampler | None":
        settings = self._completer_settings() if self.num_continuations else None
        return None if settings is None else sampling.load_sampler(self._with_dtype(settings, "completer"))

    def _with_dtype(self, settings: dict[str, Any], role: str) -> dict[str, Any]:
        """The settings with a dtype: that of the collection if it is resumed, because its labels depend on it."""
        is_set = settings["dtype"] is not None or "dtype" in (settings["model_init_kwargs"] or {})
        if is_set or settings["backend"] == "endpoint":
            return settings
        manifest = read_manifest(Path(local_path(self.output_dir)))
        if manifest is None:
            return {**settings, "dtype": sampling.default_dtype(settings)}
        return {**settings, "dtype": (manifest["config"].get(role) or {}).get("dtype")}

    def _completer_settings(self) -> dict[str, Any] | None:
        """The settings of the policy that continues solutions, if it does not sample them."""
        if self.completer_model_name_or_path is None:
            return None if self.solutions is None else self._sampler_settings()
        return {
            **self._sampler_settings(),
            "model_name_or_path": self.completer_model_name_or_path,
            "backend": self.completer_backend or self.backend,
            **(self.completer_settings or {}),
        }
