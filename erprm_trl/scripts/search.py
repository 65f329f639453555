"""Writes solutions step by step, guided by a reward model. The policy is not trained.

erprm search --recipe dial
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import erprm_trl

from .. import rollouts, selection
from ..io.atomic_files import make_folder, replace_file
from ..io.config_values import read_json_fields
from ..io.counts import counted
from .outcome import print_outcome
from .scoring import SCORING_BACKEND, TRAINED_ETA


SAMPLERS = {"transformers": "TransformersSampler", "vllm": "VLLMSampler", "endpoint": "EndpointSampler"}
SEARCH = ("method", "eta", "width", "expansions", "aggregation", "splitter", "stop", "max_steps", "max_tokens")
SEARCH += ("token_budget", "score_budget", "seed")


@dataclass
class GuidedSearchArguments:
    """The policy, the reward model, the questions, and the arguments of [`~erprm_trl.selection.guided_search`]."""

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the policy."})
    reward_model: str = field(metadata={"help": "Folder, Hub id, scoring server or scorer file of the reward model."})
    dataset_name: str = field(
        metadata={
            "help": "Source of the questions: a Hub id, a .jsonl, .json, .csv or .parquet file, a folder, or "
            "package.module:function."
        }
    )
    output_dir: str = field(metadata={"help": "Folder for solutions.jsonl and summary.json."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset, e.g. main."})
    dataset_split: str = field(default="test", metadata={"help": "Split of the dataset."})
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
    max_questions: int | None = field(default=None, metadata={"help": "Maximum number of questions."})
    grading: str = field(
        default="math", metadata={"help": "How answers are graded: math, exact, or package.module:function."}
    )
    reasoning: bool | None = field(
        default=None,
        metadata={"help": "Whether to grade only the text after </think>. Defaults to true for texts with <think>."},
    )
    answer_pattern: str | None = field(
        default=None, metadata={"help": "Regular expression whose first group is the final answer."}
    )
    backend: str = field(
        default="transformers",
        metadata={
            "help": "How the policy is sampled: transformers, vllm (offline engine), or endpoint (server).",
            "choices": list(SAMPLERS),
        },
    )
    sampler_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Additional arguments of the sampler."}
    )
    scoring_batch_size: int = field(default=32, metadata={"help": "Maximum number of prefixes per scoring batch."})
    method: str = field(default="particles", metadata={"help": "Search method: beam, resample or particles."})
    eta: float | None = field(
        default=None,
        metadata={
            "help": "Inverse reward temperature, at which the scores are read. It is required, except for beam."
        },
    )
    trained_eta: float | None = field(default=None, metadata=TRAINED_ETA)
    scoring_backend: str = field(default="local", metadata=SCORING_BACKEND)
    width: int = field(default=8, metadata={"help": "Number of beams, chains or particles per question."})
    expansions: int | None = field(
        default=None,
        metadata={"help": "Number of proposals per beam, chain or particle. Defaults to 1 for particles, else to 4."},
    )
    aggregation: str = field(
        default="last",
        metadata={"help": "How the step scores of a prefix become its value: last, min, product or mean."},
    )
    splitter: str | None = field(
        default=None, metadata={"help": "How solutions are split into steps. Defaults to the reward model's splitter."}
    )
    stop: list[str] | None = field(
        default=None, metadata={"help": "Strings before which a solution ends, for few-shot prompts."}
    )
    max_steps: int = field(default=64, metadata={"help": "Maximum number of steps per solution."})
    max_tokens: int | None = field(default=None, metadata={"help": "Maximum number of tokens per solution."})
    token_budget: int | None = field(
        default=None, metadata={"help": "Maximum number of generated tokens per question."}
    )
    score_budget: int | None = field(
        default=None, metadata={"help": "Maximum number of scored prefixes per question."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the search."})

    def __post_init__(self):
        read_json_fields(self, "dataset_kwargs", "sampler_kwargs")


def main(arguments: GuidedSearchArguments) -> dict[str, float]:
    """Searches, writes every solution, and grades the first solution of each question."""
    folder = make_folder(arguments.output_dir)
    questions = erprm_trl.load_questions(
        arguments.dataset_name,
        config_name=arguments.dataset_config,
        split=arguments.dataset_split,
        question_column=arguments.question_column,
        answer_column=arguments.answer_column,
        max_questions=arguments.max_questions,
        dataset_kwargs=arguments.dataset_kwargs,
    )
    sampler_class = getattr(rollouts, SAMPLERS[arguments.backend])
    make = getattr(sampler_class, "from_pretrained", sampler_class)
    sampler = make(arguments.model_name_or_path, **(arguments.sampler_kwargs or {}))
    options = {"batch_size": arguments.scoring_batch_size, "trained_eta": arguments.trained_eta}
    options["backend"] = arguments.scoring_backend
    scorer = erprm_trl.StepScorer.from_pretrained(arguments.reward_model, **options)
    settings = {name: getattr(arguments, name) for name in SEARCH}
    results = selection.guided_search([row.question for row in questions], sampler, scorer, **settings)
    texts, gold = [result.solutions[0].text for result in results], [row.answer for row in questions]
    rewards = rollouts.grade(texts, gold, arguments.grading, arguments.answer_pattern, reasoning=arguments.reasoning)
    rows = [{**asdict(result), "reward": reward} for result, reward in zip(results, rewards, strict=True)]
    replace_file(folder / "solutions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    columns = {name: [row[name] for row in rows] for name in ("reward", "tokens_generated", "steps_scored")}
    summary = {name: sum(values) / len(rows) for name, values in columns.items()}
    replace_file(folder / "summary.json", json.dumps({**summary, "settings": settings}, indent=2))
    print_outcome(
        f"{summary['reward']:.1%} of {counted(len(rows), 'question')} were answered right. Per question, "
        f"{summary['tokens_generated']:.0f} tokens were generated and {summary['steps_scored']:.0f} prefixes scored.",
        f"Solutions: {folder / 'solutions.jsonl'}. Results: {folder / 'summary.json'}.",
        next_command=f"erprm report --folder {arguments.output_dir}",
    )
    return summary
