"""A ProcessBench of the embedded task, judged by its exact checker:
`python -m erprm_trl.dial.processbench --samples outputs/dial/samples --output_dir outputs/dial/processbench`."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..rollouts.dataset import RolloutDataset
from ..steps import clean_steps
from .task import SEPARATOR, DialQuestion, check_steps


def judged_solutions(samples: RolloutDataset) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """
    Sampled solutions as rows in ProcessBench's columns, by the number of moves of the question.

    A step is judged given what the steps before it state, right or wrong: `label` is the index of the first that is
    wrong in itself, -1 if none is. Equal solutions to a question become one row.

    Args:
        samples ([`~erprm_trl.rollouts.RolloutDataset`]):
            Solutions of dial questions, collected with or without continuations.

    Returns:
        `tuple[dict[str, list[dict]], int]`: rows by subset (`"moves-3"`, ...), and how many distinct solutions are
        left out because they break off before a wrong step and before the answer: neither right nor wrong.
    """
    subsets: dict[str, list[dict[str, Any]]] = {}
    seen: set[tuple[str, ...]] = set()
    broken_off = 0
    for row in samples.rows:
        steps = clean_steps(row.steps, SEPARATOR)
        if not steps or (row.question, *steps) in seen:
            continue
        seen.add((row.question, *steps))
        question = DialQuestion.parse(row.question)
        verdicts = check_steps(row.question, steps)
        if all(verdicts) and not steps[-1].startswith("answer"):
            broken_off += 1
            continue
        name = f"moves-{len(question.moves)}"
        rows = subsets.setdefault(name, [])
        rows.append(
            {
                "id": f"{name}-{len(rows)}",
                "generator": row.sampler["model"],
                "problem": row.question,
                "steps": steps,
                "final_answer_correct": f"answer {question.answer}" == steps[-1],
                "label": -1 if all(verdicts) else verdicts.index(False),
            }
        )
    return dict(sorted(subsets.items())), broken_off


def main() -> None:
    """Writes one file of JSON lines a subset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", default="outputs/dial/samples", help="a folder of collect_rollouts.py")
    parser.add_argument("--output_dir", default="outputs/dial/processbench")
    arguments = parser.parse_args()
    subsets, broken_off = judged_solutions(RolloutDataset(arguments.samples))
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in subsets.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(rows)} solutions, {sum(row['label'] >= 0 for row in rows)} with an error")
    print(f"{broken_off} left out: they break off before a wrong step and before the answer.")


if __name__ == "__main__":
    main()
