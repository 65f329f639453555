"""Grades ten thousand adversarial answers, and some right ones among them, in chunks like a collection:
`python tests/benchmarks/hostile_answers.py`. It asserts that nothing crashes or hangs, that no worker process remains,
and that right answers are graded as right. It prints the time.
"""

import argparse
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from erprm_trl.rollouts import Grader


class Hostile(NamedTuple):
    """A completion, its reference answer, its kind, and its right reward."""

    completion: str
    answer: str
    kind: str
    reward: float


DIGITS = "٣३３𝟑௩"  # three, in five scripts
TEXTS = ["%s%n%x{0.__class__}", "{{7*7}}${7*7}<%= 7*7 %>", r"\input{/etc/passwd}", r"\write18{id}", "__import__('os')"]


def _nested(r: random.Random) -> str:
    depth = r.choice([10, 100, 400, 900, 5_000])
    left, right = r.choice(["()", "{}", "[]", ("\\left(", "\\right)"), ("\\sqrt{", "}"), ("\\frac{1}{", "}"), "|!"])
    return left * depth + str(r.randrange(9)) + right * r.choice([depth, depth - 1])


def _tower(r: random.Random) -> str:
    numbers = [str(r.randrange(2, 99)) for _ in range(r.randrange(3, 12))]
    return "^{".join(numbers) + "}" * (len(numbers) - 1) if r.random() < 0.5 else r.choice(["^", "**"]).join(numbers)


def _factorial(r: random.Random) -> str:
    return r.choice(["{}!", "{}!!", "({}!)!", r"\binom{{{}}}{{77}}", r"\frac{{{}!}}{{3}}"]).format(
        10 ** r.randrange(9)
    )


def _integer(r: random.Random) -> str:
    digits = str(r.randrange(1, 9)) * r.choice([300, 1_500, 1_990, 5_000, 100_000])
    return r.choice(["{}", "-{}", "{0}/{0}1", "0.{}", "1e{}", "{}%", "{}^{{{0}}}"][:6]).format(digits)


def _broken(r: random.Random) -> str:
    pieces = [r"\frac{", r"\sqrt[", r"\left(", r"\right.", "}", "{", "^", "_", "&", r"\\", "$", r"\begin{x}", "1", "x"]
    return "".join(r.choices([*pieces, r"\text{", r"\int", r"\end{y}", "#", "~"], k=r.randrange(1, 60)))


def _collection(r: random.Random) -> str:
    size = r.choice([5, 50, 400])
    items = ",".join(f"x_{{{i}}}^{i}" if r.random() < 0.5 else str(i) for i in range(size))
    rows = r" \\ ".join([" & ".join(map(str, range(size // 5)))] * (size // 5))
    forms = [
        rf"\{{{items}, \ldots\}}",
        rf"\begin{{pmatrix}}{rows}\end{{pmatrix}}",
        f"({items})",
        r"\cup".join(["(1,2)"] * size),
    ]
    return r.choice(forms)


def _series(r: random.Random) -> str:
    top = r.choice([r"\infty", "10^{9}", "n", str(10**30)])
    return r.choice(
        [
            r"\sum_{{k=1}}^{{{}}} k^k",
            r"\prod_{{k=1}}^{{{}}} (1+x^k)",
            r"\int_0^{{{}}} e^{{x^x}} dx",
            r"\lim_{{n \to {}}} n!",
        ]
    ).format(top)


def _expression(r: random.Random) -> str:
    size = r.choice([5, 40, 300])
    return r.choice(
        ["(1+x)^{{{}}}", "(a+b+c+d)^{{{}}}", r"\sin^{{{}}}(x)", "x^{{{}}}=1", r"\sqrt[{}]{{2}}+\pi"]
    ).format(10 * size) + r.choice(
        [
            "",
            "+" + "+".join(f"y_{i}" for i in range(size)),
            "=" + "=".join(map(str, range(size))),
            "<x<" + "<".join(["y"] * size),
        ]
    )


def _unicode(r: random.Random) -> str:
    pieces = [
        *DIGITS,
        "½",
        "²",
        "\u202e7",
        "7\u0301",
        "\u200b",
        "😀",
        "\ud800",
        "\x00",
        "\x1b[31m",
        "−",
        "∞",
        "\u2028",
    ]
    return "".join(r.choices(pieces, k=r.randrange(1, 40)))


def _long(r: random.Random) -> str:
    return r.choice(["answer is ", "\\boxed{", "####", "\\", "7 ", "= ", "$", "a\n", "x^"]) * r.choice(
        [100, 3_000, 50_000]
    )


def _text(r: random.Random) -> str:
    return r.choice(TEXTS) * r.choice([1, 1, 40])


KINDS: dict[str, Callable[[random.Random], str]] = {
    "nested": _nested, "tower": _tower, "factorial": _factorial, "integer": _integer, "broken": _broken, "text": _text,
    "collection": _collection, "series": _series, "expression": _expression, "unicode": _unicode, "long": _long,
}  # fmt: skip
FRAMES = [("\\boxed{", "}"), ("The answer is ", ""), ("#### ", ""), ("so $", "$."), ("", "")]
RIGHT = [
    r"\boxed{{{0}}}",
    "#### {0}",
    "The answer is {0}.",
    r"so ${0}$",
    r"\boxed{{{0}.0}}",
    "it is {2}",
]


def hostile_answers(count: int, seed: int = 0) -> Iterator[Hostile]:
    """Yields answers. Every fifth is right, in one of several spellings, and the others are wrong."""
    r = random.Random(seed)
    for index in range(count):
        # A different value per answer, because equal pairs are graded once, and never the value of a hostile answer.
        value = 1_000_003 + 2 * index
        if index % 5 == 0:
            completion = r.choice(RIGHT).format(value, 2 * value, f"{value:,}")
            yield Hostile(completion, str(value), "right", 1.0)
        else:
            kind = r.choice(list(KINDS))
            before, after = r.choice(FRAMES)
            yield Hostile(before + KINDS[kind](r) + after, str(value), kind, 0.0)


def children() -> list[str]:
    """The states of this process's children."""
    states = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # the process has ended
            continue
        if int(parent) == os.getpid():
            states.append(state)
    return states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=250)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--time_limit", type=float, default=5.0)
    arguments = parser.parse_args()
    answers = list(hostile_answers(arguments.number, arguments.seed))
    wrong: list[Hostile] = []
    chunk_seconds, start = [], time.monotonic()
    with Grader("math", num_workers=arguments.num_workers, time_limit=arguments.time_limit) as grader:
        for first in range(0, len(answers), arguments.chunk):
            chunk, begun = answers[first : first + arguments.chunk], time.monotonic()
            rewards = grader.grade([hostile.completion for hostile in chunk], [hostile.answer for hostile in chunk])
            chunk_seconds.append(time.monotonic() - begun)
            wrong += [hostile for hostile, reward in zip(chunk, rewards, strict=True) if reward != hostile.reward]
            states = children()
            assert len(states) <= arguments.num_workers and "Z" not in states, f"children left behind: {states}"
            print(
                f"{first + len(chunk)}: {chunk_seconds[-1]:.1f} s, {grader.num_timeouts} timeouts, {len(wrong)} wrong",
                flush=True,
            )
        timeouts = grader.num_timeouts
    seconds = time.monotonic() - start
    assert not children(), "workers are left"
    bound = arguments.number * arguments.time_limit / arguments.num_workers
    print(f"{arguments.number} answers in {seconds:.0f} s with {arguments.num_workers} workers (bound {bound:.0f} s);")
    median, longest = statistics.median(chunk_seconds), max(chunk_seconds)
    print(f"a chunk of {arguments.chunk}: median {median:.1f} s, longest {longest:.1f} s;")
    print(
        f"{timeouts} timeouts, {len(wrong)} wrong rewards by kind {dict(Counter(hostile.kind for hostile in wrong))}"
    )
    for hostile in wrong[:20]:
        print(f"  {hostile.kind}: {hostile.completion[:120]!r} against {hostile.answer}")
    assert seconds < bound and not wrong


if __name__ == "__main__":
    main()
