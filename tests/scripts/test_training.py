"""The end of a policy's training: saved and reported, or stopped by the guard."""

from types import SimpleNamespace

import pytest
from trl import ModelConfig

import erprm_trl
from erprm_trl import PRMFormat
from erprm_trl.scripts import training
from erprm_trl.scripts.outcome import StoppedByGuard
from erprm_trl.scripts.training import RewardArguments, train_policy


class FakeTrainer:
    """Notes what is asked of it."""

    def __init__(self, **options):
        self.options, self.args, self.done = options, options["args"], []
        log = [{"steps/mean_score": 0.25, "kl": 0.0}, {"loss": 1.0}, {"steps/mean_score": 0.75}]
        self.state = SimpleNamespace(log_history=log, global_step=2)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *values, **named: self.done.append(name)


def run(monkeypatch, stopped_because, reward_model="erprm", **reward):
    guard = SimpleNamespace(stopped_because=stopped_because, last_good_checkpoint="out/checkpoint-20")
    monkeypatch.setattr(training, "load_tokenizer", lambda *given, **named: "tokenizer")
    monkeypatch.setattr(erprm_trl, "PolicyGuard", lambda: guard)
    prompts = SimpleNamespace(datasets=lambda tokenizer, **columns: (f"train for {tokenizer}", None))
    config = SimpleNamespace(
        output_dir="out/policy/", model_init_kwargs=None, trust_remote_code=False, named_columns={}, world_size=1,
        push_to_hub=False, eta=2.0, aggregation=None,
    )  # fmt: skip
    trainer = train_policy(
        FakeTrainer, prompts, RewardArguments(reward_model, **reward), config, ModelConfig("policy")
    )
    return trainer, guard


def test_a_policy_is_saved_and_its_progress_is_shown(monkeypatch, capsys):
    trainer, guard = run(monkeypatch, None)
    assert trainer.done == ["train", "save_model", "save_state", "create_model_card"]
    assert trainer.options["callbacks"] == [guard] and trainer.options["train_dataset"] == "train for tokenizer"
    assert trainer.options["reward_funcs"] == "erprm" and trainer.options["model"] == "policy"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The policy was saved in out/policy/ after 2 updates."
    # The KL was logged once.
    assert [line.split()[-2:] for line in lines[1:4]] == [["first", "last"], ["0.250", "0.750"], ["policy", "0.000"]]
    assert lines[-1] == "Next: erprm report --folder out/policy/"
    assert run(monkeypatch, None, guard=False)[0].options["callbacks"] is None


def test_the_stated_eta_of_a_reward_model_is_passed_on(monkeypatch, tmp_path):
    PRMFormat().save(tmp_path)
    trainer, _ = run(monkeypatch, None, reward_model=str(tmp_path), trained_eta=0.0)
    assert trainer.options["reward_funcs"].prm_format.eta == 2.0


def test_a_policy_that_the_guard_stopped_is_not_saved(monkeypatch, capsys):
    monkeypatch.setattr(FakeTrainer, "save_model", lambda *given: pytest.fail("was saved"), raising=False)
    with pytest.raises(StoppedByGuard, match="`kl` is 9. Last good checkpoint: out/checkpoint-20"):
        run(monkeypatch, "`kl` is 9.")
    assert capsys.readouterr().out == ""


def test_a_command_without_a_model_names_the_option():
    for run_it in (
        lambda: training.model_options(ModelConfig(), SimpleNamespace(world_size=1)),
        lambda: train_policy(FakeTrainer, None, RewardArguments("erprm"), None, ModelConfig()),
    ):
        with pytest.raises(ValueError, match="model_name_or_path: got none.*Pass --model_name_or_path MODEL"):
            run_it()
