"""What the commands that evaluate have in common: the step scores of several reward models."""

from collections.abc import Sequence

import erprm_trl

from .. import scripts, selection
from ..io.redaction import without_login


def load_scorer(path: str, batch_size: int) -> "erprm_trl.StepScorer":
    """A scorer that shows a progress bar."""
    scorer = erprm_trl.StepScorer.from_pretrained(path, batch_size=batch_size)
    return scripts.with_bar(scorer, f"Scoring with {without_login(path)}")


def score_with_each(
    reward_models: Sequence[str], dataset: "erprm_trl.RolloutDataset", batch_size: int
) -> dict[str, list[list[list[float]]]]:
    """
    Step scores of the solutions of a collection, from each reward model.

    Args:
        reward_models (`Sequence[str]`):
            Folders, Hub ids or scoring servers.
        dataset ([`~erprm_trl.RolloutDataset`]):
            The collection.
        batch_size (`int`):
            Solutions scored at a time.

    Returns:
        `dict`: What [`~erprm_trl.selection.score_rollouts`] gives, by the model's name without a login.
    """
    return {
        without_login(path): selection.score_rollouts(load_scorer(path, batch_size), dataset) for path in reward_models
    }
