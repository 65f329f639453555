"""Step scores from a reward model whose weights are split over the processes of a ZeRO-3 training.

For reward models that a device cannot hold beside the policy. Everything but the splitting is `scoring.py`'s.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from ..._trl import prepare_deepspeed
from ...io.http_client import is_url
from ..encoding import EncodedSolution, encode_solutions
from ..prm_format import PRMFormat
from .loading import adapter_config
from .scorer import StepScorer


class ShardedStepScorer(StepScorer):
    """
    A [`StepScorer`] of which each process holds a part, as TRL splits reference models.

    Processes gather the weights of a layer together, so all of them have to call [`~StepScorer.score`] equally often,
    each with its own solutions, however many those are. An error on one is an error on all.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The reward model, loaded while the ZeRO-3 configuration of the training was alive.
        tokenizer, prm_format, batch_size, max_batch_tokens:
            See [`StepScorer`].
        accelerator ([`~accelerate.Accelerator`]):
            Of the training.
    """

    def __init__(
        self,
        model,
        tokenizer,
        prm_format: PRMFormat,
        accelerator: Accelerator,
        *,
        batch_size: int = 32,
        max_batch_tokens: int | None = None,
    ):
        super().__init__(model, tokenizer, prm_format, batch_size=batch_size, max_batch_tokens=max_batch_tokens)
        self.accelerator = accelerator
        self._engine = prepare_deepspeed(self.model, accelerator)

    def score(
        self, questions: Sequence[str], steps: Sequence[Sequence[str]], *, skip_too_long: bool = False
    ) -> list[list[float]]:
        """
        Scores of every step; see [`StepScorer.score`]. All processes call it together.

        Raises:
            `ValueError`: on the process whose solutions cannot be scored. `RuntimeError`: then, on the others.
        """
        self._agreed = False
        try:
            return super().score(questions, steps, skip_too_long=skip_too_long)
        except ValueError:
            if not self._agreed:
                self._most_batches(-1)
            raise

    def _score_batches(self, batches: list[list[EncodedSolution]]) -> list[list[list[float]]]:
        missing = self._most_batches(len(batches)) - len(batches)
        filler = encode_solutions(self.tokenizer, self.prm_format, ["0"], [["0"]])
        return [self._score_batch(batch) for batch in [*batches, *[filler] * missing]][: len(batches)]

    def _most_batches(self, number: int) -> int:
        """The largest number of batches of a process; -1 says that this one cannot go on."""
        self._agreed = True
        numbers = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        if number >= 0 and int(numbers.min()) < 0:
            raise RuntimeError("The solutions of another process cannot be scored: its error says why.")
        return int(numbers.max())


def check_sharding(
    reward_model: str | Path | StepScorer,
    accelerator: Accelerator,
    prm_format: PRMFormat | None = None,
    revision: str | None = None,
) -> None:
    """
    Whether a reward model can be split over the processes of a training.

    Raises:
        `ValueError`: if it is loaded already, the training does not split weights by ZeRO-3, the format needs a second
            model, or it is an adapter with rows of an embedding.
    """
    if prm_format is not None and prm_format.head == "implicit":
        raise ValueError(
            "shard_reward_model=True: got a format with head='implicit', whose two models are not split, expected "
            "another head. Leave it False, or serve the scorer from another process."
        )
    if isinstance(reward_model, StepScorer):
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
