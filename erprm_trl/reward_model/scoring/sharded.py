"""Scores with a reward model whose weights are split over the processes of a ZeRO-3 training.

For reward models that do not fit on one device next to the policy.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..._trl import prepare_deepspeed
from ...io.adapters import adapter_config
from ...io.config_values import is_url
from ..encoding import encode_solutions
from ..prm_format import PRMFormat
from .backend import ScoringBackend
from .local import LocalBackend, log_odds_at_head


class ShardedBackend:
    """
    A [`ScoringBackend`] of which each process holds a part, as TRL splits reference models.

    Processes gather the weights of a layer together, so all of them have to call [`~ShardedBackend.score`] equally
    often, each with its own solutions. They may have different numbers of solutions, or none. An error on one process
    is an error on all.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The reward model, loaded while the ZeRO-3 configuration of the training was active.
        tokenizer, prm_format:
            See [`LocalBackend`].
        accelerator ([`~accelerate.Accelerator`]):
            The accelerator of the training.
        batch_size, max_batch_tokens (*optional*):
            See [`LocalBackend`].
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        prm_format: PRMFormat,
        accelerator: Accelerator,
        *,
        batch_size: int = 32,
        max_batch_tokens: int | None = None,
    ):
        limits = {"batch_size": batch_size, "max_batch_tokens": max_batch_tokens}
        self.local = LocalBackend(model, tokenizer, prm_format, **limits, log_odds=self._log_odds)
        self.model, self.accelerator = self.local.model, accelerator
        self.tokenizer, self.prm_format, self.token_ids = tokenizer, prm_format, self.local.token_ids
        self.batch_size, self.max_batch_tokens = batch_size, max_batch_tokens
        self._engine = prepare_deepspeed(self.model, accelerator)

    @property
    def model_name(self) -> str:
        """Folder or Hub id of the model."""
        return self.local.model_name

    @property
    def context_length(self) -> int | None:
        """The model's longest context in tokens."""
        return self.local.context_length

    @property
    def weights(self) -> nn.Module:
        """The model, of which this process holds a part."""
        return self.local.weights

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool = False
    ) -> list[list[float]]:
        """
        Scores of every step; see [`ScoringBackend.score`]. All processes call it together.

        Raises:
            [`SolutionTooLong`]: on the process whose solution is too long. `RuntimeError`: then, on the others.
        """
        try:
            plan = self.local.plan(questions, steps, skip_too_long)
        except Exception:
            self.give_up()
            raise
        missing = self._most_batches(len(plan.batches)) - len(plan.batches)
        filler = encode_solutions(self.tokenizer, self.prm_format, ["0"], [["0"]])
        scored = [self.local.score_batch(batch) for batch in [*plan.batches, *[filler] * missing]]
        return plan.in_order(scored[: len(plan.batches)])

    def give_up(self) -> None:
        """Tells the other processes, which are in [`~ShardedBackend.score`], that this one cannot score."""
        self._most_batches(-1)

    def _most_batches(self, num_batches: int) -> int:
        """The largest number of batches of a process; -1 says that this one cannot go on."""
        per_process = self.accelerator.gather(torch.tensor([num_batches], device=self.accelerator.device))
        if num_batches >= 0 and int(per_process.min()) < 0:
            raise RuntimeError("The solutions of another process cannot be scored: its error says why.")
        return int(per_process.max())

    def _log_odds(self, batch: dict[str, Tensor]) -> Tensor:
        return log_odds_at_head(self._engine, self.model, self.prm_format.head, self.token_ids, batch)


def check_sharding(
    reward_model: str | Path | ScoringBackend,
    accelerator: Accelerator,
    prm_format: PRMFormat | None = None,
    revision: str | None = None,
) -> None:
    """
    Checks that a reward model can be split over the processes of a training.

    Args:
        reward_model (`str`, `Path` or [`ScoringBackend`]):
            The reward model. Only a folder or Hub id can be split.
        accelerator ([`~accelerate.Accelerator`]):
            The accelerator of the training.
        prm_format ([`PRMFormat`], *optional*):
            Its format, where it is known already.
        revision (`str`, *optional*):
            Its revision on the Hub.

    Raises:
        `ValueError`: if it is loaded already, the training does not split weights by ZeRO-3, the format needs a second
            model, or it is an adapter with rows of an embedding.
    """
    if prm_format is not None and prm_format.head == "implicit":
        raise ValueError(
            "shard_reward_model=True: got a format with head='implicit', whose two models are not split, expected "
            "another head. Leave it False, or serve the scorer from another process."
        )
    if not isinstance(reward_model, (str, Path)):
        raise ValueError("shard_reward_model=True: got a scorer that is loaded already. Give its path instead.")
    if is_url(reward_model):
        raise ValueError(
            "shard_reward_model=True: got the address of a scoring server, expected a path or id. Leave it False: the "
            "model takes no memory here."
        )
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage != 3:
        raise ValueError(
            f"A reward model is split over the processes of a ZeRO-3 training, and this is "
            f"{accelerator.distributed_type.value}{'' if plugin is None else f' of stage {plugin.zero_stage}'}. Leave "
            "shard_reward_model False, or launch with accelerate_configs/zero3.yaml."
        )
    # PEFT's layer reads the embedding's weight where ZeRO-3 has not gathered it.
    if (adapter_config(str(reward_model), revision) or {}).get("trainable_token_indices"):
        raise ValueError(
            f"shard_reward_model=True: got {reward_model}, an adapter that trained embeddings of new tokens, expected "
            "one without them or a whole model. Merge it: "
            "AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload().save_pretrained(folder), and copy the "
            "tokenizer and prm_format.json to that folder."
        )
