"""RAFT: sample solutions, select those with the best scores, fine-tune the policy on them with TRL, and repeat.

A killed run can be resumed at any time, and on another number of processes.
"""

import shutil
from dataclasses import asdict
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_pt_utils import get_model_param_count
from transformers.trainer_utils import TrainOutput, get_last_checkpoint
from trl import SFTTrainer

from ..._trl import get_config_model_id
from ...io.paths import local_path
from ...reward_model.scoring.backend import ScoringBackend
from ...reward_model.scoring.scorer import StepScorer
from ...rollouts.questions import fingerprint
from ...rollouts.sampling.prompt_format import PromptFormat
from ...training.arguments import as_config
from ...training.checkpoints import CrashSafeCheckpoints
from ...training.nonfinite import StopOnNonFinite
from ...training.tracking.training_tracker import TrainingTracker
from ...training.trainable import check_trainable
from ..model_card import PolicyModelCard
from ..trainer_arguments import policy_model
from .engine import check_engine
from .policy_sampler import PolicySampler
from .raft_config import COMPARED, RAFTConfig
from .reward_model_refresh import RewardModelRefresh, reward_models_section
from .rounds import RoundFolder, load_policy_questions, nothing_kept, read_rows, round_seed, training_row
from .sampling import RoundSampling, load_scorer, round_solutions


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig

CITATION = """@article{dong2023raft,
    title   = {{RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment}},
    author  = {Hanze Dong and Wei Xiong and Deepanshu Goyal and Yihan Zhang and Winnie Chow and Rui Pan and Shizhe Diao
               and Jipeng Zhang and Kashun Shum and Tong Zhang},
    year    = 2023,
    eprint  = {arXiv:2304.06767}
}"""


class RAFTTrainer(StopOnNonFinite, CrashSafeCheckpoints, PolicyModelCard, SFTTrainer):
    """
    Trainer for RAFT (Reward rAnked Fine-Tuning) with a process reward model.

    A round samples `num_generations` solutions per question with the current policy, scores their steps, selects the
    best solutions, and fine-tunes the policy on exactly the sampled tokens. All files are in `output_dir/round-0`, ...
    The same command resumes a killed run from its last chunk, checkpoint or round. All processes on all machines must
    share this folder.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from erprm_trl.policy import RAFTConfig, RAFTTrainer

    >>> trainer = RAFTTrainer(
    ...     model="Qwen/Qwen2.5-Math-1.5B-Instruct",
    ...     reward_model="outputs/erprm",
    ...     args=RAFTConfig("outputs/raft"),
    ...     train_dataset=load_dataset("openai/gsm8k", "main", split="train"),
    ... )
    >>> trainer.train()
    >>> trainer.save_model()
    ```

    Args:
        model (`str` or `Path` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The first policy, as in [`~trl.SFTTrainer`]. If it is the folder or Hub id of a saved adapter, the training
            of the adapter continues.
        reward_model (`str`, [`StepScorer`] or [`~erprm_trl.reward_model.ScoringBackend`]):
            The reward model: a folder or Hub id of a model that [`ERPRMTrainer`] saved, the address of a scoring
            server, or a loaded scorer or backend.
        args ([`RAFTConfig`], *optional*):
            Configuration. Defaults to `RAFTConfig("<model>-RAFT")`. [`~transformers.TrainingArguments`] and a
            [`~trl.SFTConfig`] are converted, with the defaults of [`RAFTConfig`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Questions, with a column `question` or `prompt` and optionally `answer`. As in TRL's online trainers, the
            policy gets the unchanged `prompt` (text, or messages for the chat template), and the reward model gets
            `question`, or else the prompt's last user message. Without `prompt`, prompts are built with the
            configuration's `prompt_template` and other prompt settings. Answers are not trained on. They are used to
            drop uniform questions and to log the accuracy.
        eval_dataset ([`~datasets.Dataset`], *optional*):
            Questions with answers, to evaluate the first policy and the policy of every round.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The policy's tokenizer. Defaults to the model's own tokenizer.
        callbacks, optimizer_cls_and_kwargs, quantization_config, peft_config (*optional*):
            As in [`~trl.SFTTrainer`]. There is no argument `optimizers`, because every round creates its own.

    Raises:
        `ValueError`: for unusable questions or conflicting settings, if all weights of the policy are frozen, or if a
            saved adapter is combined with a `peft_config`.
        `TypeError`: if `args` has settings that [`RAFTConfig`] does not have.
    """

    _tag_names = ["trl", "erprm-trl", "raft"]
    _name = "RAFT"
    _paper = {
        "title": "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment",
        "id": "2304.06767",
        "citation": CITATION,
    }

    def __init__(
        self,
        model: "str | Path | PreTrainedModel | PeftModel",
        reward_model: "str | Path | StepScorer | ScoringBackend",
        args: RAFTConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
    ):
        if args is None:
            name = local_path(model) if isinstance(model, (str, PathLike)) else get_config_model_id(model.config)
            args = RAFTConfig(f"{name.rstrip('/').split('/')[-1]}-RAFT")
        args = as_config(args, RAFTConfig, subject="RAFTTrainer")
        if train_dataset is None:
            raise ValueError("`train_dataset` is required")
        columns = {"question_column": args.question_column, "answer_column": args.answer_column}
        self.questions = load_policy_questions(train_dataset, require_answers=False, **columns)
        self.eval_questions = None if eval_dataset is None else load_policy_questions(eval_dataset, **columns)
        policy, processing_class, quantization_config = policy_model(
            model,
            args,
            subject="RAFTTrainer",
            processing_class=processing_class,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        super().__init__(
            model=policy,
            args=args,
            # A placeholder, because each round trains on its own selected solutions.
            train_dataset=Dataset.from_list([{"question": question.question} for question in self.questions]),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        check_trainable(self.model, subject="RAFTTrainer")
        loads_adapter = isinstance(model, (str, PathLike)) and not isinstance(policy, str)
        self._model_id = local_path(model) if loads_adapter else get_config_model_id(self.model.config)
        self.has_answers = self.questions[0].answer is not None
        self.drop_uniform = args.drop_uniform
        if args.drop_uniform is None:
            self.drop_uniform = self.has_answers and args.num_generations > 1
        self._check_arguments()
        if isinstance(reward_model, (str, PathLike)):
            reward_model = local_path(reward_model)
        self.scorer = load_scorer(reward_model, self.accelerator, args.scoring_batch_size, args.shard_reward_model)
        if args.eta is not None:
            self.scorer = self.scorer.at_eta(args.eta, args.trained_eta)
        self.prompt_format = PromptFormat(self._tokenizer, **args.prompt_settings)
        self._first_policy = Path(args.output_dir, "first-policy")
        self._policy = PolicySampler(self)
        self._sampling = RoundSampling(self, self._policy)
        self._scoring = {
            "reward_model": self.scorer.model_name,
            "reward_model_format": asdict(self.scorer.prm_format),
            # The eta of the labels and the eta of the scores, if they may differ.
            "reward_model_eta": None if self.scorer.eta is None else [self.scorer.trained_eta, self.scorer.eta],
        }
        self._refresh = None
        if args.refresh_reward_model:
            path = reward_model if isinstance(reward_model, str) else None
            self._refresh = RewardModelRefresh(self, self._sampling, path)
        self._round: RoundFolder | None = None  # the round in training
        self._steps_before = 0
        self._tracker = TrainingTracker(
            self, self._data_manifest, last_model=lambda: get_last_checkpoint(self._round.path)
        )

    def _check_arguments(self) -> None:
        if self._is_vlm:
            raise ValueError("RAFTTrainer: got a processor, expected a tokenizer. Pass a model for text only.")
        if hasattr(self.model, "peft_config") and not hasattr(self.model, "get_base_model"):
            # transformers saves only the adapter of such a model, and does not load it again.
            raise ValueError(
                f"RAFTTrainer: got a {type(self.model).__name__} with a loaded adapter, expected a PeftModel. Pass "
                "the adapter's folder, or peft.PeftModel.from_pretrained(base_model, path, is_trainable=True)."
            )
        if self.drop_uniform and not self.has_answers:
            raise ValueError(
                "drop_uniform: got True for training questions without answers, expected questions with answers. Do "
                "not set it, or add a column `answer`."
            )
        args = self.args
        unread = {name: getattr(args, name) for name in ("prompt_template", "system_prompt", "examples")}
        if self.questions[0].prompt is not None and any(unread.values()):
            raise ValueError(
                f"{', '.join(name for name in unread if unread[name])}: got a value for training questions with a "
                "column `prompt`, which the policy gets unchanged, expected no prompt settings. Do not set them, or "
                "rename the column to `question`."
            )
        if self.is_fsdp_enabled:
            raise ValueError("RAFTTrainer: got FSDP, from whose shards it cannot sample. Use DDP or DeepSpeed.")
        if args.use_vllm:
            check_engine(self)

    def _prepare_dataset(self, dataset, *arguments, **options):  # seam
        # The questions of the constructor have no token ids yet.
        if "input_ids" not in dataset.column_names:
            return dataset
        return super()._prepare_dataset(dataset, *arguments, **options)

    # The rounds

    def train(self, resume_from_checkpoint: bool | None = None) -> TrainOutput:
        """
        Runs all rounds that are not finished in `output_dir`. An interrupted round is resumed.

        Args:
            resume_from_checkpoint (`bool`, *optional*):
                Has no effect, because a run always resumes. A path is an error.

        Returns:
            [`~transformers.trainer_utils.TrainOutput`]: the output of the last round, with its metrics.
        """
        if isinstance(resume_from_checkpoint, (str, Path)):
            raise ValueError(
                f"resume_from_checkpoint: got {str(resume_from_checkpoint)!r}, expected no path, because RAFTTrainer "
                "resumes from its output_dir. To start from another policy, pass it as `model`."
            )
        rounds = [RoundFolder(self.args.output_dir, index) for index in range(self.args.num_rounds)]
        config = self._run_config()
        for folder in rounds:
            folder.check_config(config)
        finished = next((folder.index for folder in rounds if "finished" not in folder.manifest), len(rounds))
        manifests = [folder.manifest for folder in rounds[:finished]]
        self.accelerator.wait_for_everyone()
        self._steps_before = sum(manifest["training"]["global_step"] for manifest in manifests)
        self._reset_optimization()
        if self._refresh is not None:
            self._refresh.restore(rounds[:finished])
        if finished > 0:
            self._policy.load(rounds[finished - 1].policy)
        elif self._round is not None:
            raise ValueError(
                "RAFTTrainer: got a trainer whose first round was interrupted, so its policy has changed, expected "
                "the first policy. Construct the trainer again. It resumes from output_dir."
            )
        elif self.args.start_from == "first" or self.args.use_vllm:
            self._policy.save(self._first_policy)
        for folder in rounds[finished:]:
            self._run_round(folder, config)
        self._policy.free_engine()
        self.state.global_step, self._steps_before = self._steps_before, 0
        last = rounds[-1].manifest
        metrics = {**last["metrics"], **last.get("evaluation", {}), **last["training"]}
        return TrainOutput(self.state.global_step, last["training"]["loss"], metrics)

    def _run_round(self, folder: RoundFolder, config: dict[str, Any]) -> None:
        done = folder.manifest
        self.accelerator.wait_for_everyone()  # all processes have read the manifest before it changes
        if not done and self.accelerator.is_main_process:
            versions = {name: version(name) for name in ("erprm_trl", "torch", "transformers", "trl")}
            folder.add(config=config, versions=versions)
        self.accelerator.wait_for_everyone()
        if folder.index == 0 and self.eval_questions is not None:
            before = self._evaluate_once(folder, "evaluation_before", done)
            self.log(dict(before))
        if "metrics" not in done:
            self._sampling.pick(folder, self.questions, self._steps_before)
        self.log({"raft/round": folder.index, **folder.manifest["metrics"]})
        if self.args.num_logged_solutions:
            splitter, num_solutions = self.scorer.prm_format.splitter, self.args.num_logged_solutions
            self._tracker.trackers.table(
                "solutions/raft",
                lambda: round_solutions(folder, splitter, num_solutions),
                self.state.global_step + self._steps_before,
            )
        if "training" in done:
            self._policy.load(folder.policy)
        else:
            self._fine_tune(folder)
        self._steps_before += folder.manifest["training"]["global_step"]
        self.state.global_step = 0
        if self.eval_questions is not None:
            self.log(dict(self._evaluate_once(folder, "evaluation", done)))
        if self._refresh is not None:
            self.log(dict(self._refresh.run(folder)))
        if self.accelerator.is_main_process:
            folder.add(finished=True)
        self.accelerator.wait_for_everyone()

    def _fine_tune(self, folder: RoundFolder) -> None:
        """Runs `SFTTrainer.train` on the selected solutions, with a new optimizer and schedule."""
        picks = read_rows(folder.picks)
        if not picks:
            context_length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
            raise ValueError(nothing_kept(folder, context_length))
        dataset = Dataset.from_list([training_row(pick) for pick in picks])
        args = self.args
        self._policy.free_engine()
        self.train_dataset = self._prepare_dataset(  # seam
            dataset, self.processing_class, args, args.packing, None, "train"
        )
        if args.start_from == "first" and folder.index > 0:
            self._policy.load(self._first_policy)
        self._round = folder
        history = self.state.log_history
        set_seed(round_seed(args.seed, folder.index, "training"))
        output = super().train(resume_from_checkpoint=not args.save_only_model and folder.has_checkpoints)
        self._round = None
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        training = {
            "global_step": output.global_step,
            "loss": losses[-1] if losses else output.training_loss,
            "epoch": self.state.epoch,
        }
        self.state.log_history = history + self.state.log_history
        self._reset_optimization()
        self._policy.save(folder.policy)
        if self.accelerator.is_main_process:
            folder.add(training=training)
        self.accelerator.wait_for_everyone()

    def _reset_optimization(self) -> None:
        if self.is_deepspeed_enabled:
            # Removes the engine. Its hooks synchronise processes in every forward pass, but their numbers of forward
            # passes differ when they sample.
            self.accelerator.free_memory()
            self.model_wrapped = self.model
        self.optimizer = self.lr_scheduler = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Saves the policy and its tokenizer."""
        if self.is_deepspeed_enabled and self.model_wrapped is self.model:  # there is no engine with the weights
            self._policy.save(Path(output_dir or self.args.output_dir))
            return
        super().save_model(output_dir, _internal_call=_internal_call)

    def create_model_card(self, *arguments, **options) -> None:
        """Writes the model card, with a section about the reward models if they are refreshed."""
        super().create_model_card(*arguments, **options)
        if self._refresh is not None and self.is_world_process_zero():
            rounds = [RoundFolder(self.args.output_dir, index).manifest for index in range(self.args.num_rounds)]
            with open(Path(self.args.output_dir, "README.md"), "a", encoding="utf-8") as card:
                card.write(reward_models_section([manifest for manifest in rounds if manifest]))

    def _card_reward_model(self) -> str:
        return self.scorer.model_name

    def _get_output_dir(self, trial) -> str:  # seam
        return super()._get_output_dir(trial) if self._round is None else str(self._round.path)

    # Loss, metrics and logs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns the loss of [`~trl.SFTTrainer`], and counts the tokens for the throughput."""
        if self.model.training:
            # Without an attention mask, a row holds several sequences, and the cost of attention is computed from the
            # length of the whole row.
            mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
            self._tracker.throughput.count(mask.sum(-1), inputs["labels"] != -100)
        outcome = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._checked_loss(outcome[0] if return_outputs else outcome)
        return outcome

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Measures the accuracy of the current policy on new samples at temperature 1.

        Args:
            eval_dataset ([`~datasets.Dataset`], *optional*):
                Questions with answers. Defaults to the `eval_dataset` of the constructor.
            ignore_keys (`list[str]`, *optional*):
                Not used.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`):
                Prefix of the metrics' names.

        Returns:
            `dict[str, float]`: the metrics.
        """
        questions = self.eval_questions
        if eval_dataset is not None:
            columns = {"question_column": self.args.question_column, "answer_column": self.args.answer_column}
            questions = load_policy_questions(eval_dataset, **columns)
        if questions is None:
            raise ValueError("evaluate: got no `eval_dataset`, expected questions with answers. Pass `eval_dataset`.")
        path = Path(self.args.output_dir, "evaluation")
        if self.accelerator.is_main_process:
            shutil.rmtree(path, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        metrics = self._sampling.accuracy(path, questions, metric_key_prefix)
        self.log(dict(metrics))
        return metrics

    def _evaluate_once(self, folder: RoundFolder, name: str, done: dict[str, Any]) -> dict[str, float]:
        if name not in done:
            metrics = self._sampling.accuracy(folder.path / name, self.eval_questions, "eval")
            if self.accelerator.is_main_process:
                folder.add(**{name: metrics})
            self.accelerator.wait_for_everyone()
            return metrics
        return done[name]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs with the number of updates over all rounds, so that curves are continuous over rounds."""
        if self.model.training and "loss" in logs:
            logs.update(self._tracker.throughput.metrics())
        self.state.global_step += self._steps_before
        try:
            super().log(logs, start_time)
        finally:
            self.state.global_step -= self._steps_before

    def _data_manifest(self) -> dict[str, Any]:
        return {"questions": fingerprint(self.questions), "round": self._round.manifest}

    def _run_config(self) -> dict[str, Any]:
        """The settings that must be the same when a run is resumed."""
        batch_size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return {
            "model": self._model_id,
            "trainable_parameters": get_model_param_count(self.model, trainable_only=True),
            **self._scoring,
            "questions": fingerprint(self.questions),
            "eval_questions": None if self.eval_questions is None else fingerprint(self.eval_questions),
            "train_batch_size": batch_size * self.accelerator.num_processes,
            **{name: getattr(self.args, name) for name in COMPARED},
            **self.args.refresh_settings,
        }
