"""Policies that call tools by a script, for tests of trainers with tools and environments."""

import json
from pathlib import Path

import trl
from datasets import Dataset
from step_fakes import FakeScorer, by_text, byte_level_bpe, save_tiny, settings

from erprm_trl import PRMFormat, StepGRPOConfig, StepGRPOTrainer, StepPPOConfig, StepPPOTrainer


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


SCRIPTS = [
    [f"I add. {ADD_2_2}", "So 8"],
    ["So 2"],
    [f"{ADD_2_2}\n{ADD_2_2}", f"Again. {ADD_2_2}", "The sum is 7"],
    [ADD_2_2, "So..."],
]
METRICS = "loss steps/per_answer reward kl value/loss return/mean reward_parts/outcome".split()


class Adding:
    """An environment whose only tool is `add`, and whose outcome is whether it was used once."""

    def reset(self, **_):
        self.calls = 0

    def add(self, a: int, b: int) -> int:
        """
        Adds two numbers.

        Args:
            a: The first number.
            b: The second number.
        """
        self.calls += 1
        return a + b

    def get_reward(self):
        return float(self.calls == 1)


def make_model(folder):
    """Saves a policy with the tokenizer of [`chat_tokenizer`]."""
    return save_tiny(folder, chat_tokenizer(), max_position_embeddings=2048)


def trainer_with_tools(name, model, folder, scripts=SCRIPTS, environment=True, **options):
    """A step trainer whose policy follows scripts, with an environment or a tool, and scores by text."""
    trainer_class, config_class = {
        "grpo": (StepGRPOTrainer, StepGRPOConfig),
        "ppo": (StepPPOTrainer, StepPPOConfig),
    }[name]
    tools = {"environment_factory": Adding} if environment else {"tools": [add]}
    more = {"num_generations": len(scripts), "max_completion_length": 500, "beta": 0.1, "optim": "sgd"}
    more |= {"gamma": 1.0, "scale_rewards": "group"}
    trainer = trainer_class(
        model,
        FakeScorer(by_text, PRMFormat()),
        config_class(**settings(folder, **{**more, **options})),
        chats(6),
        **tools,
    )
    follow_scripts(trainer, *scripts)
    return trainer


def train_with_tools(name, model, folder, batch_size):
    """Three updates. The metrics and the weights are saved in the folder."""
    trainer = trainer_with_tools(name, model, folder, per_device_train_batch_size=batch_size, max_steps=3)
    trainer.train()
    trainer.save_model(folder)
    if trainer.accelerator.is_main_process:
        logs = [{key: log[key] for key in METRICS if key in log} for log in trainer.state.log_history[:3]]
        Path(folder, "logs.json").write_text(json.dumps(logs))
