"""What processes that share a reward model have to agree on; real processes are in tests/distributed."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig

from erprm_trl import StepScorer, dial
from erprm_trl.reward_model.scoring import sharded as sharded_scoring
from erprm_trl.reward_model.scoring.sharded import ShardedBackend, check_sharding


QUESTIONS, STEPS = ["Tom dial 3 . right 15 . ?"] * 3, [["3 + 15 = 18", "answer 18"], ["3 + 15 = 4"], ["answer 2"]]


@pytest.fixture
def beside(monkeypatch, dial_policy, dial_format):
    """A scorer of a process beside another one, which says that it has so many batches; and the plain scorer."""
    monkeypatch.setattr(sharded_scoring, "prepare_deepspeed", lambda model, accelerator: model)

    def make(others):
        told = []

        def gather(number):
            told.append(int(number))
            return torch.cat([number, torch.tensor([others])])

        accelerator = SimpleNamespace(device=torch.device("cpu"), gather=gather)
        backend = ShardedBackend(*dial_policy, dial_format, accelerator, batch_size=2)
        passes = []
        score_batch = backend.local.score_batch
        backend.local.score_batch = lambda batch: passes.append(len(batch)) or score_batch(batch)
        return StepScorer.from_backend(backend), passes, told, StepScorer(*dial_policy, dial_format, batch_size=2)

    return make


@pytest.mark.parametrize(("others", "passes"), [(1, 2), (2, 2), (5, 5)])
def test_every_process_makes_as_many_passes_as_the_longest(beside, others, passes):
    sharded, made, told, plain = beside(others)
    assert sharded.score(QUESTIONS, STEPS) == plain.score(QUESTIONS, STEPS)
    assert (len(made), told) == (passes, [2])


def test_a_process_without_solutions_goes_along(beside):
    sharded, made, told, _ = beside(3)
    assert sharded.score([], []) == []
    assert (len(made), told) == (3, [0])


def test_an_error_on_one_is_an_error_on_all(beside):
    sharded, made, told, _ = beside(1)
    with pytest.raises(ValueError, match="more than the model's context"):
        sharded.score(QUESTIONS[:1], [["3 + 15 = 18"] * 2000])
    assert (made, told) == ([], [-1])
    sharded, made, told, _ = beside(-1)
    with pytest.raises(RuntimeError, match="another process cannot be scored"):
        sharded.score(QUESTIONS, STEPS)
    assert (made, told) == ([], [2])


@pytest.mark.parametrize("stage", [None, 2])
def test_without_zero3_nothing_is_split(stage):
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=plugin), distributed_type=SimpleNamespace(value="MULTI_GPU")
    )
    with pytest.raises(ValueError, match="zero3.yaml"):
        check_sharding(dial.BASE_PATH, accelerator)


def test_a_scorer_that_is_there_is_not_split(dial_policy, dial_format):
    with pytest.raises(ValueError, match="loaded already"):
        check_sharding(StepScorer(*dial_policy, dial_format), None)


def test_an_adapter_with_new_tokens_is_to_be_merged_first(tmp_path):
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3)))
    LoraConfig(target_modules="all-linear").save_pretrained(tmp_path)
    check_sharding(tmp_path, accelerator)
    LoraConfig(target_modules="all-linear", trainable_token_indices={"embed_tokens": [46]}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trained embeddings of new tokens, .* Merge it"):
        check_sharding(tmp_path, accelerator)
