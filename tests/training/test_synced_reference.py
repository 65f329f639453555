"""Reference models that follow the policy: a resumed run equals the uninterrupted one, and what a checkpoint lacks."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from step_fakes import FakeScorer, by_text, questions, save_tiny, settings, tiny_llama, word_level

from erprm_trl.policy.online.step_config import StepGRPOConfig
from erprm_trl.policy.online.step_grpo_trainer import StepGRPOTrainer
from erprm_trl.training.synced_reference import FILE, load_synced_reference, save_synced_reference


@pytest.mark.slow("trains several times")
def test_a_resumed_run_equals_the_uninterrupted_run(tmp_path, caplog):
    policy = save_tiny(tmp_path / "policy", word_level())

    def train(folder, **resume):
        options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "beta": 0.5, "learning_rate": 0.05}
        sync = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.75}
        args = StepGRPOConfig(**settings(tmp_path / folder, **options, **sync))
        trainer = StepGRPOTrainer(policy, FakeScorer(by_text), args, questions(8), processing_class=word_level())
        trainer.train(**resume)
        return trainer

    straight, checkpoint = train("straight"), tmp_path / "straight/checkpoint-2"
    initial = tiny_llama(len(word_level())).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert (straight.ref_model.state_dict()[name] - initial[name]).abs().max() > 1e-3
    resumed = train("resumed", resume_from_checkpoint=checkpoint)
    for left, right in ((straight.model, resumed.model), (straight.ref_model, resumed.ref_model)):
        assert all(torch.equal(right.state_dict()[name], weight) for name, weight in left.state_dict().items())
    (checkpoint / FILE).unlink()
    load_synced_reference(resumed, checkpoint)
    assert f"checkpoint-2 has no {FILE}, because it was saved by an earlier version" in caplog.text


def fake_trainer(**others):
    args = SimpleNamespace(sync_ref_model=True, should_save=True)
    model = torch.nn.Linear(2, 2)
    fields = {"args": args, "ref_model": model, "accelerator": Accelerator(cpu=True), "is_fsdp_enabled": False}
    return SimpleNamespace(**{**fields, **others})


def test_with_fsdp_the_checkpoint_lacks_the_reference_and_a_warning_says_so(tmp_path, caplog):
    save_synced_reference(fake_trainer(is_fsdp_enabled=True), tmp_path)
    assert not any(tmp_path.iterdir()) and "because FSDP divides its weights" in caplog.text


@pytest.mark.parametrize("others", [{"ref_model": None}, {"args": SimpleNamespace(sync_ref_model=False)}])
def test_a_reference_that_stays_is_not_saved(tmp_path, caplog, others):
    trainer = fake_trainer(**others)
    save_synced_reference(trainer, tmp_path)
    load_synced_reference(trainer, tmp_path)
    assert not any(tmp_path.iterdir()) and not caplog.records


def test_only_one_process_writes_and_all_load(tmp_path):
    first = fake_trainer()
    second = fake_trainer(args=SimpleNamespace(sync_ref_model=True, should_save=False))
    save_synced_reference(second, tmp_path)
    assert not any(tmp_path.iterdir())
    save_synced_reference(first, tmp_path)
    load_synced_reference(second, tmp_path)
    assert torch.equal(first.ref_model.weight, second.ref_model.weight)
