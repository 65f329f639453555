import functools
import gc
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from erprm_trl.rollouts.grading import pool as _grading_pool
from erprm_trl.rollouts.grading.grader import Grader, grade, grading_name


ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"
PUBLIC_DATA = Path(os.environ.get("ERPRM_TEST_DATA", "nowhere"))
CASES = Path(os.environ.get("ERPRM_CASES", "nowhere"), "grading.jsonl")

# A module that replaces a caller's own module. Workers import it by name.
CALLER = """
import os, sys, time

def half(completion, answer):
    print("noise on standard output")
    os.system("echo noise from a child")
    return 0.5 if completion.endswith(answer) else -1

def hang(completion, answer):
    while completion == "hang":
        time.sleep(1)
    return 1.0

def refuse(completion, answer):
    return 1 / len(completion)

def not_a_number(completion, answer):
    return float("nan")

def hang_once(completion, answer):
    path, _, kind = completion.partition("|")
    if kind == "once" and not os.path.exists(path):
        with open(path + ".tmp", "w") as file:
            file.write(str(os.getpid()))
        os.rename(path + ".tmp", path)
        time.sleep(600)
    return 1.0

def die(completion, answer):
    if completion == "die":
        os._exit(3)
    return 1.0
"""


@pytest.fixture
def caller(tmp_path, monkeypatch):
    (tmp_path / "caller_rewards.py").write_text(CALLER)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "caller_rewards"
    sys.modules.pop("caller_rewards", None)


@pytest.fixture(scope="module")
def math_grader():
    with Grader("math", num_workers=1, time_limit=10.0) as grader:
        yield grader


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("completion", "answer", "reward", "extracted"),
    [
        (r"\boxed{18}", "18", 1.0, "18"),
        ("18.0", "18", 1.0, "18"),
        ("1,000", "1000", 1.0, "1000"),
        ("it is 1000", "1,000", 1.0, "1000"),
        ("$18", "18", 1.0, "18"),
        ("It costs $5 each.\n#### 5", "$5", 1.0, "5"),
        (r"\boxed{18.}", r"\boxed{18}", 1.0, "18"),
        (r"\boxed{\frac{1}{2}}", "0.5", 1.0, "1/2"),
        ("so we get 1/2", r"\frac{1}{2}", 1.0, "1/2"),
        (r"thus $x+1$.", "1+x", 1.0, "x+1"),
        (r"\boxed{(3,\frac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)", 1.0, r"(3,\frac{\pi}{2})"),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", 1.0, "Evelyn"),
        ("The answer is Evelyn.", "Evelyn", 1.0, "Evelyn"),
        (r"\boxed{11111}", r"11,\! 111", 1.0, "11111"),
        (r"\boxed{\} }", r"\}", 1.0, r"\}"),  # math-verify reads neither: compared as written
        (r"\boxed{\{ }", r"\}", 0.0, r"\{"),
        (r"\boxed{3} wait, \boxed{5}", "5", 1.0, "5"),
        (r"\boxed{5} wait, \boxed{3}", "5", 0.0, "3"),
        ("The final answer is 3. Correction: the answer is 4.", "4", 1.0, "4"),
        ("The final answer is 4. Correction: the answer is 3.", "4", 0.0, "3"),
        ("The answer is wrong: 4.\n#### 7", "7", 1.0, "7"),
        ("it is −5", "5", 0.0, "-5"),  # a Unicode minus, which math-verify drops
        (r"\boxed{−5}", "-5", 1.0, "-5"),
        (r"\boxed{19}", "18", 0.0, "19"),
        (r"\boxed{x-1}", "1-x", 0.0, "x-1"),
        ("no number at all", "18", 0.0, None),
        (r"\boxed{$.}", "$", 0.0, None),
        (r"\boxed{" + "1" * 2001 + "}", "18", 0.0, None),  # over max_chars
    ],
)
def test_math(math_grader, completion, answer, reward, extracted):
    assert math_grader.grade_and_extract([completion], [answer]) == ([reward], [extracted])
    assert math_grader.num_timeouts == 0


@pytest.mark.parametrize(
    ("completion", "answer", "reward", "extracted"),
    [
        ("#### 18 dollars", "18", 1.0, "18"),
        ("#### 19 dollars", "18", 0.0, "19"),
        (r"\boxed{\text{1\,234 eggs}}", "1,234", 1.0, "1234"),
        (r"\boxed{90°}", r"90^\circ", 1.0, "90"),
        (r"\boxed{18}", "18 dollars", 1.0, "18"),  # the unit of a reference
        (r"\boxed{18}", r"€18", 1.0, "18"),
        ("The answer is **18**.", "18", 1.0, "18"),
        (r"So she has $1\,234$ eggs.", "1234", 1.0, "1234"),
        (r"so $\text{18 eggs}$", "18", 1.0, "18"),
        (r"\boxed{18 \text{ dollars and } 50 \text{ cents}}", "18.50", 1.0, "37/2"),
        (r"\boxed{5xy}", "5", 0.0, "5xy"),  # variables, no unit
        (r"\boxed{5 or 6}", "5", 0.0, "5, 6"),
        # A percent sign may be left out, and a percentage of at most 100 also equals its fraction.
        (r"\boxed{12.5\%}", "12.5", 1.0, "25/2"),
        (r"\boxed{50}", r"50\%", 1.0, "50"),
        (r"\boxed{50\%}", r"\frac{1}{2}", 1.0, "50"),
        (r"\boxed{0.5}", "50 percent", 1.0, "1/2"),
        ("it is 50%", "0.5", 1.0, "50"),
        (r"\boxed{5000\%}", "50", 0.0, "5000"),
        (r"\boxed{0.5}", "50", 0.0, "1/2"),
        # Units are dropped and not compared, as in GSM8K and MATH. A base may be left out, but two bases must be
        # equal.
        (r"\boxed{18 \text{ cm}}", r"18 \text{ m}", 1.0, "18"),
        (r"\boxed{7 AM}", "7", 1.0, "7"),
        (r"\boxed{2516}", "2516_8", 1.0, "2516"),
        (r"\boxed{1010_3}", "1010_2", 0.0, "1010"),
        # A choice counts by its letter.
        (r"\boxed{\textbf{(C)}\ 42}", "C", 1.0, r"\text{(C)} 42"),
        (r"\boxed{\textbf{(C)}\ 42}", "B", 0.0, r"\text{(C)} 42"),
        (r"\boxed{(B)}", r"\text{(B)}", 1.0, "B"),
        # Words are not parsed as products of letters.
        (r"\boxed{\text{No solution}}", r"\text{no solution}", 1.0, "No solution"),
        (r"\boxed{even}", "neve", 0.0, "even"),
        (r"\boxed{2} and \boxed{3}", "3,2", 1.0, "2,3"),
        # math-verify rounds to six decimals, and ignores the dots of a sequence.
        (r"\boxed{\frac{1}{2^{98}}}", r"\frac{1}{2^{99}}", 0.0, r"\frac{1}{2^{98}}"),
        (r"\boxed{2^{-98}}", r"\frac{1}{2^{98}}", 1.0, "2^{-98}"),
        (r"\boxed{0.333333}", r"\frac{1}{3}", 1.0, "333333/1000000"),
        (r"\boxed{1, 3, \ldots, 2n-1}", r"1, 2, \ldots, n", 0.0, r"1, 3, \ldots, 2n-1"),
        (r"\boxed{1,2,\ldots}", r"1, 2, \ldots", 1.0, r"1,2,\ldots"),
    ],
)
def test_answer_and_reference_have_the_same_normal_form(math_grader, completion, answer, reward, extracted):
    assert math_grader.grade_and_extract([completion], [answer]) == ([reward], [extracted])


@pytest.mark.skipif(not CASES.is_file(), reason="set ERPRM_CASES to a folder with grading.jsonl")
def test_cases(math_grader):
    cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    rewards = math_grader.grade([case["completion"] for case in cases], [case["answer"] for case in cases])
    wrong = [(case, reward) for case, reward in zip(cases, rewards, strict=True) if reward != case["reward"]]
    assert len(wrong) <= 0.03 * len(cases)
    assert not [case for case, reward in wrong if reward > case["reward"]]


THOUGHTS = [
    "<think>48/2 = 24</think><answer>72</answer>",
    "<think>Is it \\boxed{72}?</think> \\boxed{24}",
    "<think>maybe \\boxed{72}? Let me check",  # cut off
    "<think>24</think>\n\nSo it is 72.",
    "24 or \\boxed{72}, hm </think> \\boxed{24}",
    "without a thought: \\boxed{72}",
]


@pytest.mark.parametrize(
    ("reasoning", "rewards", "extracted"),
    [
        (None, [1.0, 0.0, 0.0, 1.0, 0.0, 1.0], ["72", "24", None, "72", "24", "72"]),
        (True, [1.0, 0.0, 0.0, 1.0, 0.0, 0.0], ["72", "24", None, "72", "24", None]),
        (False, [0.0, 0.0, 1.0, 1.0, 0.0, 1.0], ["24", "24", "72", "72", "24", "72"]),
    ],
)
def test_answers_inside_the_thinking_get_no_reward(reasoning, rewards, extracted):
    with Grader("math", num_workers=1, reasoning=reasoning) as grader:
        assert grader.grade_and_extract(THOUGHTS, ["72"] * 6) == (rewards, extracted)
        # A reference may contain the thinking of the model that wrote it.
        assert grader.grade(["</think> \\boxed{72}"] * 2, ["<think>24</think>\\boxed{72}", "#### 72"]) == [1.0] * 2
    assert grade(THOUGHTS[1:3], ["72"] * 2, num_workers=1, reasoning=False) == [0.0, 1.0]
    with Grader("exact", num_workers=1, reasoning=reasoning) as grader:
        assert grader.grade(["</think> #### 72"], ["#### 72"]) == [1.0]  # not unfinished thinking
        without_marks = [0, 3]  # "exact" needs a marked answer
        kept = [None if row in without_marks else text for row, text in enumerate(extracted)]
        kept[0] = None if reasoning is False else "72"
        assert grader.grade_and_extract(THOUGHTS, ["72"] * 6)[1] == kept


def test_all_of_an_answer_delimiter_is_the_answer(math_grader):
    completions = [
        "<answer>Evelyn</answer>",
        r"<think>24</think><answer>1\,234 eggs</answer>",
        "<answer>She has 18 eggs, or 18 dollars.</answer>",
        r"<answer>So \boxed{5} it is.</answer> 7",
    ]
    assert math_grader.grade_and_extract(completions, ["Evelyn", "1234", "18", "5"]) == (
        [1.0] * 4,
        ["Evelyn", "1234", "18", "5"],
    )


def test_a_callers_function_gets_the_complete_completion_unless_reasoning_is_true():
    seen = []

    def read(completion, answer):
        seen.append(completion)
        return 1.0

    with Grader(read) as grader:
        assert grader.grade_and_extract(THOUGHTS[1:3], ["72"] * 2) == ([1.0, 1.0], ["24", None])
    with Grader(read, reasoning=True) as grader:
        assert grader.grade_and_extract(THOUGHTS[1:3], ["72"] * 2) == ([1.0, 0.0], ["24", None])
    assert seen == [*THOUGHTS[1:3], " \\boxed{24}"]
    with pytest.raises(ValueError, match="`reasoning` is 'yes'"):
        Grader("exact", reasoning="yes")


def test_math_reads_the_end_of_a_long_completion_and_boxes_anywhere():
    with Grader("math", num_workers=1, max_chars=50) as grader:
        filler = "word " * 100
        assert grader.grade(["7 " + filler, filler + "7", r"\boxed{7} " + filler], ["7"] * 3) == [0.0, 1.0, 1.0]


def test_pattern_overrides_the_marks():
    with Grader("math", answer_pattern=r"Result: (\S+)", num_workers=1) as grader:
        completions = [r"Result: 1/2 and \boxed{3}", r"Result: 9, Result: 0.5", r"\boxed{0.5}"]
        assert grader.grade_and_extract(completions, ["0.5"] * 3) == ([1.0, 1.0, 0.0], ["1/2", "1/2", None])


def test_exact_compares_only_the_spelling():
    with Grader("exact", num_workers=1) as grader:
        completions = [
            r"\boxed{$1,000.$}",
            "#### 1000",
            r"\boxed{1000.0}",
            "1000",
            r"\boxed{(1,000)}",
            r"#### 1,\! 000",
        ]
        assert grader.grade_and_extract(completions, ["1,000"] * 6) == (
            [1.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            ["1000", "1000", "1000.0", None, "(1,000)", "1000"],
        )
        assert grader.equivalent("$5", "5.") and not grader.equivalent("5.0", "5")
        assert not grader.equivalent("3 cats", "3 dogs")  # units count
        with pytest.raises(TypeError, match="`right` is a int, expected a final answer"):
            grader.equivalent("3", 3)


@pytest.mark.parametrize(
    ("completion", "answer", "reward", "extracted"),
    [
        (r"\boxed{(68 + 47) \times 8}", "920", 0.0, r"(68 + 47) \times 8"),
        (r"\boxed{8(68+47)}", "920", 0.0, "8(68+47)"),
        (r"\boxed{(4)(5)}", "20", 0.0, "(4)(5)"),
        (r"\boxed{10 - 15}", "-5", 0.0, "10 - 15"),
        (r"\boxed{\frac{1840}{2}}", "920", 0.0, r"\frac{1840}{2}"),
        (r"\boxed{7 \div 2}", "3.5", 0.0, r"7 \div 2"),
        (r"\boxed{0.5*4}", "2", 0.0, "0.5*4"),
        (r"\boxed{\$18 + \$2}", "20", 0.0, "18 + 2"),
        ("The answer is 5 * 4", "20", 0.0, "5 * 4"),
        (r"\boxed{\frac{1}{2} + \frac{1}{4}}", r"\frac{3}{4}", 0.0, r"\frac{1}{2} + \frac{1}{4}"),
        (r"\boxed{x = 23*40}", "920", 0.0, None),
        (r"\boxed{23*40 = 23*40}", "920", 0.0, None),
        (r"\boxed{1840 \over 2}", "920", 0.0, None),
        (r"\boxed{92*10^1}", "920", 0.0, None),
        # An operand is not the result, although it has the same value.
        (r"\boxed{4 - 2}", "2", 0.0, None),
        (r"\boxed{920*1}", "920", 0.0, None),
        (r"\boxed{\frac{1}{2} + \frac{1}{2}}", "1", 0.0, None),
        # The result may stand next to the expression, also after the box or in words.
        (r"\boxed{68+47=115}", "115", 1.0, None),
        (r"\boxed{115 = 68+47}", "115", 1.0, None),
        ("The answer is 5 + 5 = 10.", "10", 1.0, None),
        ("The answer is 9 + 9, which is 18.", "18", 1.0, None),
        ("The answer is 20 - 2, so 18 eggs.", "18", 1.0, None),
        (r"\boxed{(68+47)*8} = 920", "920", 1.0, None),
        (r"\boxed{68+47 \rightarrow 115}", "115", 1.0, None),
        (r"\boxed{1,000 + 500 = 1,500}", "1500", 1.0, None),
        (r"\boxed{\frac{1}{2} + \frac{1}{4} = \frac{3}{4}}", r"\frac{3}{4}", 1.0, None),
        ("#### 9*2 = 18 eggs", "18", 1.0, None),
        (r"\boxed{9/18 = 50\%}", "1/2", 1.0, None),
        ("<answer>2*5 = 10 boxes</answer>", "10", 1.0, None),
        # The parts of points and lists
        (r"\boxed{(23*40, 1+1)}", "(920, 2)", 0.0, None),
        (r"\boxed{(920, 1+1)}", "(920, 2)", 0.0, None),
        (r"\boxed{\{1+2, \frac12\}}", r"\{1/2, 3\}", 0.0, None),
        (r"\boxed{(23*40, 1+1)} = (920, 2)", "(920, 2)", 1.0, None),
        (r"\boxed{\{3, \frac12\}}", r"\{1/2, 3\}", 1.0, None),
        (r"\boxed{(3, \frac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)", 1.0, None),
        # Numbers as they are written
        (r"\boxed{1.5 \times 10^3}", "1500", 1.0, None),
        (r"\boxed{2^{10}}", "1024", 1.0, None),
        (r"\boxed{\frac{5}{2}}", "2.5", 1.0, "5/2"),
        (r"\boxed{1\frac{1}{2}}", "1.5", 1.0, None),
        (r"\boxed{-5}", "-5", 1.0, "-5"),
        (r"\boxed{\frac{1}{2}}", r"50\%", 1.0, "1/2"),
        (r"\boxed{6/8}", "3/4", 1.0, "3/4"),
        # Answers that are no numbers, and references that are not computed
        (r"\boxed{18}", "10+8", 1.0, "18"),
        (r"\boxed{18}", r"\frac{36}{2}", 1.0, "18"),
        (r"\boxed{12 - 3i}", "12-3i", 1.0, None),
        (r"\boxed{3\sqrt{2} + 1}", r"1+3\sqrt{2}", 1.0, None),
        (r"\boxed{2x+3}", "y=2x+3", 1.0, None),
        (r"\boxed{3+2}", "2+3", 1.0, "3+2"),
    ],
)
def test_an_expression_that_is_not_computed_is_no_answer(math_grader, completion, answer, reward, extracted):
    rewards, answers = math_grader.grade_and_extract([completion], [answer])
    assert rewards == [reward] and (extracted is None or answers == [extracted])


def test_votes_for_an_expression_and_for_its_value_are_different(math_grader):
    assert not math_grader.equivalent("(68+47)*8", "920") and not math_grader.equivalent("920", "(68+47)*8")
    assert math_grader.equivalent("2+3", "3+2")


def test_equivalent_by_mathematics(math_grader):
    assert math_grader.equivalent("1/2", r"\frac{1}{2}")
    assert math_grader.equivalent("x=5", "5") and math_grader.equivalent("5", "x=5")
    assert math_grader.equivalent("1<x<2", "(1,2)") and math_grader.equivalent("(1,2)", "1<x<2")
    assert math_grader.equivalent("Evelyn", r"\text{Evelyn}")
    assert math_grader.equivalent("18 dollars", "18") and math_grader.equivalent("50%", "1/2")
    assert not math_grader.equivalent("4", "5")


def test_no_answer_equals_a_reference_without_content(math_grader):
    assert math_grader.grade([r"\boxed{5}", "The answer is 7."], ["**", "$$"]) == [0.0, 0.0]
    assert not math_grader.equivalent("5", "") and not math_grader.equivalent("", "0")
    assert not math_grader.equivalent("x+1", "x-1")


@pytest.mark.slow("hostile text, up to the time limit")
@pytest.mark.parametrize(
    "hostile",
    [
        "9^9^9^9",
        r"\boxed{99999999!}",
        r"\boxed{" + "(" * 900 + "1" + ")" * 900 + "}",
        "(" * 3_000 + "1" + ")" * 3_000,
        r"\boxed{" + "7" * 100_000 + "}",
        "7" * 100_000,
    ],
    ids=lambda text: text[:18],
)
def test_hostile_answers_do_not_affect_other_rewards(math_grader, hostile):
    completions, answers = [r"\boxed{1}", hostile, r"\boxed{2}", r"\boxed{3}"], ["1", "5", "2", "4"]
    assert math_grader.grade(completions, answers) == [1.0, 0.0, 1.0, 0.0]


def test_a_sample_of_the_hostile_answers(math_grader):
    """Only kinds that are graded quickly. `benchmarks/hostile_answers.py` grades ten thousand answers of all kinds."""
    path = Path(__file__).parents[2] / "benchmarks" / "hostile_answers.py"
    spec = importlib.util.spec_from_file_location("hostile_answers", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    quick = {"right", "unicode", "text", "broken"}
    answers = [answer for answer in benchmark.hostile_answers(120, seed=1) if answer.kind in quick]
    rewards = math_grader.grade([answer.completion for answer in answers], [answer.answer for answer in answers])
    assert rewards == [answer.reward for answer in answers] and 0 < sum(rewards) < len(rewards)
    assert "Z" not in benchmark.children()


def test_a_worker_builds_the_grammar_before_its_first_answer():
    """Otherwise the time of the first answer would include building the grammar."""
    code = (
        "import sys\n"
        "from erprm_trl.rollouts.grading.worker import _Math\n"
        "grader, before = _Math(None, 2000), {*sys.modules}\n"
        "assert grader.grade(r'so $\\frac{5}{2}$', '2.5')[0] == 1.0\n"
        "print({*sys.modules} - before)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout == "set()\n"


def test_time_limits_are_in_processor_time():
    """The load of the machine does not affect the result."""
    code = (
        "import subprocess, sys\n"
        "from erprm_trl.rollouts.grading.worker import _OutOfTime, processor_time\n"
        "with processor_time(0.02):\n"
        "    subprocess.run([sys.executable, '-c', 'sum(range(10**6))'])  # waits, and does nothing\n"
        "try:\n"
        "    with processor_time(0.02):\n"
        "        while True:\n"
        "            try:\n"
        "                sum(range(10**4))\n"
        "            except Exception:  # as sympy does\n"
        "                pass\n"
        "except _OutOfTime:\n"
        "    print('interrupted')"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert out.stdout == "interrupted\n", out.stderr


@pytest.mark.slow("waits for a stopped process")
def test_workers_are_not_killed_after_the_process_was_suspended(monkeypatch):
    # Simulates Ctrl-Z, and fg minutes later: a quarter of an hour passes between two calls of the clock.
    clock = itertools.count(step=900.0)
    monkeypatch.setattr(_grading_pool, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with Grader("math", num_workers=2, time_limit=10.0) as grader:
        assert grader.grade([r"\boxed{4}", r"\boxed{5}"] * 8, ["4"] * 16) == [1.0, 0.0] * 8
        assert grader.num_timeouts == 0


@pytest.mark.slow("waits for time limits")
def test_math_answers_that_take_too_long_are_counted_with_a_warning(caplog):
    with Grader("math", num_workers=1) as grader:
        assert grader.grade([r"\boxed{99999999!}", r"\boxed{1}"], ["5", "1"]) == [0.0, 1.0]
        assert grader.num_timeouts == 1
        assert grader.grade([r"\boxed{5}", r"\boxed{1}"], ["99999999!", "1"]) == [0.0, 1.0]
        assert grader.num_timeouts == 2
        slow_to_read = "(" * 900 + "1" + ")" * 900
        assert grader.grade([rf"\boxed{{{slow_to_read}}}"], [slow_to_read]) == [1.0]  # but spelled alike
        assert grader.num_timeouts == 2
    assert caplog.text.count("could not be graded in time") == 1  # at most once a minute


@pytest.mark.slow("waits for a time limit")
def test_a_worker_that_cannot_be_interrupted_is_killed_and_the_rest_of_its_batch_is_graded():
    pattern = r"((?:a|aa)+)$"  # exponential in the run of a's before a b
    with Grader("exact", answer_pattern=pattern, num_workers=1, time_limit=1.0) as grader:
        # 400 items over one worker: the overrun happens inside a full batch
        completions = [f"{i} aa" for i in range(200)] + ["a" * 60 + "b"] + [f"{i} a" for i in range(199)]
        rewards, extracted = grader.grade_and_extract(completions, ["aa"] * 400)
        assert rewards == [1.0] * 200 + [0.0] * 200
        assert extracted == ["aa"] * 200 + [None] + ["a"] * 199
        assert grader.num_timeouts == 1


def test_results_keep_their_order_over_workers_and_batches():
    with Grader("exact", num_workers=2) as grader:
        completions = [f"#### {i}" for i in range(1_000)]
        answers = [str(i if i % 3 else -1) for i in range(1_000)]
        rewards, extracted = grader.grade_and_extract(completions, answers)
        assert rewards == [float(i % 3 > 0) for i in range(1_000)]
        assert extracted == [str(i) for i in range(1_000)]
        assert grader.grade([], []) == []


def test_batches_larger_than_a_pipe_do_not_deadlock():
    with Grader("exact", num_workers=2) as grader:
        size = 100_000  # a pipe holds 65,536 bytes
        completions = [f"\\boxed{{{str(i) * size}}}" for i in range(1, 10)] * 4 + [f"#### {i}" for i in range(100)]
        _, extracted = grader.grade_and_extract(completions, ["1"] * len(completions))
        assert [len(text) for text in extracted[:36]] == [size] * 36


def test_grading_from_several_threads_at_once():
    rewards = {}

    def work(i):
        rewards[i] = grade([rf"\boxed{{{i}}}", r"\boxed{0}"], [f"{i}.0", "1"], num_workers=1)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rewards == {i: [1.0, 0.0] for i in range(4)}


def test_function_by_import_path_and_by_object_run_in_workers(caller):
    by_path = grade(["say 18", "say 19"], ["18", "18"], method=f"{caller}:half", num_workers=1)
    assert by_path == [0.5, -1.0]  # and what it prints does not reach the protocol
    function = __import__(caller).half
    with Grader(function, num_workers=1) as grader:
        assert grader.grade_and_extract(["#### 18"], ["18"]) == ([0.5], ["18"])
    with Grader("operator:eq", num_workers=1) as grader:
        assert grader.grade(["18", "19"], ["18", "18"]) == [1.0, 0.0]


def test_a_lambda_runs_in_this_process_with_a_warning(caplog):
    with Grader(lambda completion, answer: os.getpid()) as grader:
        assert grader.grade(["a"], ["b"]) == [float(os.getpid())]
    assert "without a time limit" in caplog.text


class CloseTo:
    """A callable object, without a name and without a hash."""

    __hash__ = None

    def __init__(self, tolerance):
        self.tolerance = tolerance

    def __call__(self, completion, answer):
        return float(abs(float(completion) - float(answer)) <= self.tolerance)


def close_to(completion, answer, tolerance=0.0, reader=None):
    return CloseTo(tolerance)(completion, answer)


@pytest.mark.parametrize("method", [CloseTo(0.1), functools.partial(close_to, tolerance=0.1), CloseTo(0.1).__call__])
def test_callable_objects_are_accepted(method):
    assert grade(["1.05", "2"], ["1", "1"], method=method) == [1.0, 0.0]
    assert grade(["1.05", "2"], ["1", "1"], method=method) == [1.0, 0.0]
    assert grade(["1.05"], ["1"], method=CloseTo(0.0)) == [0.0]  # another object of the same class


def test_gradings_have_stable_names():
    module = __name__
    assert [grading_name(name) for name in (None, "math", "rewards:half")] == [None, "math", "rewards:half"]
    assert grading_name(close_to) == f"{module}:close_to"
    assert grading_name(CloseTo(0.1)) == f"{module}:CloseTo"
    assert grading_name(CloseTo(0.1).__call__) == f"{module}:CloseTo.__call__"
    partial = functools.partial(close_to, tolerance=0.1, reader=CloseTo(0.2))
    assert grading_name(partial) == f"functools.partial({module}:close_to, reader={module}:CloseTo, tolerance=0.1)"
    assert grading_name(functools.partial(close_to, "1", reader=object())) == (
        f"functools.partial({module}:close_to, '1', reader=object)"
    )


def test_function_that_hangs_is_killed_and_counted(caller):
    with Grader(f"{caller}:hang", num_workers=1, time_limit=0.5) as grader:
        assert grader.grade(["a", "hang", "b"], ["1"] * 3) == [1.0, 0.0, 1.0]
        assert grader.num_timeouts == 1


def test_the_error_of_a_function_names_the_row_and_does_not_affect_the_next_call(caller):
    with Grader(f"{caller}:refuse", num_workers=1) as grader:
        with pytest.raises(RuntimeError, match=r"row 2: ZeroDivisionError: division by zero"):
            grader.grade(["aa", "aa", "", "aa"], ["1"] * 4)
        assert grader.grade(["aa", "a"], ["1"] * 2) == [0.5, 1.0]
        assert grader.num_timeouts == 0  # nothing was still owed for the call that failed
    with Grader(f"{caller}:not_a_number", num_workers=1) as grader:
        with pytest.raises(RuntimeError, match="row 0: ValueError: the reward is nan"):
            grader.grade(["a"], ["1"])
    with pytest.raises(RuntimeError, match="row 1: ZeroDivisionError"):
        Grader(lambda completion, answer: 1 / len(completion)).grade(["a", ""], ["1", "1"])


def test_the_error_for_a_function_that_cannot_be_imported(caller):
    with Grader(f"{caller}:missing", num_workers=1) as grader:
        with pytest.raises(RuntimeError, match=r"cannot be loaded in a worker.*missing.*PYTHONPATH\. Expected"):
            grader.grade(["a"], ["1"])


def test_an_item_that_crashes_its_worker_twice_gets_reward_0(caller):
    with Grader(f"{caller}:die", num_workers=1) as grader:
        assert grader.grade(["a", "die", "b"], ["1"] * 3) == [1.0, 0.0, 1.0]
        assert grader.num_timeouts == 1


def test_a_worker_killed_from_outside_does_not_change_rewards(caller, tmp_path):
    pid_file = tmp_path / "pid"

    def kill():
        wait_until(pid_file.exists)
        os.kill(int(pid_file.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with Grader(f"{caller}:hang_once", num_workers=1, time_limit=60.0) as grader:
        assert grader.grade(["a", f"{pid_file}|once", "b"], ["1"] * 3) == [1.0] * 3
        assert grader.num_timeouts == 0
    killer.join()


def test_workers_that_died_while_idle_are_replaced():
    with Grader("exact", num_workers=2) as grader:
        completions, answers = ["#### 1", "#### 2", "#### 3"], ["1", "0", "3"]
        assert grader.grade(completions, answers) == [1.0, 0.0, 1.0]
        processes = [worker.process for worker in grader._pool._workers]
        assert len(processes) == 2
        for process in processes:
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but not yet noticed
        assert grader.grade(["#### 1"], ["1"]) == [1.0]  # one item, which would meet two dead workers
        assert grader.num_timeouts == 0


@pytest.mark.slow("waits for a stuck worker")
def test_a_worker_that_stops_reading_does_not_block_the_caller():
    with Grader("exact", num_workers=1, time_limit=0.5) as grader:
        assert grader.grade(["#### 1"], ["1"]) == [1.0]
        os.kill(grader._pool._workers[0].process.pid, signal.SIGSTOP)
        completions = [f"#### {str(i) * 100_000}" for i in range(1, 9)]  # in batches of two, each over a pipe's 65,536
        _, extracted = grader.grade_and_extract(completions, ["1"] * 8)
        assert [text and len(text) for text in extracted] == [None] + [100_000] * 7
        assert grader.num_timeouts == 1


def test_forked_child_starts_its_own_workers():
    with Grader("exact", num_workers=1) as grader:
        assert grader.grade(["#### 1"], ["1"]) == [1.0]
        for grades in (True, False):
            child = os.fork()
            if child == 0:
                ok = not grades or grader.grade(["#### 1", "#### 2"], ["1", "1"]) == [1.0, 0.0]
                grader.close()
                os._exit(0 if ok else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        worker = grader._pool._workers[0].process
        assert grader.grade(["#### 5"], ["5"]) == [1.0]
        assert worker.poll() is None and grader._pool._workers[0].process is worker


def test_close_ends_workers_and_a_later_call_starts_new_ones():
    grader = Grader("exact", num_workers=1)
    assert grader.grade(["#### 1"], ["1"]) == [1.0]
    pid = grader._pool._workers[0].process.pid
    grader.close()
    assert not is_running(pid)
    assert grader.grade(["#### 1"], ["1"]) == [1.0]
    grader.close()


def test_cancel_ends_a_call_in_another_thread_and_close_makes_the_grader_usable_again(caller):
    errors = []

    def grade():
        try:
            grader.grade(["hang"], ["1"])
        except RuntimeError as error:
            errors.append(str(error))

    with Grader(f"{caller}:hang", num_workers=1, time_limit=60) as grader:
        thread = threading.Thread(target=grade)
        thread.start()
        grader.cancel()
        thread.join(30)
        assert errors == ["Grading was cancelled."]
        grader.close()
        assert grader.grade(["1"], ["1"]) == [1.0]


def test_a_grader_that_is_dropped_leaves_no_workers():
    grader = Grader("exact", num_workers=2)
    assert grader.grade(["#### 1", "#### 2"] * 20, ["1", "3"] * 20) == [1.0, 0.0] * 20
    pids = [worker.process.pid for worker in grader._pool._workers]
    assert pids and all(Path("/proc", str(pid)).exists() for pid in pids)
    del grader
    gc.collect()
    assert not any(Path("/proc", str(pid)).exists() for pid in pids)  # not even as zombies


def test_identical_pairs_are_graded_once():
    calls = []

    def count(completion, answer):
        calls.append(completion)
        return float(len(calls))

    assert Grader(count).grade(["a", "b", "a", "a"], ["1", "1", "1", "2"]) == [1.0, 2.0, 1.0, 3.0]


def test_grade_keeps_its_workers():
    def pids():
        from erprm_trl.rollouts.grading import grader as grading

        return {worker.process.pid for grader in grading._GRADERS.values() for worker in grader._pool._workers}

    grade(["#### 1"], ["1"], method="exact", num_workers=1)
    before = pids()
    assert grade(["#### 2"], ["2"], method="exact", num_workers=1) == [1.0]
    assert pids() == before


@pytest.mark.slow("starts a process")
def test_a_script_without_a_main_guard_grades_and_leaves_no_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from erprm_trl.rollouts.grading.grader import Grader\n"
        "grader = Grader('exact', num_workers=2)\n"
        "print(grader.grade(['#### 1', '#### 2'], ['1', '1']), flush=True)\n"
        "def own(completion, answer): return 7\n"
        "print(Grader(own).grade(['a'], ['b']), flush=True)\n"
        "print(*[worker.process.pid for worker in grader._pool._workers], flush=True)\n"
        "input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    with process:
        assert process.stdout.readline() == "[1.0, 0.0]\n"
        assert process.stdout.readline() == "[7.0]\n"
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_running, pids))
        process.kill()
    wait_until(lambda: not any(map(is_running, pids)))


def processor_ticks(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


@pytest.mark.parametrize("busy", ["asleep", "in C"])
def test_a_busy_worker_ends_when_its_caller_is_gone(caller, tmp_path, busy):
    settings = {"method": f"{caller}:hang", "pattern": None, "max_chars": 10, "time_limit": 0.2}
    text = "hang"
    if busy == "in C":  # a regular expression match, during which no other thread of the worker runs
        settings, text = settings | {"method": "exact", "pattern": r"((?:a|aa)+)$"}, "a" * 60 + "b"
    worker = subprocess.Popen(
        [sys.executable, "-m", "erprm_trl.rollouts.grading.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}"),
    )
    try:
        worker.stdin.write(f"{json.dumps(settings)}\n{json.dumps([[0, 'grade', text, '1']])}\n".encode())
        worker.stdin.flush()
        assert json.loads(worker.stdout.readline()) == {"ready": True}
        if busy == "in C":  # the match has begun once it takes processor time
            started = processor_ticks(worker.pid)
            wait_until(lambda: processor_ticks(worker.pid) > started + 10)
        worker.stdin.close()
        assert worker.wait(timeout=30) == (-signal.SIGPROF if busy == "in C" else 0)
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()


def test_workers_do_not_import_torch_and_import_math_verify_only_for_math():
    code = "import sys, erprm_trl.rollouts.grading.worker; print({'torch', 'transformers', 'sympy'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout == "set()\n"


def test_a_warning_if_no_completion_has_an_answer(caplog):
    with Grader("exact", num_workers=1) as grader:
        grader.grade([f"it is {i}" for i in range(40)], ["1"] * 40)
    assert "None of 40 completions has a final answer" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "b"], ["1"]), "2 completions and 1 answers.*Repeat an answer"),
        ((["a", "b"], ["1", None]), r"answers\[1\] is None"),
        ((["a", "b"], ["1", "  "]), r"answers\[1\] is '  '"),
        ((["a"], [18]), r"answers\[0\] is 18"),
        (([["a"]], ["1"]), r"completions\[0\] is a list"),
        (("18", ["1", "8"]), r"`completions` is a str \('18'\), expected a list of texts"),
        ((["1", "8"], "18"), r"`answers` is a str \('18'\), expected a list of texts. Pass `answers=\[...\]`"),
        ((iter(["1"]), ["1"]), "`completions` is a list_iterator"),
        ((["a"], ["1"], 5), "`method` is a int, expected 'math', 'exact', a function"),
        ((["a"], ["1"], "maths"), "'maths', expected one of 'math', 'exact'"),
        ((["a"], ["1"], "math", "x"), "no group"),
        ((["a"], ["1"], "math", r"(\d+"), "`answer_pattern` .* is no regular expression .*unterminated"),
        ((["a"], ["1"], "math", None, 0), "num_workers=0"),
    ],
)
def test_errors_name_invalid_input(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        grade(*arguments)


def each_set(ours, public):
    """Parameters for our own questions, and for the public dataset in the same format, if its folder is known."""
    return pytest.mark.parametrize(
        "path",
        [
            DATA / ours,
            pytest.param(
                PUBLIC_DATA / public,
                marks=[
                    pytest.mark.skipif(not PUBLIC_DATA.is_dir(), reason="ERPRM_TEST_DATA names no folder"),
                    pytest.mark.slow("grades hundreds of answers"),
                ],
            ),
        ],
        ids=[ours, public],
    )


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@each_set("math_form.jsonl", "math500.jsonl")
def test_math_solutions_are_right_and_solutions_to_other_questions_are_wrong(path):
    rows = read_rows(path)
    solutions, answers = [row["solution"] for row in rows], [row["answer"] for row in rows]
    with Grader("math", num_workers=2) as grader:
        assert sum(grader.grade(solutions, answers)) >= 0.99 * len(rows)
        # Without the box, the text differs from the reference, so math-verify must parse both.
        assert sum(grader.grade([f"So we get ${answer}$." for answer in answers], answers)) >= 0.99 * len(rows)
        assert sum(grader.grade(solutions, answers[1:] + answers[:1])) <= 0.02 * len(rows)
        assert grader.num_timeouts == 0


@each_set("gsm8k_form.jsonl", "gsm8k_test.jsonl")
def test_gsm8k_answers_are_right(path):
    texts = [row["answer"] for row in read_rows(path)]
    answers = [text.rpartition("####")[2].strip() for text in texts]
    with Grader("math", num_workers=2) as grader:
        assert grader.grade(texts, answers) == [1.0] * len(texts)
    with Grader("exact", num_workers=2) as grader:
        assert grader.grade(texts, answers) == [1.0] * len(texts)


@pytest.mark.parametrize(
    "answer, other",
    [
        ("10^{-3}", "10"), ("2^{10}", "2"), ("(5, 3)", "3"), ("5x", "5"), ("2+i", "2"), (r"5\sqrt{2}", "5"),
        ("[1, 2)", "1"), (r"3 \times 10^5", "3"), ("x^2 - 1", "2"),
    ],
)  # fmt: skip
def test_a_formula_after_the_answer_mark_is_read_completely(math_grader, answer, other):
    completion = f"So we get it.\nThe answer is {answer}."

    assert math_grader.grade([completion, completion], [answer, other]) == [1.0, 0.0]
    # If words or sentences follow, the first number counts.
    assert math_grader.grade(["The answer is 5. 2 + 3 = 5.", "The answer is 5 apples."], ["5", "5"]) == [1.0, 1.0]


def test_hostile_formulas_after_the_answer_end_in_time(math_grader):
    before = math_grader.num_timeouts

    assert math_grader.grade(["The answer is " + r"\ab" * 30 + "$ 5"], ["6"]) == [0.0]

    assert math_grader.num_timeouts == before


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("The answer is 5 million.", "5", 0.0),
        ("The answer is 5 or 6.", "5", 0.0),
        ("The answer is 5 or 6.", "5 or 6", 1.0),
        ("The answer is 1010_3.", "1010_2", 0.0),
        ("The answer is at least 5.", "5", 0.0),
        ("The answer is (C) 42.", "C", 1.0),
        ("The answer is minus 3.", "-3", 1.0),
        ("The answer is minus 3.", "3", 0.0),
        ("The answer is 5 and that is it.", "5", 1.0),
        ("The answer is 5!", "5", 1.0),
        ("The answer is 7 1/2 miles.", "7.5", 1.0),
        (r"The answer is 2 \frac{1}{2}\text{ miles}.", "2.5", 1.0),
        ("The answer is 7½ miles.", "15/2", 1.0),
        ("The answer is 1.5e3 grams.", "1500", 1.0),
        ("The answer is –5.", "-5", 1.0),
        ("The answer is 8:30 am.", "8:30", 1.0),
        ("The answer is 2 + 3 apples.", "5", 0.0),
        ("The answer is 1/4 (25%).", "1/4", 1.0),
        ("The answer is 7 (1/2) miles.", "7", 1.0),
        ("The answer is 1,5 liters.", "1.5", 1.0),
        ("The answer is (5, 3).", "(5, 3)", 1.0),
        # Euler's number
        (r"\boxed{2e - 1}", "2e-1", 1.0),
        (r"\boxed{2(e-1)}", "2e-2", 1.0),
        (r"\boxed{2e-1}", "0.2", 0.0),
        # A fraction of one character beside a symbol is not read.
        (r"\boxed{½π}", r"\frac{1}{2\pi}", 0.0),
        ("The answer is 9^½.", "9/2", 0.0),
        (r"\boxed{(1½, 2)}", "(3/2, 2)", 1.0),
    ],
)
def test_an_answer_in_a_sentence_is_more_than_its_first_number(completion, answer, reward):
    assert grade([completion], [answer]) == [reward]
