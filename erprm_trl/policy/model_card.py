"""The model card of a policy: TRL's card, with the reward model and how its scores became rewards."""

from pathlib import Path
from typing import Any

from .._trl import get_config_model_id
from ..io.atomic_files import replace_file
from ..io.redaction import redacted


# Settings of the configurations of policy trainers that the card shows, if the trainer has them.
_SETTINGS = ("credit", "aggregation", "eta", "outcome_weight", "beta", "num_rounds", "num_generations", "top_k")


class PolicyModelCard:
    """Mixin for trainers of policies. It must come before TRL's trainer among the base classes."""

    def create_model_card(self, *arguments, **options) -> None:
        """Writes the model card as TRL does, and adds a table about the rewards. A base model in a folder, which TRL
        calls `None`, gets the folder's name."""
        super().create_model_card(*arguments, **options)
        if not self.is_world_process_zero():
            return
        path = Path(self.args.output_dir, "README.md")
        text = path.read_text(encoding="utf-8")
        base = Path(get_config_model_id(self.model.config) or "a local model").name
        text = text.replace("a fine-tuned version of [None](https://huggingface.co/None)", f"fine-tuned from `{base}`")
        text = text.replace('model="None"', f'model="{path.parent.name}"')
        rows = [f"| {name} | `{redacted(value)}` |" for name, value in self._card_rows().items()]
        replace_file(path, "\n".join([text.rstrip(), "", "## Rewards", "", "| | |", "|---|---|", *rows, ""]))

    def _card_rows(self) -> dict[str, Any]:
        """Names and values of the card's table."""
        settings = {name: getattr(self.args, name, None) for name in _SETTINGS}
        rows = {"reward model": self._card_reward_model(), **settings}
        return {name: value for name, value in rows.items() if value is not None}

    def _card_reward_model(self) -> str | None:
        """Name of the reward model, `None` without one."""
        return self.step_reward.scorer.model_name if self.step_reward in self.reward_funcs else None
