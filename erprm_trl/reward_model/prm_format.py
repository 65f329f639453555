"""The format of a process reward model: separator, good and bad token, head, prompt template, splitter, aggregation.

The trainer saves it next to the weights as `prm_format.json`, and scoring reads it from there.
"""

import copy
import dataclasses
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..functional.aggregation import AGGREGATIONS
from ..io.atomic_files import replace_file
from ..io.config_values import is_url, refuse_escapes
from ..io.file_checks import check_model_folder
from ..io.paths import local_path
from ..reasoning import STEPS_OF
from .presets import PRESETS, preset_of


logger = logging.getLogger(__name__)

FORMAT_FILE = "prm_format.json"
HEADS = ("lm", "token", "token_mlp", "implicit")
TOKENIZATIONS = ("pieces", "text")

# Types that a field may have in JSON, by the type of the field's default, or by its name.
_JSON_TYPES = {str: (str,), bool: (bool,), int: (int,), float: (int, float), type(None): (str, type(None))}
_JSON_TYPES_OF = {"expected_ids": (dict, type(None)), "eta": (int, float, str, type(None))}
_TOKENS = ("separator", "good_token", "bad_token")
# Separators that an error message proposes if the tokenizer encodes them as one id.
_USUAL_SEPARATORS = ("\n\n", "\n", "ки", " ки", "<|step|>", "<extra_0>", "[SEP]", "<|reserved_special_token_0|>")


class FormatTokenIds(NamedTuple):
    """Token ids of a format. `separator` is the separator's last id, where a step's score is read. It is `None` if the
    separator is not encoded separately. `good` and `bad` are `None` without a language-model head."""

    separator: int | None
    good: int | None
    bad: int | None


@dataclass(frozen=True)
class PRMFormat:
    """
    Format of a process reward model.

    Args:
        separator (`str`, *optional*, defaults to `"\\n"`):
            Text after each step. The step's score is read at the separator's last token. The separator may be several
            tokens. It may be empty with `head="implicit"`, where a score is read at the step's own last token.
        good_token (`str`, *optional*, defaults to `"+"`):
            Token that the `"lm"` head predicts after a right step. It must be one token.
        bad_token (`str`, *optional*, defaults to `"-"`):
            Token that the `"lm"` head predicts after a wrong step. It must be one token.
        head (`str`, *optional*, defaults to `"lm"`):
            How the model gives a score. All but `"token_mlp"` can be trained.

            - `"lm"`: a causal language model. The score is the softmax over the logits of the good and the bad token
              (the paper).
            - `"token"`: a token classification model. The score is the sigmoid of its one logit, or the probability of
              the second of its two classes (see `num_labels`).
            - `"token_mlp"`: as `"token"`, with two linear layers and a ReLU between them as the head.
            - `"implicit"`: a causal language model and a reference model. The score is the sigmoid of `beta` times the
              log-ratio of the probabilities that the two models give to the steps' tokens.
        prompt_template (`str`, *optional*, defaults to `"{question}\\n"`):
            Text before the first step. It must contain `{question}`. If it contains `{bos_token}`, the tokenizer's own
            special tokens are not added.
        splitter (`str`, *optional*, defaults to `"newline"`):
            How raw text is split into steps ([`~erprm_trl.rollouts.split_steps`]).
        aggregation (`str`, *optional*, defaults to `"min"`):
            How step scores become one score per solution ([`~erprm_trl.functional.aggregate`]).
        between_steps (`str`, *optional*, defaults to `""`):
            Text between a separator and the next step, e.g. the answer `+` and the header of the next turn in a chat.
        tokenization (`str`, *optional*, defaults to `"pieces"`):
            `"pieces"` encodes the prompt, the steps and the separators one by one. `"text"` encodes the whole text at
            once and locates the steps by their character offsets.
        num_labels (`int`, *optional*, defaults to `1`):
            Number of classes of a token classification head, 1 or 2.
        reference_model (`str`, *optional*):
            Folder or Hub id of the reference model of `"implicit"`.
        beta (`float`, *optional*, defaults to `0.001`):
            Coefficient of the log-ratio of `"implicit"`.
        cumulative (`bool`, *optional*, defaults to `True`):
            Whether the log-ratio of `"implicit"` covers all tokens of the solution up to the step's end, or the step's
            tokens alone.
        steps_of (`str`, *optional*, defaults to `"both"`):
            Which part of a text with `<think>...</think>` is split into steps and scored: `"both"`, `"thinking"` or
            `"answer"` ([`~erprm_trl.rollouts.split_steps`]).
        expected_ids (`dict[str, int]`, *optional*):
            Token ids that the model was trained with: of `"good_token"`, of `"bad_token"`, and the last id of
            `"separator"`. A tokenizer with other ids is refused, because it would make the model's scores meaningless.
        eta (`float`, *optional*):
            Eta of the values that the scores estimate, for rewards of 0 and 1. It is the eta of the labels that the
            model was trained on: 0 if the scores are success rates, `inf` for hard estimation. `None` means that it is
            not known. [`ERPRMTrainer`] records it. [`StepScorer`] needs it to read the scores at another eta.

    Raises:
        `ValueError`: for an unknown head, aggregation or tokenization, an empty separator, equal good and bad tokens,
            a template without `{question}`, a number of labels other than 1 and 2, invalid expected ids, or an eta
            that is not a number.

    Example:

    ```python
    >>> PRMFormat.preset("math-shepherd").separator
    ' ки'
    ```
    """

    separator: str = "\n"
    good_token: str = "+"
    bad_token: str = "-"
    head: str = "lm"
    prompt_template: str = "{question}\n"
    splitter: str = "newline"
    aggregation: str = "min"
    between_steps: str = ""
    tokenization: str = "pieces"
    num_labels: int = 1
    reference_model: str | None = None
    beta: float = 0.001
    cumulative: bool = True
    steps_of: str = "both"
    expected_ids: dict[str, int] | None = dataclasses.field(default=None, hash=False)
    eta: float | None = None

    def __post_init__(self):
        choices = {"head": HEADS, "aggregation": AGGREGATIONS, "tokenization": TOKENIZATIONS, "steps_of": STEPS_OF}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"PRMFormat.{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}.")
        for name in ("separator", "splitter"):
            refuse_escapes(f"PRMFormat.{name}", getattr(self, name))
        if self.num_labels not in (1, 2):
            raise ValueError(f"PRMFormat.num_labels: got {self.num_labels!r}, expected 1 (one logit) or 2 classes.")
        if not self.separator and self.head != "implicit":
            raise ValueError(
                "PRMFormat.separator: got '', expected a string that the tokenizer knows. Set it to a text that no "
                "step contains, such as a newline."
            )
        if self.head == "lm" and self.good_token == self.bad_token:
            raise ValueError(
                f"PRMFormat: good_token and bad_token are both {self.good_token!r}, expected two different tokens. "
                "Change one of them."
            )
        if self.prompt_template.count("{question}") != 1:
            raise ValueError(
                f"PRMFormat.prompt_template: got {self.prompt_template!r}, expected a text with '{{question}}' once. "
                "Mark the place of the question."
            )
        ids = self.expected_ids or {}
        if not ids.keys() <= set(_TOKENS) or not all(type(token_id) is int for token_id in ids.values()):
            raise ValueError(
                f"PRMFormat.expected_ids: got {self.expected_ids!r}, expected integer ids for some or all of "
                f"{_TOKENS}. Remove the other entries."
            )
        if self.eta is not None and not (isinstance(self.eta, (int, float)) and not math.isnan(self.eta)):
            raise ValueError(
                f"PRMFormat.eta: got {self.eta!r}, expected a number from -inf to inf, or None if it is not known. "
                "Set the eta of the labels that the model was trained on."
            )

    @classmethod
    def preset(cls, name: str) -> "PRMFormat":
        """
        The format of a public reward model: `"math-shepherd"`, `"er-prm"`, `"rlhflow-mistral"`, `"rlhflow"`,
        `"qwen2.5-math-prm"`, `"skywork-o1-prm"`, `"pure-prm"`, `"eurus-prm"` or `"trl-prm"` (models of TRL's
        `PRMTrainer`).

        Raises:
            `ValueError`: for an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"PRMFormat.preset: got {name!r}, expected one of {', '.join(PRESETS)}.")
        return cls(**copy.deepcopy(PRESETS[name]))

    def render_prompt(self, question: str, bos_token: str | None = None) -> str:
        """The text before the first step."""
        return self.prompt_template.replace("{bos_token}", bos_token or "").replace("{question}", question)

    @property
    def tokens(self) -> dict[str, str]:
        """The strings that are encoded separately, by field name."""
        names = ["separator"] if self.tokenization == "pieces" and self.separator else []
        names += ["good_token", "bad_token"] if self.head == "lm" else []
        return {name: getattr(self, name) for name in names}

    def token_ids(self, tokenizer) -> FormatTokenIds:
        """
        The ids of the format's tokens in `tokenizer`.

        Raises:
            `ValueError`: if the good or the bad token is not exactly one known id, if the separator has an unknown id
                (the message proposes other separators), or if the ids differ from `expected_ids`.
        """
        self._check_expected_ids(tokenizer)
        ids = {name: tokenizer.encode(token, add_special_tokens=False) for name, token in self.tokens.items()}
        for name, token in self.tokens.items():
            if _is_known(tokenizer, token) and (name == "separator" or len(ids[name]) == 1):
                continue
            pieces = tokenizer.convert_ids_to_tokens(ids[name])
            expected = "known ids" if name == "separator" else "exactly one known id"
            raise ValueError(
                f"PRMFormat.{name}: the tokenizer encodes {token!r} as {len(ids[name])} ids {ids[name]} "
                f"({pieces}), expected {expected}. Choose a token that it knows"
                f"{_proposals(tokenizer) if name == 'separator' else ''}, or set add_missing_tokens=True to add "
                "it as a new token that is trained."
            )
        if self.head == "lm" and ids["good_token"] == ids["bad_token"]:
            raise ValueError(
                f"PRMFormat: the tokenizer gives good_token {self.good_token!r} and bad_token {self.bad_token!r} the "
                f"same id {ids['good_token'][0]}. Choose two different tokens."
            )
        return FormatTokenIds(*(ids[name][-1] if name in ids else None for name in _TOKENS))

    def _check_expected_ids(self, tokenizer) -> None:
        for name, expected in (self.expected_ids or {}).items():
            token = getattr(self, name)
            ids = tokenizer.encode(token, add_special_tokens=False)
            if ids[-1:] != [expected]:
                raise ValueError(
                    f"PRMFormat.{name}: the tokenizer encodes {token!r} as {ids}, expected {expected}, the id that "
                    "the model was trained with. Load the tokenizer from the model's repository. If your model was "
                    "trained with this tokenizer, pass the format with expected_ids=None."
                )

    def add_missing_tokens(self, tokenizer) -> list[str]:
        """Adds the format's tokens that are not one known id to `tokenizer`, and returns them. The model's embeddings
        must then be resized. White space that the tokenizer knows is never added, because a new token of white space
        would change how every text is encoded."""
        from transformers import AddedToken

        missing = [token for token in self.tokens.values() if not _is_one_token(tokenizer, token)]
        missing = [token for token in missing if token.strip() or not _is_known(tokenizer, token)]
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in missing])
        return missing

    def with_eta(self, eta: float | None) -> "PRMFormat":
        """The same format with another `eta`."""
        return self if self.eta == eta else dataclasses.replace(self, eta=eta)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them. An infinite eta is a string, and an unknown eta is left out, so that
        versions of this package without the field can read the format."""
        fields = dataclasses.asdict(self)
        if self.eta is None:
            del fields["eta"]
        elif math.isinf(self.eta):
            fields["eta"] = str(self.eta)
        return fields

    def to_json(self) -> str:
        """The format as a JSON object."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "PRMFormat":
        """
        Reads a format from JSON.

        Raises:
            `ValueError`: if the text is not a JSON object, or if it has unknown fields or fields of a wrong type.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            fields = None
        known = {
            field.name: _JSON_TYPES_OF.get(field.name, _JSON_TYPES[type(field.default)])
            for field in dataclasses.fields(cls)
        }
        if not isinstance(fields, dict) or not known.keys() >= fields.keys():
            raise ValueError(
                f"PRMFormat: got {text[:200]!r}, expected a JSON object with fields from {sorted(known)}. Copy "
                "prm_format.json from a saved model."
            )
        for name, value in fields.items():
            if not isinstance(value, known[name]):
                expected = " or ".join(kind.__name__ for kind in known[name])
                raise ValueError(f"PRMFormat.{name}: got {value!r} ({type(value).__name__}), expected {expected}.")
        if fields.get("eta") in ("inf", "-inf"):
            fields["eta"] = float(fields["eta"])
        return cls(**fields)

    def save(self, folder: str | Path) -> None:
        """Writes `prm_format.json` into a model's folder."""
        replace_file(Path(local_path(folder), FORMAT_FILE), self.to_json())

    @classmethod
    def load(cls, path_or_id: str | Path, revision: str | None = None) -> "PRMFormat":
        """
        Reads `prm_format.json` from a model's folder or Hub repository. Public models without the file, such as
        `"Qwen/Qwen2.5-Math-PRM-7B"`, have the format of their preset.

        Raises:
            `FileNotFoundError`: if there is no such file, because the model was not trained with [`ERPRMTrainer`].
            `ValueError`: if the file is damaged, or for the address of a scoring server.
        """
        if is_url(path_or_id):  # the message does not show the address, which may hold a password
            raise ValueError(
                "PRMFormat.load: got the address of a scoring server, expected a folder or Hub id. Ask the server "
                "with StepScorer.from_pretrained(url).prm_format."
            )
        from transformers.utils import cached_file

        path_or_id = local_path(path_or_id)
        preset = preset_of(path_or_id)
        if preset is None and not Path(path_or_id).is_dir():
            # Without a network, every file of a Hub id seems to be missing.
            check_model_folder(path_or_id, revision)
        file = cached_file(path_or_id, FORMAT_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
        if file is None:
            if preset:
                logger.warning("%s has no %s. Its format is the preset %r.", path_or_id, FORMAT_FILE, preset)
                return cls.preset(preset)
            raise FileNotFoundError(
                f"{path_or_id}: got no {FORMAT_FILE}, expected the file that ERPRMTrainer saves. Write it with "
                "PRMFormat(...).save(folder), or pass prm_format: PRMFormat.preset(name) for a public model, "
                'PRMFormat.preset("trl-prm") for a model of TRL\'s PRMTrainer (in a shell: --prm_format trl-prm).'
            )
        try:
            return cls.from_json(Path(file).read_text(encoding="utf-8"))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: got a damaged file ({error}), expected a file of PRMFormat.save. Write it again with "
                "PRMFormat(...).save(folder), or copy it from another checkpoint of the training."
            ) from error


def resolve_format(
    prm_format: PRMFormat | str | None, path_or_id: str | Path, revision: str | None = None
) -> PRMFormat:
    """
    Returns `prm_format` itself if it is a format, the preset of that name if it is a string
    ([`PRMFormat.preset`]), and the model's own `prm_format.json` if it is `None` ([`PRMFormat.load`]).
    """
    if isinstance(prm_format, str):
        return PRMFormat.preset(prm_format)
    return prm_format or PRMFormat.load(path_or_id, revision)


def _is_known(tokenizer, token: str) -> bool:
    ids = tokenizer.encode(token, add_special_tokens=False)
    return bool(ids) and tokenizer.unk_token_id not in ids


def _is_one_token(tokenizer, token: str) -> bool:
    return _is_known(tokenizer, token) and len(tokenizer.encode(token, add_special_tokens=False)) == 1


def _proposals(tokenizer) -> str:
    known = [repr(token) for token in _USUAL_SEPARATORS if _is_one_token(tokenizer, token)]
    return f" (one id here: {', '.join(known)})" if known else ""
