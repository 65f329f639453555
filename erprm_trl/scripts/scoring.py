"""Computes the step scores of several reward models, for the commands that evaluate."""

from collections.abc import Sequence

import erprm_trl

from .. import scripts, selection
from ..io.counts import counted
from ..io.redaction import without_login
from ..reward_model import scoring
from .outcome import print_outcome


# Metadata of the fields `eta` and `trained_eta` of commands.
ETA = {"help": "Eta at which the scores are read. Defaults to the scores as the model gives them."}
TRAINED_ETA = {"help": "Eta of the labels of a reward model whose format does not record it: 0 for success rates."}

# Metadata of the field `scoring_backend` of commands.
SCORING_BACKEND = {
    "help": "How a reward model in a folder or on the Hub is run: local, or vllm for an offline vLLM engine.",
    "choices": ["local", "vllm"],
}


def scoring_speed(num_solutions: int, seconds: float) -> str:
    """A number of solutions, and how many of them were scored per second."""
    rate = f" at {num_solutions / seconds:,.1f} solutions per second" if num_solutions and seconds else ""
    return f"{counted(num_solutions, 'solution')}{rate}"


def load_scorer(
    path: str, batch_size: int, trained_eta: float | None = None, backend: str = "local"
) -> "erprm_trl.StepScorer":
    """A scorer that shows a progress bar."""
    options = {"batch_size": batch_size, "trained_eta": trained_eta, "backend": backend}
    scorer = erprm_trl.StepScorer.from_pretrained(path, **options)
    return scripts.with_bar(scorer, f"Scoring with {without_login(path)}")


def score_with_each(
    reward_models: Sequence[str],
    dataset: "erprm_trl.RolloutDataset",
    batch_size: int,
    etas: Sequence[float] = (),
    trained_eta: float | None = None,
    backend: str = "local",
) -> dict[str, list[list[list[float]]]]:
    """
    Step scores of the solutions of a collection, from each reward model at each eta. A model scores once, also for
    several etas.

    Args:
        reward_models (`Sequence[str]`):
            Folders, Hub ids or scoring servers.
        dataset ([`~erprm_trl.RolloutDataset`]):
            The collection.
        batch_size (`int`):
            Solutions scored at a time.
        etas (`Sequence[float]`, *optional*):
            Etas at which the scores are read. Without any, they are as the model gives them.
        trained_eta (`float`, *optional*):
            Eta of the labels of the models whose formats do not record it.
        backend (`str`, *optional*, defaults to `"local"`):
            See [`~erprm_trl.StepScorer.from_pretrained`].

    Returns:
        `dict`: the results of [`~erprm_trl.selection.score_rollouts`], by the model's name without a login, and the
        eta if there are any.

    Raises:
        `ValueError`: if the scores of a model cannot be read at an eta. Nothing is scored then.
    """
    for path in reward_models:
        for eta in etas:
            scoring.format_at_eta(scoring.load_format(path), eta, trained_eta)
    scores = {}
    for path in reward_models:
        scorer = load_scorer(path, batch_size, trained_eta, backend)
        as_trained, name = selection.score_rollouts(scorer, dataset), without_login(path)
        print_outcome(f"{name} scored {scoring_speed(scorer.backend.num_scored, scorer.backend.seconds)}.")
        for eta in etas:
            of_questions = [scoring.scores_at_eta(question, scorer.trained_eta, eta) for question in as_trained]
            scores[f"{name} (eta = {eta:g})"] = of_questions
        if not etas:
            scores[name] = as_trained
    return scores
