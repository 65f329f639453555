"""Rollout folders that are written by hand."""

import json

from erprm_trl.rollouts import RolloutDataset


def write_rollouts(folder, solutions, **config):
    """
    Writes graded rollouts.

    `solutions[q]` has one tuple per solution of question q: its outcome, and the rewards of each proper prefix.
    """
    folder.mkdir(parents=True)
    config = {
        "num_questions": len(solutions),
        "num_solutions": max(map(len, solutions)),
        "chunk_size": len(solutions),
        "num_continuations": 2,
        "splitter": "newline",
        "grading": "exact",
        **config,
    }
    (folder / "manifest.json").write_text(json.dumps({"config": config, "versions": {}}))
    rows = [
        {
            "chunk": 0,
            "question_index": question,
            "solution_index": index,
            "question": f"question {question}",
            "answer": "1",
            "steps": [f"step {step} of {index}\n" for step in range(len(prefix_rewards) + 1)],
            "outcome_reward": outcome,
            "prediction": "1" if outcome else "2",
            "finished": True,
            "prefix_rewards": list(prefix_rewards),
            "question_rewards": None,
            "unusable": None,
        }
        for question, of_question in enumerate(solutions)
        for index, (outcome, *prefix_rewards) in enumerate(of_question)
    ]
    (folder / "rollouts-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RolloutDataset(folder)
