"""How the cost of each stage grows with its size: `python tests/benchmarks/scaling.py [--only labels]`.

One size is doubled and the others are fixed. The benchmark prints the best processor time of a few turns and the slope
of the log-log line through the larger half of the sizes. A slope of 1 means that twice the size takes twice the time.
The cost of sampling is not included (samplers here take no time), because it depends on the model and the tokens.
"""

import argparse
import json
import logging
import math
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from erprm_trl import RolloutDataset, StepScorer, collect_rollouts
from erprm_trl.dial import BASE_PATH
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.functional import soft_step_cross_entropy
from erprm_trl.report import write_report
from erprm_trl.reward_model import encode_solutions
from erprm_trl.reward_model.prm_format import FormatTokenIds
from erprm_trl.reward_model.step_logits import step_logits
from erprm_trl.rollouts import Completion, Question


STEP = "7 + 15 = 2 ки"
SIZES = {"questions": 32, "steps": 6, "k": 4}  # the fixed sizes
# The prefixes of S steps are S texts of up to S steps, so the sampled and graded texts have S^2 / 2 steps.
BY_NATURE = {
    ("collect", "steps"): "2: S prefixes, each graded with a text of S steps",
    ("collect, shared", "steps"): "2: S prefixes, each graded with a text of S steps",
    ("training step", "length"): "attention: 1 while the layers' matrix products dominate, towards 2 for longer texts",
    ("scoring", "steps"): "attention: 1 while the layers' matrix products dominate, towards 2 for longer texts",
}


class FakeSampler:
    """Returns different solutions with a fixed number of steps."""

    settings = {"backend": "fake"}

    def __init__(self, steps: int):
        self.steps = steps

    def sample(self, prompts, num_samples, seed):
        """Samples continuations up to the last step."""
        return [
            [self._completion(prompt, f"{seed % 97} {index} {sample}") for sample in range(num_samples)]
            for index, prompt in enumerate(prompts)
        ]

    def _completion(self, prompt, mark: str) -> Completion:
        missing = self.steps - 1 - prompt.prefix.count("ки")
        return Completion(
            f"{mark} = 1 ки " + f"{STEP} " * (missing - 1) + f"answer {len(mark) % 2}", True, 6 * missing
        )


def is_right(completion: str, answer: str) -> float:
    """A grader that compares the end of the completion."""
    return float(completion.endswith(answer))


def collect(folder: Path, questions: int, steps: int, k: int, **settings):
    """Runs a collection with a sampler and a grader that take no time."""
    rows = [Question(f"Tom dial {index} . right 15 . ?", "1") for index in range(questions)]
    return collect_rollouts(
        rows, FakeSampler(steps), folder, num_solutions=2, num_continuations=k, splitter="ки",
        grading=lambda completion, answer: is_right(completion, answer), show_progress=False, **settings,
    )  # fmt: skip


def scorer_of(length: int) -> StepScorer:
    """A random model with dial's vocabulary and a context of `length` tokens."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE_PATH)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=length,
    )  # fmt: skip
    return StepScorer(LlamaForCausalLM(config).eval(), tokenizer, FORMAT, batch_size=16)


def prepare_collect(folder, questions, steps, k):
    """The whole collection, including its summary."""
    return lambda: collect(folder / "new", questions, steps, k)


def prepare_collect_shared(folder, questions, steps, k):
    """A collection with adaptive allocation, where prefixes share continuations."""
    return lambda: collect(folder / "new", questions, steps, k, allocation="adaptive")


def prepare_open(folder, questions, steps, k):
    """Opening a folder and reading all rows."""
    collect(folder / "old", questions, steps, k)
    return lambda: sum(len(row.steps) for row in RolloutDataset(folder / "old"))


def prepare_labels(folder, questions, steps, k):
    """Labels near eta = 2. The eta differs each time, because `datasets` caches its results."""
    rollouts = collect(folder / "old", questions, steps, k)
    etas = iter(torch.linspace(2, 3, 100).tolist())
    return lambda: rollouts.labels(next(etas))


def prepare_posterior(folder, questions, steps, k):
    """Labels with their standard deviations."""
    rollouts = collect(folder / "old", questions, steps, k)
    etas = iter(torch.linspace(2, 3, 100).tolist())
    return lambda: rollouts.labels(next(etas), estimator="posterior")


def prepare_encoding(folder, questions, steps, k):
    """Encoding texts as token ids with step positions."""
    tokenizer = AutoTokenizer.from_pretrained(BASE_PATH)
    texts = [f"Tom dial {index} . right 15 . ?" for index in range(questions)]
    return lambda: encode_solutions(tokenizer, FORMAT, texts, [["7 + 15 = 2"] * steps] * questions)


def prepare_scoring(folder, questions, steps, k):
    """Scoring all steps."""
    scorer = scorer_of(8 * steps + 64)
    texts = [f"Tom dial {index % 20} . right {index // 20} . ?" for index in range(questions)]
    return lambda: scorer.score(texts, [["7 + 15 = 2"] * steps] * questions)


def prepare_training_step(folder, questions, length, k):
    """Forward pass, loss and backward pass of `questions` sequences with one step per 16 tokens."""
    model = scorer_of(length).model.train()
    ids = torch.randint(4, 40, (questions, length))
    positions = torch.arange(15, length, 16).expand(questions, -1)
    real, labels = torch.ones_like(positions, dtype=torch.bool), torch.rand(positions.numel())

    def step():
        logits = step_logits(model, "lm", FormatTokenIds(4, 5, 6), ids, torch.ones_like(ids), positions, real)
        soft_step_cross_entropy(logits, labels).backward()

    return step


def prepare_page(folder, questions, steps, k):
    """The report page of a collection, with at most 1,000 solutions."""
    collect(folder / "old", questions, steps, k)
    return lambda: write_report(folder)


CASES = {  # stage: (function that prepares it, {doubled size: values})
    "collect": (prepare_collect, {"questions": (64, 1024), "steps": (4, 64), "k": (4, 64)}),
    "collect, shared": (prepare_collect_shared, {"questions": (32, 256), "steps": (4, 32), "k": (2, 16)}),
    "open": (prepare_open, {"questions": (512, 4096), "steps": (8, 128), "k": (16, 256)}),
    "labels": (prepare_labels, {"questions": (512, 4096), "steps": (32, 256), "k": (64, 512)}),
    "labels, posterior": (prepare_posterior, {"questions": (512, 4096), "steps": (16, 128), "k": (32, 256)}),
    "encoding": (prepare_encoding, {"questions": (256, 4096), "steps": (32, 512)}),
    "scoring": (prepare_scoring, {"questions": (64, 512), "steps": (8, 128)}),
    "training step": (prepare_training_step, {"questions": (4, 64), "length": (128, 2048)}),
    "report page": (prepare_page, {"questions": (64, 512), "steps": (8, 64)}),
}


def seconds_of(prepare, sizes: dict[str, int], turns: int) -> float:
    """Best processor time of a few turns, each with a new folder."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(Path(folder), *sizes.values())
        for _ in range(turns):
            shutil.rmtree(Path(folder, "new"), ignore_errors=True)
            started = time.process_time()
            work()
            times.append(time.process_time() - started)
    return min(times)


def exponent(sizes: list[int], times: list[float]) -> float:
    """The slope over the larger half of the sizes, because overhead dominates the smaller ones."""
    half = max(2, -(-len(sizes) // 2))
    x, y = ([math.log2(value) for value in values[-half:]] for values in (sizes, times))
    return statistics.linear_regression(x, y).slope


def main() -> None:
    """Runs all cases, and prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", default="", help="Run only stages whose names contain this text.")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/scaling.json"))
    options = parser.parse_args()
    logging.getLogger("erprm_trl").setLevel(logging.ERROR)  # hides warnings that graders run in this process
    results = {}
    for stage, (prepare, axes) in CASES.items():
        for axis, (least, most) in axes.items() if options.only in stage else ():
            doublings = [least * 2**power for power in range(int(math.log2(most // least)) + 1)]
            held = {"questions": 4, "length": 256, "k": 0} if stage == "training step" else SIZES
            times = [seconds_of(prepare, {**held, axis: size}, options.turns) for size in doublings]
            power = exponent(doublings, times)
            results[f"{stage} / {axis}"] = {"sizes": doublings, "seconds": times, "exponent": power}
            why = BY_NATURE.get((stage, axis), "" if power < 1.15 else "ABOVE LINEAR")
            print(f"{stage:<20}{axis:<10}{doublings[0]:>6} to {doublings[-1]:<6}"
                  f"{1e3 * times[0]:9.1f} to {1e3 * times[-1]:9.1f} ms   exponent {power:5.2f}   {why}",
                  flush=True)  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
