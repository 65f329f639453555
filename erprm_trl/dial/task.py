"""The dial task: word problems whose steps can all be checked.

A dial has 20 positions. A question turns it right (+) or left (-), or multiplies its position (*), modulo 20. A
solution has one equation per step, and then the answer. This module handles texts only.
"""

import random
import re
from dataclasses import dataclass


POSITIONS = 20
SEPARATOR = "ки"
NAMES = ("Tom", "Ann", "Max", "Eva", "Sam", "Lia", "Ben", "Zoe")
MOVES = {"right": "+", "left": "-", "times": "*"}
ANSWER_PATTERN = r"answer (\d+)"

_EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
_QUESTION = re.compile(r"(?:\w+) dial (\d+) \.((?: (?:right|left|times) \d+ \.)+) \?")


def turn(position: int, operator: str, amount: int) -> int:
    """Position of the dial after a move, from 0 to 19."""
    if operator == "+":
        return (position + amount) % POSITIONS
    if operator == "-":
        return (position - amount) % POSITIONS
    return (position * amount) % POSITIONS


def habitual_mistake(position: int, operator: str, amount: int) -> int | None:
    """
    The wrong result that the corpus prefers for an equation, or `None` if there is none.

    Real models make systematic mistakes as well as random ones. If all mistakes were random, majority voting could not
    be beaten.
    """
    if operator == "*" and amount in (7, 8) and position >= 12:
        return (position * amount + 2) % POSITIONS
    return None


@dataclass(frozen=True)
class DialQuestion:
    """
    A question.

    Attributes:
        name (`str`):
            Name of the dial's owner.
        start (`int`):
            First position of the dial.
        moves (`tuple[tuple[str, int], ...]`):
            Operator (`"+"`, `"-"` or `"*"`) and amount of each move.
    """

    name: str
    start: int
    moves: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, text: str) -> "DialQuestion":
        """
        Parses the text of a question.

        Raises:
            `ValueError`: if the text is not a dial question.
        """
        match = _QUESTION.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"Not a dial question: got {text!r}, expected a text such as "
                "'Tom dial 7 . right 15 . times 3 . ?'. Use the questions of make_questions."
            )
        moves = re.findall(r"(right|left|times) (\d+)", match.group(2))
        return cls(text.split()[0], int(match.group(1)), tuple((MOVES[word], int(amount)) for word, amount in moves))

    @property
    def text(self) -> str:
        words = {operator: word for word, operator in MOVES.items()}
        moves = " ".join(f"{words[operator]} {amount} ." for operator, amount in self.moves)
        return f"{self.name} dial {self.start} . {moves} ?"

    @property
    def answer(self) -> int:
        position = self.start
        for operator, amount in self.moves:
            position = turn(position, operator, amount)
        return position


def random_question(rng: random.Random, min_moves: int = 3, max_moves: int = 7) -> DialQuestion:
    """Draws a question with `min_moves` to `max_moves` moves."""
    moves = []
    for _ in range(rng.randint(min_moves, max_moves)):
        operator = rng.choice("+-*")
        moves.append((operator, rng.randint(2, 9) if operator == "*" else rng.randint(1, POSITIONS - 1)))
    return DialQuestion(rng.choice(NAMES), rng.randrange(POSITIONS), tuple(moves))


def make_questions(num_questions: int, seed: int, min_moves: int = 3, max_moves: int = 7) -> list[dict[str, str]]:
    """
    Makes distinct questions. The same seed gives the same questions.

    Args:
        num_questions (`int`):
            Number of questions.
        seed (`int`):
            Seed of the questions.
        min_moves (`int`, *optional*, defaults to `3`):
            Minimum number of moves per question.
        max_moves (`int`, *optional*, defaults to `7`):
            Maximum number of moves per question.

    Returns:
        `list[dict[str, str]]`: rows with the columns `question` and `answer`.

    Raises:
        `ValueError`: if the range of moves is empty.
    """
    if not 1 <= min_moves <= max_moves:
        raise ValueError(
            f"make_questions: got min_moves={min_moves} and max_moves={max_moves}, expected "
            "1 <= min_moves <= max_moves. Change one of them."
        )
    rng = random.Random(f"dial-{seed}")
    rows: dict[str, str] = {}
    while len(rows) < num_questions:
        question = random_question(rng, min_moves, max_moves)
        rows[question.text] = str(question.answer)
    return [{"question": text, "answer": answer} for text, answer in rows.items()]


def check_steps(question: str, steps: list[str]) -> list[bool]:
    """
    Judges each step exactly. Reward models never see these verdicts.

    An equation is correct if it applies the next move to the position that the previous step states, and its result
    holds. The answer is correct if it repeats the last position and no move is left. A step can be correct although it
    follows from a wrong one.

    Args:
        question (`str`):
            Text of the question.
        steps (`list[str]`):
            Steps of a solution, with or without separators.

    Returns:
        `list[bool]`: whether each step is correct, given the steps before it.
    """
    asked = DialQuestion.parse(question)
    position, index, verdicts = asked.start, 0, []
    for step in steps:
        text = step.replace(SEPARATOR, " ").strip()
        equation = _EQUATION.fullmatch(text)
        if equation is None:
            verdicts.append(text == f"answer {position}" and index == len(asked.moves))
            continue
        left, operator, amount, result = equation.groups()
        expected = index < len(asked.moves) and asked.moves[index] == (operator, int(amount)) and int(left) == position
        verdicts.append(expected and turn(position, operator, int(amount)) == int(result))
        position, index = int(result), index + 1
    return verdicts
