"""Hand-made collections for tests of preference pairs."""

import json


def solution(steps, reward, *prefix_rewards, **entries):
    """A solution with its reward and the rewards of the continuations of each proper prefix."""
    return {"steps": steps, "outcome_reward": reward, "prefix_rewards": list(prefix_rewards), **entries}


def write_collection(folder, questions, sampler=None, **config):
    """Writes a folder of rollouts. `questions` has a list of solutions per question, all of the same length."""
    folder.mkdir(parents=True)
    counts = {"num_questions": len(questions), "num_solutions": len(questions[0]), "chunk_size": len(questions)}
    manifest = {"config": {**counts, "splitter": "newline", "sampler": sampler or {}, **config}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = [
        {"chunk": 0, "question_index": index, "solution_index": place, "question": f"question {index}", **entries}
        for index, solutions in enumerate(questions)
        for place, entries in enumerate(solutions)
    ]
    (folder / "rollouts-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
