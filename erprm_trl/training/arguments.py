"""Converts the `args` of a trainer into the trainer's own configuration, as TRL's trainers do."""

from dataclasses import fields
from typing import TypeVar

from transformers import TrainingArguments


Config = TypeVar("Config", bound=TrainingArguments)


def as_config(
    args: TrainingArguments,
    config_class: type[Config],
    *,
    subject: str,
    derived: tuple[str, ...] = (),
    redefined: tuple[str, ...] = (),
    excluded: tuple[type, ...] = (),
) -> Config:
    """
    Converts training arguments into the configuration of a trainer.

    Args:
        args ([`~transformers.TrainingArguments`]):
            Training arguments. An instance of `config_class` is returned unchanged.
        config_class (`type`):
            Configuration class of the trainer. Fields of `args` are copied. Fields that `args` does not have keep
            their defaults.
        subject (`str`):
            Name of the trainer, for errors.
        derived (`tuple[str, ...]`, *optional*):
            Fields that are not copied, because the configuration computes them from other fields and does not accept
            both.
        redefined (`tuple[str, ...]`, *optional*):
            Fields that are copied only if their value is not the default of `args`.
        excluded (`tuple[type, ...]`, *optional*):
            Configurations of other trainers, which are refused although `config_class` has their fields, because
            their defaults were chosen for another algorithm.

    Returns:
        An instance of `config_class`.

    Raises:
        `TypeError`: if `args` has another type, or fields that `config_class` does not have, such as the configuration
            of another trainer.
    """
    name = config_class.__name__
    is_own = isinstance(args, config_class) and (issubclass(config_class, excluded) or not isinstance(args, excluded))
    if is_own:
        return args
    if not isinstance(args, TrainingArguments) or isinstance(args, excluded):
        raise TypeError(
            f"{subject}: got args of type {type(args).__name__}, expected {name}. Pass {name}('output_dir', ...)."
        )
    # `to_dict` cannot be used here, because it masks tokens and shortens paths.
    values = {field.name: getattr(args, field.name) for field in fields(args) if field.init}
    foreign = sorted(values.keys() - {field.name for field in fields(config_class)})
    if foreign:
        raise TypeError(
            f"{subject}: got args of type {type(args).__name__} with fields that {name} does not have "
            f"({', '.join(foreign[:4])}{', ...' if foreign[4:] else ''}), expected {name}. Pass "
            f"{name}('output_dir', ...)."
        )
    defaults = {field.name: field.default for field in fields(args) if field.name in redefined}
    left_out = {*derived, *(name for name, default in defaults.items() if values[name] == default)}
    return config_class(**{field: value for field, value in values.items() if field not in left_out})
