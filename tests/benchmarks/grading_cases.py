"""Counts the right verdicts of the "math" grading, on a file of cases and on public question sets:
`python tests/benchmarks/grading_cases.py --cases FOLDER --data FOLDER`.

The cases are rows of `completion`, `answer` and `reward` in `grading.jsonl`. The sets are the published files
`gsm8k_train.jsonl`, `gsm8k_test.jsonl` and `math500.jsonl`. Each answer of a set is written in each of many spellings,
and must get 1. Another question's answer in the same spelling must get 0. `--verdicts FILE` saves all verdicts.
`--compare FILE` prints the changes from the verdicts that another version of the package saved.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from erprm_trl.rollouts import Grader


class Verdict(NamedTuple):
    """A completion, its reference answer, the right reward, and the group that it belongs to."""

    completion: str
    answer: str
    reward: float
    group: str


# `{0}` is a number without thousands separators, and `{1}` is the number with them.
SPELLINGS = [
    "#### {0}", "#### {1}", "#### ${1}", "#### {1} dollars", "#### {0} eggs", "#### **{0}**", "####{0}\n",
    r"\boxed{{{0}}}", r"\boxed{{{1}}}", r"\boxed{{\${1}}}", r"\boxed{{{0}\text{{ cm}}}}",
    r"\boxed{{{0} \text{{ cm}}^2}}",
    r"\boxed{{\text{{{0} eggs}}}}", r"\boxed{{{0} km/h}}", r"\boxed{{{0}\,\text{{km/h}}}}", r"\boxed{{€{1}}}",
    r"\boxed{{{0}^\circ}}", r"\boxed{{{0}°}}", r"\boxed{{{0}\%}}",
    r"\boxed{{x = {0}}}", r"\boxed{{{0} miles per hour}}",
    r"\boxed{{{0}.}}", "The answer is {0}.", "The answer is ${1}.", "The answer is {1} cups of flour.",
    "The answer is **{0}**.", "The answer is ({0}).", "The answer is `{0}`.", r"The answer is \({0}\).",
    "**Answer**: {1}", "**Answer: {0} hours**", "### Final Answer\n\n{0}", "The final answer is:\n\n$${0}$$",
    "Final answer:\n\\[\n{0}\n\\]", "So she makes ${1} every day.", "<think>7 + 9 = 16</think>\n{0}",
    "<think>7</think><answer>{1} eggs</answer>", "答案：{0}",
]  # fmt: skip
REFERENCES = [
    "{0}",
    "{1}",
    "${1}",
    r"\${1}",
    "{0} eggs",
    r"{0}\text{{ cm}}",
    r"{0}^\circ",
    r"{0}\%",
    "€{1}",
    "#### {1}",
]


def read_rows(path: Path) -> list[dict]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def spell(template: str, value: str) -> str:
    """Writes a number in one of the spellings."""
    whole, point, decimals = value.partition(".")
    return template.format(value, f"{int(whole):,}{point}{decimals}")


def gsm8k_verdicts(path: Path) -> list[Verdict]:
    """The unchanged solutions, their answers in every spelling, and the next answer in the same spelling."""
    texts = [row["answer"] for row in read_rows(path)]
    numbers = [text.rpartition("####")[2].strip().replace(",", "") for text in texts]
    verdicts = [Verdict(text, value, 1.0, "solutions") for text, value in zip(texts, numbers, strict=True)]
    for index, value in enumerate(numbers):
        other = next(other for other in numbers[index:] + numbers if float(other) != float(value))
        completion = SPELLINGS[index % len(SPELLINGS)]
        reference = REFERENCES[index % len(REFERENCES)]
        verdicts.append(Verdict(spell(completion, value), value, 1.0, "spelled completions"))
        verdicts.append(Verdict(spell(completion, other), value, 0.0, "another's answer, spelled"))
        verdicts.append(Verdict(rf"\boxed{{{value}}}", spell(reference, value), 1.0, "spelled references"))
        verdicts.append(Verdict(rf"\boxed{{{other}}}", spell(reference, value), 0.0, "another's, spelled references"))
    return [verdict._replace(group=f"{path.stem}: {verdict.group}") for verdict in verdicts]


def math_verdicts(path: Path, others: int) -> list[Verdict]:
    """Solutions and references compared with themselves, and references compared with other references."""
    rows = read_rows(path)
    answers = [row["answer"] for row in rows]
    verdicts = []
    for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        verdicts.append(Verdict(row["solution"], answer, 1.0, "math500: solutions"))
        verdicts.append(Verdict(rf"\boxed{{{answer}}}", answer, 1.0, "math500: boxed references"))
        verdicts.append(Verdict(f"So we get ${answer}$.", answer, 1.0, "math500: references in a sentence"))
        for other in range(1, others + 1):
            text = answers[(index + 17 * other) % len(answers)]
            if text.replace(" ", "") != answer.replace(" ", ""):
                verdicts.append(Verdict(rf"\boxed{{{text}}}", answer, 0.0, "math500: others' references"))
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--others", type=int, default=10, help="Other references per MATH-500 reference.")
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--verdicts", type=Path)
    parser.add_argument("--compare", type=Path)
    arguments = parser.parse_args()
    verdicts: list[Verdict] = []
    if arguments.cases:
        rows = read_rows(arguments.cases / "grading.jsonl")
        verdicts += [Verdict(row["completion"], row["answer"], row["reward"], "cases") for row in rows]
    if arguments.data:
        for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl"):
            verdicts += gsm8k_verdicts(arguments.data / name)
        verdicts += math_verdicts(arguments.data / "math500.jsonl", arguments.others)
    start = time.monotonic()
    with Grader("math", num_workers=arguments.num_workers) as grader:
        rewards = grader.grade([verdict.completion for verdict in verdicts], [verdict.answer for verdict in verdicts])
        print(f"{len(verdicts)} verdicts in {time.monotonic() - start:.0f} s, {grader.num_timeouts} timeouts")
    total = Counter(verdict.group for verdict in verdicts)
    wrong = [(verdict, reward) for verdict, reward in zip(verdicts, rewards, strict=True) if reward != verdict.reward]
    missed = Counter(verdict.group for verdict, reward in wrong if reward < verdict.reward)
    false_positives = Counter(verdict.group for verdict, reward in wrong if reward > verdict.reward)
    for group, count in total.items():
        right = count - missed[group] - false_positives[group]
        print(
            f"{group:42} {right:6} of {count:6} right ({right / count:.2%}), {missed[group]} missed, "
            f"{false_positives[group]} false positives"
        )
    for verdict, reward in wrong[:60]:
        print(f"  {verdict.group}: {verdict.completion[-80:]!r} against {verdict.answer!r} got {reward}")
    if arguments.verdicts:
        arguments.verdicts.write_text(json.dumps(rewards))
    if arguments.compare:
        before = json.loads(arguments.compare.read_text())
        pairs = list(zip(verdicts, before, rewards, strict=True))
        spoiled = [(verdict, new) for verdict, old, new in pairs if old == verdict.reward != new]
        print(
            f"{sum(old != verdict.reward == new for verdict, old, new in pairs)} verdicts fixed, {len(spoiled)} broken"
        )
        for verdict, reward in spoiled:
            print(f"  {verdict.group}: {verdict.completion[-80:]!r} against {verdict.answer!r} got {reward}")


if __name__ == "__main__":
    main()
