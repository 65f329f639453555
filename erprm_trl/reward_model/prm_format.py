"""What a process reward model reads and where it answers: separator, good and bad token, head, template. Saved beside
the weights.

Facts only; `encoding` turns them into token ids.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..functional.aggregation import AGGREGATIONS
from ..rollouts.endpoint_client import is_url


FORMAT_FILE = "prm_format.json"
HEADS = ("lm", "token")

# Tried in this order when an error proposes another separator.
_USUAL_SEPARATORS = ("\n\n", "\n", "ки", " ки", "<|step|>", "<extra_0>", "[SEP]", "<|reserved_special_token_0|>")


class FormatTokenIds(NamedTuple):
    """Ids of the separator and, with a language-model head, of the good and the bad token."""

    separator: int
    good: int | None
    bad: int | None


@dataclass(frozen=True)
class PRMFormat:
    """
    Format of a process reward model.

    Args:
        separator (`str`, *optional*, defaults to `"\\n"`):
            Closes each step; the step's score is read at its position. The tokenizer must encode it as exactly one id.
        good_token (`str`, *optional*, defaults to `"+"`), bad_token (`str`, *optional*, defaults to `"-"`):
            What the `"lm"` head predicts after a right and after a wrong step; one id each.
        head (`str`, *optional*, defaults to `"lm"`):
            `"lm"`: a causal language model, score = softmax over the two tokens' logits (the paper). `"token"`: a
            token classification model with one logit, score = its sigmoid.
        prompt_template (`str`, *optional*, defaults to `"{question}\\n"`):
            Text before the first step; contains `{question}`.
        splitter (`str`, *optional*, defaults to `"newline"`):
            How raw text is split into steps ([`~erprm_trl.rollouts.split_steps`]).
        aggregation (`str`, *optional*, defaults to `"min"`):
            From step scores to one score ([`~erprm_trl.functional.aggregate`]).

    Raises:
        `ValueError`: for an unknown head or aggregation, an empty separator, equal good and bad tokens, or a template
        without
            `{question}`.
    """

    separator: str = "\n"
    good_token: str = "+"
    bad_token: str = "-"
    head: str = "lm"
    prompt_template: str = "{question}\n"
    splitter: str = "newline"
    aggregation: str = "min"

    def __post_init__(self):
        if self.head not in HEADS:
            raise ValueError(f"PRMFormat.head: got {self.head!r}, expected one of {', '.join(HEADS)}.")
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(
                f"PRMFormat.aggregation: got {self.aggregation!r}, expected one of {', '.join(AGGREGATIONS)}."
            )
        if not self.separator:
            raise ValueError("PRMFormat.separator: got '', expected a string that the tokenizer encodes as one token.")
        if self.head == "lm" and self.good_token == self.bad_token:
            raise ValueError(
                f"PRMFormat: good_token and bad_token are both {self.good_token!r}, expected two different tokens."
            )
        if self.prompt_template.count("{question}") != 1:
            raise ValueError(
                f"PRMFormat.prompt_template: got {self.prompt_template!r}, expected '{{question}}' in it once."
            )

    def render_prompt(self, question: str) -> str:
        """The text before the first step."""
        return self.prompt_template.replace("{question}", question)

    @property
    def tokens(self) -> dict[str, str]:
        """The strings that must be one token each, by field name."""
        names = ("separator", "good_token", "bad_token") if self.head == "lm" else ("separator",)
        return {name: getattr(self, name) for name in names}

    def token_ids(self, tokenizer) -> FormatTokenIds:
        """
        Ids of the format's tokens in `tokenizer`.

        Raises:
            `ValueError`: if one of them is not encoded as exactly one id; the message proposes what would be.
        """
        ids = {name: tokenizer.encode(token, add_special_tokens=False) for name, token in self.tokens.items()}
        for name, token in self.tokens.items():
            if not _is_one_token(tokenizer, token):
                pieces = tokenizer.convert_ids_to_tokens(ids[name])
                raise ValueError(
                    f"PRMFormat.{name}: the tokenizer encodes {token!r} as {len(ids[name])} ids {ids[name]} "
                    f"({pieces}), expected exactly one known id. Choose a token it knows"
                    f"{_proposals(tokenizer) if name == 'separator' else ''}, or set add_missing_tokens=True to add "
                    "it as a new token that is trained."
                )
        if self.head == "lm" and ids["good_token"] == ids["bad_token"]:
            raise ValueError(
                f"PRMFormat: the tokenizer gives good_token {self.good_token!r} and bad_token {self.bad_token!r} the "
                f"same id {ids['good_token'][0]}. Choose two different tokens."
            )
        return FormatTokenIds(
            ids["separator"][0], *(ids[name][0] if name in ids else None for name in ("good_token", "bad_token"))
        )

    def add_missing_tokens(self, tokenizer) -> list[str]:
        """Adds to `tokenizer` those of the format's tokens that are not one known id, and returns them. The model must
        be resized."""
        from transformers import AddedToken

        missing = [token for token in self.tokens.values() if not _is_one_token(tokenizer, token)]
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in missing])
        return missing

    def to_json(self) -> str:
        """The format as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "PRMFormat":
        """
        The format from its JSON.

        Raises:
            `ValueError`: if it is no JSON object or has unknown fields.
        """
        fields = json.loads(text)
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or not known.issuperset(fields):
            raise ValueError(
                f"PRMFormat: got {text[:200]!r}, expected a JSON object with fields from {sorted(known)}."
            )
        return cls(**fields)

    def save(self, folder: str | Path) -> None:
        """Writes `prm_format.json` into a model's folder."""
        Path(folder, FORMAT_FILE).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path_or_id: str | Path, revision: str | None = None) -> "PRMFormat":
        """
        Reads `prm_format.json` from a model's folder or Hub repository, or asks the scoring server at an address.

        Raises:
            `FileNotFoundError`: if there is none: the model was not trained with [`ERPRMTrainer`].
            [`EndpointError`]: if the server cannot be asked.
        """
        if is_url(path_or_id):
            from .remote_scoring import RemoteStepScorer, refuse_loading

            refuse_loading(revision=revision)
            return RemoteStepScorer(path_or_id).prm_format
        from transformers.utils import cached_file

        file = cached_file(
            str(path_or_id), FORMAT_FILE, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        if file is None:
            raise FileNotFoundError(
                f"{path_or_id} has no {FORMAT_FILE}: it was not saved by ERPRMTrainer. Write one with "
                "PRMFormat(...).save(folder), or pass "
                "prm_format."
            )
        return cls.from_json(Path(file).read_text(encoding="utf-8"))


def _is_one_token(tokenizer, token: str) -> bool:
    ids = tokenizer.encode(token, add_special_tokens=False)
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def _proposals(tokenizer) -> str:
    known = [repr(token) for token in _USUAL_SEPARATORS if _is_one_token(tokenizer, token)]
    return f" (one id here: {', '.join(known)})" if known else ""
