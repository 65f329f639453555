"""Computes what the training of an implicit process reward model needs: the log-probability of each solution under the
reference model, once per dataset, and the implicit reward of each solution in a batch."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers.utils import CONFIG_NAME, cached_file

from ...functional.implicit_rewards import implicit_reward
from ...io.paths import local_path
from ..collator import DataCollatorForStepLabels
from ..prm_format import PRMFormat
from ..reference_model import load_reference_model, unpartitioned
from ..solution_log_probs import solution_sums
from .erprm_config import ERPRMConfig


logger = logging.getLogger(__name__)

COLUMN = "ref_logps"
REFERENCE_VERSION = 1
"""Version of the stored log-probabilities, and part of their cache's name."""

_SORTED_TOGETHER = 32  # number of batches whose solutions are sorted by length, to save padding


def solution_rewards(model: nn.Module, batch: dict[str, Tensor], beta: float, unwrapped: nn.Module) -> Tensor:
    """Implicit reward of each solution of a batch, of shape (B, 1), which is the logit that the solution is right."""
    return implicit_reward(solution_sums(model, batch, unwrapped), batch[COLUMN], beta)[:, None]


class ReferenceLogProbs:
    """
    Adds the column `ref_logps` to encoded examples: the log-probability of each solution under the reference model.

    The column is computed once, by all processes together, and cached next to a dataset that is on disk. The cache
    changes with the examples, the files of the reference model and the precision. The reference model is in memory
    only while the column is computed.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model that is trained. If it is an adapter whose base model is the reference model, the base model is used
            with the adapter disabled. Otherwise the reference model is loaded.
        prm_format ([`PRMFormat`]):
            Format with the reference model.
        args ([`ERPRMConfig`]):
            Arguments of the training run.
        base_name (`str`):
            Folder or Hub id of the model's base model.
        pad_token_id (`int`):
            Padding token.
    """

    def __init__(self, model: nn.Module, prm_format: PRMFormat, args: ERPRMConfig, base_name: str, pad_token_id: int):
        self._format, self._args = prm_format, args
        zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
        shares_base = hasattr(model, "disable_adapter") and base_name == prm_format.reference_model
        self._adapted = model if shares_base and not zero3 else None  # ZeRO-3 partitions the base model
        self._collate = DataCollatorForStepLabels(pad_token_id)
        self._network: nn.Module | None = None
        self._made: set[str] = set()

    def has_made(self, examples: Dataset) -> bool:
        """Whether the dataset came from [`add_to`]."""
        return examples._fingerprint in self._made

    def add_to(self, examples: Dataset, name: str) -> Dataset:
        """
        Returns the examples with the column `ref_logps`. All processes must call it together.

        Args:
            examples (`Dataset`):
                Encoded examples, each with the label of its last step.
            name (`str`):
                Name of the dataset, for the progress bar.
        """
        from datasets.fingerprint import Hasher

        world, rank = self._args.world_size, self._args.process_index
        part = examples.shard(world, rank, contiguous=True) if world > 1 else examples
        fingerprint = Hasher.hash((REFERENCE_VERSION, part._fingerprint, self._key()))
        with self._released():
            part = part.map(
                self._sums,
                batched=True,
                batch_size=_SORTED_TOGETHER * self._args.per_device_eval_batch_size,
                new_fingerprint=fingerprint,
                desc=f"Reference log-probabilities of {name} dataset",
            )
        if world > 1:
            sums = gather_object(part[COLUMN][:] if len(part) else [])
            part = examples.add_column(COLUMN, sums, new_fingerprint=Hasher.hash((fingerprint, "gathered")))
        self._made.add(part._fingerprint)
        return part

    def _key(self) -> tuple[Any, ...]:
        """Everything on which the log-probabilities depend, except the examples."""
        reference = local_path(self._format.reference_model)
        if Path(reference).is_dir():
            files = sorted(path for path in Path(reference).iterdir() if path.is_file())
            weights = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        else:
            weights = str(cached_file(reference, CONFIG_NAME))  # contains the commit
        args = self._args
        dtype = str((args.model_init_kwargs or {}).get("dtype"))
        return reference, weights, args.bf16, args.fp16, dtype, self._adapted is not None

    @torch.no_grad()
    def _sums(self, batch: dict[str, list]) -> dict[str, list[float]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))
        sums = [0.0] * len(rows)
        size, device = self._args.per_device_eval_batch_size, self._args.device
        dtype = torch.bfloat16 if self._args.bf16 else torch.float16
        with self._reference() as network:
            for start in range(0, len(order), size):
                places = order[start : start + size]
                inputs = {key: value.to(device) for key, value in self._collate([rows[i] for i in places]).items()}
                # The precision of the training, so that a model equal to the reference model has rewards of 0.
                with torch.autocast(device.type, dtype, enabled=self._args.bf16 or self._args.fp16):
                    values = solution_sums(network, inputs).tolist()
                for place, value in zip(places, values, strict=True):
                    sums[place] = value
        return {COLUMN: sums}

    @contextmanager
    def _reference(self) -> Iterator[nn.Module]:
        if self._adapted is not None:
            was_training = self._adapted.training
            if not getattr(self._adapted, "hf_device_map", None):
                self._adapted.to(self._args.device)
            with self._adapted.disable_adapter():
                yield self._adapted.eval()
            self._adapted.train(was_training)
            return
        if self._network is None:
            given = self._args.model_init_kwargs or {}
            kwargs = {"dtype": given.get("dtype") or "float32", "trust_remote_code": self._args.trust_remote_code}
            if given.get("attn_implementation"):
                kwargs["attn_implementation"] = given["attn_implementation"]
            logger.info("Loading the reference model %s.", self._format.reference_model)
            with unpartitioned():
                self._network = load_reference_model(self._format, kwargs).to(self._args.device).eval()
        yield self._network

    @contextmanager
    def _released(self) -> Iterator[None]:
        """Frees the reference model at the end of this context."""
        try:
            yield
        finally:
            self._network = None
            gc.collect()
