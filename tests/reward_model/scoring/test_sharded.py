"""How processes that share a sharded reward model coordinate, without real processes."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig

from erprm_trl import StepScorer, dial
from erprm_trl.reward_model.scoring import sharded as sharded_scoring
from erprm_trl.reward_model.scoring.sharded import ShardedBackend, check_sharding


QUESTIONS, STEPS = ["Tom dial 3 . right 15 . ?"] * 3, [["3 + 15 = 18", "answer 18"], ["3 + 15 = 4"], ["answer 2"]]


@pytest.fixture
def next_to_process(monkeypatch, dial_policy, dial_format):
    """Makes a sharded scorer next to a simulated process with `others` batches, and an ordinary scorer."""
    monkeypatch.setattr(sharded_scoring, "prepare_deepspeed", lambda model, accelerator: model)

    def make(others):
        sent = []

        def gather(num_batches):
            sent.append(int(num_batches))
            return torch.cat([num_batches, torch.tensor([others])])

        accelerator = SimpleNamespace(device=torch.device("cpu"), gather=gather)
        backend = ShardedBackend(*dial_policy, dial_format, accelerator, batch_size=2)
        passes = []
        score_batches = backend.local.score_batches
        backend.local.score_batches = lambda batches: passes.extend(map(len, batches)) or score_batches(batches)
        return StepScorer.from_backend(backend), passes, sent, StepScorer(*dial_policy, dial_format, batch_size=2)

    return make


@pytest.mark.parametrize(("others", "passes"), [(1, 2), (2, 2), (5, 5)])
def test_every_process_runs_the_largest_number_of_batches(next_to_process, others, passes):
    sharded, made, sent, plain = next_to_process(others)
    assert sharded.score(QUESTIONS, STEPS) == plain.score(QUESTIONS, STEPS)
    assert (len(made), sent) == (passes, [2])


def test_a_process_without_solutions_takes_part(next_to_process):
    sharded, made, sent, _ = next_to_process(3)
    assert sharded.score([], []) == []
    assert (len(made), sent) == (3, [0])


def test_an_error_on_one_process_is_an_error_on_all(next_to_process):
    sharded, made, sent, _ = next_to_process(1)
    with pytest.raises(ValueError, match="expected at most the model's context"):
        sharded.score(QUESTIONS[:1], [["3 + 15 = 18"] * 2000])
    assert (made, sent) == ([], [-1])
    sharded, made, sent, _ = next_to_process(-1)
    with pytest.raises(RuntimeError, match="Another process could not score"):
        sharded.score(QUESTIONS, STEPS)
    assert (made, sent) == ([], [2])


@pytest.mark.parametrize("stage", [None, 2])
def test_sharding_needs_zero3(stage):
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=plugin), distributed_type=SimpleNamespace(value="MULTI_GPU")
    )
    with pytest.raises(ValueError, match="zero3.yaml"):
        check_sharding(dial.BASE_PATH, accelerator)


def test_a_loaded_scorer_cannot_be_sharded(dial_policy, dial_format):
    with pytest.raises(ValueError, match="already loaded"):
        check_sharding(StepScorer(*dial_policy, dial_format), None)


def test_an_adapter_with_new_tokens_must_be_merged(tmp_path):
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3)))
    LoraConfig(target_modules="all-linear").save_pretrained(tmp_path)
    check_sharding(tmp_path, accelerator)
    LoraConfig(target_modules="all-linear", trainable_token_indices={"embed_tokens": [46]}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trained embeddings of new tokens, .* Merge it"):
        check_sharding(tmp_path, accelerator)
