"""Continues the training of RAFT's reward model after each round, on labelled solutions of the new policy.

The policy solves a part of the round's questions and continues the prefixes of its solutions, which gives fresh
labels. The reward model continues training on the fresh labels of all rounds so far, mixed with the labels that it was
first trained on. The result scores the next round, unless it ranks solutions to other questions worse than before.
"""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer

from ...reward_model.heads import AUTO_MODELS
from ...reward_model.scoring.backend import CollectiveBackend
from ...reward_model.scoring.scorer import StepScorer, solution_scores
from ...reward_model.trainer.erprm_config import ERPRMConfig
from ...reward_model.trainer.erprm_trainer import ERPRMTrainer
from ...reward_model.trainer.mixture import LabelledSource
from ...rollouts.dataset import RolloutDataset
from ...rollouts.questions import Question
from ...rollouts.records import RolloutRow
from ...rollouts.sampling.base import derived_seed
from ...training.checkpoints import flush_folder, writing
from .rounds import RoundFolder, agreement, questions_of_round, round_seed
from .sampling import RoundSampling, score_rows


logger = logging.getLogger(__name__)

# Fields of the run's configuration that the training of the reward model shares.
SHARED = (
    "per_device_train_batch_size gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs "
    "bf16 fp16 use_cpu optim optim_args dataloader_num_workers dataloader_pin_memory ddp_timeout disable_tqdm "
    "logging_steps save_strategy save_steps save_total_limit save_only_model"
).split()
# One of so many questions is held out from all labels.
HELD_OUT = 4


def is_held_out(question: str, seed: int) -> bool:
    """Whether a question is never labelled, so that it can show what the reward model learns. It depends on the text
    and the seed of the run only, so a question that occurs in several rounds is held out in all of them."""
    return derived_seed("raft-held-out", seed, question) % HELD_OUT == 0


def mixture_weights(fresh: Sequence[int], num_old: int, old_share: float) -> tuple[list[float], float]:
    """
    Weights of sources with which an epoch has every fresh solution once, and no old solution twice.

    Args:
        fresh (`Sequence[int]`):
            Number of labelled solutions of each round.
        num_old (`int`):
            Number of old labelled solutions.
        old_share (`float`):
            Wanted share of old solutions among all, in [0, 1).

    Returns:
        `tuple[list[float], float]`: the weight of each round, and of the old solutions. Their share is smaller than
        `old_share` if there are too few of them.
    """
    return [float(count) for count in fresh], min(float(num_old), sum(fresh) * old_share / (1 - old_share))


class RewardModelRefresh:
    """
    Refreshes the reward model of a trainer, see [`RAFTConfig`].

    Args:
        trainer ([`RAFTTrainer`]):
            The trainer, whose `scorer` is replaced.
        sampling ([`RoundSampling`]):
            Sampling from the policy of the trainer.
        path (`str`, *optional*):
            Folder or Hub id of the first reward model. `None` if it was passed as a loaded scorer.

    Raises:
        `ValueError`: if the reward model cannot be trained in this run.
    """

    def __init__(self, trainer: Trainer, sampling: RoundSampling, path: str | None):
        self.trainer, self.sampling = trainer, sampling
        scorer, args = trainer.scorer, trainer.args
        _check_run(trainer)
        _check_reward_model(scorer)
        self.is_implicit = scorer.prm_format.head == "implicit"
        self.labels_eta = args.trained_eta if scorer.trained_eta is None else scorer.trained_eta
        if self.labels_eta is None and not self.is_implicit:
            raise ValueError(
                f"refresh_reward_model: got the reward model {scorer.model_name}, whose format does not record the "
                "eta of its labels, expected a known eta, at which new labels are made. Set trained_eta, e.g. 0 for "
                "success rates."
            )
        self._first_path = path
        self._first_scorer = scorer if path is None else None  # the caller holds it anyway
        self._eta = scorer.eta
        self._loading = {
            "dtype": next(scorer.weights.parameters()).dtype,
            "batch_size": scorer.batch_size,
            "max_batch_tokens": scorer.max_batch_tokens,
        }
        self._in_use: Path | None = None  # folder of the refreshed reward model that scores, `None` for the first

    def restore(self, rounds: Sequence[RoundFolder]) -> None:
        """Makes the trainer score with the reward model that these finished rounds led to."""
        accepted = [folder.reward_model for folder in rounds if folder.manifest.get("refresh", {}).get("accepted")]
        self._use(accepted[-1] if accepted else None)

    def run(self, folder: RoundFolder) -> dict[str, float]:
        """Refreshes the reward model after a round, or loads the result if the folder has it. Returns the metrics. All
        processes must call it."""
        if "refresh" not in folder.manifest:
            self._refresh(folder)
        record = folder.manifest["refresh"]
        if record["accepted"]:
            self._use(folder.reward_model)
        return record["metrics"]

    def _refresh(self, folder: RoundFolder) -> None:
        trainer, accelerator = self.trainer, self.trainer.accelerator
        labels, held_out = self._sample(folder)
        before, start = self._agreement(held_out), self._in_use
        name = trainer.scorer.model_name
        trainer._policy.free_engine()
        sources = self._sources(folder)
        trained = self._train(folder, sources)
        self._use(folder.reward_model)
        after = self._agreement(held_out)
        accepted = before is None or after is None or after >= before
        if not accepted:
            logger.warning(
                "%s ranks solutions to held-out questions worse than %s: their agreement with the grader is %.3f, and "
                "was %.3f. The run continues with %s.", folder.reward_model, name, after, before, name,
            )  # fmt: skip
            self._use(start)
        metrics = {
            "questions": len({row.question_index for row in labels}),
            "accuracy": sum(row.outcome_reward for row in labels) / len(labels),
            "agreement_before": before,
            "agreement_after": after,
            "accepted": int(accepted),
            **trained,
        }
        record = {
            "trained_from": name,
            "accepted": accepted,
            "reward_model": trainer.scorer.model_name,
            "examples": {source.name: round(source.weight) for source in sources},
            "metrics": {f"refresh/{key}": value for key, value in metrics.items() if value is not None},
        }
        if accelerator.is_main_process:
            folder.add(refresh=record)
        accelerator.wait_for_everyone()

    def _sample(self, folder: RoundFolder) -> tuple[list[RolloutRow], list[RolloutRow]]:
        """Samples and labels solutions, and samples solutions to held-out questions, which need no labels."""
        args = self.trainer.args
        chosen = questions_of_round(self.trainer.questions, folder.index, args.questions_per_round, args.seed)
        parts: dict[bool, list[Question]] = {False: [], True: []}
        for question in chosen:
            parts[is_held_out(question.question, args.seed)].append(question)
        count, rng = args.refresh_reward_model, random.Random(round_seed(args.seed, folder.index, "refresh"))
        asked, held_out = (rng.sample(part, min(count, len(part))) for part in parts.values())
        if not asked:
            raise ValueError(
                f"refresh_reward_model: got a round of {len(chosen)} questions, all of which are held out to measure "
                "the reward model, expected more questions. Raise questions_per_round, or add questions."
            )
        if len(asked) < count or not held_out:
            logger.warning(
                "refresh_reward_model: round %d labels %d of %d wanted questions, and measures the reward model on "
                "%d others, because a quarter of all questions is held out. Raise questions_per_round to have more.",
                folder.index, len(asked), count, len(held_out),
            )  # fmt: skip
        continuations = 0 if self.is_implicit else args.refresh_num_continuations
        seeds = [round_seed(args.seed, folder.index, what) for what in ("labels", "held-out")]
        labels = self.sampling.sample(
            folder.labels, asked, args.refresh_num_solutions, seeds[0], num_continuations=continuations
        )
        measured = []
        if held_out:
            measured = self.sampling.sample(folder.held_out, held_out, args.num_generations_eval, seeds[1])
        return labels, measured

    def _agreement(self, rows: list[RolloutRow]) -> float | None:
        """Agreement of the trainer's scorer with the grades of solutions. All processes must call it."""
        scorer, args = self.trainer.scorer, self.trainer.args
        unusable = [None if row.finished and row.steps else "unusable" for row in rows]
        step_scores = score_rows(rows, unusable, scorer, self.trainer.accelerator)
        return agreement(rows, solution_scores(step_scores, args.aggregation or scorer.prm_format.aggregation))

    def _sources(self, folder: RoundFolder) -> list[LabelledSource]:
        """The fresh labels of all rounds so far, and the old labels."""
        args = self.trainer.args
        rounds = [RoundFolder(args.output_dir, index) for index in range(folder.index)]
        fresh = {f"round-{earlier.index}": earlier.labels for earlier in rounds} | {folder.path.name: folder.labels}
        counts = [_num_labelled(RolloutDataset(path)) for path in fresh.values()]
        if not sum(counts):
            raise ValueError(
                f"{folder.labels}: got no solution with labels, expected at least one. Read the texts in this folder, "
                "and raise max_completion_length if they are cut off."
            )
        old = None if args.refresh_rollouts is None else RolloutDataset(args.refresh_rollouts)
        weights, old_weight = mixture_weights(counts, 0 if old is None else _num_labelled(old), args.refresh_old_share)
        sources = [
            LabelledSource(path, weight=weight, name=name)
            for (name, path), weight in zip(fresh.items(), weights, strict=True)
            if weight > 0
        ]
        return sources + ([LabelledSource(old, weight=old_weight, name="first")] if old_weight > 0 else [])

    def _train(self, folder: RoundFolder, sources: list[LabelledSource]) -> dict[str, float]:
        """Continues the training of the reward model, from the last checkpoint if there is one, and saves it."""
        args, path = self.trainer.args, folder.reward_model
        start = str(self._in_use or self._first_path or self._save_first())
        self.trainer.scorer = None  # frees its memory for the training
        config = ERPRMConfig(
            str(path),
            **{name: getattr(args, name) for name in SHARED},
            eta=0.0 if self.labels_eta is None else self.labels_eta,
            recorded_eta=self.labels_eta,
            learning_rate=args.refresh_learning_rate,
            num_train_epochs=1,
            max_length=None,
            train_sampling_strategy="random",  # the order by length would depend on the number of processes
            mixture_stopping_strategy="first_exhausted",
            seed=round_seed(args.seed, folder.index, "reward-model"),
            num_logged_solutions=0,
            report_to="none",
        )
        trainer = ERPRMTrainer(start, config, train_dataset=sources)
        output = trainer.train(resume_from_checkpoint=not args.save_only_model and any(path.glob("checkpoint-*")))
        with writing(path):
            trainer.save_model()
            trainer.save_state()
            trainer.create_model_card(model_name=f"{Path(args.output_dir).name}-{folder.path.name}-reward-model")
            if args.should_save:
                flush_folder(path)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.free_memory()
        return {"loss": losses[-1] if losses else output.training_loss, "updates": output.global_step}

    def _save_first(self) -> Path:
        """Saves a reward model that was passed as a loaded scorer. All processes must call it."""
        path, scorer = Path(self.trainer.args.output_dir, "first-reward-model"), self._first_scorer
        if self.trainer.args.should_save:
            with writing(path):
                scorer.weights.save_pretrained(path)
                scorer.tokenizer.save_pretrained(path)
                scorer.backend.prm_format.save(path)
                flush_folder(path)
        self.trainer.accelerator.wait_for_everyone()
        return path

    def _use(self, path: Path | None) -> None:
        """Makes the trainer score with the reward model in a folder, or with the first one."""
        if path == self._in_use and self.trainer.scorer is not None:
            return
        if path is None and self._first_scorer is not None:
            self.trainer.scorer = self._first_scorer
        else:
            device = self.trainer.accelerator.device
            scorer = StepScorer.from_pretrained(path or self._first_path, device=device, **self._loading)
            self.trainer.scorer = scorer.at_eta(self._eta, self.labels_eta)
        self._in_use = path


def reward_models_section(manifests: Sequence[dict[str, Any]]) -> str:
    """The section of the policy's model card about the reward models of the rounds. Empty without a refresh."""
    if not any("refresh" in manifest for manifest in manifests):
        return ""
    lines = [
        "\n## Reward models\n",
        "After each round the reward model continued training on labelled solutions of the new policy. Agreement is "
        "the share of pairs of a right and a wrong solution to the same held-out question in which the right one has "
        "the higher score.\n",
        "| round | solutions selected with | agreement before | agreement after | next round's reward model |",
        "|---|---|---|---|---|",
    ]
    for index, manifest in enumerate(manifests):
        refresh = manifest.get("refresh", {"metrics": {}, "reward_model": "not refreshed yet"})
        values = [refresh["metrics"].get(f"refresh/agreement_{when}") for when in ("before", "after")]
        shown = ["not measured" if value is None else f"{value:.3f}" for value in values]
        used, following = (_shown(name) for name in (manifest.get("reward_model"), refresh["reward_model"]))
        lines.append(f"| {index} | {used} | {' | '.join(shown)} | {following} |")
    return "\n".join(lines) + "\n"


def _shown(name: str | None) -> str:
    """The name of a reward model without the folders around it: the folder in the run, or the last part of a path."""
    path = Path(str(name))
    if path.parent.name.startswith("round-"):
        return f"`{path.parent.name}/{path.name}`"
    return f"`{path.name if path.is_absolute() else name}`"


def _num_labelled(rollouts: RolloutDataset) -> int:
    return rollouts.manifest.get("summary", {}).get("solutions_with_labels", len(rollouts))


def _check_run(trainer: Trainer) -> None:
    args = trainer.args
    if not trainer.has_answers:
        raise ValueError(
            f"refresh_reward_model: got {args.refresh_reward_model} for training questions without answers, expected "
            "questions with answers, with which the new labels are graded. Add a column `answer`, or set "
            "refresh_reward_model=0."
        )
    if args.refresh_reward_model > len(trainer.questions):
        raise ValueError(
            f"refresh_reward_model: got {args.refresh_reward_model}, expected at most {len(trainer.questions)}, the "
            "number of questions. Lower it."
        )
    if trainer.is_deepspeed_enabled:
        raise ValueError(
            "refresh_reward_model: got DeepSpeed, whose settings belong to the policy and cannot also train the "
            "reward model in the same processes, expected one process or DDP. Set refresh_reward_model=0, or launch "
            "with accelerate_configs/multi_gpu.yaml."
        )


def _check_reward_model(scorer: StepScorer) -> None:
    kind = type(scorer.backend).__name__
    if isinstance(scorer.backend, CollectiveBackend):
        raise ValueError(
            f"refresh_reward_model: got a {kind}, whose weights are sharded for scoring, expected a whole reward "
            "model. Set shard_reward_model=False, or refresh_reward_model=0."
        )
    if scorer.weights is None or not hasattr(scorer.backend, "tokenizer"):
        raise ValueError(
            f"refresh_reward_model: got a {kind}, which has no weights to train in this process, expected the folder "
            "or Hub id of a reward model, or a StepScorer with a model. Pass one of these, or set "
            "refresh_reward_model=0."
        )
    if scorer.prm_format.head not in AUTO_MODELS:
        raise ValueError(
            f"refresh_reward_model: got a reward model with head={scorer.prm_format.head!r}, which can only score, "
            f"expected one of {', '.join(AUTO_MODELS)}. Set refresh_reward_model=0."
        )
