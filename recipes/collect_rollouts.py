"""Collects rollouts: questions -> solutions -> graded continuations of every step prefix.

    python recipes/collect_rollouts.py --config recipes/dial/collect.yaml
    accelerate launch --num_processes 2 recipes/collect_rollouts.py --config recipes/dial/collect.yaml

Killed at any moment, the same command continues where it was.
"""

from dataclasses import dataclass, field
from typing import Any

from trl import TrlParser

from erprm_trl.rollouts import TransformersSampler, VLLMSampler, collect_rollouts, load_questions


@dataclass
class CollectArguments:
    """Arguments of a collection; see `collect_rollouts`, `load_questions` and the samplers for what they mean."""

    model_name_or_path: str = field(metadata={"help": "The policy: a Hub id or a folder."})
    dataset_name: str = field(
        metadata={"help": "Hub id, .jsonl/.json/.parquet file, folder, or package.module:function."}
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
    num_solutions: int = field(default=2, metadata={"help": "Solutions a question."})
    num_continuations: int = field(
        default=16, metadata={"help": "K, continuations a prefix; 0 for best-of-N samples."}
    )
    include_question: bool = field(default=False, metadata={"help": "Also continue the bare question K times."})
    splitter: str = field(default="newline", metadata={"help": "newline, blank_line, step, or a separator string."})
    grading: str = field(default="math", metadata={"help": "math, exact, or package.module:function."})
    answer_pattern: str | None = field(default=None, metadata={"help": "Regex whose first group is the final answer."})
    seed: int = field(default=0, metadata={"help": "Seed of the whole collection."})
    chunk_size: int = field(default=16, metadata={"help": "Questions written at a time."})
    backend: str = field(
        default="transformers", metadata={"help": "transformers or vllm.", "choices": ["transformers", "vllm"]}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus mass."})
    top_k: int = field(default=0, metadata={"help": "0 keeps the whole vocabulary."})
    max_new_tokens: int = field(default=512, metadata={"help": "Longest completion."})
    batch_size: int = field(default=64, metadata={"help": "Sequences generated at a time (transformers)."})
    prompt_template: str | None = field(default=None, metadata={"help": "Text around {question}."})
    system_prompt: str | None = field(default=None, metadata={"help": "System message, with a chat template."})
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained, or of vllm.LLM."}
    )


def make_sampler(arguments: CollectArguments):
    """The sampler of the chosen backend."""
    names = ("temperature", "top_p", "top_k", "max_new_tokens", "prompt_template", "system_prompt")
    settings = {name: getattr(arguments, name) for name in names}
    init_kwargs = arguments.model_init_kwargs or {}
    if arguments.backend == "vllm":
        return VLLMSampler(arguments.model_name_or_path, engine_kwargs=init_kwargs, **settings)
    return TransformersSampler.from_pretrained(
        arguments.model_name_or_path, model_init_kwargs=init_kwargs, batch_size=arguments.batch_size, **settings
    )


def main(arguments: CollectArguments) -> None:
    """Runs one collection."""
    questions = load_questions(
        arguments.dataset_name,
        config_name=arguments.dataset_config,
        split=arguments.dataset_split,
        question_column=arguments.question_column,
        answer_column=arguments.answer_column,
        max_questions=arguments.max_questions,
        dataset_kwargs=arguments.dataset_kwargs,
    )
    names = (
        "num_solutions",
        "num_continuations",
        "include_question",
        "splitter",
        "grading",
        "answer_pattern",
        "seed",
        "chunk_size",
    )
    collect_rollouts(
        questions, make_sampler(arguments), arguments.output_dir, **{name: getattr(arguments, name) for name in names}
    )


if __name__ == "__main__":
    main(TrlParser(CollectArguments).parse_args_and_config()[0])
