"""The work on one chunk of a collection: solutions, their prefixes, the continuations of each, and all grades. Which
chunks there are, and where rows go, is `collect`'s."""

from collections.abc import Sequence
from typing import Any

from ..steps import split_steps
from .allocation import allocate
from .grading.grader import Grader
from .questions import Question
from .sampling.base import Completion, Prompt, Sampler, derived_seed
from .shards import shares_continuations
from .shared_prefixes import SharedPrefixes


ROUNDS = 4  # of adaptive collection: more gained nothing on the dial task


class ChunkWork:
    """
    Samples and grades chunk after chunk. A chunk's rows depend on its questions, the settings and its number alone.

    Args:
        questions (`Sequence[Question]`):
            All questions of the collection.
        sampler ([`Sampler`]):
            The policy.
        config (`dict[str, Any]`):
            Settings of the collection, as its manifest holds them.

    Attributes:
        num_rollouts, num_saved (`int`): texts sampled so far, and continuations that a fixed number would have sampled
            beyond these.
    """

    def __init__(self, questions: Sequence[Question], sampler: Sampler, config: dict[str, Any]):
        self.questions, self.sampler, self.config = questions, sampler, config
        self.num_rollouts = self.num_saved = 0
        in_rows = ("backend", "model", "temperature", "top_p", "top_k", "max_new_tokens")
        self.sampler_settings = {name: value for name, value in sampler.settings.items() if name in in_rows}

    def run_chunk(self, chunk: int, grader: Grader | None) -> list[dict[str, Any]]:
        """All rows of a chunk, in the order of its questions and solutions."""
        first = chunk * self.config["chunk_size"]
        questions = self.questions[first : first + self.config["chunk_size"]]  # read once: they may lie on the disk
        solutions = self._sample(
            [Prompt(one.question) for one in questions], self.config["num_solutions"], chunk, "solutions"
        )
        rows = [
            self._row(chunk, index, question, number, solution)
            for index, (question, samples) in enumerate(zip(questions, solutions, strict=True), start=first)
            for number, solution in enumerate(samples)
        ]
        if grader is None:
            return rows
        rewards, predictions = grader.grade_and_extract(
            ["".join(row["steps"]) for row in rows], [row["answer"] for row in rows]
        )
        for row, reward, prediction in zip(rows, rewards, predictions, strict=True):
            row["outcome_reward"], row["prediction"] = reward, prediction
        if shares_continuations(self.config):
            self._continue_shared(chunk, rows, grader)
        elif self.config["num_continuations"] > 0:
            self._continue_prefixes(chunk, rows, grader)
        return rows

    def _row(self, chunk: int, index: int, question: Question, number: int, solution: Completion) -> dict[str, Any]:
        if self.config.get("store_token_ids") and not solution.token_ids:
            raise ValueError(
                "store_token_ids=True: the sampler returned no token ids. For vLLM's server set "
                "extra_body={'return_token_ids': True}, or leave store_token_ids off."
            )
        steps = split_steps(solution.text, self.config["splitter"])
        return {
            "chunk": chunk,
            "question_index": index,
            "solution_index": number,
            "question": question.question,
            "answer": question.answer,
            "steps": steps,
            "outcome_reward": None,
            "prediction": None,
            "finished": solution.finished,
            "num_tokens": solution.num_tokens,
            "prefix_rewards": [],
            "question_rewards": None,
            "unusable": None if steps else "no steps",
            "sampler": {**self.sampler_settings, "seed": derived_seed(self.config["seed"], chunk, "solutions")},
            **({"token_ids": solution.token_ids} if self.config.get("store_token_ids") else {}),
        }

    def _continue_prefixes(self, chunk: int, rows: list[dict], grader: Grader) -> None:
        targets = self._targets(rows)
        prompts = [Prompt(row["question"], "".join(row["steps"][:length])) for row, length in targets]
        continuations = self._sample(prompts, self.config["num_continuations"], chunk, "continuations")
        texts = [prompt.prefix + one.text for prompt, some in zip(prompts, continuations, strict=True) for one in some]
        answers = [row["answer"] for row, _ in targets for _ in range(self.config["num_continuations"])]
        rewards = iter(grader.grade(texts, answers))
        for row, length in targets:
            raw = [next(rewards) for _ in range(self.config["num_continuations"])]
            if length == 0:
                row["question_rewards"] = raw
            else:
                row["prefix_rewards"].append(raw)
        _share_question_rewards(rows)

    def _targets(self, rows: list[dict]) -> list[tuple[dict, int]]:
        """Where a prefix's rewards go: (row, its number of steps); 0 steps is the bare question, shared by its
        solutions."""
        targets = []
        for row in rows:
            bare_question = [0] if self.config["include_question"] and row["solution_index"] == 0 else []
            targets += [(row, length) for length in [*bare_question, *range(1, len(row["steps"]))]]
        return targets

    def _continue_shared(self, chunk: int, rows: list[dict], grader: Grader) -> None:
        """Continues each distinct prefix, as often as it is worth, and counts every text wherever it belongs."""
        shared = {row["question_index"]: SharedPrefixes(self.config["reuse_continuations"]) for row in rows}
        targets = self._targets(rows)
        numbers = [shared[row["question_index"]].add_prefix("".join(row["steps"][:length])) for row, length in targets]
        for row in rows:
            shared[row["question_index"]].add_text("".join(row["steps"]), row["outcome_reward"])
            row["prefix_generated"] = []
        first_rows = {row["question_index"]: row for row in reversed(rows)}
        budget = self.config["num_continuations"] * len(targets)
        spent = 0
        for number, what in enumerate(self._rounds()):
            counts = self._counts(list(shared.values()), (budget - spent) // (len(self._rounds()) - number))
            if not any(map(any, counts)):
                break
            spent += sum(map(sum, counts))
            jobs = [
                (index, prefix)
                for index, some in zip(shared, counts, strict=True)
                for prefix, count in enumerate(some)
                for _ in range(count)
            ]
            prompts = [Prompt(first_rows[index]["question"], shared[index].texts[prefix]) for index, prefix in jobs]
            texts = [
                prompt.prefix + one.text
                for prompt, (one,) in zip(prompts, self._sample(prompts, 1, chunk, what), strict=True)
            ]
            rewards = grader.grade(texts, [first_rows[index]["answer"] for index, _ in jobs])
            for (index, prefix), text, reward in zip(jobs, texts, rewards, strict=True):
                shared[index].add_text(text, reward, start=prefix)
        self.num_saved += budget - spent
        _write_shared(targets, numbers, shared)
        _share_question_rewards(rows)

    def _rounds(self) -> list[str]:
        adaptive = self.config["allocation"] == "adaptive"
        return [f"continuations-{number}" for number in range(ROUNDS)] if adaptive else ["continuations"]

    def _counts(self, shared: list[SharedPrefixes], budget: int) -> list[list[int]]:
        if self.config["allocation"] == "fixed":
            return [[self.config["num_continuations"]] * len(one.texts) for one in shared]
        return allocate(
            [one.rewards for one in shared],
            [one.weights for one in shared],
            [one.reach() for one in shared],
            budget,
            target_etas=self.config["target_etas"],
            tolerance=self.config["tolerance"],
        )

    def _sample(self, prompts: list[Prompt], num_samples: int, chunk: int, what: str) -> list[list[Completion]]:
        if not prompts:
            return []
        self.num_rollouts += len(prompts) * num_samples
        return self.sampler.sample(prompts, num_samples, derived_seed(self.config["seed"], chunk, what))


def _write_shared(targets: list[tuple[dict, int]], numbers: list[int], shared: dict[int, SharedPrefixes]) -> None:
    seen = set()
    for (row, length), number in zip(targets, numbers, strict=True):
        prefixes = shared[row["question_index"]]
        raw = prefixes.generated[number] + prefixes.inherited[number]
        # What two solutions share was sampled once: the first of them says so.
        first = (row["question_index"], number) not in seen
        seen.add((row["question_index"], number))
        generated = len(prefixes.generated[number]) if first else 0
        if length == 0:
            row["question_rewards"], row["question_generated"] = raw, generated
        else:
            row["prefix_rewards"].append(raw)
            row["prefix_generated"].append(generated)


def _share_question_rewards(rows: list[dict]) -> None:
    by_question = {row["question_index"]: row["question_rewards"] for row in rows if row["solution_index"] == 0}
    for row in rows:
        row["question_rewards"] = by_question[row["question_index"]]
