"""Configuration of [`ERPRMTrainer`]: what TRL's configurations have, and what process supervision adds."""

from dataclasses import dataclass, field, replace
from typing import Any

from ..._trl import BaseConfig
from ...training.tracking.tracking_config import TrackingConfig
from ..prm_format import PRMFormat


FORMAT_FIELDS = (
    "separator",
    "good_token",
    "bad_token",
    "head",
    "prompt_template",
    "splitter",
    "steps_of",
    "aggregation",
)


@dataclass
class ERPRMConfig(TrackingConfig, BaseConfig):
    r"""
    Configuration class for the [`ERPRMTrainer`].

    Only the parameters specific to process reward models are listed here; see [`~transformers.TrainingArguments`] for
    the others.

    Parameters:
        > Parameters that control the labels

        eta (`float`, *optional*, defaults to `2.0`):
            Inverse reward temperature of the labels made from a rollout folder: 0 is Math-Shepherd's soft estimation,
            `inf` its hard estimation. Not used with datasets that already hold labels.
        label_estimator (`str`, *optional*):
            How labels are made from a rollout folder: `"sample"` or `"posterior"`, see
            [`~erprm_trl.rollouts.RolloutDataset.labels`], which chooses if this is unset.
        label_weighting (`str`, *optional*, defaults to `"none"`):
            `"precision"` weights each step's training loss by how certain its label is
            ([`~erprm_trl.functional.precision_weights`]), scaled to a mean of 1 over the training steps. Needs labels
            with `label_std`, which the estimator `"posterior"` gives. Evaluation is not weighted.
        label_smoothing_factor (`float`, *optional*, defaults to `0.0`):
            Moves the training labels towards 0.5: a label v becomes (1 - s) v + s / 2. Evaluation labels are not
            changed.
        train_on_last_step_only (`bool`, *optional*, defaults to `False`):
            Trains on the last step's label alone: an outcome reward model. As with TRL's `PRMTrainer`, evaluation uses
            all steps.
        invalid_rows (`str`, *optional*, defaults to `"error"`):
            `"error"` stops at the first row that cannot be used. `"drop"` skips such rows and logs their number.

        > Parameters that control the format. Those left unset come from the model's own `prm_format.json` if it has
        > one, else from [`PRMFormat`]'s defaults. For a model without `prm_format.json`, `splitter` and `steps_of`
        > come from the rollouts that it is trained on.

        format_preset (`str`, *optional*):
            Takes them from a preset instead, to continue the training of a public reward model, see
            [`PRMFormat.preset`].
        separator, good_token, bad_token, head, prompt_template, splitter, steps_of, aggregation (`str`, *optional*):
            See [`PRMFormat`].
        add_missing_tokens (`bool`, *optional*, defaults to `False`):
            Adds separator, good token and bad token to the vocabulary if the tokenizer does not encode them as one
            id. Added tokens are trained, also with LoRA. White space that the tokenizer knows is not added.

        > Parameters that control the model

        model_init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments for `from_pretrained`, used when `model` is a string. `dtype` defaults to `float32`.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that a model repository ships.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to disable dropout in the model.

        > Parameters that control the data preprocessing

        max_length (`int` or `None`, *optional*, defaults to `1024`):
            Maximum sequence length in tokens; the model's context length if that is shorter. Whole steps at the end of
            a longer solution are dropped until it fits, and their number is logged.
        dataset_num_proc (`int`, *optional*):
            Number of processes that prepare the dataset.
        pad_to_multiple_of (`int`, *optional*):
            Pads batches to a multiple of this length.
        packing (`bool`, *optional*, defaults to `False`):
            Concatenates short solutions of a batch up to the length of its longest, instead of padding each of them.
            They do not attend to each other, which is checked on the first batch. A batch still has
            `per_device_train_batch_size` solutions. Useful with `train_sampling_strategy="random"`, or if the lengths
            differ much.

        > Parameters that control the tracking

        num_logged_solutions (`int`, *optional*, defaults to `8`), log_artifacts (`list[str]`, *optional*):
            See [`~erprm_trl.training.tracking.TrackingConfig`].

    > [!NOTE]
    > Defaults that differ from [`~transformers.TrainingArguments`]: `learning_rate` 1e-5, `logging_steps` 10,
    > `gradient_checkpointing` True, `bf16` True unless `fp16`, `train_sampling_strategy` `"group_by_length"`.
    """

    _VALID_DICT_FIELDS = BaseConfig._VALID_DICT_FIELDS + ["model_init_kwargs"]

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "Order of training examples: 'random', 'sequential', 'group_by_length' or 'batch_rebalance'."
        },
    )

    # Parameters that control the labels
    eta: float = field(
        default=2.0,
        metadata={
            "help": "Inverse reward temperature of labels made from a rollout folder: 0 is soft estimation, inf is "
            "hard estimation."
        },
    )
    label_estimator: str | None = field(
        default=None,
        metadata={
            "help": "How rollouts become labels: 'sample' or 'posterior'. Default: posterior if adaptive.",
            "choices": ["sample", "posterior"],
        },
    )
    label_weighting: str = field(
        default="none",
        metadata={
            "help": "'precision' weights the loss of each step by how certain its label is.",
            "choices": ["none", "precision"],
        },
    )
    train_on_last_step_only: bool = field(
        default=False, metadata={"help": "Train on the last step's label alone: an outcome reward model."}
    )
    invalid_rows: str = field(
        default="error",
        metadata={
            "help": "'error' stops at the first unusable row, 'drop' skips such rows and logs their number.",
            "choices": ["error", "drop"],
        },
    )

    # Parameters that control the format
    format_preset: str | None = field(
        default=None,
        metadata={"help": "Format of a public reward model whose training continues, e.g. 'math-shepherd'."},
    )
    separator: str | None = field(default=None, metadata={"help": "Text after each step. Default: a newline."})
    good_token: str | None = field(
        default=None, metadata={"help": "Predicted after a right step; one token. Default: '+'."}
    )
    bad_token: str | None = field(
        default=None, metadata={"help": "Predicted after a wrong step; one token. Default: '-'."}
    )
    head: str | None = field(
        default=None,
        metadata={
            "help": "'lm' (good and bad token of a causal LM, the default) or 'token' (one logit, token "
            "classification).",
            "choices": ["lm", "token"],
        },
    )
    prompt_template: str | None = field(
        default=None,
        metadata={"help": "Text before the first step, with {question} in it. Default: '{question}' and a newline."},
    )
    splitter: str | None = field(
        default=None,
        metadata={
            "help": "How raw text is split: 'newline' (default), 'whole_lines', 'blank_line', 'step' or a separator."
        },
    )
    steps_of: str | None = field(
        default=None,
        metadata={
            "help": "Part of a text with <think> that is split and scored: both (default), thinking or answer.",
            "choices": ["both", "thinking", "answer"],
        },
    )
    aggregation: str | None = field(
        default=None,
        metadata={
            "help": "From step scores to one score: min (default), last, product or mean.",
            "choices": ["min", "last", "product", "mean"],
        },
    )
    add_missing_tokens: bool = field(
        default=False,
        metadata={"help": "Add separator, good and bad token to the vocabulary if they are not one token each."},
    )

    # Parameters that control the model
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments for from_pretrained, used when the model is given as a string."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether to run Python code that a model repository ships."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Whether to disable dropout in the model."})

    # Parameters that control the data preprocessing
    max_length: int | None = field(
        default=1024,
        metadata={
            "help": "Maximum sequence length in tokens; whole steps at the end are dropped until a solution fits."
        },
    )
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that prepare the dataset."})
    pad_to_multiple_of: int | None = field(
        default=None, metadata={"help": "Pads batches to a multiple of this length."}
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Concatenate short solutions of a batch instead of padding each of them."},
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.label_smoothing_factor <= 1:
            raise ValueError(
                f"label_smoothing_factor: got {self.label_smoothing_factor}, expected a number from 0 (labels as they "
                "are) to 1 (all labels one half)."
            )

    def resolve_format(self, saved: PRMFormat | None, default: PRMFormat | None = None) -> PRMFormat:
        """
        The format to train with: fields set here, else the preset's, else the model's own, else the defaults.

        Args:
            saved ([`PRMFormat`], *optional*):
                Format of the model that is trained, from its `prm_format.json`.
            default ([`PRMFormat`], *optional*):
                Takes the place of [`PRMFormat`]'s defaults.
        """
        base = saved or default or PRMFormat()
        if self.format_preset is not None:
            base = PRMFormat.preset(self.format_preset)
        chosen = {name: getattr(self, name) for name in FORMAT_FIELDS if getattr(self, name) is not None}
        if chosen.keys() & {"separator", "good_token", "bad_token"}:
            chosen["expected_ids"] = None  # other tokens have other ids
        return replace(base, **chosen)
