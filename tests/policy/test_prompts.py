"""Prompt datasets from questions and from the recipes' arguments."""

import json

import pytest
from step_fakes import word_level

from erprm_trl.policy import PromptArguments, prompt_dataset
from erprm_trl.rollouts import Question


QUESTIONS = [Question("7 + 1?", "8"), Question("9 + 9?", "18")]
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def test_plain_and_conversational_prompts_are_built():
    plain = prompt_dataset(QUESTIONS, prompt_template="Q: {question}")
    assert plain.to_list()[0] == {"prompt": "Q: 7 + 1?", "question": "7 + 1?", "answer": "8"}
    chat = prompt_dataset(QUESTIONS, system_prompt="Add.", conversational=True, answers=False)
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "9 + 9?"}]
    assert chat.to_list()[1] == {"prompt": messages, "question": "9 + 9?"}


def test_rows_that_are_no_questions_are_an_error():
    with pytest.raises(TypeError, match=r"questions\[0\]: got a dict, expected a Question. Pass load_questions"):
        prompt_dataset([{"question": "1 + 1?", "answer": "2"}])


def test_a_system_prompt_without_a_conversation_is_an_error_with_fixes_that_work():
    with pytest.raises(ValueError, match="system_prompt: got 'Add.' .* Set conversational=True .--use_chat_template"):
        prompt_dataset(QUESTIONS, system_prompt="Add.")
    prompt_dataset(QUESTIONS, system_prompt="Add.", conversational=True)
    prompt_dataset(QUESTIONS, prompt_template="Add. {question}")
    with pytest.raises(ValueError, match="prompt_template: got 'Add.', expected a text with '{question}'"):
        prompt_dataset(QUESTIONS, prompt_template="Add.")
    rows = {"dataset_name": "erprm_trl.dial:make_questions", "train_questions_kwargs": {"num_questions": 2, "seed": 1}}
    with pytest.raises(ValueError, match="system_prompt: got 'Add.'"):
        PromptArguments(**rows, system_prompt="Add.").datasets(word_level())
    PromptArguments(**rows, system_prompt="Add.", use_chat_template=True).datasets(word_level())


def test_columns_of_the_source_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = [{"text": "7 + 1?", "problem": "other", "result": "8"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = PromptArguments("~/rows.jsonl", use_answers=False)
    assert arguments.datasets(word_level())[0].to_list() == [{"prompt": "other", "question": "other"}]
    with pytest.raises(ValueError, match="Name the right one with `answer_column`"):
        PromptArguments("~/rows.jsonl").datasets(word_level())
    made, evaluation = PromptArguments("~/rows.jsonl").datasets(
        word_level(), question_column="text", answer_column="result"
    )
    assert made.to_list() == [{"prompt": "7 + 1?", "question": "7 + 1?", "answer": "8"}] and evaluation is None


def test_prompts_are_conversational_by_default_if_there_is_a_chat_template():
    rows = {"dataset_name": "erprm_trl.dial:make_questions", "train_questions_kwargs": {"num_questions": 2, "seed": 1}}
    tokenizer = word_level()
    tokenizer.chat_template = CHAT
    assert isinstance(PromptArguments(**rows).datasets(tokenizer)[0][0]["prompt"], list)
    plain = PromptArguments(**rows, use_chat_template=False, eval_questions_kwargs='{"num_questions": 1, "seed": 2}')
    made, evaluation = plain.datasets(tokenizer)
    assert isinstance(made[0]["prompt"], str) and len(made) == 2 and len(evaluation) == 1
