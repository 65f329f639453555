"""Reads rows of labelled steps as other projects publish them: RLHFlow's conversations, ProcessBench's first errors,
PRM800K's human ratings, and step rewards of Skywork's reward models.

Steps after the first error have no label in ProcessBench, so they are not read. The same holds for the steps at the
end of a PRM800K solution that nobody rated.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .dataset_rows import (
    BROKEN_QUESTION,
    NO_TURNS,
    OUTSIDE,
    RATING_GAP,
    WRONG_TYPE,
    Row,
    Unreadable,
    listed,
    numbers,
    shown,
    text,
    texts,
)


FIRST_STEP = re.compile(r"\s*(?=Step 1\s*:)")  # ends the question in a text that begins with it
_QUESTIONS = ("prompt", "question", "problem")  # columns that tell where the question ends in a conversation
SIGNS = {"+": 1.0, "-": 0.0}


def separate_question(steps: Sequence[str], question: str | None = None) -> tuple[str, list[str]]:
    """
    Separates the question from the first step.

    Args:
        steps (`Sequence[str]`):
            Steps, the first of which may begin with the question.
        question (`str`, *optional*):
            The question, if it is known. The first step may repeat it. If the question is not known, or the first step
            repeats it in other words, it ends in the first step where `Step 1:` begins.

    Returns:
        `tuple[str, list[str]]`: the question, empty if it is not known and there is no `Step 1:`, and the steps.
    """
    stripped = [step.strip() for step in steps]
    if not stripped:
        return (question or "").strip(), []
    first = stripped[0]
    if question is not None and first.startswith(question.strip()):
        return question.strip(), [first[len(question.strip()) :].strip(), *stripped[1:]]
    if found := next(reversed([*FIRST_STEP.finditer(first)]), None):  # the question may say "Step 1:" too
        before = first[: found.start()].strip()
        return before or (question or "").strip(), [first[found.end() :], *stripped[1:]]
    return (question or "").strip(), stripped


def read_conversation(row: Mapping[str, Any]) -> Row:
    """Reads RLHFlow's form: `conversations` of one user message per step and its label `+` or `-` by the assistant.
    The first message begins with the question."""
    column = "conversations"
    turns = listed(row, column, "a list of messages", lambda turn: isinstance(turn, Mapping))
    steps, labels = [], []
    for index, turn in enumerate(turns):
        role, content = turn.get("role"), turn.get("content")
        expected = "user" if index % 2 == 0 else "assistant"
        if role != expected or not isinstance(content, str):
            raise Unreadable(
                NO_TURNS,
                f"column '{column}', message {index}: got {shown(content)} by {role!r}, expected text by {expected!r}",
            )
        if expected == "user":
            steps.append(content)
        elif content.strip() not in SIGNS:
            raise Unreadable(
                NO_TURNS, f"column '{column}', message {index}: got {shown(content)}, expected '+' or '-'"
            )
        else:
            labels.append(SIGNS[content.strip()])
    if len(labels) < len(steps):
        raise Unreadable(NO_TURNS, f"column '{column}', message {len(turns)}: got none, expected '+' or '-'")
    question = next((row[name] for name in _QUESTIONS if isinstance(row.get(name), str)), None)
    return Row(*separate_question(steps, question), labels)


def read_first_error(row: Mapping[str, Any]) -> Row:
    """Reads ProcessBench's form: `problem`, `steps`, and `label`, the index of the first wrong step or -1. The steps
    after the first wrong step were not judged, and are not read."""
    steps, label = texts(row, "steps"), row["label"]
    if isinstance(label, bool) or not isinstance(label, int):
        raise Unreadable(WRONG_TYPE, f"column 'label': got {shown(label)}, expected an integer")
    if not -1 <= label < len(steps):
        raise Unreadable(OUTSIDE, f"column 'label': got {label} for {len(steps)} steps")
    judged = steps if label == -1 else steps[: label + 1]
    return Row(text(row, "problem"), judged, [float(index != label) for index in range(len(judged))])


def read_step_rewards(row: Mapping[str, Any]) -> Row:
    """Reads the names of Skywork's inference code: `problem`, `response` with one step per line, and `step_rewards`.
    Blank lines are no steps. Their rewards, which this code computes too, are not read."""
    lines, rewards = text(row, "response").split("\n"), numbers(row, "step_rewards")
    steps = [line for line in lines if line.strip()]
    if len(rewards) == len(lines):
        rewards = [reward for line, reward in zip(lines, rewards, strict=True) if line.strip()]
    return Row(text(row, "problem"), steps, rewards)


def read_ratings(row: Mapping[str, Any], neutral: float = 1.0) -> Row:
    """
    Reads a solution of PRM800K: the chosen completion of each step, or the step that the labeller wrote.

    A solution that was given up or has an error ends with the first completion of its last step, which is the step of
    the solution that was labelled. Steps at the end without a rating are not read.

    Args:
        row (`Mapping[str, Any]`):
            A row with the columns `question` and `label`.
        neutral (`float`, *optional*, defaults to `1.0`):
            Label of a step that was rated 0.
    """
    return rated_solutions(row, neutral, alternatives=False)[-1]


def rated_solutions(row: Mapping[str, Any], neutral: float, alternatives: bool) -> list[Row]:
    """
    Reads all labelled solutions in a row of PRM800K, see [`read_ratings`].

    Args:
        row, neutral:
            See [`read_ratings`].
        alternatives (`bool`):
            Whether a rated completion that was not chosen gives a solution of its own, which ends with it.

    Returns:
        `list[Row]`: the solutions. The last is the solution of [`read_ratings`].
    """
    question, label = _struct(row, "question"), _struct(row, "label")
    if not isinstance(question.get("problem"), str):
        raise Unreadable(
            WRONG_TYPE, f"column 'question.problem': got {shown(question.get('problem'))}, expected a text"
        )
    if label.get("finish_reason") == "bad_problem":
        raise Unreadable(BROKEN_QUESTION, "column 'label.finish_reason': 'bad_problem'")
    steps = listed(label, "steps", "a list of steps", lambda step: isinstance(step, Mapping))
    solutions, main, unrated = [], [], ""
    for index, step in enumerate(steps):
        place = f"column 'label.steps', step {index}"
        candidates, chosen = _completions(step, place)
        if not candidates:
            unrated = unrated or place
            continue
        if alternatives and not unrated:
            solutions += [
                [*main, candidate]
                for position, candidate in enumerate(candidates)
                if position != chosen and candidate[1] is not None
            ]
        main.append(candidates[chosen])
        if candidates[chosen][1] is None:
            unrated = unrated or place
        elif unrated:
            raise Unreadable(RATING_GAP, f"{unrated}: no rating, and {place} has one")
    solutions.append([candidate for candidate in main if candidate[1] is not None])
    labels = {1: 1.0, 0: neutral, -1: 0.0}
    return [
        Row(question["problem"], [step for step, _ in solution], [labels[rating] for _, rating in solution])
        for solution in solutions
    ]


def _completions(step: Mapping[str, Any], place: str) -> tuple[list[tuple[str, int | None]], int]:
    """Texts and ratings of the candidates of a step, and the index of the candidate with which the solution went on.
    A step by the labeller has no rating in the data, because labellers were asked for a good step."""
    candidates = []
    for completion in step.get("completions") or []:
        candidates.append(_rated(completion, place))
    if isinstance(step.get("human_completion"), Mapping) and step.get("chosen_completion") is None:
        written, rating = _rated(step["human_completion"], f"{place}, human_completion")
        return [*candidates, (written, 1 if rating is None else rating)], len(candidates)
    chosen = 0 if step.get("chosen_completion") is None else step["chosen_completion"]
    if isinstance(chosen, float) and chosen.is_integer():  # some versions of `datasets` read integers with nulls so
        chosen = int(chosen)
    if isinstance(chosen, bool) or not isinstance(chosen, int) or (candidates and not 0 <= chosen < len(candidates)):
        raise Unreadable(
            WRONG_TYPE,
            f"{place}, chosen_completion: got {shown(chosen)}, expected an index of {len(candidates)} completions",
        )
    return candidates, chosen


def _rated(completion: Any, place: str) -> tuple[str, int | None]:
    if not isinstance(completion, Mapping) or not isinstance(completion.get("text"), str):
        raise Unreadable(WRONG_TYPE, f"{place}: got {shown(completion)}, expected a text and its rating")
    rating = completion.get("rating")
    if rating is not None and (isinstance(rating, bool) or rating not in (-1, 0, 1)):
        raise Unreadable(WRONG_TYPE, f"{place}, rating: got {shown(rating)}, expected -1, 0, 1 or none")
    return completion["text"], None if rating is None else int(rating)


def _struct(row: Mapping[str, Any], column: str) -> Mapping[str, Any]:
    if not isinstance(row[column], Mapping):
        raise Unreadable(WRONG_TYPE, f"column '{column}': got {shown(row[column])}, expected an object as in PRM800K")
    return row[column]
