"""Reference solutions of GSM8K as questions and steps."""

import json
import re
from itertools import islice
from pathlib import Path


def reference_solutions(path: str | Path, count: int) -> tuple[list[str], list[list[str]]]:
    """The questions and the lines of the reference solutions of the first rows, without marks of the calculator."""
    questions, steps = [], []
    with open(path, encoding="utf-8") as file:
        for line in islice(file, count):
            entry = json.loads(line)
            questions.append(entry["question"])
            lines = re.sub(r"<<[^>]*>>", "", entry["answer"]).splitlines()
            steps.append([text.strip() for text in lines if text.strip()])
    return questions, steps
