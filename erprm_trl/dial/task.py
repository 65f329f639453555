"""The dial task: word problems whose every step can be checked, for tests, benchmarks and the quickstart.

A dial has 20 positions. A question turns it right (+), left (-) or multiplies its position (*), all modulo 20; a
solution writes one equation a step and then the answer. Text only: no tokenizer, no model.
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
    """Position of the dial after one move, in `0 .. 19`."""
    if operator == "+":
        return (position + amount) % POSITIONS
    if operator == "-":
        return (position - amount) % POSITIONS
    return (position * amount) % POSITIONS


def habitual_mistake(position: int, operator: str, amount: int) -> int | None:
    """The wrong result that the corpus prefers for this fact, or `None` where it has no such habit.

    Real models fail by habit as well as by chance; without habits majority voting could not be beaten.
    """
    if operator == "*" and amount in (7, 8) and position >= 12:
        return (position * amount + 2) % POSITIONS
    return None


@dataclass(frozen=True)
class DialQuestion:
    """A question: where the dial starts and the moves, each an operator (`"+"`, `"-"`, `"*"`) and an amount."""

    name: str
    start: int
    moves: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, text: str) -> "DialQuestion":
        """Reads back the text of a question. Raises `ValueError` for anything else."""
        match = _QUESTION.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"Not a dial question: got {text!r}, expected e.g. 'Tom dial 7 . right 15 . times 3 . ?'."
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
    """Distinct questions as rows `{"question", "answer"}`; the same seed gives the same questions.

    Raises:
        `ValueError`: if the range of moves is empty.
    """
    if not 1 <= min_moves <= max_moves:
        raise ValueError(f"Moves: got {min_moves} to {max_moves}, expected 1 <= min_moves <= max_moves.")
    rng = random.Random(f"dial-{seed}")
    rows: dict[str, str] = {}
    while len(rows) < num_questions:
        question = random_question(rng, min_moves, max_moves)
        rows[question.text] = str(question.answer)
    return [{"question": text, "answer": answer} for text, answer in rows.items()]


def check_steps(question: str, steps: list[str]) -> list[bool]:
    """Whether each step is right given the steps before it: the exact verdict that no reward model gets to see.

    An equation is right if it applies the next move to the position stated before it and its result holds; the answer
    is right if it repeats the last position and no move is left. A step may follow from a wrong one and still be
    right.
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
