"""Does `ERPRMTrainer` learn to find wrong steps on a real language model?

    python tests/benchmarks/injected_errors.py --model FOLDER \\
        --train_data gsm8k_train.jsonl --test_data gsm8k_test.jsonl

Each question of GSM8K gets its written solution, and a copy in which the result of one equation is wrong. All later
equations of the copy are computed from the wrong result, so only one step is wrong. The labels are 1 before the wrong
step, and 0 from it on. Checkpoints are evaluated on test questions by the protocol of ProcessBench, with a threshold
from other test questions, and by the share of questions whose written solution has the higher minimum. Finished
models, checkpoints and scores are kept.
"""

import argparse
import ast
import json
import random
import re
from fractions import Fraction
from operator import itemgetter
from pathlib import Path

import torch
from datasets import Dataset

from erprm_trl import ERPRMConfig, ERPRMTrainer
from erprm_trl.selection.bootstrap import bootstrap_interval
from erprm_trl.selection.evaluation import JudgedSolution, evaluate_processbench, hold_out, score_judged


EQUATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
NUMBER = r"(?<![\d.,]){}(?!\d|[.,]\d)"
SAVED = 4  # checkpoints of a training


def value_of(expression: str) -> Fraction | None:
    """The exact value of sums, differences, products and quotients of numbers. `None` for other expressions."""
    operations = {
        ast.Add: Fraction.__add__, ast.Sub: Fraction.__sub__, ast.Mult: Fraction.__mul__, ast.Div: Fraction.__truediv__
    }  # fmt: skip

    def value(node):
        if isinstance(node, ast.BinOp) and type(node.op) in operations:
            return operations[type(node.op)](value(node.left), value(node.right))
        if not isinstance(node, ast.Constant):
            raise ValueError(expression)
        return Fraction(ast.get_source_segment(expression, node))

    try:
        return value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def written(value: Fraction | None) -> str | None:
    """A positive number with at most two decimals as GSM8K writes it. `None` for other numbers."""
    if value is None or value <= 0 or (value * 100).denominator > 1:
        return None
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


def wrong_result(expression: str, result: str, chance: random.Random) -> str | None:
    """The result of another operation on the same two numbers, or the result with another digit."""
    operation = re.fullmatch(r"([\d.]+)([-+*/])([\d.]+)", expression)
    if operation and chance.random() < 0.5:
        left, sign, right = operation.groups()
        return written(value_of(left + chance.choice([other for other in "+-*/" if other != sign]) + right))
    place = chance.choice([index for index, digit in enumerate(result) if digit.isdigit()])
    digit = chance.choice([digit for digit in "123456789" if digit != result[place]])
    return result[:place] + digit + result[place + 1 :]


def replaced(text: str, changes: dict[str, str]) -> str:
    """The text with the changed numbers."""
    if not changes:
        return text
    numbers = NUMBER.format("(" + "|".join(map(re.escape, changes)) + ")")
    return re.sub(numbers, lambda match: changes[match[1]], text)


def recomputed(lines: list[str], place: int, wrong: str) -> list[str] | None:
    """
    The lines in which the equation number `place` has a wrong result, and all later ones are computed from it. `None`
    if an equation of the lines is not exact, if a new result is no short number, or if a changed number occurs before.
    """
    changes: dict[str, str] = {}
    lines_out, number, before = [], 0, ""
    for line in lines:
        out, end = "", 0
        for match in EQUATION.finditer(line):
            expression, result = match[1].replace(" ", ""), match[2].strip()
            same_number = re.escape(result) + r"(?![\d.,]\d)"
            if written(value_of(expression)) != result or not re.match(same_number, line[match.end() :]):
                return None
            new = wrong if number == place else written(value_of(replaced(expression, changes)))
            out += replaced(line[end : match.start()], changes)
            occurred = re.search(NUMBER.format(re.escape(result)), before + line[: match.start()])
            if new is None or (new != result and occurred):
                return None
            if new != result:
                changes[result] = new
            out, end, number = out + new, match.end() + len(result), number + 1
        lines_out.append(out + replaced(line[end:], changes))
        before += line + "\n"
    return lines_out if changes else None


def pair_of(question: str, answer: str, chance: random.Random) -> tuple[list[str], list[str], int] | None:
    """The written steps of a solution, the steps of its copy, and the index of the wrong step. `None` if the solution
    is not suitable."""
    lines = [line for line in answer.split("\n") if line.strip() and not line.startswith("####")]
    equations = [(index, match) for index, line in enumerate(lines) for match in EQUATION.finditer(line)]
    if len(lines) < 2 or not equations:
        return None
    place = chance.randrange(len(equations))
    step, match = equations[place]
    wrong = wrong_result(match[1].replace(" ", ""), match[2].strip(), chance)
    if wrong in (None, match[2].strip()) or re.search(NUMBER.format(re.escape(match[2].strip())), question):
        return None
    copy = recomputed(lines, place, wrong)
    if copy is None:
        return None
    return [EQUATION.sub("", line).strip() for line in lines], [line.strip() for line in copy], step


def pairs_of(path: Path, num_questions: int, seed: int) -> list[JudgedSolution]:
    """Both solutions to each of the first suitable questions of a file."""
    solutions = []
    for line in path.read_text(encoding="utf-8").splitlines():
        question, answer = itemgetter("question", "answer")(json.loads(line))
        pair = pair_of(question, answer, random.Random(f"{seed}/{question}"))
        if pair is not None:
            right, copy, step = pair
            name = str(len(solutions))
            solutions.append(JudgedSolution(f"{name}-right", question, tuple(right), -1))
            solutions.append(JudgedSolution(f"{name}-wrong", question, tuple(copy), step))
        if len(solutions) == 2 * num_questions:
            return solutions
    raise ValueError(f"{path}: got {len(solutions) // 2} suitable questions, expected {num_questions}. Take fewer.")


def train(arguments: argparse.Namespace, seed: int) -> Path:
    """Trains a model unless it is finished, and returns its folder. `checkpoint-0` is the model before training."""
    folder = arguments.output_dir / f"seed-{seed}"
    if (folder / "config.json").exists():
        return folder
    solutions = pairs_of(arguments.train_data, arguments.train_questions, 0)
    rows = [
        {
            "prompt": solution.problem,
            "completions": list(solution.steps),
            "labels": [float(solution.label < 0 or index < solution.label) for index in range(len(solution.steps))],
        }
        for solution in solutions
    ]
    steps = 2 * arguments.train_questions // arguments.batch_size
    args = ERPRMConfig(
        str(folder), max_steps=steps, per_device_train_batch_size=arguments.batch_size, save_steps=steps // SAVED,
        learning_rate=arguments.learning_rate, lr_scheduler_type="constant_with_warmup", warmup_steps=10, seed=seed,
        save_strategy="steps", save_only_model=True, logging_steps=10, report_to="none", use_cpu=arguments.use_cpu,
        bf16=not arguments.use_cpu, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = ERPRMTrainer(str(arguments.model), args, train_dataset=Dataset.from_list(rows))
    trainer.save_model(str(folder / "checkpoint-0"))
    trainer.train()
    trainer.save_model()
    return folder


def evaluate(arguments: argparse.Namespace, folder: Path) -> dict[int, dict]:
    """The figures of each checkpoint, by number of training solutions."""
    data = {"gsm8k": pairs_of(arguments.test_data, arguments.test_questions, 0)}
    test, validation, _ = hold_out(data, share=0.25)
    results = {}
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2])):
        scores = score_judged(path, data["gsm8k"], folder / "scores" / path.name, batch_size=16)
        result = evaluate_processbench(test, {"model": scores}, validation=validation)["model"]
        minima = {solution.id: min(scores[solution]) for solution in test["gsm8k"]}
        names = [name.partition("-")[0] for name in minima if name.endswith("right")]
        preferred = [float(minima[f"{name}-right"] > minima[f"{name}-wrong"]) for name in names]
        low, high = bootstrap_interval(preferred)
        result["preferred"] = {"mean": sum(preferred) / len(preferred), "low": low, "high": high}
        results[int(path.name.partition("-")[2]) * arguments.batch_size] = result
    return results


def main() -> None:
    """Trains and evaluates each seed, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Folder or Hub id of a language model.")
    parser.add_argument("--train_data", type=Path, required=True)
    parser.add_argument("--test_data", type=Path, required=True)
    parser.add_argument("--train_questions", type=int, default=600, help="Each gives two training solutions.")
    parser.add_argument("--test_questions", type=int, default=150, help="A quarter of them chooses the threshold.")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench/injected_errors"))
    arguments = parser.parse_args()
    arguments.use_cpu = not torch.cuda.is_available()
    print("| seed | training solutions | F1 | wrong step found | right solution accepted | right solution preferred |")
    print("|---|---|---|---|---|---|")
    for seed in arguments.seeds:
        for size, result in evaluate(arguments, train(arguments, seed)).items():
            figures = [result["average"][name] for name in ("f1", "erroneous", "correct")] + [result["preferred"]]
            cells = [f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" for value in figures]
            print(f"| {seed} | {size:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
