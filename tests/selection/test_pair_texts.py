"""The forms of pairs: after TRL's tokenization, the prompt has the tokens that the sampler gave to the policy, and the
completion has the tokens of the solution and its end token."""

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from doc_pages import CHAT_TEMPLATE
from public_models import byte_tokenizer
from trl import DPOConfig, DPOTrainer

from erprm_trl.io import load_tokenizer
from erprm_trl.rollouts import CollectionSettings, Prompt, PromptFormat
from erprm_trl.selection.pair_texts import PairTexts, suits_messages
from erprm_trl.selection.solution_pairs import Pair


FOLDER = Path(os.environ.get("ERPRM_TOKENIZERS", "no such folder"))
WITH_TEMPLATE = [
    "deepseek-v3", "gemma3", "llama3.1-instruct", "llama3.1-instruct-short", "metamath-mistral", "mistral-v3",
    "qwen2.5", "qwen2.5-math", "qwen3", "smollm2",
]  # fmt: skip
PAIR = Pair("What is 3 + 4?", "", "3 + 4 = 7\nThe answer is 7.", "3 + 4 = 8\nThe answer is 8.", 1.0, 0.0)
STEPS = Pair("What is 3 + 4?", "We add.\n\n", "So 7.", "3 + 4 = 8.\n", 0.9, 0.1, True, False)


def settings_of(sampler):
    return CollectionSettings(num_questions=1, num_solutions=2, chunk_size=1, sampler=sampler)


def chat_tokenizer():
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


@cache
def load(name):
    if not (FOLDER / name).is_dir():
        pytest.skip(f"ERPRM_TOKENIZERS names no folder with {name}")
    if not (FOLDER / name / "tokenizer.json").exists() and find_spec("sentencepiece") is None:
        pytest.skip(f"{name} needs the package sentencepiece")
    tokenizer = load_tokenizer(FOLDER / name)
    if tokenizer.chat_template is None:
        pytest.skip(f"{name} has no chat template")
    return tokenizer


def trl_ids(row, tokenizer):
    """The token ids that DPOTrainer makes of a row."""
    from datasets import Dataset

    args = DPOConfig("unused", use_cpu=True, bf16=False, report_to="none", max_length=None)
    dataset = Dataset.from_list([row])
    prepared = DPOTrainer._prepare_dataset(  # a public way would need a model
        type("Tokenizes", (), {"_tokenizer": tokenizer})(), dataset, tokenizer, args, "train"
    )[0]
    return prepared["prompt_ids"], prepared["chosen_ids"], prepared["rejected_ids"]


def check_ids(pair, tokenizer, sampler, *, conversational, with_ends=False):
    """Compares TRL's ids with those of the sampler's prompt and of the texts."""
    texts = PairTexts(settings_of(sampler), conversational=conversational, with_ends=with_ends, tokenizer=tokenizer)
    prompt, chosen, rejected = trl_ids(texts.row(pair), tokenizer)
    prompt_format = PromptFormat(tokenizer, **{key: value for key, value in sampler.items() if key != "model"})
    opening = prompt_format.encode(Prompt(pair.question, pair.prefix))
    if pair.prefix:  # the end of a prefix may be encoded together with the text after it
        assert prompt == opening[: len(prompt)] and len(prompt) >= len(opening) - 3
    else:
        assert prompt == opening
    for ids, text in ((chosen, pair.chosen), (rejected, pair.rejected)):
        whole, before = tokenizer.decode(prompt + ids), tokenizer.decode(opening)
        assert whole.startswith(before + text)
        assert whole[len(before + text) :].strip() == tokenizer.eos_token
    return prompt, chosen, rejected


def test_plain_text_with_a_template_and_examples():
    sampler = {
        "prompt_template": "Q: {question}\nA:",
        "use_chat_template": False,
        "examples": [{"question": "1 + 1?", "solution": "2"}],
    }
    row = PairTexts(settings_of(sampler), conversational=False, with_ends=False).row(STEPS)
    assert row == {
        "prompt": "Q: 1 + 1?\nA: 2\n\nQ: What is 3 + 4?\nA:We add.\n\n",
        "chosen": "So 7.",
        "rejected": "3 + 4 = 8.\n",
        "score_chosen": 0.9,
        "score_rejected": 0.1,
    }
    check_ids(PAIR, byte_tokenizer([]), sampler, conversational=False)
    row = PairTexts(settings_of({}), conversational=False, with_ends=True).row(STEPS)
    assert row["prompt"] == "What is 3 + 4?We add.\n\n"
    assert (row["chosen_ends"], row["rejected_ends"]) == (True, False)


def test_messages_are_those_of_the_sampler():
    sampler = {
        "prompt_template": "{question} Think.",
        "system_prompt": "Be brief.",
        "use_chat_template": True,
        "chat_template_kwargs": {"enable_thinking": False},
        "examples": [{"question": "1 + 1?", "solution": "2"}],
    }
    row = PairTexts(settings_of(sampler), conversational=True, with_ends=False).row(PAIR)
    assert row["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1? Think."},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "What is 3 + 4? Think."},
    ]
    assert row["chosen"] == [{"role": "assistant", "content": PAIR.chosen}]
    assert row["rejected"] == [{"role": "assistant", "content": PAIR.rejected}]
    assert row["chat_template_kwargs"] == {"enable_thinking": False}
    check_ids(PAIR, chat_tokenizer(), sampler, conversational=True)


def test_a_prefix_is_written_inside_the_assistants_turn():
    tokenizer = chat_tokenizer()
    sampler = {"use_chat_template": True, "system_prompt": "Be brief."}
    row = PairTexts(settings_of(sampler), conversational=False, with_ends=True, tokenizer=tokenizer).row(STEPS)
    assert row["prompt"] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n"
        "<|im_start|>assistant\nWe add.\n\n"
    )
    assert (row["chosen"], row["rejected"]) == ("So 7.<|im_end|>", "3 + 4 = 8.\n")
    _, chosen, rejected = check_ids(STEPS, tokenizer, sampler, conversational=False, with_ends=True)
    assert chosen.count(tokenizer.eos_token_id) == rejected.count(tokenizer.eos_token_id) == 1


def test_a_template_that_inserts_text_before_an_answer_does_not_suit_messages(tmp_path):
    tokenizer = chat_tokenizer()
    settings = settings_of({"use_chat_template": True})
    assert suits_messages(settings, tokenizer)
    content = "{{ message['content'] }}"
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        content, "{% if message['role'] == 'assistant' %}<think>\n</think>\n{% endif %}" + content
    )
    assert not suits_messages(settings, tokenizer)
    assert not suits_messages(settings_of({"use_chat_template": False}), tokenizer)
    # without the tokenizer the template cannot be checked
    assert suits_messages(settings_of({"use_chat_template": True, "model": str(tmp_path / "served")}))


def test_messages_of_a_collection_without_a_chat_template_are_refused():
    with pytest.raises(ValueError, match=r"conversational: got True .*no chat template"):
        PairTexts(settings_of({"use_chat_template": False}), conversational=True, with_ends=False)


def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path):
    sampler = {"use_chat_template": True, "model": str(tmp_path / "served-name")}
    with pytest.raises(ValueError, match=r"served-name.*Pass tokenizer="):
        PairTexts(settings_of(sampler), conversational=False, with_ends=False)


def test_halves_of_surrogate_pairs_are_replaced():
    pair = Pair("a \ud800", "", "b \udc00", "c", 1.0, 0.0)
    row = PairTexts(settings_of({}), conversational=False, with_ends=False).row(pair)
    assert (row["prompt"], row["chosen"]) == ("a \ufffd", "b \ufffd")


@pytest.mark.slow("loads real tokenizers")
@pytest.mark.parametrize("conversational", [True, False], ids=["messages", "text"])
@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_real_chat_templates(name, conversational):
    tokenizer = load(name)
    sampler = {"use_chat_template": True, "prompt_template": "{question}\nReason step by step."}
    if conversational:  # this template writes empty thinking before an answer, unless the prompt has it
        assert suits_messages(settings_of(sampler), tokenizer) == (name != "qwen3")
    if conversational and name == "qwen3":
        sampler["chat_template_kwargs"] = {"enable_thinking": False}
        assert suits_messages(settings_of(sampler), tokenizer)
    check_ids(PAIR, tokenizer, sampler, conversational=conversational)
    if not conversational:
        check_ids(STEPS, tokenizer, sampler, conversational=False, with_ends=True)
