"""Tests the formatting of prompts."""

import json

import pytest
import zoo

from erprm_trl import dial
from erprm_trl.policy.raft.raft_config import RAFTConfig
from erprm_trl.rollouts import CollectConfig, EndpointSampler, Prompt, PromptFormat, TransformersSampler, split_steps
from erprm_trl.rollouts.sampling.base import decode_continuation


CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{% if enable_thinking is false %}<think></think>{% endif %}"
)
EXAMPLES = [{"question": "1+1?", "solution": "It is 2."}, {"question": "1+2?", "solution": " It is 3."}]


class Recording:
    """A tokenizer with one id per character that records the texts it encodes."""

    chat_template = None
    eos_token_id = 0

    def __call__(self, text, add_special_tokens=True):
        self.text, self.add_special_tokens = text, add_special_tokens
        return {"input_ids": [ord(character) for character in text] + [0] * add_special_tokens}

    def apply_chat_template(self, messages, add_generation_prompt, tokenize, **more):
        from jinja2 import Template

        return Template(CHAT).render(messages=messages, add_generation_prompt=add_generation_prompt, **more)


def test_plain_prompts():
    tokenizer = Recording()
    format_ = PromptFormat(tokenizer, "Q: {question}\nA:")
    ids = format_.encode(Prompt("2 {x}?", " 4\n"))
    assert tokenizer.text == "Q: 2 {x}?\nA: 4\n"
    assert ids[-1] == ord("\n")  # the end token that this tokenizer appends is not left before the continuation


def test_a_prefix_begins_the_assistants_turn():
    tokenizer = Recording()
    tokenizer.chat_template = CHAT
    PromptFormat(tokenizer, "{question} Think.", system_prompt="Be brief.").encode(Prompt("2+2?", "Step 1: 4\n"))
    assert tokenizer.text == "<|system|>Be brief.\n<|user|>2+2? Think.\n<|assistant|>Step 1: 4\n"
    assert not tokenizer.add_special_tokens  # the template writes them itself


def test_a_prefix_with_thinking_opens_it_once():
    """Another policy wrote the solution with `<think>`, which the template of this policy writes, too."""
    tokenizer = Recording()
    tokenizer.chat_template = CHAT
    tokenizer.apply_chat_template = lambda *args, **kwargs: "<|user|>2+2?\n<|assistant|><think>\n"
    format_ = PromptFormat(tokenizer)
    format_.encode(Prompt("2+2?", "<think>\nTwo and\n"))
    assert tokenizer.text == "<|user|>2+2?\n<|assistant|><think>\nTwo and\n"
    format_.encode(Prompt("2+2?", "Two and\n"))
    assert tokenizer.text == "<|user|>2+2?\n<|assistant|><think>\nTwo and\n"
    format_.encode(Prompt("2+2?", "<think>\nTwo", prefix_ids=(7,)))  # the policy itself wrote these tokens
    assert tokenizer.text == "<|user|>2+2?\n<|assistant|><think>\n"


def test_prompt_errors():
    with pytest.raises(ValueError, match=r"contain '\{question\}'"):
        PromptFormat(Recording(), "no place")
    with pytest.raises(ValueError, match="no chat template"):
        PromptFormat(Recording(), use_chat_template=True)
    with pytest.raises(ValueError, match="got a system prompt without a chat template"):
        PromptFormat(Recording(), system_prompt="x")
    with pytest.raises(ValueError, match=r"chat_template_kwargs: got .*without a chat template.*Leave them out"):
        PromptFormat(Recording(), chat_template_kwargs={"enable_thinking": False})
    chat = Recording()
    chat.chat_template = CHAT
    with pytest.raises(ValueError, match=r"chat_template_kwargs: got .*set use_chat_template=True"):
        PromptFormat(chat, use_chat_template=False, chat_template_kwargs={"enable_thinking": False})


def test_a_chat_template_can_be_disabled_and_has_arguments():
    tokenizer = Recording()
    tokenizer.chat_template = CHAT
    assert PromptFormat(tokenizer).render(Prompt("2+2?")) == "<|user|>2+2?\n<|assistant|>"
    assert PromptFormat(tokenizer, use_chat_template=False).render(Prompt("2+2?")) == "2+2?"
    silent = PromptFormat(tokenizer, chat_template_kwargs={"enable_thinking": False})
    assert silent.render(Prompt("2+2?")) == "<|user|>2+2?\n<|assistant|><think></think>"
    silent.encode(Prompt("2+2?", "4"))
    assert tokenizer.text == "<|user|>2+2?\n<|assistant|><think></think>4"
    assert silent.settings["chat_template_kwargs"] == {"enable_thinking": False}
    # as older releases wrote them
    assert PromptFormat(tokenizer).settings.keys() == {"prompt_template", "system_prompt", "use_chat_template"}


def test_a_prompt_text_is_used_unchanged():
    tokenizer = Recording()
    format_ = PromptFormat(tokenizer, "Q: {question}\nA:")
    format_.encode(Prompt("2+2?", " 4", prompt="Think, then add two and two:"))
    assert tokenizer.text == "Think, then add two and two: 4" and tokenizer.add_special_tokens
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two and two?"}]
    with pytest.raises(ValueError, match=r"got the messages .*expected a text.*Set the tokenizer's chat_template"):
        format_.encode(Prompt("2+2?", prompt=messages))
    format_.encode(Prompt("2+2?", " 4", prompt=messages[1:]))
    assert tokenizer.text == "Two and two? 4"
    tokenizer.chat_template = CHAT
    format_ = PromptFormat(tokenizer, chat_template_kwargs={"enable_thinking": False})
    format_.encode(Prompt("2+2?", "4", prompt=messages))
    assert tokenizer.text == "<|system|>Be brief.\n<|user|>Two and two?\n<|assistant|><think></think>4"
    assert not tokenizer.add_special_tokens
    format_.encode(Prompt("2+2?", " 4", prompt="Add:"))
    assert tokenizer.text == "Add: 4" and tokenizer.add_special_tokens


def test_examples_are_messages_or_text():
    tokenizer = Recording()
    plain = PromptFormat(tokenizer, "Question: {question}\nAnswer:", examples=EXAMPLES)
    # " It is 3." brings its own space
    assert plain.render(Prompt("2+2?")) == (
        "Question: 1+1?\nAnswer: It is 2.\n\nQuestion: 1+2?\nAnswer: It is 3.\n\nQuestion: 2+2?\nAnswer:"
    )
    assert PromptFormat(tokenizer, "{question}\n", examples=EXAMPLES[:1]).render(Prompt("2+2?")) == (
        "1+1?\nIt is 2.\n\n2+2?\n"
    )
    tokenizer.chat_template = CHAT
    chat = PromptFormat(tokenizer, "{question} Think.", system_prompt="Be brief.", examples=EXAMPLES[:1])
    assert chat.render(Prompt("2+2?")) == (
        "<|system|>Be brief.\n<|user|>1+1? Think.\n<|assistant|>It is 2.\n<|user|>2+2? Think.\n<|assistant|>"
    )
    assert json.loads(json.dumps(chat.settings))["examples"] == EXAMPLES[:1]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("make", [zoo.byte_level_bpe, zoo.sentencepiece_style])
def test_a_prefix_is_encoded_as_its_sampled_tokens(make, chat):
    tokenizer = make()
    tokenizer.chat_template = CHAT if chat else None
    format_ = PromptFormat(tokenizer)
    prompt = Prompt("What is 7 + 15?")
    opening = format_.encode(prompt)
    # one token per letter, which a policy may sample but no tokenizer would produce
    text = "\nHälfte von 22\n\nist 11.\n"
    letters = [token for letter in text for token in tokenizer(letter, add_special_tokens=False)["input_ids"]]
    text = decode_continuation(tokenizer, opening, letters)
    steps = split_steps(text, "newline")
    prefixes = ["".join(steps[:count]) for count in range(1, len(steps) + 1)]
    cuts = format_.prefix_ids(prompt, letters, prefixes)
    for prefix, prefix_ids in zip(prefixes, cuts, strict=True):
        assert decode_continuation(tokenizer, opening, list(prefix_ids)) == prefix
        assert list(prefix_ids) == letters[: len(prefix_ids)]
        continued = prompt._replace(prefix=prefix, prefix_ids=prefix_ids)
        assert format_.encode(continued) == opening + list(prefix_ids)
        assert format_.encode(continued) != format_.encode(continued._replace(prefix_ids=None))
    assert cuts[-1] == tuple(letters)
    assert format_.prefix_ids(prompt, (), prefixes) == [None] * len(prefixes)  # a server that returns no ids


@pytest.mark.parametrize(
    "bad", [{"question": "1+1?"}, {"question": "1+1?", "solution": ""}, "1+1? 2", {**EXAMPLES[0], "answer": "2"}]
)
def test_the_error_names_an_invalid_example(bad):
    with pytest.raises(ValueError, match=r"examples\[1\]: got .*expected a mapping with the texts 'question'"):
        PromptFormat(Recording(), examples=[EXAMPLES[0], bad])


def test_samplers_and_configurations_accept_all_settings(tmp_path):
    settings = {"chat_template_kwargs": {"enable_thinking": False}, "examples": EXAMPLES}
    collect = CollectConfig(
        str(dial.BASE_PATH),
        "rows",
        "folder",
        backend="endpoint",
        base_url="http://localhost:1/v1",
        use_chat_template=False,
        examples=json.dumps(EXAMPLES),  # as on the command line
    )
    assert isinstance(collect._sampler(), EndpointSampler)
    assert collect._sampler().settings["examples"] == EXAMPLES
    assert not collect._sampler().settings["use_chat_template"]
    collect.backend = "transformers"
    assert collect._sampler().settings["examples"] == EXAMPLES
    raft = RAFTConfig(
        str(tmp_path), report_to="none", bf16=False, **{name: json.dumps(value) for name, value in settings.items()}
    )
    assert settings.items() <= raft.prompt_settings.items()
    tokenizer = dial.build_tokenizer()
    tokenizer.chat_template = CHAT
    sampler = TransformersSampler.from_pretrained(dial.BASE_PATH)
    sampler = TransformersSampler(sampler.model, tokenizer, **settings)
    assert settings.items() <= sampler.settings.items()
