"""Policies that call tools by a script, for tests of trainers with tools and environments."""

from pathlib import Path

import trl
from datasets import Dataset
from zoo import byte_level_bpe


START, END = "<|im_start|>", "<|im_end|>"
ADD_2_2 = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call>'
RESULT_4 = "<tool_response>\n4\n</tool_response>"


def add(a: int, b: int) -> int:
    """
    Adds two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


def chat_tokenizer():
    """A byte-level tokenizer with the chat template of Qwen2.5, whose tool calls TRL can parse."""
    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens(
        {"eos_token": END, "pad_token": "<|endoftext|>", "additional_special_tokens": [START]}
    )
    template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def chats(count, **columns):
    """A dataset of conversational prompts, with other columns."""
    prompts = [[{"role": "user", "content": f"What is {index} + 4?"}] for index in range(count)]
    return Dataset.from_dict({"prompt": prompts, **columns})


def follow_scripts(trainer, *scripts):
    """
    Replaces a trainer's generation: the n-th completion of each group follows the n-th script, a list of turns. A turn
    that ends with `...` is truncated there, which means that it has no end token.
    """

    def token_ids(turn):
        text = turn.removesuffix("...")
        return trainer._tokenizer.encode(text + END * (text == turn), add_special_tokens=False)

    def generate(prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        first = trainer.accelerator.process_index * len(prompt_ids)
        turns = []
        for row, ids in enumerate(prompt_ids):
            said = trainer._tokenizer.decode(ids).split(f"{START}assistant\n")[1:-1]
            if said:
                script = next(script for script in scripts if said[0].startswith(script[0] + END))
            else:
                script = scripts[(first + row) % len(scripts)]
            turns.append(token_ids(script[len(said)]))
        return turns, None

    trainer._generate_single_turn = generate
