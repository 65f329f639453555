"""Reward models without a model and policies without sampling, for tests of the step rewards and trainers."""

import zlib

from datasets import Dataset
from zoo import ODD, ZOO, byte_level_bpe, save_tiny, sentencepiece_style, tiny_llama, word_level

from erprm_trl import PRMFormat, dial


__all__ = [
    "ODD",
    "ZOO",
    "FakeScorer",
    "byte_level_bpe",
    "by_last_number",
    "by_text",
    "encode",
    "generate_fixed",
    "questions",
    "save_tiny",
    "sentencepiece_style",
    "settings",
    "tiny_llama",
    "word_level",
]

DIAL_FORMAT = PRMFormat(
    separator=dial.SEPARATOR,
    good_token=dial.GOOD_MARK,
    bad_token=dial.BAD_MARK,
    prompt_template="check {question}",
    splitter=dial.SEPARATOR,
)


class FakeScorer:
    """
    A scoring backend that scores steps by a function of their text. Solutions of more than `max_steps` steps are too
    long. `calls` holds the questions and steps of each call.
    """

    model_name, context_length = "fake", None

    def __init__(self, function, prm_format=DIAL_FORMAT, max_steps=None, weights=None):
        self.function, self.prm_format, self.max_steps, self.weights = function, prm_format, max_steps, weights
        self.calls = []

    def score(self, questions, steps, skip_too_long):
        self.calls.append((list(questions), [list(solution) for solution in steps]))
        too_long = [self.max_steps is not None and len(solution) > self.max_steps for solution in steps]
        assert skip_too_long or not any(too_long)
        return [
            [] if long else [self.function(step) for step in solution]
            for solution, long in zip(steps, too_long, strict=True)
        ]


def by_last_number(step):
    """Scores a step by its last digit: 0.7 for a step that ends in 7."""
    return int(step.split()[-1]) / 10


def by_text(step):
    """A reproducible score for any text."""
    return zlib.crc32(step.encode()) % 1000 / 1000


def encode(tokenizer, *texts):
    """The token ids of texts. `</s>` is the end token."""
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def generate_fixed(trainer, completions):
    """Replaces a trainer's generation by these completions, in the order of the prompts of each call."""

    def generate(prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        return [list(ids) for ids in completions[: len(prompt_ids)]], None

    assert hasattr(trainer, "_generate_single_turn"), "TRL samples in another method now. Patch that method."
    trainer._generate_single_turn = generate


def questions(count, **columns):
    """A dataset of dial questions as prompts, with other columns."""
    rows = dial.make_questions(count, seed=5)
    return Dataset.from_dict({"prompt": [row["question"] for row in rows], **columns})


def settings(folder, **others):
    """Arguments of a tiny run on the CPU."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 12,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        **others,
    }
