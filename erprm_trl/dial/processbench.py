"""Makes a ProcessBench of the embedded task, with the labels of its exact checker:
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
    Labels sampled solutions, in the columns of ProcessBench.

    The label of a solution is the index of its first wrong step, or -1 if all steps are correct. A step is judged
    given the steps before it, see [`~erprm_trl.dial.check_steps`]. Equal solutions of a question become one row.
    Solutions that end early, without a wrong step and without an answer, have no label and are counted.

    Args:
        samples ([`~erprm_trl.rollouts.RolloutDataset`]):
            Solutions of dial questions, collected with or without continuations.

    Returns:
        `tuple[dict[str, list[dict]], int]`: rows by subset, which is named for the question's number of moves
        (`"moves-3"`), and the number of distinct solutions without a label.
    """
    subsets: dict[str, list[dict[str, Any]]] = {}
    seen: set[tuple[str, ...]] = set()
    num_unlabelled = 0
    for row in samples.rows:
        steps = clean_steps(row.steps, SEPARATOR)
        if not steps or (row.question, *steps) in seen:
            continue
        seen.add((row.question, *steps))
        question = DialQuestion.parse(row.question)
        verdicts = check_steps(row.question, steps)
        if all(verdicts) and not steps[-1].startswith("answer"):
            num_unlabelled += 1
            continue
        name = f"moves-{len(question.moves)}"
        rows = subsets.setdefault(name, [])
        rows.append(
            {
                "id": f"{name}-{len(rows)}",
                "generator": row.sampler.get("model", "given"),
                "problem": row.question,
                "steps": steps,
                "final_answer_correct": f"answer {question.answer}" == steps[-1],
                "label": -1 if all(verdicts) else verdicts.index(False),
            }
        )
    return dict(sorted(subsets.items())), num_unlabelled


def main() -> None:
    """Writes one JSON Lines file per subset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--samples", default="outputs/dial/samples", help="Folder of sampled solutions, from `erprm collect`."
    )
    parser.add_argument("--output_dir", default="outputs/dial/processbench", help="Folder for the subsets.")
    arguments = parser.parse_args()
    subsets, num_unlabelled = judged_solutions(RolloutDataset(arguments.samples))
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in subsets.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(rows)} solutions, {sum(row['label'] >= 0 for row in rows)} with an error")
    print(f"{num_unlabelled} solutions left out: they end early, without a wrong step and without an answer.")


if __name__ == "__main__":
    main()
