"""The data types of a collection: a row, which is one solution with its rewards, and the settings of the collection.

Both are dataclasses with `to_json` and `from_json`, which convert to and from the JSON objects on disk. No other
module uses the keys of these objects.
"""

import math
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from numbers import Real
from typing import Any

from ..io.config_values import differences


class _RowAsMapping(Mapping):
    """Access by key, for backwards compatibility: rows used to be dictionaries. `row["steps"]` works with a
    warning."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        _warn_of_lookup(f'row["{name}"]', f"row.{name}")
        return self.to_json()[name]

    def __iter__(self) -> Iterator[str]:
        _warn_of_lookup("Iterating over a row's keys", "row.to_json()")
        return iter(self.to_json())

    def __len__(self) -> int:
        return len(self.to_json())


def _warn_of_lookup(old: str, new: str) -> None:
    warnings.warn(
        f"{old}: rows are RolloutRow objects now, and this access will be removed in the next release. Use {new}.",
        FutureWarning,
        stacklevel=3,
    )


@dataclass(kw_only=True, slots=True)
class RolloutRow(_RowAsMapping):
    """
    One solution to a question, with the graded continuations of its prefixes.

    `S` is the number of steps of the solution, and `K` the number of continuations per prefix. `K` is the same for all
    prefixes, except in collections that share continuations ([`CollectionSettings.shares_continuations`]).

    Args:
        chunk (`int`):
            Index of the chunk that contains the row. A chunk is a group of consecutive questions.
        question_index (`int`):
            Index of the question in the collection.
        solution_index (`int`):
            Index of the solution among the solutions of its question.
        question (`str`):
            Text of the question.
        steps (`list[str]`):
            Steps of the solution with their delimiters, length S. Joined, they are exactly the text of the solution.
        answer (`str`, *optional*):
            Reference answer of the question, `None` if the question has no answer.
        outcome_reward (`float`, *optional*):
            Reward of the whole solution, `None` if the collection is not graded.
        prediction (`str`, *optional*):
            Final answer that the grader found in the solution, `None` if it found no answer.
        finished (`bool`, *optional*, defaults to `True`):
            Whether the solution ended before `max_new_tokens`.
        num_tokens (`int`, *optional*, defaults to `0`):
            Number of sampled tokens. 0 if the solution is given.
        prefix_rewards (`list[list[float]]`, *optional*):
            Raw rewards of the continuations of each proper prefix, shape (S - 1, K). Entry `i` belongs to the prefix
            of `i + 1` steps. Empty if the collection has no continuations.
        question_rewards (`list[float]`, *optional*):
            Raw rewards of the continuations of the bare question, shape (K,). They are the same for all solutions to a
            question. `None` if the question was not continued.
        unusable (`str`, *optional*):
            Reason why the solution has no labels, `None` if it has labels.
        sampler (`dict[str, Any]`, *optional*):
            Backend, model, sampling parameters and seed of the solution. Empty if the solution is given.
        token_ids (`list[int]`, *optional*):
            Sampled tokens of the solution, shape (`num_tokens`,). `None` unless the collection stores them.
        prefix_generated (`list[int]`, *optional*):
            Number of rewards of each proper prefix that come from continuations of this prefix, shape (S - 1,). These
            rewards come first in `prefix_rewards`. 0 if an earlier solution has the same prefix, whose rewards are
            shared. `None` unless the collection shares continuations.
        question_generated (`int`, *optional*):
            Number of rewards in `question_rewards` that come from continuations of the bare question. Set only for the
            first solution to each question of a collection that shares continuations, else `None`.
        solution_id (`str` or `int`, *optional*):
            Identifier of a given solution, see [`GivenSolution`]. `None` if the solution was sampled.
        correct (`bool`, *optional*):
            Whether a given solution is correct according to its source. `outcome_reward` is the reward of the grader.
        metadata (`dict[str, Any]`, *optional*):
            Other columns of a given solution.
        messages (`list[dict[str, Any]]`, *optional*):
            Messages after the question: turns of the policy, and results of its tools. A step is the text of a turn,
            see [`conversation_steps`]. `None` unless the policy has tools.
        extra (`dict[str, Any]`, *optional*):
            Entries of the JSON object with other names. They are written back unchanged.
    """

    chunk: int
    question_index: int
    solution_index: int
    question: str
    answer: str | None = None
    steps: list[str]
    outcome_reward: float | None = None
    prediction: str | None = None
    finished: bool = True
    num_tokens: int = 0
    prefix_rewards: list[list[float]] = field(default_factory=list)
    question_rewards: list[float] | None = None
    unusable: str | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    token_ids: list[int] | None = None
    prefix_generated: list[int] | None = None
    question_generated: int | None = None
    solution_id: str | int | None = None
    correct: bool | None = None
    metadata: dict[str, Any] | None = None
    messages: list[dict[str, Any]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "RolloutRow":
        """
        Makes a row from a JSON object.

        Args:
            row (`Mapping[str, Any]`):
                The JSON object.

        Raises:
            `KeyError`: if one of `chunk`, `question_index`, `solution_index`, `question` and `steps` is missing. Other
                missing entries get their defaults.
            `TypeError`: if `row` is not a mapping, or an index is not an integer.
        """
        if not isinstance(row, Mapping):
            raise TypeError(f"got {type(row).__name__}, expected an object")
        for name in _INDICES:
            operator.index(row[name])
        known = {name: row[name] for name in _ROW_FIELDS if name in row}
        for name in ("question", "steps"):
            if name not in known:
                raise KeyError(name)
        _check_values(known)
        if len(known) == len(row):
            return cls(**known)
        return cls(**known, extra={name: value for name, value in row.items() if name not in known})

    def to_json(self) -> dict[str, Any]:
        """The JSON object on disk. Optional entries without a value are left out."""
        row = {name: getattr(self, name) for name in _ROW_FIELDS}
        for name in _OPTIONAL_ROW_FIELDS:
            if row[name] is None:
                del row[name]
        return {**row, **self.extra}

    @property
    def text(self) -> str:
        """The text of the solution."""
        return "".join(self.steps)

    def prefix(self, num_steps: int) -> str:
        """Text of the first `num_steps` steps."""
        return "".join(self.steps[:num_steps])

    @property
    def is_graded(self) -> bool:
        """Whether the solution has a reward."""
        return self.outcome_reward is not None

    @property
    def is_right(self) -> bool:
        """
        Whether the solution's reward is above 0.5.

        Raises:
            `ValueError`: if the solution is not graded.
        """
        if self.outcome_reward is None:
            raise ValueError(
                f"{self.name}: got no outcome_reward, expected a graded solution. Collect with a grading and answers."
            )
        return self.outcome_reward > 0.5

    @property
    def is_usable(self) -> bool:
        """Whether the solution can have labels."""
        return not self.unusable

    @property
    def lacks_continuations(self) -> bool:
        """Whether the solution is usable, but rewards of some of its proper prefixes are missing."""
        return self.is_usable and len(self.prefix_rewards) != len(self.steps) - 1

    @property
    def name(self) -> str:
        """Name of the row in error messages."""
        return f"question {self.question_index}, solution {self.solution_index}"


def _check_values(row: Mapping[str, Any]) -> None:
    """Checks the types of the steps and the rewards, which a file that was edited may have lost."""
    if isinstance(row["steps"], str) or not all(isinstance(step, str) for step in row["steps"]):
        raise TypeError(f"got steps {str(row['steps'])[:60]!r}, expected a list of texts")
    rewards = chain([row.get("outcome_reward") or 0.0], *row.get("prefix_rewards", ()))
    for value in rewards:
        if not (isinstance(value, Real) and math.isfinite(value)):
            raise ValueError(f"got the reward {str(value)[:60]!r}, expected a finite number")


_INDICES = ("chunk", "question_index", "solution_index")
_ROW_FIELDS = tuple(item.name for item in fields(RolloutRow) if item.name != "extra")  # in the order on disk
_OPTIONAL_ROW_FIELDS = (
    "token_ids", "prefix_generated", "question_generated", "solution_id", "correct", "metadata", "messages",
)  # fmt: skip


def as_rows(solutions: Sequence[Sequence[RolloutRow | Mapping[str, Any]]], *needed: str) -> list[list[RolloutRow]]:
    """
    Converts the solutions that a public function received, rows or mappings, to rows.

    Args:
        solutions (`Sequence[Sequence[RolloutRow | Mapping]]`):
            Solutions of each question, as returned by [`~erprm_trl.rollouts.RolloutDataset.solutions`], or as mappings
            with the same names.
        needed (`str`):
            Entries that each mapping must have. Other entries may be missing.

    Returns:
        `list[list[RolloutRow]]`: the same solutions as rows.

    Raises:
        `ValueError`: if a mapping lacks a needed entry.
    """
    return [
        [_as_row(row, index, place, needed) for place, row in enumerate(rows)] for index, rows in enumerate(solutions)
    ]


def _as_row(
    row: RolloutRow | Mapping[str, Any], question_index: int, solution_index: int, needed: Sequence[str]
) -> RolloutRow:
    if isinstance(row, RolloutRow):
        return row
    missing = [name for name in needed if name not in row]
    if missing:
        raise ValueError(
            f"Solutions: got a mapping with {sorted(row)} for question {question_index}, solution {solution_index}, "
            f"expected {', '.join(map(repr, missing))} too. Pass the rows of RolloutDataset.solutions()."
        )
    where = {"chunk": 0, "question_index": question_index, "solution_index": solution_index}
    return RolloutRow.from_json({**where, "question": "", "steps": [], **row})


@dataclass(kw_only=True, frozen=True)
class CollectionSettings:
    """
    Settings of a collection, stored as `config` in its manifest. Collections with equal settings have equal rows.

    Args:
        num_questions (`int`):
            Number of questions.
        num_solutions (`int`):
            Number of solutions per question. The largest number, if solutions are given.
        chunk_size (`int`):
            Number of questions per chunk. The last chunk may have fewer.
        questions (`str`, *optional*, defaults to `""`):
            Fingerprint of the questions and answers, or of the given solutions.
        num_continuations (`int`, *optional*, defaults to `0`):
            Number K of continuations per prefix. With adaptive allocation, the largest average number. 0 if solutions
            are not continued.
        include_question (`bool`, *optional*, defaults to `False`):
            Whether the bare question is also continued.
        splitter (`str`, *optional*, defaults to `"newline"`):
            How solutions are split into steps, see [`split_steps`].
        grading (`str`, *optional*):
            Name or import path of the grading, `None` if nothing is graded.
        answer_pattern (`str`, *optional*):
            Regular expression whose first group is the final answer.
        reasoning (`bool`, *optional*, defaults to `False`):
            How the grader treats reasoning delimiters, see [`Grader`].
        steps_of (`str`, *optional*, defaults to `"both"`):
            Which part of a reasoning text is split into steps, see [`split_steps`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the collection.
        sampler (`dict[str, Any]`, *optional*):
            Settings of the sampler of solutions. Empty if solutions are given.
        store_token_ids (`bool`, *optional*, defaults to `False`):
            Whether rows have `token_ids`.
        stop (`list[str]`, *optional*):
            Strings before which a solution or continuation ends.
        continue_from (`str`, *optional*, defaults to `"text"`):
            `"tokens"` if prefixes are continued from their sampled tokens, `"text"` if they are continued from their
            text, which is encoded again, as in older releases.
        allocation (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"` or `"adaptive"`, see [`collect_rollouts`].
        reuse_continuations (`bool`, *optional*, defaults to `False`):
            Whether a continuation also counts for longer prefixes with which it begins.
        target_etas (`list[float]`, *optional*):
            Etas for which the labels should be precise. Only with adaptive allocation.
        tolerance (`float`, *optional*):
            Standard deviation of labels at which sampling stops. Only with adaptive allocation.
        completer (`dict[str, Any]`, *optional*):
            Settings of the sampler of continuations, if it is not the sampler of solutions.
        agent (`dict[str, Any]`, *optional*):
            Tools and environments of the policy, and the limit of their calls. `None` if the policy has no tools.
        rows_per_chunk (`list[int]`, *optional*):
            Number of given solutions in each chunk. `None` if solutions are sampled. On disk it is a text of numbers.
        extra (`dict[str, Any]`, *optional*):
            Entries of the JSON object with other names. They are written back unchanged.
    """

    num_questions: int
    questions: str = ""
    num_solutions: int
    num_continuations: int = 0
    include_question: bool = False
    splitter: str = "newline"
    grading: str | None = None
    answer_pattern: str | None = None
    seed: int = 0
    chunk_size: int
    sampler: dict[str, Any] = field(default_factory=dict)
    store_token_ids: bool = False
    reasoning: bool | None = False
    steps_of: str = "both"
    stop: list[str] = field(default_factory=list)
    continue_from: str = "text"
    allocation: str = "fixed"
    reuse_continuations: bool = False
    target_etas: list[float] | None = None
    tolerance: float | None = None
    completer: dict[str, Any] | None = None
    agent: dict[str, Any] | None = None
    rows_per_chunk: list[int] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "CollectionSettings":
        """
        Makes settings from the `config` of a manifest. Entries that older releases did not write get their defaults.

        Args:
            config (`Mapping[str, Any]`):
                The `config` of a manifest.

        Raises:
            `ValueError`: if `num_questions`, `num_solutions` or `chunk_size` is missing.
        """
        missing = [name for name in ("num_questions", "num_solutions", "chunk_size") if name not in config]
        if missing:
            raise ValueError(
                f"Settings of a collection: got {sorted(config)}, expected {', '.join(map(repr, missing))} too. "
                "Choose a folder that collect_rollouts wrote."
            )
        known = {name: config[name] for name in _SETTINGS_FIELDS if name in config}
        if known.get("rows_per_chunk") is not None:
            known["rows_per_chunk"] = [int(size) for size in known["rows_per_chunk"].split()]
        return cls(**known, extra={name: value for name, value in config.items() if name not in known})

    def to_json(self) -> dict[str, Any]:
        """
        The `config` of a manifest. Settings that older releases did not have are left out if they equal the behaviour
        of these releases, so that the manifests of simple collections do not change.
        """
        config = {name: getattr(self, name) for name in _SETTINGS_FIELDS}
        if self.rows_per_chunk is not None:
            config["rows_per_chunk"] = " ".join(map(str, self.rows_per_chunk))  # one line of the manifest
        for name, before in _ADDED.items():
            if config[name] == before:
                del config[name]
        if not self.is_adaptive:
            del config["target_etas"], config["tolerance"]
        if not self.shares_continuations:
            del config["allocation"], config["reuse_continuations"]
        return {**config, **self.extra}

    @property
    def is_adaptive(self) -> bool:
        """Whether prefixes with uncertain labels get more continuations."""
        return self.allocation == "adaptive"

    @property
    def shares_continuations(self) -> bool:
        """Whether prefixes may have different numbers of rewards, and rewards from continuations of other prefixes."""
        return self.is_adaptive or self.reuse_continuations

    @property
    def has_given_solutions(self) -> bool:
        """Whether the solutions were given instead of sampled."""
        return self.rows_per_chunk is not None

    @property
    def continues_own_samples(self) -> bool:
        """Whether the policy that continues a solution has also sampled it."""
        return not self.has_given_solutions and self.completer is None

    @property
    def questions_per_chunk(self) -> list[int]:
        """Number of questions of each chunk."""
        starts = range(0, self.num_questions, self.chunk_size)
        return [min(self.chunk_size, self.num_questions - start) for start in starts]

    @property
    def chunk_sizes(self) -> list[int]:
        """Number of rows of each chunk."""
        if self.rows_per_chunk is not None:
            return self.rows_per_chunk
        return [size * self.num_solutions for size in self.questions_per_chunk]

    def differences(self, old: Mapping[str, Any]) -> list[str]:
        """
        Describes the differences between these settings and the `config` of a manifest, one text per entry.

        Entries that older releases did not write count as their defaults. Other missing entries count as `None`.

        Args:
            old (`Mapping[str, Any]`):
                The `config` of a manifest.

        Returns:
            `list[str]`: the differences.
        """
        old_entries, new_entries = {**_ADDED, **old}, {**_ADDED, **self.to_json()}
        # A long text. `questions` differs too if the given solutions differ.
        del old_entries["rows_per_chunk"], new_entries["rows_per_chunk"]
        return differences(old_entries, new_entries)


_SETTINGS_FIELDS = tuple(item.name for item in fields(CollectionSettings) if item.name != "extra")
# Settings that older releases did not have, with values that describe the behaviour of these releases.
_ADDED = {
    "store_token_ids": False,
    "reasoning": False,
    "steps_of": "both",
    "stop": [],
    "continue_from": "text",
    "completer": None,
    "agent": None,
    "rows_per_chunk": None,
}
