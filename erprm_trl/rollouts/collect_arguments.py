"""Checks the arguments of a collection."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..steps import TURNS, split_steps
from .agents.agent import Agent
from .grading.grader import ENVIRONMENT, STATED
from .questions import Question
from .sampling.base import Sampler, check_sampler


def agent_of(
    tools: Sequence[Callable] | None,
    environment_factory: Any,
    max_tool_calling_iterations: int | None,
    render_message: Callable[[dict[str, Any]], str] | None,
) -> Agent | None:
    """
    The tools of a collection, `None` if it has none.

    Raises:
        `ValueError`: if an argument that only tools use is set without tools.
    """
    if tools or environment_factory is not None:
        return Agent(tuple(tools or ()), environment_factory, max_tool_calling_iterations, render_message)
    unused = {"max_tool_calling_iterations": max_tool_calling_iterations, "render_message": render_message}
    for name, value in unused.items():
        if value is not None:
            raise ValueError(
                f"{name}: got {value!r} without tools and environment_factory, expected one of them. Leave it out."
            )
    return None


def splitter_of(splitter: str, steps_of: str, agent: Agent | None, unused: dict[str, Any]) -> str:
    """
    How texts are split into steps. The steps of a conversation are its turns.

    Args:
        splitter, steps_of (`str`):
            The arguments of the collection.
        agent ([`Agent`], *optional*):
            The tools.
        unused (`dict[str, Any]`):
            Arguments that conversations do not use, all of which must be false.

    Raises:
        `ValueError`: if an argument does not fit.
    """
    if agent is None:
        if splitter == TURNS:
            raise ValueError(
                "splitter: got 'turns' without tools and environment_factory, expected another splitter, because only "
                "conversations have turns. Pass e.g. 'whole_lines'."
            )
        split_steps("", splitter, steps_of)  # raises for invalid arguments
        return splitter
    unused = {"splitter": splitter if splitter not in ("newline", TURNS) else None, **unused}
    for name, value in unused.items():
        if value:
            raise ValueError(
                f"{name}: got {value!r} with tools or an environment_factory, expected the default, because the steps "
                "of a conversation are its turns, and its policy continues its own conversations. Leave it out."
            )
    split_steps("", TURNS, steps_of)
    return TURNS


def check_questions(questions: Sequence[Question] | None, sampler: Sampler | None) -> None:
    """Checks that there are questions, and a sampler for their solutions."""
    if questions is None or sampler is None:
        raise TypeError(
            f"collect_rollouts: got {'no questions' if questions is None else 'no sampler'} and no solutions, "
            "expected questions and a sampler, or solutions. Pass the result of load_questions and a sampler, or the "
            "result of load_solutions and a completer."
        )
    check_sampler("sampler", sampler)
    is_sequence = hasattr(questions, "__len__") and not isinstance(questions, (str, Mapping))
    if not is_sequence or (len(questions) and not isinstance(questions[0], Question)):
        got = f"a {type(questions[0]).__name__} as the first entry" if is_sequence else repr(questions)[:60]
        raise TypeError(f"questions: got {got}, expected a sequence of Question. Pass load_questions(questions).")
    if not questions:
        raise ValueError("Questions: got an empty sequence, expected at least one. Pass the result of load_questions.")


def completer_of_given(
    questions, sampler: Sampler | None, completer: Sampler | None, num_continuations: int, store_token_ids: bool
) -> Sampler | None:
    """Checks the other arguments of a call with given solutions, and returns the sampler that continues them."""
    if questions is not None or (sampler is not None and completer is not None):
        both = "questions" if questions is not None else "a sampler, a completer"
        raise ValueError(
            f"collect_rollouts: got {both} and solutions, expected solutions and a completer, because the questions "
            "are read from the solutions and no solutions are sampled. Leave out the others."
        )
    completer = sampler if completer is None else completer
    check_sampler("completer", completer)
    if completer is None and num_continuations > 0:
        raise TypeError(
            "completer: got None with solutions, expected a sampler that continues their prefixes. Pass a sampler, or "
            "set num_continuations=0 to grade the solutions only."
        )
    if store_token_ids:
        raise ValueError(
            "store_token_ids: got True with solutions, expected False, because given solutions have no sampled "
            "tokens. Leave it out."
        )
    return completer


def check_grading(
    grading: str | Callable[[str, str], float] | None,
    num_continuations: int,
    solutions_are_given: bool,
    agent: Agent | None,
) -> None:
    """Checks that texts can be graded in this way."""
    if grading == ENVIRONMENT and (agent is None or not agent.owns_reward):
        got = "no environment_factory" if agent is None or not agent.factories else "an environment without get_reward"
        raise ValueError(
            f"grading: got 'environment' with {got}, expected environments with a method get_reward. Choose another "
            "grading, or add the method."
        )
    if grading == STATED and (num_continuations > 0 or not solutions_are_given):
        raise ValueError(
            f"grading: got 'stated' with {'given' if solutions_are_given else 'sampled'} solutions and "
            f"num_continuations={num_continuations}, expected given solutions and num_continuations=0, because nobody "
            "has stated whether other texts are correct. Choose another grading."
        )
    if grading is None and num_continuations > 0:
        raise ValueError(
            f"grading: got None with num_continuations={num_continuations}, expected a grading, because only the "
            "rewards of continuations are stored. Choose a grading, or set num_continuations=0."
        )


def check_counts(output_dir: str | Path | None, num_solutions: int, num_continuations: int, chunk_size: int) -> None:
    """Checks that there is a folder, and that the counts are in range."""
    if output_dir is None:
        raise TypeError("output_dir: got None, expected a folder for the rollouts. Pass its path.")
    for name, value, least in (
        ("num_solutions", num_solutions, 1),
        ("num_continuations", num_continuations, 0),
        ("chunk_size", chunk_size, 1),
    ):
        if value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}. Pass a larger number.")


def sharing_settings(
    allocation: str,
    target_etas: Sequence[float],
    tolerance: float,
    reuse_continuations: bool | None,
    num_continuations: int,
) -> dict[str, Any]:
    """Checks the arguments of the allocation, and returns its settings."""
    if allocation not in ("fixed", "adaptive"):
        raise ValueError(f"allocation: got {allocation!r}, expected 'fixed' or 'adaptive'. Pass one of these two.")
    adaptive = allocation == "adaptive"
    reuse = adaptive if reuse_continuations is None else reuse_continuations
    if (adaptive or reuse) and num_continuations == 0:
        raise ValueError(
            "num_continuations: got 0 with allocation='adaptive' or reuse_continuations=True, expected at least 1. "
            "Leave these two out to collect samples without continuations."
        )
    if adaptive:
        etas = [float(eta) for eta in target_etas]
        if not etas or not all(map(math.isfinite, etas)):
            raise ValueError(
                f"target_etas: got {list(target_etas)}, expected finite numbers, at least one. Pass e.g. [0, 2]."
            )
        if not tolerance >= 0:
            raise ValueError(
                f"tolerance: got {tolerance}, expected a standard deviation of labels, 0 or more. Pass e.g. 0.02."
            )
    return {
        "allocation": allocation,
        "reuse_continuations": reuse,
        "target_etas": etas if adaptive else None,
        "tolerance": tolerance if adaptive else None,
    }
