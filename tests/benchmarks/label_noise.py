"""Measures remedies for noisy labels on dial, where the truth of every step is known:
`python tests/benchmarks/label_noise.py`.

The shipped policy writes solutions. A weak, the right (the same policy) and a strong completer continue their
prefixes. Each remedy makes labels from the same rewards. The script compares the labels with the verdict of the exact
checker (is every step so far right?) and with the value V of the right policy, estimated from many continuations.
Then it trains a reward model on them, and selects among solutions of other questions.

Each seed has its own questions, solutions, continuations and models. Intervals are 95% t-intervals over seeds, and
differences to plain labels are paired by seed. Finished cells are kept in `seed-0/weak.json` and so on, and
skipped.
"""

import argparse
import json
import os
import random
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from intervals import interval

from erprm_trl import ERPRMConfig, ERPRMTrainer, StepScorer, dial
from erprm_trl.dial.experiments.chain import FORMAT, TEST_SEED
from erprm_trl.dial.pretrain import write_solution
from erprm_trl.dial.processbench import judged_solutions
from erprm_trl.dial.task import random_question, turn
from erprm_trl.functional import soft_value_from_rate
from erprm_trl.io.atomic_files import replace_file
from erprm_trl.rollouts import (
    Grader,
    Prompt,
    TransformersSampler,
    collect_rollouts,
    load_questions,
)
from erprm_trl.rollouts.sampling.base import derived_seed
from erprm_trl.selection import JudgedSolution, evaluate_processbench, hold_out, score_rollouts, selection_curves


COMPLETERS = ("weak", "right", "strong")
REMEDIES = {
    "plain": {},
    "estimator=posterior": {"estimator": "posterior"},
    "min_question_rate=0.2": {"min_question_rate": 0.2},
    "relative": {"relative": True},
    "error_tolerance=1": {"error_tolerance": 1},
    "label_correct_solutions=ones": {"label_correct_solutions": "ones"},
    "ones, error_tolerance=1": {"label_correct_solutions": "ones", "error_tolerance": 1},
    "agree_with=base": {"agree_with": "base"},
    "all of SCAN": {
        "min_question_rate": 0.1, "relative": True, "error_tolerance": 1, "label_correct_solutions": "ones",
    },
}  # fmt: skip
FIGURES = ("best of 16", "F1", "AUC")


def main():
    """Runs the missing cells and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--completers", nargs="+", choices=COMPLETERS, default=COMPLETERS)
    parser.add_argument("--remedies", nargs="+", choices=list(REMEDIES), default=list(REMEDIES))
    parser.add_argument("--questions", type=int, default=120, help="Training questions per seed.")
    parser.add_argument("--test_questions", type=int, default=100)
    parser.add_argument("--continuations", type=int, default=8)
    parser.add_argument("--reference", type=int, default=64, help="Continuations per prefix for V.")
    parser.add_argument("--reference_questions", type=int, default=30)
    parser.add_argument("--eta", type=float, default=2.0)
    parser.add_argument("--max_steps", type=int, default=50)
    parser.add_argument("--output_dir", default="outputs/bench/label_noise")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(arguments.output_dir)
    samplers = {name: completer(folder, name) for name in dict.fromkeys(["right", *arguments.completers])}
    samples = collect(samplers["right"], folder / "samples", arguments.test_questions, TEST_SEED, num_solutions=16)
    judged = processbench(samples)
    for seed in arguments.seeds:
        for name in arguments.completers:
            path = cells_file(folder, seed, name)
            cells = read_cells(path)
            if cells.keys() >= set(arguments.remedies):
                continue
            rollouts = continued(folder / f"seed-{seed}", seed, name, samplers, arguments)
            values = reference_values(folder / f"seed-{seed}", seed, rollouts, samplers["right"], arguments)
            for remedy in arguments.remedies:
                if remedy in cells:
                    continue
                labels = labelled(rollouts, remedy, arguments.eta)
                cells[remedy] = label_errors(labels, values) | {
                    "kept": len(labels) / len(rollouts),
                    "pass@1": pass_at_1(rollouts),
                    **quality(train(labels, path.parent, seed, arguments.max_steps), samples, judged),
                }
                replace_file(path, json.dumps(cells, indent=1))
                print(seed, name, remedy, {key: round(value, 3) for key, value in cells[remedy].items()}, flush=True)
    for name in arguments.completers:
        runs = [read_cells(cells_file(folder, seed, name)) for seed in arguments.seeds]
        print_table(name, runs, arguments.remedies)


def cells_file(folder, seed, name):
    """File with the figures of each remedy. Other seeds and completers may run in other processes."""
    return folder / f"seed-{seed}" / f"{name}.json"


def read_cells(path):
    """Figures by remedy, empty if none has finished."""
    return json.loads(path.read_text()) if path.exists() else {}


def completer(folder, name):
    """A sampler of the shipped policy ("right"), of the same policy after training on texts with many random mistakes
    ("weak"), or on texts without mistakes, which correct half of the wrong steps before them ("strong")."""
    path = folder / f"completer-{name}"
    if name == "right":
        path = dial.BASE_PATH
    elif not path.exists():
        fine_tune(name, folder / f"{path.name}.tmp")
        (folder / f"{path.name}.tmp").rename(path)
    return TransformersSampler.from_pretrained(str(path), max_new_tokens=64, batch_size=512)


def fine_tune(name, path, num_steps=120, batch_size=32):
    """Trains the shipped policy and saves it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rng = random.Random(f"completer-{name}")
    torch.manual_seed(0)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(dial.BASE_PATH),
        AutoTokenizer.from_pretrained(dial.BASE_PATH),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for _ in range(num_steps):
        examples = [training_text(name, rng) for _ in range(batch_size)]
        prompts = [tokenizer.encode(prompt) for prompt, _ in examples]
        texts = [tokenizer.encode(text) + [tokenizer.eos_token_id] for _, text in examples]
        width = max(len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True))
        ids, labels = torch.full((2, batch_size, width), tokenizer.pad_token_id)
        labels.fill_(-100)
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            ids[row, : len(prompt) + len(text)] = torch.tensor(prompt + text)
            labels[row, len(prompt) : len(prompt) + len(text)] = torch.tensor(text)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def training_text(name, rng):
    """A prompt and the text that the completer learns to write after it."""
    question = random_question(rng)
    if name == "weak":
        return question.text, write_solution(rng, question, marked=False, slip=0.35)
    # The strong completer: a prefix that ends with a wrong step in half of the texts, and then only right steps.
    length, position, parts = rng.randrange(len(question.moves) + 1), question.start, []
    is_wrong = length > 0 and rng.random() < 0.5
    for index, (operator, amount) in enumerate(question.moves):
        result = turn(position, operator, amount)
        stated = rng.choice([value for value in range(20) if value != result])
        stated = stated if is_wrong and index == length - 1 else result
        parts.append(f"{position} {operator} {amount} = {stated} {dial.SEPARATOR}")
        position = result if rng.random() < 0.5 else stated
    prefix, rest = parts[:length], [*parts[length:], f"answer {position} {dial.SEPARATOR}"]
    return " ".join([question.text, *prefix]), " ".join(rest)


def collect(sampler, folder, num_questions, seed, **settings):
    """Samples and grades solutions, and continuations if `settings` have them."""
    return collect_rollouts(
        load_questions(dial.make_questions(num_questions, seed)),
        sampler,
        folder,
        splitter=dial.SEPARATOR,
        grading="exact",
        answer_pattern=dial.ANSWER_PATTERN,
        seed=seed,
        chunk_size=50,
        show_progress=False,
        **{"num_continuations": 0, **settings},
    )


def continued(folder, seed, name, samplers, arguments):
    """The rollouts of a seed: solutions of the right policy, continued by a completer."""
    return collect(
        samplers["right"],
        folder / name,
        arguments.questions,
        seed,
        num_continuations=arguments.continuations,
        include_question=True,
        completer=None if name == "right" else samplers[name],
    )


def sampled_rewards(sampler, prefixes, answers, num_samples, name):
    """Rewards of new continuations, by (question, prefix)."""
    samples = sampler.sample([Prompt(*prefix) for prefix in prefixes], num_samples, derived_seed(*name))
    texts = [
        prefix + completion.text
        for (_, prefix), completions in zip(prefixes, samples, strict=True)
        for completion in completions
    ]
    with Grader("exact", answer_pattern=dial.ANSWER_PATTERN) as grader:
        rewards = grader.grade(texts, [answers[question] for question, _ in prefixes for _ in range(num_samples)])
    return {prefix: rewards[i * num_samples : (i + 1) * num_samples] for i, prefix in enumerate(prefixes)}


def reference_values(folder, seed, rollouts, sampler, arguments):
    """V of the right policy, by question and number of steps, for prefixes of the first questions."""
    path = folder / f"reference-{arguments.reference}.json"
    if not path.exists():
        rows = [row for row in rollouts if row.question_index < arguments.reference_questions]
        prefixes = sorted({(row.question, row.prefix(length)) for row in rows for length in range(1, len(row.steps))})
        answers = {row.question: row.answer for row in rows}
        rewards = sampled_rewards(sampler, prefixes, answers, arguments.reference, (seed, "reference"))
        rates = [[*prefix, sum(rewards[prefix]) / arguments.reference] for prefix in prefixes]
        replace_file(path, json.dumps(rates))
    rates = {(question, words(prefix)): rate for question, prefix, rate in json.loads(path.read_text())}
    values = soft_value_from_rate(torch.tensor(list(rates.values()), dtype=torch.float64), arguments.eta)
    return dict(zip(rates, values.tolist(), strict=True))


def words(text):
    """The text without separators and with single spaces."""
    return " ".join(text.replace(dial.SEPARATOR, " ").split())


def labelled(rollouts, remedy, eta):
    """Labels by a remedy. The judge is the shipped base, which has learned to check steps but not habitual
    mistakes."""
    options = dict(REMEDIES[remedy])
    if "agree_with" in options:
        options["agree_with"] = StepScorer.from_pretrained(dial.BASE_PATH, prm_format=FORMAT, batch_size=256)
    return rollouts.labels(eta, **options)


def label_errors(labels, values):
    """RMS errors of the labels of proper prefixes, compared with the verdicts of the checker and with V."""
    errors = {"verdict": [], "V": []}
    for example in labels:
        steps, verdicts = example["completions"], dial.check_steps(example["prompt"], example["completions"])
        for length, label in enumerate(example["labels"][:-1], start=1):
            errors["verdict"].append(label - all(verdicts[:length]))
            value = values.get((example["prompt"], words(" ".join(steps[:length]))))
            if value is not None:
                errors["V"].append(label - value)
    return {
        f"error, {name}": (sum(error**2 for error in list_of) / max(1, len(list_of))) ** 0.5
        for name, list_of in errors.items()
    }


def pass_at_1(rollouts):
    """Share of continuations of bare questions that are right."""
    rewards = [reward for row in rollouts if row.solution_index == 0 for reward in row.question_rewards]
    return sum(rewards) / len(rewards)


def train(labels, folder, seed, max_steps):
    """A reward model that is trained on the labels, from the shipped base."""
    names = ("separator", "good_token", "bad_token", "prompt_template", "splitter")
    args = ERPRMConfig(
        str(folder / "training"),
        **{name: getattr(FORMAT, name) for name in names},
        max_steps=max_steps,
        per_device_train_batch_size=32,
        learning_rate=3e-4,
        warmup_steps=5,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=seed,
    )
    trainer = ERPRMTrainer(dial.BASE_PATH, args, train_dataset=labels)
    trainer.train()
    return StepScorer(trainer.model, trainer.processing_class, trainer.prm_format, batch_size=256)


def processbench(samples):
    """The test samples as a ProcessBench: test and validation solutions, with no problem in both."""
    subsets, _ = judged_solutions(samples)
    rows = [row for rows in subsets.values() for row in rows]
    solutions = [JudgedSolution(row["id"], row["problem"], tuple(row["steps"]), row["label"]) for row in rows]
    test, validation, _ = hold_out({"dial": solutions}, share=0.4)
    return test, validation


def quality(scorer, samples, judged):
    """Best of 16 and AUC within questions by min, and the F1 of ProcessBench with a threshold from held-out
    questions."""
    scores = score_rollouts(scorer, samples)
    result = selection_curves(samples.solutions(), {"model": scores}, [16], num_subsets=1)["models"]["model"]["min"]
    test, validation = judged
    solutions = [*test["dial"], *validation]
    step_scores = scorer.score([s.problem for s in solutions], [list(s.steps) for s in solutions])
    of_solution = dict(zip(solutions, step_scores, strict=True))
    f1 = evaluate_processbench(test, {"model": of_solution}, validation=validation)["model"]["average"]["f1"]
    return {"best of 16": result["best_of_n"][16]["mean"], "F1": f1["mean"], "AUC": result["auc_within_questions"]}


def print_table(name, seeds, remedies):
    """Prints the means over seeds, and the differences to plain labels that are paired by seed, as Markdown."""
    runs = {remedy: [cells[remedy] for cells in seeds] for remedy in remedies if all(remedy in c for c in seeds)}
    if "plain" not in runs:
        return
    rates = [cell["pass@1"] for cell in runs["plain"]]
    print(f"\n**{name} completer**, pass@1 {sum(rates) / len(rates):.2f}, {len(seeds)} seeds\n")
    print("| labels | kept | error, verdict | error, V | " + " | ".join(f"{f} | − plain" for f in FIGURES) + " |")
    print("|" + "---|" * (4 + 2 * len(FIGURES)))
    for remedy, cells_S in runs.items():
        means = [sum(cell[key] for cell in cells_S) / len(cells_S) for key in ("kept", "error, verdict", "error, V")]
        columns = [remedy, *(f"{mean:.2f}" for mean in means[:1]), *(f"{mean:.3f}" for mean in means[1:])]
        for figure in FIGURES:
            values = [cell[figure] for cell in cells_S]
            columns.append(f"{sum(values) / len(values):.3f}")
            pairs = zip(values, runs["plain"], strict=True)
            mean, half = interval([value - plain[figure] for value, plain in pairs])
            mark = "**" if abs(mean) > half else ""
            columns.append("" if remedy == "plain" else f"{mark}{mean:+.3f} ± {half:.3f}{mark}")
        print("| " + " | ".join(columns) + " |")


if __name__ == "__main__":
    main()
