"""Real tokenizers: presets against the published readings, score positions, a policy's own tokens, chat templates.

`ERPRM_TOKENIZERS` names a folder with one folder per tokenizer. Tests of missing tokenizers are skipped. Tokenizers
with only a `tokenizer.model` need the package `sentencepiece`. `ERPRM_CASES` names a folder with
`real_completions.jsonl`, one JSON object with a `text` per line. Without it a few texts in this file are used.
"""

import importlib.util
import json
import os
from dataclasses import replace
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path

import pytest

from erprm_trl import PRMFormat
from erprm_trl.io import load_tokenizer
from erprm_trl.policy.step_alignment import step_token_ends
from erprm_trl.reward_model import encode_solution, encode_solutions
from erprm_trl.rollouts import Prompt, PromptFormat, clean_steps, split_steps


pytestmark = pytest.mark.slow("loads real tokenizers")

FOLDER = Path(os.environ.get("ERPRM_TOKENIZERS", "no such folder"))
CASES = Path(os.environ.get("ERPRM_CASES", "no such folder"), "real_completions.jsonl")
TOKENIZERS = [
    "deepseek-v3", "deepseek-v3-pypi", "gemma3", "gpt-oss", "llama3.1-base", "llama3.1-instruct",
    "llama3.1-instruct-short", "math-shepherd", "math-shepherd-model", "metamath-mistral", "mistral-v1",
    "mistral-v1-model", "mistral-v3", "qwen2.5", "qwen2.5-math", "qwen2.5-math-prm", "qwen3", "skywork-prm", "smollm2",
]  # fmt: skip
QUESTION = "Janet's ducks lay 16 eggs per day. How many are left after 3 + 4 are used?"
STEPS = [
    "Step 1: 3 + 4 = 7 eggs, \\(7 < 16\\).",
    "Step 2: 16 - 7 = 9 €, ½ of 18!",
    "Step 3: the answer is \\boxed{9}.",
]
TEXTS = [
    "We add:\n\n\\[\n3 + 4 = 7\n\\]\n\n- 16 - 7 = **9**\n  - so 9 are left.\n\n\n#### 9",
    "```python\nx = 3 + 4\n\n\tprint(16 - x)\n```\n\nÜber ½ der 16 … das sind 9 €.\nThe answer is 9.",
]


@cache
def load(name):
    folder = FOLDER / name
    if not folder.is_dir():
        pytest.skip(f"ERPRM_TOKENIZERS names no folder with {name}")
    if not (folder / "tokenizer.json").exists() and importlib.util.find_spec("sentencepiece") is None:
        pytest.skip(f"{name} needs the package sentencepiece")
    return load_tokenizer(folder)


@cache
def texts():
    if not CASES.is_file():
        return TEXTS
    return TEXTS + [json.loads(line)["text"] for line in CASES.read_text(encoding="utf-8").splitlines()]


each_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


# Presets, compared with the published ways to read scores

LLAMA = ["llama3.1-base", "llama3.1-instruct", "llama3.1-instruct-short"]
QWEN = ["qwen2.5", "qwen2.5-math", "qwen2.5-math-prm", "qwen3", "skywork-prm"]
SAME_IDS = {
    "math-shepherd": ["math-shepherd", "math-shepherd-model", "mistral-v1"],
    "er-prm": LLAMA,
    "rlhflow": LLAMA,
    "rlhflow-mistral": LLAMA,
    "qwen2.5-math-prm": ["qwen2.5-math-prm"],
    "skywork-o1-prm": [*LLAMA, *QWEN, "gpt-oss", "smollm2"],
    "pure-prm": [*LLAMA, *QWEN, "gpt-oss", "smollm2"],
}


@each_tokenizer
@pytest.mark.parametrize("preset", SAME_IDS)
def test_a_preset_accepts_only_tokenizers_with_its_models_ids(preset, name):
    tokenizer, prm_format = load(name), PRMFormat.preset(preset)
    if name in SAME_IDS[preset]:
        ids = prm_format.token_ids(tokenizer)
        expected = prm_format.expected_ids
        assert (ids.good, ids.bad) == (expected.get("good_token"), expected.get("bad_token"))
    else:
        with pytest.raises(ValueError, match="expected .*the id that the model was trained with"):
            prm_format.token_ids(tokenizer)


def marked(ids, token_id):
    return [index for index, each in enumerate(ids) if each == token_id]


def math_shepherd(tokenizer):
    ids = tokenizer.encode(f"{QUESTION} " + " ки\n".join(STEPS) + " ки")
    return ids, marked(ids, 12902)


def er_prm(tokenizer):
    ids = tokenizer.encode(f"{QUESTION} " + "".join(f"{step} ки" for step in STEPS))
    return ids, marked(ids, 116624)


def rlhflow(tokenizer):
    """The score is read where the "+" of each answer is predicted."""
    chat = []
    for index, step in enumerate(STEPS):
        chat += [{"role": "user", "content": step if index else f"{QUESTION} {step}"}]
        chat += [{"role": "assistant", "content": "<|reserved_special_token_0|>"}]
    ids = ids_of(tokenizer, tokenizer.apply_chat_template(chat, tokenize=False))
    answers = marked(ids, tokenizer.convert_tokens_to_ids("<|reserved_special_token_0|>"))
    ids = [tokenizer.convert_tokens_to_ids("+") if index in answers else each for index, each in enumerate(ids)]
    return ids[: answers[-1]], [index - 1 for index in answers]


def qwen_prm(tokenizer):
    chat = [
        {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "".join(f"{step}<extra_0>" for step in STEPS)},
    ]
    ids = ids_of(tokenizer, tokenizer.apply_chat_template(chat, tokenize=False))
    ends = marked(ids, 151651)
    return ids[: ends[-1] + 1], ends  # the end of the turn follows the last score position


def lines_one_by_one(opening):
    def read(tokenizer):
        ids, ends = ids_of(tokenizer, opening), []
        for step in STEPS:
            ids += [*ids_of(tokenizer, step), *ids_of(tokenizer, "\n")]
            ends.append(len(ids) - 1)
        return ids, ends

    return read


@pytest.mark.parametrize(
    ("preset", "name", "read"),
    [
        ("math-shepherd", "math-shepherd", math_shepherd),
        ("math-shepherd", "math-shepherd-model", math_shepherd),
        ("er-prm", "llama3.1-base", er_prm),
        ("er-prm", "llama3.1-instruct", er_prm),
        ("rlhflow", "llama3.1-instruct", rlhflow),
        ("rlhflow-mistral", "llama3.1-instruct-short", rlhflow),
        ("qwen2.5-math-prm", "qwen2.5-math-prm", qwen_prm),
        ("skywork-o1-prm", "skywork-prm", lines_one_by_one(f"<|im_start|>{QUESTION}\n")),
        ("pure-prm", "qwen2.5-math", lines_one_by_one(QUESTION)),
        ("trl-prm", "mistral-v1", lines_one_by_one(f"<s>{QUESTION}")),
        ("trl-prm", "qwen2.5", lines_one_by_one(QUESTION)),
    ],
)
def test_a_preset_reads_a_solution_as_published(preset, name, read):
    tokenizer = load(name)
    ids, ends = read(tokenizer)
    encoded = encode_solution(tokenizer, PRMFormat.preset(preset), QUESTION, STEPS)
    assert len(ends) == len(STEPS) and encoded.input_ids == ids and encoded.step_positions == ends


def test_the_presets_of_eurus_and_qwen_write_qwens_chat():
    tokenizer = load("qwen2.5-math")
    opening = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False
    )
    for preset in ("eurus-prm", "qwen2.5-math-prm"):
        assert PRMFormat.preset(preset).render_prompt(QUESTION) == opening


# Score positions

SEPARATORS = ["\n", "\n\n", " ки", "<|step|>"]


@each_tokenizer
@pytest.mark.parametrize("separator", SEPARATORS)
def test_pieces_are_joined_as_ids_and_scores_are_read_at_the_last_id(name, separator):
    tokenizer = load(name)
    prm_format = PRMFormat(separator=separator, head="token")
    closing = ids_of(tokenizer, separator)
    leading = tokenizer.encode("a")[: -len(ids_of(tokenizer, "a"))]
    solutions = [clean_steps(split_steps(text, "whole_lines"), "whole_lines") for text in texts()]
    encoded = encode_solutions(tokenizer, prm_format, [QUESTION] * len(solutions), solutions)
    for solution, steps in zip(encoded, solutions, strict=True):
        ids, ends = [*leading, *ids_of(tokenizer, f"{QUESTION}\n")], []
        for step in steps:
            ids += [*ids_of(tokenizer, step), *closing]
            ends.append(len(ids) - 1)
        assert solution.input_ids == ids and solution.step_positions == ends


@each_tokenizer
@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_text_is_encoded_at_once_and_scores_are_read_at_the_separators_last_character(name, separator):
    tokenizer = load(name)
    prm_format = PRMFormat(separator=separator, head="token", tokenization="text", between_steps="- ")
    solutions = [clean_steps(split_steps(text, "whole_lines"), "whole_lines") for text in texts()]
    encoded = encode_solutions(tokenizer, prm_format, [QUESTION] * len(solutions), solutions)
    for solution, steps in zip(encoded, solutions, strict=True):
        whole = f"{QUESTION}\n" + "- ".join(f"{step}{separator}" for step in steps)
        assert solution.input_ids == tokenizer.encode(whole) and len(solution.step_positions) == len(steps)
        closed = f"{QUESTION}\n"
        for index, (step, position) in enumerate(zip(steps, solution.step_positions, strict=True)):
            closed += ("- " if index else "") + step + separator
            # The text up to the position holds the whole separator. Without the last token it does not.
            until, before = (
                tokenizer.decode(solution.input_ids[:end], skip_special_tokens=True)
                for end in (position + 1, position)
            )
            assert len(until.lstrip()) >= len(closed.lstrip()) > len(before.lstrip())


@each_tokenizer
def test_a_separator_inside_a_step_is_reported(name):
    tokenizer = load(name)
    prm_format = PRMFormat(separator="\n", head="token")
    # Many tokenizers have tokens such as `.\n` and `\n\n`, in which the separator has no id of its own.
    for step in ("one\ntwo", "It is 3.\nThen 4.", "a:\nb", "(1)\n(2)", "one\n\ntwo", "one.\n"):
        for tokenization in ("pieces", "text"):
            encoded = replace(prm_format, tokenization=tokenization)
            assert encode_solution(tokenizer, encoded, QUESTION, ["fine", step]).separator_inside == 1
    assert encode_solution(tokenizer, prm_format, QUESTION, STEPS).separator_inside is None


@each_tokenizer
def test_known_white_space_is_never_added_as_a_new_token(name):
    tokenizer = load(name)
    size = len(tokenizer)
    for separator in ("\n", "\n\n", " "):
        assert PRMFormat(separator=separator, head="token").add_missing_tokens(tokenizer) == []
    assert len(tokenizer) == size


# The tokens that a policy sampled


@each_tokenizer
@pytest.mark.parametrize("splitter", ["newline", "whole_lines", "blank_line", "raw_lines"])
def test_a_step_ends_at_the_token_that_holds_its_last_character(name, splitter):
    tokenizer = load(name)
    for text in texts():
        ids = ids_of(tokenizer, text)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        step_ends = list(accumulate(map(len, split_steps(text, splitter))))
        token_ends = step_token_ends(tokenizer, ids, text, step_ends)
        assert token_ends[-1] == len(ids) - 1 and all(first < second for first, second in pairwise(token_ends))
        for token_end, step_end in zip(token_ends[:-1], step_ends[:-1], strict=True):
            before, until = (
                tokenizer.decode(ids[:end], skip_special_tokens=True) for end in (token_end, token_end + 1)
            )
            assert len(before) < step_end <= len(until)


# Chat templates

CHATS = [
    "deepseek-v3", "gemma3", "llama3.1-instruct", "llama3.1-instruct-short", "qwen2.5", "qwen2.5-math", "qwen3",
    "smollm2",
]  # fmt: skip
PREFIX = "First, 3 + 4 = 7.\n"


@pytest.mark.parametrize("name", CHATS)
def test_a_prefix_continues_the_assistants_turn(name):
    tokenizer = load(name)
    user = {"role": "user", "content": QUESTION}
    opening = tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
    ids = PromptFormat(tokenizer).encode(Prompt(QUESTION, PREFIX))
    assert tokenizer.decode(ids) == opening + PREFIX
    assert ids == tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False) + ids_of(
        tokenizer, PREFIX
    )
    answer = {"role": "assistant", "content": f"{PREFIX}So 9."}
    whole = tokenizer.apply_chat_template([user, answer], tokenize=False)
    # Qwen3's template inserts empty thinking before an answer without thinking.
    written = opening + ("<think>\n\n</think>\n\n" if name == "qwen3" else "") + PREFIX
    assert whole.startswith(f"{written}So 9.")


@each_tokenizer
def test_a_prompt_begins_with_one_bos_token_at_most(name):
    tokenizer = load(name)
    for use_chat_template in {False, tokenizer.chat_template is not None}:
        ids = PromptFormat(tokenizer, use_chat_template=use_chat_template).encode(Prompt(QUESTION, PREFIX))
        if tokenizer.bos_token != "<|im_start|>":  # `<|im_start|>` also opens every turn
            assert ids.count(tokenizer.bos_token_id) == int(ids[0] == tokenizer.bos_token_id)
        assert tokenizer.eos_token_id not in ids[-1:]
        assert tokenizer.decode(ids, skip_special_tokens=True).endswith(PREFIX)
