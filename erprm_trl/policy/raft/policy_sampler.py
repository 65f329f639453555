"""Samples from the policy of a trainer between its updates, and saves and loads its weights, also with ZeRO-3."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import Trainer

from ..._trl import unwrap_model_for_generation
from ...io.file_checks import damaged_file
from ...rollouts.sampling.base import Sampler
from ...rollouts.sampling.transformers_sampler import TransformersSampler
from ...rollouts.sampling.vllm_sampler import VLLMSampler
from ...training.checkpoints import flush_folder, writing
from ...training.synced_reference import whole_weights
from .engine import engine_environment, save_merged
from .rounds import run_again


class PolicySampler:
    """
    The policy of a trainer, as a sampler.

    Args:
        trainer ([`RAFTTrainer`]):
            The constructed trainer.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.saved: Path | None = None  # folder on disk with the current weights
        self._engine: VLLMSampler | None = None

    @contextmanager
    def sampler(self, temperature: float | None = None, top_p: float | None = None) -> Iterator[Sampler]:
        """Returns a sampler of the policy: the model in memory, which is gathered once for the context with ZeRO-3, or
        a vLLM engine of this process with the saved weights. All processes must enter the context."""
        trainer, args = self.trainer, self.trainer.args
        settings = {"max_new_tokens": args.max_completion_length, **args.prompt_settings}
        temperature = args.temperature if temperature is None else temperature
        top_p = args.top_p if top_p is None else top_p
        tokenizer = trainer.processing_class
        if args.use_vllm:
            if self._engine is None:
                path = self._folder_of_engine()
                with engine_environment(trainer.accelerator):
                    self._engine = VLLMSampler(str(path), tokenizer, engine_kwargs=args.vllm_kwargs, **settings)
            self._engine.temperature, self._engine.top_p = temperature, top_p
            yield self._engine
            return
        gathered = unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        )
        # After training in mixed precision, the model's forward uses autocast. Before, it needs this context.
        with gathered as model, trainer.accelerator.autocast():
            settings |= {"temperature": temperature, "top_p": top_p, "batch_size": args.generation_batch_size}
            yield TransformersSampler(model, tokenizer, **settings)

    def _folder_of_engine(self) -> Path:
        """A folder with the whole policy as it is now."""
        folder = Path(self.trainer.args.output_dir)
        if hasattr(self.trainer.model, "peft_config"):
            save_merged(self.trainer, folder / "merged-policy")
            return folder / "merged-policy"
        if self.saved is None:
            self.save(folder / "first-policy")
        return self.saved

    def free_engine(self) -> None:
        """Ends the vLLM engine, to free its memory for the training."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            gc.collect()

    def save(self, path: Path) -> None:
        """Saves the whole policy and its tokenizer, also with ZeRO-3. All processes must call it."""
        with whole_weights(self.trainer.model, self.trainer.accelerator), writing(path):
            if self.trainer.args.should_save:
                self.trainer._save(str(path))  # seam
                flush_folder(path)
        self.trainer.accelerator.wait_for_everyone()
        self.saved = path

    def load(self, path: Path) -> None:
        """Loads weights that [`~PolicySampler.save`] wrote into the model. All processes must call it."""
        if damage := damaged_file(path.iterdir()):
            raise ValueError(f"{path}: {damage}. {run_again(path.parent)}")
        with whole_weights(self.trainer.model, self.trainer.accelerator, modify=True):
            self.trainer._load_from_checkpoint(str(path))  # seam
        self.saved = path
