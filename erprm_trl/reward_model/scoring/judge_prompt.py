"""Asks a language model about the steps of a solution, and reads the verdict in its answer.

The steps are numbered from 0, and the verdict is the number of the first wrong step or -1, as in ProcessBench. Steps
and answers are text that models wrote. They are never executed, and reading an answer takes linear time.
"""

import re
from collections.abc import Sequence

from ...reasoning import answer_start


FIRST_ERROR_PROMPT = r"""Below are a problem and its solution, which is divided into numbered steps. Your task is to find the first wrong step.

Check one step after the other. A step is wrong if it contains a mistake in a calculation, makes a claim that is not true, draws a conclusion that does not follow, or misunderstands the problem. Only the mistakes of a step count. Its style does not count.

Problem:
{question}

Solution:
{steps}

Write your check of each step in a few words, and stop at the first wrong step. Then end your answer with the number of the first wrong step in a box, as in \boxed{2}. If every step is right, end with \boxed{-1}."""  # noqa: E501

STEP_PROMPT = r"""Below are a problem and the beginning of a solution. The solution is divided into numbered steps.

Problem:
{question}

Solution:
{steps}

Is the last step right? A step is wrong if it contains a mistake in a calculation, makes a claim that is not true, draws a conclusion that does not follow, or misunderstands the problem. Answer with one word: {good} or {bad}."""  # noqa: E501

NO_ERROR = -1
_FIELDS = re.compile(r"\{(question|steps|good|bad)\}")
# The beginnings of tags, and of the special tokens of chat templates: <|im_end|>, </s>, <start_of_turn>, [INST]
_MARKUP = re.compile(r"<(?=[|\uff5c/A-Za-z])|\[(?=/?[A-Z_]{2,}\])")
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{([^{}]{0,60}(?:\{[^{}]{0,60}\}[^{}]{0,60})?)\}")
_MARKS = r"[^\w\u2212\u2013-]*"  # marks around a verdict, without minus signs
_NUMBER = re.compile(
    rf"{_MARKS}(?:text{_MARKS})?(?:step|paragraph)?[\s_]*([-\u2212\u2013]?\d{{1,6}})\W*", re.IGNORECASE
)
_NONE = re.compile(
    rf"{_MARKS}(?:text{_MARKS})?(?:none|no (?:error|mistake|wrong step)s?|all (?:steps )?right)\W*", re.IGNORECASE
)
_LAST_LINE = re.compile(
    rf"{_MARKS}(?:(?:so|thus|therefore|hence)\b[\s,]*)?(?:the\s+)?"
    r"(?:(?:final\s+)?(?:answer|verdict)|first\s+(?:wrong|incorrect|false|erroneous)\s+(?:step|paragraph)|first\s+error)"
    rf"{_MARKS}(?:is|occurs|appears)?{_MARKS}(?:in|at)?(?=[\W_])(?P<verdict>.{{1,60}})",
    re.IGNORECASE,
)


def check_prompt(prompt: str) -> None:
    """
    Checks a judge's prompt.

    Raises:
        `ValueError`: if the prompt does not contain `{question}` and `{steps}`.
    """
    missing = [f"{{{name}}}" for name in ("question", "steps") if f"{{{name}}}" not in prompt]
    if missing:
        raise ValueError(
            f"prompt of the judge: got {prompt[:120]!r} without {' and '.join(missing)}, expected a text with both "
            "{question} and {steps}. Add them where the question and the numbered steps should be."
        )


def fill_prompt(prompt: str, question: str, steps: Sequence[str], good: str = "", bad: str = "") -> str:
    """
    Fills a judge's prompt.

    Args:
        prompt (`str`):
            Text with `{question}` and `{steps}`. `{good}` and `{bad}` are filled too. Other braces are kept.
        question (`str`):
            Question of the solution.
        steps (`Sequence[str]`):
            Steps, which are written as `<step_0>`, `<step_1>` and so on. In the question and the steps, a space breaks
            up tags and the special tokens of chat templates. Otherwise a step could end the user's message, and write
            the verdict itself.
        good (`str`, *optional*), bad (`str`, *optional*):
            The two verdict tokens.

    Returns:
        `str`: the prompt.
    """
    tagged = [f"<step_{index}>\n{_as_text(step)}\n</step_{index}>" for index, step in enumerate(steps)]
    values = {"question": _as_text(question), "steps": "\n".join(tagged), "good": good.strip(), "bad": bad.strip()}
    return _FIELDS.sub(lambda match: values[match[1]], prompt)  # one pass, so that filled texts are not filled again


def _as_text(untrusted: str) -> str:
    return _MARKUP.sub(r"\g<0> ", untrusted)


def read_verdict(answer: str, num_steps: int, reasoning: bool | None = None) -> int | None:
    r"""
    Reads the verdict in a judge's answer: the last `\boxed{}` with a verdict, or else a last line that states one.

    Args:
        answer (`str`):
            The judge's answer. Thinking that ends with `</think>` is not read.
        num_steps (`int`):
            Number of steps of the solution.
        reasoning (`bool`, *optional*):
            `True` if the answer begins inside `<think>`, because the chat template opens it.

    Returns:
        `int` or `None`: the index of the first wrong step, -1 if every step is right, or `None` if there is no clear
        verdict: no number, a number that is not a step, or thinking without an end.
    """
    start = answer_start(answer, reasoning)
    if start is None:
        return None
    answer = answer[start:]
    verdicts = [_verdict(box, num_steps) for box in _BOX.findall(answer)]
    readable = [verdict for verdict in verdicts if verdict is not None]
    if readable:
        return readable[-1]
    line = answer.strip().rpartition("\n")[2].strip()
    if verdicts or len(line) > 200:
        return None
    stated = _LAST_LINE.fullmatch(line)
    return _verdict(line if stated is None else stated["verdict"], num_steps)


def _verdict(text: str, num_steps: int) -> int | None:
    if _NONE.fullmatch(text):
        return NO_ERROR
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    number = int(re.sub(r"[\u2212\u2013]", "-", match[1]).replace(" ", ""))
    return number if NO_ERROR <= number < num_steps else None
