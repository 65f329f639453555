"""Configuration of [`ERPRMTrainer`]: TRL's parameters and the parameters of process supervision."""

from dataclasses import dataclass, field, replace
from typing import Any

from ..._trl import BaseConfig
from ...rollouts.label_options import Judge, LabelOptions
from ...training.precision import choose_precision
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
    "reference_model",
    "beta",
)
DEFAULT_BETA = 0.05
"""Coefficient of the log-ratio of a new implicit reward model."""


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
            `inf` is its hard estimation. It is not used with datasets that already have labels.
        recorded_eta (`float`, *optional*):
            Eta of the labels that is recorded in the model's format, so that its scores can be read at another eta.
            Defaults to `eta` for rollouts with the grading `"math"` or `"exact"`, whose rewards are 0 and 1. Set it
            for a dataset that already has labels (0 if they are success rates), or for your own grading with rewards
            of 0 and 1.
        label_estimator (`str`, *optional*):
            How labels are made from a rollout folder: `"sample"` or `"posterior"`. Defaults to `"posterior"` for
            adaptive collections at finite `eta`, else to `"sample"`, see
            [`~erprm_trl.rollouts.RolloutDataset.labels`].
        min_question_rate (`float`, *optional*, defaults to `0.0`):
            Leaves out training rollouts of questions that the completer solves at a lower rate. This option and the
            next four apply to rollout folders for training only, see [`~erprm_trl.rollouts.LabelOptions`]. The judge
            `agree_with` is an argument of [`ERPRMTrainer`].
        relative_labels (`bool`, *optional*, defaults to `False`):
            Whether to divide the rate of each prefix by the rate of its question (`relative`).
        error_tolerance (`int`, *optional*):
            In wrong solutions, only steps at most this far from the first failing prefix keep their value. Earlier
            steps get label 1, later steps get label 0.
        label_correct_solutions (`str`, *optional*, defaults to `"continuations"`):
            `"ones"` labels every step of a right solution with 1.
        agreement_tolerance (`int`, *optional*, defaults to `0`):
            Steps by which the first errors of the judge and of the continuations may differ.
        label_weighting (`str`, *optional*, defaults to `"none"`):
            `"precision"` weights each step's training loss by the certainty of its label
            ([`~erprm_trl.functional.precision_weights`]), scaled to a mean of 1 over the training steps. It needs
            labels with `label_std`, which the estimator `"posterior"` gives. The evaluation loss is not weighted.
        label_smoothing_factor (`float`, *optional*, defaults to `0.0`):
            Moves the training labels towards 0.5: a label v becomes (1 - s) v + s / 2. Evaluation labels are not
            changed.
        train_on_last_step_only (`bool`, *optional*, defaults to `False`):
            Whether to train only on the last step's label, as for an outcome reward model. As in TRL's `PRMTrainer`,
            evaluation uses all steps.
        invalid_rows (`str`, *optional*, defaults to `"error"`):
            `"error"` raises an error at the first unusable row. `"drop"` skips such rows and logs their number.
        mixture_stopping_strategy (`str`, *optional*, defaults to `"all_exhausted"`):
            Length of an epoch of several sources with weights ([`LabelledSource`]). `"all_exhausted"` uses every row
            at least once and repeats rows of sources with a high weight. `"first_exhausted"` repeats no row and leaves
            out rows of sources with a low weight. The numbers are logged and listed in the model card.

        > Parameters that control the format. Parameters that are not set come from the model's own `prm_format.json`
        > if it has one, else from the defaults of [`PRMFormat`]. For a model without `prm_format.json`, `splitter` and
        > `steps_of` come from the training rollouts.

        format_preset (`str`, *optional*):
            Name of the preset to take the format from instead, to continue the training of a public reward model, see
            [`PRMFormat.preset`].
        separator, good_token, bad_token, head, prompt_template, splitter, steps_of, aggregation (`str`, *optional*):
            See [`PRMFormat`]. `head="implicit"` trains an implicit process reward model on the outcomes of solutions:
            the label of a row's last step, a column `label`, or the rewards of rollouts, which need no continuations.
        reference_model (`str`, *optional*):
            Folder or Hub id of the reference model of `head="implicit"`. Defaults to the model that the training
            starts from, or to its own reference model if it is an implicit reward model.
        beta (`float`, *optional*):
            Coefficient of the log-ratio of `head="implicit"`. Defaults to 0.05 for a new implicit reward model.
        add_missing_tokens (`bool`, *optional*, defaults to `False`):
            Whether to add the separator, the good token and the bad token to the vocabulary if the tokenizer does not
            encode them as one id. Added tokens are trained, also with LoRA. White space that the tokenizer knows is
            never added.

        > Parameters that control the model

        model_init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments for `from_pretrained`, used when `model` is a string. `dtype` defaults to `float32`.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code from a model repository.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to disable dropout in the model.

        > Parameters that control the data preprocessing

        max_length (`int` or `None`, *optional*, defaults to `1024`):
            Maximum sequence length in tokens, or the model's context length if that is shorter. Whole steps at the end
            of a longer solution are dropped until it fits, and their number is logged.
        dataset_num_proc (`int`, *optional*):
            Number of processes that prepare the dataset.
        pad_to_multiple_of (`int`, *optional*):
            Pads batches to a multiple of this length.
        packing (`bool`, *optional*, defaults to `False`):
            Whether to concatenate short solutions in a row, instead of padding each of them. They do not attend to
            each other, which is checked on the first batch. With FlashAttention, all solutions of a batch are in one
            row without padding.
        packing_strategy (`str`, *optional*, defaults to `"batch"`):
            Solutions that `packing` puts into a row. `"batch"` packs the solutions of each batch into rows as long as
            the longest of them. Batches and losses are the same as without packing. `"bfd"` packs the training
            dataset into rows of `max_length` tokens before the training, as in TRL's `SFTTrainer`, and
            `per_device_train_batch_size` is the number of rows. Both use best-fit decreasing. TRL's other strategies
            cut solutions, whose steps could not be scored then. A custom `data_collator` gets rows with a column
            `packed_examples`.

        > Parameters that control the tracking

        num_logged_solutions (`int`, *optional*, defaults to `8`), log_artifacts (`list[str]`, *optional*):
            See [`~erprm_trl.training.tracking.TrackingConfig`].

    > [!NOTE]
    > Defaults that differ from [`~transformers.TrainingArguments`]: `learning_rate` 1e-5, `logging_steps` 10,
    > `gradient_checkpointing` True, `bf16` True unless `fp16` or on a CPU without it, `train_sampling_strategy`
    > `"group_by_length"`, `logging_nan_inf_filter` False.
    """

    _VALID_DICT_FIELDS = BaseConfig._VALID_DICT_FIELDS + ["model_init_kwargs"]

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "Order of the training examples: 'random', 'sequential', 'group_by_length' or 'batch_rebalance'."
        },
    )

    # Parameters that control the labels
    eta: float = field(
        default=2.0,
        metadata={
            "help": "Inverse reward temperature of the labels made from a rollout folder: 0 is soft estimation, inf "
            "is hard estimation."
        },
    )
    recorded_eta: float | None = field(
        default=None,
        metadata={
            "help": "Eta of the labels to record in the model's format. Defaults to eta for rollouts with the grading "
            "math or exact. Set it for a dataset with labels: 0 for success rates."
        },
    )
    label_estimator: str | None = field(
        default=None,
        metadata={
            "help": "How labels are made from rollouts: 'sample' or 'posterior'. Defaults to 'posterior' for adaptive "
            "collections at finite eta, else to 'sample'.",
            "choices": ["sample", "posterior"],
        },
    )
    min_question_rate: float = field(
        default=0.0,
        metadata={"help": "Leaves out rollouts of questions that the completer solves at a lower rate."},
    )
    relative_labels: bool = field(
        default=False,
        metadata={"help": "Whether to divide the rate of each prefix by the rate of its question."},
    )
    error_tolerance: int | None = field(
        default=None,
        metadata={
            "help": "In wrong solutions, only steps at most this far from the first failing prefix keep their value. "
            "Earlier steps get label 1, later steps label 0."
        },
    )
    label_correct_solutions: str = field(
        default="continuations",
        metadata={
            "help": "'ones' labels every step of a right solution with 1 instead of by its continuations.",
            "choices": ["continuations", "ones"],
        },
    )
    agreement_tolerance: int = field(
        default=0,
        metadata={"help": "Steps by which the first errors of the judge and of the continuations may differ."},
    )
    label_weighting: str = field(
        default="none",
        metadata={
            "help": "'precision' weights the training loss of each step by the certainty of its label.",
            "choices": ["none", "precision"],
        },
    )
    train_on_last_step_only: bool = field(
        default=False,
        metadata={"help": "Whether to train only on the last step's label, as for an outcome reward model."},
    )
    invalid_rows: str = field(
        default="error",
        metadata={
            "help": "'error' raises an error at the first unusable row. 'drop' skips such rows and logs their number.",
            "choices": ["error", "drop"],
        },
    )

    mixture_stopping_strategy: str = field(
        default="all_exhausted",
        metadata={
            "help": "Length of an epoch of several weighted sources: 'all_exhausted' uses every row and repeats rows, "
            "'first_exhausted' repeats no row and leaves out rows.",
            "choices": ["all_exhausted", "first_exhausted"],
        },
    )

    # Parameters that control the format
    format_preset: str | None = field(
        default=None,
        metadata={
            "help": "Preset with the format of a public reward model, to continue its training, e.g. 'math-shepherd'."
        },
    )
    separator: str | None = field(default=None, metadata={"help": "Text after each step. Defaults to a newline."})
    good_token: str | None = field(
        default=None, metadata={"help": "Token that the model predicts after a right step. Defaults to '+'."}
    )
    bad_token: str | None = field(
        default=None, metadata={"help": "Token that the model predicts after a wrong step. Defaults to '-'."}
    )
    head: str | None = field(
        default=None,
        metadata={
            "help": "'lm' scores with the good and the bad token of a causal language model (the default). 'token' "
            "scores with a token classification model. 'implicit' scores with the log-ratio to a reference model, and "
            "learns from outcomes.",
            "choices": ["lm", "token", "implicit"],
        },
    )
    reference_model: str | None = field(
        default=None,
        metadata={"help": "Reference model of head='implicit'. Defaults to the model that the training starts from."},
    )
    beta: float | None = field(
        default=None,
        metadata={"help": "Coefficient of the log-ratio of head='implicit'. Defaults to 0.05 for a new model."},
    )
    prompt_template: str | None = field(
        default=None,
        metadata={"help": "Text before the first step, with {question}. Defaults to '{question}' and a newline."},
    )
    splitter: str | None = field(
        default=None,
        metadata={
            "help": "How raw text is split into steps: 'newline' (default), 'whole_lines', 'blank_line', 'step' or a "
            "separator."
        },
    )
    steps_of: str | None = field(
        default=None,
        metadata={
            "help": "Part of a text with <think> that is split and scored: 'both' (default), 'thinking' or 'answer'.",
            "choices": ["both", "thinking", "answer"],
        },
    )
    aggregation: str | None = field(
        default=None,
        metadata={
            "help": "How step scores become one score per solution: 'min' (default), 'last', 'product' or 'mean'.",
            "choices": ["min", "last", "product", "mean"],
        },
    )
    add_missing_tokens: bool = field(
        default=False,
        metadata={
            "help": "Whether to add the separator, the good and the bad token to the vocabulary if they are not one "
            "token each."
        },
    )

    # Parameters that control the model
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments for from_pretrained, used when the model is a string."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether to run Python code from a model repository."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Whether to disable dropout in the model."})

    # Parameters that control the data preprocessing
    max_length: int | None = field(
        default=1024,
        metadata={
            "help": "Maximum sequence length in tokens. Whole steps at the end are dropped until a solution fits."
        },
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Number of processes that prepare the dataset."}
    )
    pad_to_multiple_of: int | None = field(
        default=None, metadata={"help": "Pads batches to a multiple of this length."}
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Whether to concatenate short solutions in a row instead of padding each of them."},
    )
    packing_strategy: str = field(
        default="batch",
        metadata={
            "help": "'batch' packs the solutions of each batch. 'bfd' packs the training dataset into rows of "
            "max_length tokens, as in TRL, and per_device_train_batch_size is the number of rows.",
            "choices": ["batch", "bfd"],
        },
    )

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()
        if not 0 <= self.label_smoothing_factor <= 1:
            raise ValueError(
                f"label_smoothing_factor: got {self.label_smoothing_factor}, expected a number from 0 (unchanged "
                "labels) to 1 (all labels 0.5). Set it to 0 for no smoothing."
            )
        if self.packing_strategy not in ("batch", "bfd"):
            raise ValueError(
                f"packing_strategy: got {self.packing_strategy!r}, expected 'batch' or 'bfd'. TRL's 'bfd_split' and "
                "'wrapped' cut solutions, and a step cannot be scored without the steps before it. Set 'bfd'."
            )

    def label_options(self, agree_with: Judge | None = None) -> LabelOptions:
        """Returns the options of the training labels, with the judge."""
        return LabelOptions(
            min_question_rate=self.min_question_rate,
            relative=self.relative_labels,
            error_tolerance=self.error_tolerance,
            label_correct_solutions=self.label_correct_solutions,
            agree_with=agree_with,
            agreement_tolerance=self.agreement_tolerance,
        )

    def resolve_format(self, saved: PRMFormat | None, default: PRMFormat | None = None) -> PRMFormat:
        """
        Returns the format to train with. Each field comes from this configuration if it is set, else from the preset,
        else from the model's own format, else from the defaults.

        Args:
            saved ([`PRMFormat`], *optional*):
                Format of the model that is trained, from its `prm_format.json`.
            default ([`PRMFormat`], *optional*):
                Format fields to use instead of the defaults of [`PRMFormat`].
        """
        base = saved or default or PRMFormat()
        if self.format_preset is not None:
            base = PRMFormat.preset(self.format_preset)
        chosen = {name: getattr(self, name) for name in FORMAT_FIELDS if getattr(self, name) is not None}
        if chosen.keys() & {"separator", "good_token", "bad_token"}:
            chosen["expected_ids"] = None  # other tokens have other ids
        if chosen.get("head") == "implicit" != base.head:
            chosen.setdefault("beta", DEFAULT_BETA)
        prm_format = replace(base, **chosen)
        for name in ("reference_model", "beta"):
            if name in chosen and prm_format.head != "implicit":
                raise ValueError(
                    f"{name}: got {chosen[name]!r} with head={prm_format.head!r}, expected head='implicit', which "
                    f"alone uses it. Set head='implicit', or remove {name}."
                )
        if prm_format.head == "implicit" and not prm_format.beta > 0:
            raise ValueError(f"beta: got {prm_format.beta}, expected a number above 0. Set e.g. beta={DEFAULT_BETA}.")
        return prm_format
