"""Scores steps with a reward model whose weights are sharded over the processes of a ZeRO-3 training run.

Use it for a reward model that does not fit on one device next to the policy.
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
from .scorer_file import is_scorer_file


class ShardedBackend:
    """
    A [`ScoringBackend`] whose model is sharded over the processes, as TRL shards reference models.

    The processes gather the weights of each layer together. All of them must therefore call [`~ShardedBackend.score`]
    the same number of times, each with its own solutions. The number of solutions per process may differ, and may be
    zero. An error on one process raises an error on all processes.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The reward model, loaded while the ZeRO-3 configuration of the training run was active.
        tokenizer, prm_format:
            See [`LocalBackend`].
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the training run.
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
        """The model's context length in tokens."""
        return self.local.context_length

    @property
    def weights(self) -> nn.Module:
        """The model. This process holds a shard of its weights."""
        return self.local.weights

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], skip_too_long: bool = False
    ) -> list[list[float]]:
        """
        Scores every step; see [`ScoringBackend.score`]. All processes must call it together.

        Raises:
            [`SolutionTooLong`]: on the process whose solution is too long.
            `RuntimeError`: on the other processes in that case.
        """
        try:
            plan = self.local.plan(questions, steps, skip_too_long)
        except Exception:
            self.give_up()
            raise
        missing = self._most_batches(len(plan.batches)) - len(plan.batches)
        filler = encode_solutions(self.tokenizer, self.prm_format, ["0"], [["0"]])
        scored = self.local.score_batches([*plan.batches, *[filler] * missing])
        return plan.in_order(scored[: len(plan.batches)])

    def give_up(self) -> None:
        """Makes the current [`~ShardedBackend.score`] call of the other processes raise an error."""
        self._most_batches(-1)

    def _most_batches(self, num_batches: int) -> int:
        """Returns the largest number of batches over all processes. A process passes -1 if it cannot continue."""
        per_process = self.accelerator.gather(torch.tensor([num_batches], device=self.accelerator.device))
        if num_batches >= 0 and int(per_process.min()) < 0:
            raise RuntimeError("Another process could not score its solutions. See the error of that process.")
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
    Checks that a reward model can be sharded over the processes of a training run.

    Args:
        reward_model (`str`, `Path` or [`ScoringBackend`]):
            The reward model. Only a folder or Hub id can be sharded.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the training run.
        prm_format ([`PRMFormat`], *optional*):
            Format of the reward model, if it is already known.
        revision (`str`, *optional*):
            Revision of the reward model on the Hub.

    Raises:
        `ValueError`: if the model is already loaded, if the training run does not use ZeRO-3, if the format needs a
            reference model, or if the model is an adapter with trained token embeddings.
    """
    if prm_format is not None and prm_format.head == "implicit":
        raise ValueError(
            "shard_reward_model=True: got a format with head='implicit', whose two models cannot be sharded, expected "
            "another head. Set shard_reward_model=False, or run a scoring server in another process."
        )
    if not isinstance(reward_model, (str, Path)):
        raise ValueError(
            "shard_reward_model=True: got a scorer that is already loaded, expected a path or Hub id. Pass the path."
        )
    if is_url(reward_model):
        raise ValueError(
            "shard_reward_model=True: got the address of a scoring server, expected a path or Hub id. Set "
            "shard_reward_model=False, because the model takes no memory in this process."
        )
    if is_scorer_file(reward_model):
        raise ValueError(
            f"shard_reward_model=True: got the scorer file {reward_model}, expected a folder or Hub id. Set "
            "shard_reward_model=False, and sample from a server (backend: endpoint) if memory is short."
        )
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage != 3:
        raise ValueError(
            f"shard_reward_model=True: got a training run with {accelerator.distributed_type.value}"
            f"{'' if plugin is None else f' of stage {plugin.zero_stage}'}, expected ZeRO-3. Set "
            "shard_reward_model=False, or launch with accelerate_configs/zero3.yaml."
        )
    # PEFT's layer for trained tokens reads the embedding's weight before ZeRO-3 has gathered it.
    if (adapter_config(str(reward_model), revision) or {}).get("trainable_token_indices"):
        raise ValueError(
            f"shard_reward_model=True: got {reward_model}, an adapter with trained embeddings of new tokens, expected "
            "a whole model, or an adapter without them. Merge it with "
            "AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload().save_pretrained(folder), and copy the "
            "tokenizer and prm_format.json to that folder."
        )
