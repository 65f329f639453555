"""Turns a trainer's `args` into its own configuration, as TRL's trainers do."""

from dataclasses import fields
from typing import TypeVar

from transformers import TrainingArguments


Config = TypeVar("Config", bound=TrainingArguments)


def as_config(
    args: TrainingArguments, config_class: type[Config], *, subject: str, derived: tuple[str, ...] = ()
) -> Config:
    """
    The arguments of a training as a trainer's own configuration.

    Args:
        args ([`~transformers.TrainingArguments`]):
            Arguments of the training. An instance of `config_class` is returned unchanged.
        config_class (`type`):
            Configuration class of the trainer. Fields that `args` does not have keep their defaults, all others are
            taken over.
        subject (`str`):
            Name of the trainer, for errors.
        derived (`tuple[str, ...]`, *optional*):
            Fields that the configuration computes from others, and refuses together with these.

    Returns:
        An instance of `config_class`.

    Raises:
        `TypeError`: if `args` is something else, or has fields that `config_class` lacks, such as the configuration of
            another trainer.
    """
    if isinstance(args, config_class):
        return args
    name = config_class.__name__
    if not isinstance(args, TrainingArguments):
        raise TypeError(
            f"{subject}: got args of type {type(args).__name__}, expected {name}. Pass {name}('output_dir', ...)."
        )
    # Not from `to_dict`, which hides tokens and shortens paths.
    values = {field.name: getattr(args, field.name) for field in fields(args) if field.init}
    foreign = sorted(values.keys() - {field.name for field in fields(config_class)})
    if foreign:
        raise TypeError(
            f"{subject}: got args of type {type(args).__name__}, whose fields {', '.join(foreign[:4])}"
            f"{', ...' if foreign[4:] else ''} {name} does not have, expected {name}. Pass {name}('output_dir', ...)."
        )
    return config_class(**{field: value for field, value in values.items() if field not in derived})
