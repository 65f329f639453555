"""Hand-made folders of runs for the report page, and a reader of pages."""

import json
from html.parser import HTMLParser


POINT = {"mean": 0.5, "low": 0.4, "high": 0.6}
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked = 2'>",
    "{{ 7 * 7 }} {% raw %}",
    "line\u2028separator \u0000 and \ud800 alone",
    "\u202eright to left\u202c שלום é 🙂",
]


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_samples(folder, steps, **config):
    """Ungraded samples; `steps[q][n]` is the number of steps of a solution."""
    folder.mkdir(parents=True)
    config = {"num_questions": len(steps), "chunk_size": len(steps), "num_solutions": len(steps[0]), **config}
    manifest = {"config": {"splitter": "newline", "num_continuations": 0, **config}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = [
        {
            "chunk": 0,
            "question_index": question,
            "solution_index": number,
            "question": f"question {question}",
            "answer": None,
            "steps": [f"step {index}\n" for index in range(count)],
            "outcome_reward": None,
            "prediction": None,
            "finished": True,
            "prefix_rewards": [],
            "question_rewards": None,
            "unusable": None,
        }
        for question, counts in enumerate(steps)
        for number, count in enumerate(counts)
    ]
    (folder / "rollouts-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(folder, num_questions=2):
    """Questions of three solutions: right and scored high, wrong and scored high, wrong and scored low."""
    samples = folder / "samples"
    samples.mkdir(parents=True)
    config = {"num_questions": num_questions, "chunk_size": num_questions, "num_solutions": 3, "splitter": "newline"}
    config |= {"num_continuations": 2, "sampler": {"model": "/home/someone/policy"}}
    (samples / "manifest.json").write_text(json.dumps({"config": config, "versions": {"torch": "2"}}))
    rows, scores = [], []
    for question in range(num_questions):
        scores.append([[0.9, 0.8], [0.95, 0.7], [0.2, 0.1]])
        for number, outcome in enumerate((1.0, 0.0, 0.0)):
            rows.append(
                {
                    "chunk": 0,
                    "question_index": question,
                    "solution_index": number,
                    "question": f"Question {question}? {HOSTILE[0]}",
                    "answer": "1",
                    "steps": [f"{HOSTILE[(question + number) % len(HOSTILE)]}\n", f"so {number}"],
                    "outcome_reward": outcome,
                    "prediction": "1" if outcome else HOSTILE[1],
                    "finished": True,
                    "num_tokens": 4,
                    "prefix_rewards": [[1.0, 0.0]],
                    "question_rewards": None,
                    "unusable": None,
                    "sampler": {},
                }
            )
    (samples / "rollouts-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Names are not trusted either, and may be absolute paths.
    models = {"/home/someone/erprm": scores, HOSTILE[1]: [[[0.5, 0.5]] * 3 for _ in scores]}
    (samples / "step_scores.json").write_text(json.dumps(models))
    (folder / "trainer_state.json").write_text(
        json.dumps({"log_history": [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]})
    )
    return folder


class Reading(HTMLParser):
    """The tags of a page, and the text of its data."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.data, self._in_data = [], "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_data = tag == "script" and ("id", "data") in attrs

    def handle_data(self, data):
        self.data += data if self._in_data else ""
