"""Writes solutions step by step, steered by a reward model; the policy is not trained.

python recipes/guided_search.py --config recipes/dial/guided_search.yaml
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from trl import TrlParser

import erprm_trl
from erprm_trl import rollouts, selection
from erprm_trl.io.atomic_files import make_folder, replace_file
from erprm_trl.io.config_values import read_json_fields


SAMPLERS = {"transformers": "TransformersSampler", "vllm": "VLLMSampler", "endpoint": "EndpointSampler"}
SEARCH = ("method", "eta", "width", "expansions", "aggregation", "splitter", "stop", "max_steps", "max_tokens")
SEARCH += ("token_budget", "score_budget", "seed")


@dataclass
class GuidedSearchArguments:
    """Arguments of a search; what each means is said by `guided_search`."""

    model_name_or_path: str = field(metadata={"help": "The policy: a Hub id or a folder."})
    reward_model: str = field(metadata={"help": "Folder, Hub id or scoring server of the reward model."})
    dataset_name: str = field(metadata={"help": "Hub id, .jsonl/.json/.csv/.parquet file or package.module:function."})
    output_dir: str = field(metadata={"help": "solutions.jsonl and summary.json go here."})
    dataset_split: str = field(default="test", metadata={"help": "Split of a Hub dataset."})
    dataset_kwargs: dict[str, Any] | str | None = field(default=None, metadata={"help": "More of the dataset's."})
    max_questions: int | None = field(default=None, metadata={"help": "Take the first questions only."})
    grading: str = field(default="math", metadata={"help": "math, exact, or package.module:function."})
    reasoning: bool | None = field(default=None, metadata={"help": "Grade what follows </think>; default: if any."})
    answer_pattern: str | None = field(default=None, metadata={"help": "Regex whose first group is the answer."})
    backend: str = field(default="transformers", metadata={"help": "Sampler.", "choices": list(SAMPLERS)})
    sampler_kwargs: dict[str, Any] | str | None = field(default=None, metadata={"help": "The sampler's arguments."})
    scoring_batch_size: int = field(default=32, metadata={"help": "Prefixes scored at a time."})
    method: str = field(default="particles", metadata={"help": "beam, resample or particles."})
    eta: float | None = field(default=None, metadata={"help": "Inverse reward temperature; not for beam."})
    width: int = field(default=8, metadata={"help": "Beams, chains or particles of a question."})
    expansions: int | None = field(default=None, metadata={"help": "Proposals for each; 4 if not particles."})
    aggregation: str = field(default="last", metadata={"help": "Value of a prefix: last, min, product or mean."})
    splitter: str | None = field(default=None, metadata={"help": "Where steps end; default: the reward model's."})
    stop: list[str] | None = field(default=None, metadata={"help": "Strings that end a solution; cut off."})
    max_steps: int = field(default=64, metadata={"help": "Steps of a solution."})
    max_tokens: int | None = field(default=None, metadata={"help": "Tokens of a solution."})
    token_budget: int | None = field(default=None, metadata={"help": "Tokens generated for a question."})
    score_budget: int | None = field(default=None, metadata={"help": "Prefixes scored for a question."})
    seed: int = field(default=0, metadata={"help": "Seed of the search."})

    def __post_init__(self):
        read_json_fields(self, "dataset_kwargs", "sampler_kwargs")


def main(arguments: GuidedSearchArguments) -> dict[str, float]:
    """Searches, writes every solution, and grades the first of each question."""
    folder = make_folder(arguments.output_dir)
    source = {"split": arguments.dataset_split, "dataset_kwargs": arguments.dataset_kwargs}
    questions = erprm_trl.load_questions(arguments.dataset_name, max_questions=arguments.max_questions, **source)
    sampler_class = getattr(rollouts, SAMPLERS[arguments.backend])
    make = getattr(sampler_class, "from_pretrained", sampler_class)
    sampler = make(arguments.model_name_or_path, **(arguments.sampler_kwargs or {}))
    scorer = erprm_trl.StepScorer.from_pretrained(arguments.reward_model, batch_size=arguments.scoring_batch_size)
    settings = {name: getattr(arguments, name) for name in SEARCH}
    results = selection.guided_search([row.question for row in questions], sampler, scorer, **settings)
    texts, gold = [result.solutions[0].text for result in results], [row.answer for row in questions]
    rewards = rollouts.grade(texts, gold, arguments.grading, arguments.answer_pattern, reasoning=arguments.reasoning)
    rows = [{**asdict(result), "reward": reward} for result, reward in zip(results, rewards, strict=True)]
    replace_file(folder / "solutions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    means = {name: [row[name] for row in rows] for name in ("reward", "tokens_generated", "steps_scored")}
    summary = {name: sum(values) / len(rows) for name, values in means.items()}
    replace_file(folder / "summary.json", json.dumps({**summary, "settings": settings}, indent=2))
    print(f"{arguments.output_dir}: {summary}")
    return summary


if __name__ == "__main__":
    main(TrlParser(GuidedSearchArguments).parse_args_and_config()[0])
