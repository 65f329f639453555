"""Solutions to dial questions that no policy wrote: a program solves the questions, and makes mistakes at random. They
stand for solutions from somewhere else, and the first wrong step of each is known."""

import random
from typing import Any

from .pretrain import write_solution
from .task import SEPARATOR, check_steps, random_question


def make_solutions(num_solutions: int, seed: int, error_rate: float = 0.1, max_per_question: int = 3) -> list[dict]:
    """
    Makes solutions. The same arguments give the same solutions.

    Args:
        num_solutions (`int`):
            Number of solutions.
        seed (`int`):
            Seed of the questions and the solutions.
        error_rate (`float`, *optional*, defaults to `0.1`):
            Share of random mistakes, see [`~erprm_trl.dial.pretrain.write_solution`].
        max_per_question (`int`, *optional*, defaults to `3`):
            Maximum number of solutions per question. Each question has one or more.

    Returns:
        `list[dict]`: rows with the columns `id`, `question`, `answer`, `steps` (without separators), `correct`
        (whether the answer is right) and `first_error` (index of the first wrong step, -1 if all steps are right).
    """
    rng = random.Random(f"dial-solutions-{seed}")
    rows: list[dict[str, Any]] = []
    seen = set()
    while len(rows) < num_solutions:
        question = random_question(rng)
        if question.text in seen:
            continue
        seen.add(question.text)
        for _ in range(min(rng.randint(1, max_per_question), num_solutions - len(rows))):
            text = write_solution(rng, question, marked=False, slip=error_rate)
            steps = [step.strip() for step in text.removesuffix(SEPARATOR).split(SEPARATOR)]
            verdicts = check_steps(question.text, steps)
            rows.append(
                {
                    "id": f"dial-{seed}-{len(rows)}",
                    "question": question.text,
                    "answer": str(question.answer),
                    "steps": steps,
                    "correct": steps[-1] == f"answer {question.answer}",
                    "first_error": verdicts.index(False) if False in verdicts else -1,
                }
            )
    return rows
