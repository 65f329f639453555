"""The refresh of RAFT's reward model: labels, mixture, the model that is used, killed runs, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from raft_runs import DIAL, Killed
from safetensors.torch import load_file

from erprm_trl import StepScorer, TransformersSampler, collect_rollouts, dial, load_questions
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.policy.raft import reward_model_refresh
from erprm_trl.policy.raft.raft_config import RAFTConfig
from erprm_trl.policy.raft.raft_trainer import RAFTTrainer
from erprm_trl.policy.raft.reward_model_refresh import (
    RewardModelRefresh,
    is_held_out,
    mixture_weights,
    reward_models_section,
)
from erprm_trl.policy.raft.rounds import read_rows
from erprm_trl.reward_model import ERPRMTrainer
from erprm_trl.rollouts import RolloutDataset


QUESTIONS = dial.make_questions(12, seed=1)
pytestmark = pytest.mark.usefixtures("no_grading_processes")
SETTINGS = {
    **DIAL,
    "save_strategy": "steps",
    "save_steps": 2,
    "refresh_reward_model": 5,
    "refresh_num_continuations": 2,
    "refresh_learning_rate": 3e-4,
}


@pytest.fixture(scope="module")
def scorer():
    return StepScorer.from_pretrained(dial.BASE_PATH, prm_format=FORMAT.with_eta(2.0), batch_size=256)


@pytest.fixture
def build(tmp_path, scorer):
    def build(name="out", reward_model=scorer, questions=QUESTIONS, **options):
        args = RAFTConfig(str(tmp_path / name), **{**SETTINGS, **options})
        return RAFTTrainer(dial.BASE_PATH, reward_model, args, Dataset.from_list(questions))

    return build


def saved_reward_model(scorer, path):
    """The folder of a reward model."""
    scorer.model.save_pretrained(path)
    scorer.tokenizer.save_pretrained(path)
    scorer.backend.prm_format.save(path)
    return path


def manifests(trainer):
    folder = Path(trainer.args.output_dir)
    return [json.loads((folder / f"round-{index}" / "manifest.json").read_text()) for index in range(2)]


def results(folder):
    """The weights of all policies and reward models of a run, and its selected solutions."""
    weights = {
        f"round-{index}/{kind}/{name}": value
        for index in range(2)
        for kind in ("policy", "reward_model")
        for name, value in load_file(next(Path(folder, f"round-{index}", kind).glob("*model.safetensors"))).items()
    }
    return weights, [read_rows(Path(folder, f"round-{index}", "picks.jsonl")) for index in range(2)]


def assert_equal(left, right):
    assert left[0].keys() == right[0].keys()
    assert all(torch.equal(left[0][name], right[0][name]) for name in left[0])
    assert left[1] == right[1]


def test_an_epoch_has_every_fresh_solution_once_and_no_old_one_twice():
    # 50 fresh and 50 old solutions of 200: the wanted half.
    assert mixture_weights([30, 20], 200, 0.5) == ([30.0, 20.0], 50.0)
    # A quarter fresh: 30 + 90.
    assert mixture_weights([30], 200, 0.75) == ([30.0], pytest.approx(90.0))
    # There are only 10 old solutions, and all are used once.
    assert mixture_weights([30], 10, 0.75) == ([30.0], 10.0)
    assert mixture_weights([30], 200, 0.0) == ([30.0], 0.0)
    assert mixture_weights([30], 0, 0.5) == ([30.0], 0.0)


def test_a_quarter_of_the_questions_is_held_out_by_text_and_seed():
    texts = [f"question {index}" for index in range(4000)]
    held_out = [is_held_out(text, 0) for text in texts]
    # Four standard deviations of a binomial with 4000 trials and p = 1/4 are 110.
    assert abs(sum(held_out) - 1000) < 110
    assert held_out == [is_held_out(text, 0) for text in texts]
    assert held_out != [is_held_out(text, 1) for text in texts]


def test_the_model_card_names_the_reward_model_of_each_round_without_folders_around_the_run():
    measured = {"refresh/agreement_before": 0.75, "refresh/agreement_after": 0.875}
    rounds = [
        {"reward_model": "/data/erprm", "refresh": {"metrics": measured, "reward_model": "/runs/raft/round-0/model"}},
        {"reward_model": "/runs/raft/round-0/model"},
    ]
    section = reward_models_section(rounds)
    assert "| 0 | `erprm` | 0.750 | 0.875 | `round-0/model` |" in section
    assert "| 1 | `round-0/model` | not measured | not measured | `not refreshed yet` |" in section
    assert reward_models_section([{"reward_model": "erprm"}]) == ""


@pytest.fixture(scope="module")
def old_rollouts(tmp_path_factory):
    sampler = TransformersSampler.from_pretrained(dial.BASE_PATH, max_new_tokens=64, batch_size=256)
    folder = tmp_path_factory.mktemp("old")
    collect_rollouts(
        load_questions(dial.make_questions(6, seed=9)), sampler, folder, num_continuations=2,
        splitter=FORMAT.splitter, grading="exact", answer_pattern=dial.ANSWER_PATTERN, show_progress=False,
    )  # fmt: skip
    return str(folder)


@pytest.mark.slow("trains two rounds")
def test_each_round_selects_with_the_reward_model_of_the_round_before(build, scorer, old_rollouts, tmp_path):
    trainer = build(refresh_rollouts=old_rollouts, eta=0.0)
    before = {name: value.clone() for name, value in scorer.model.named_parameters()}
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in scorer.model.named_parameters())
    first, second = manifests(trainer)
    names = [str(tmp_path / "out" / f"round-{index}" / "reward_model") for index in range(2)]
    assert first["reward_model"] == scorer.model_name and second["reward_model"] == names[0]
    assert [entry["refresh"]["reward_model"] for entry in (first, second)] == names
    assert [entry["refresh"]["trained_from"] for entry in (first, second)] == [scorer.model_name, names[0]]
    assert trainer.scorer.model_name == names[1]

    # The scores of the second round are those of the reward model that was trained after the first round, at eta 0.
    refreshed = StepScorer.from_pretrained(names[0], batch_size=256)
    assert refreshed.prm_format.eta == 2.0 and trainer.scorer.eta == 0.0
    rows = RolloutDataset(tmp_path / "out" / "round-1" / "samples").rows
    steps = [refreshed.split(row.text) for row in rows]
    questions = [row.question for row in rows]
    written = [entry["step_scores"] for entry in read_rows(tmp_path / "out" / "round-1" / "scores.jsonl")]
    expected, other = (model.score(questions, steps, eta=0.0) for model in (refreshed, scorer))
    written, expected, other = (sum(scores, []) for scores in (written, expected, other))
    assert written == pytest.approx(expected, abs=1e-5)
    assert max(abs(left - right) for left, right in zip(expected, other, strict=True)) > 1e-3

    # The labels of all rounds so far and as many old solutions are used once each.
    fresh = [RolloutDataset(tmp_path / "out" / f"round-{index}" / "labels") for index in range(2)]
    counts = [sum(row.is_usable for row in rollouts) for rollouts in fresh]
    num_old = sum(row.is_usable for row in RolloutDataset(old_rollouts))
    assert first["refresh"]["examples"] == {"round-0": counts[0], "first": min(num_old, counts[0])}
    assert second["refresh"]["examples"] == {
        "round-0": counts[0],
        "round-1": counts[1],
        "first": min(num_old, sum(counts)),
    }
    state = json.loads(Path(names[1], "trainer_state.json").read_text())
    assert state["global_step"] == -(-sum(second["refresh"]["examples"].values()) // 4)

    # Held-out questions have no labels.
    for index in range(2):
        folder = tmp_path / "out" / f"round-{index}"
        labelled, held_out = ({row.question for row in RolloutDataset(folder / n)} for n in ("labels", "held_out"))
        assert len(labelled) == 5 and held_out
        assert not any(is_held_out(question, trainer.args.seed) for question in labelled)
        assert all(is_held_out(question, trainer.args.seed) for question in held_out)

    logged = [entry for entry in trainer.state.log_history if "refresh/loss" in entry]
    assert [entry["refresh/questions"] for entry in logged] == [5, 5]
    trainer.create_model_card(model_name="out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| 1 | `round-0/reward_model` |" in card and str(tmp_path) not in card
    card = Path(names[1], "README.md").read_text()
    assert "| round-0 |" in card and "| round-1 |" in card and "| first |" in card


@pytest.fixture(scope="module")
def straight(scorer, tmp_path_factory):
    """The results of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    args = RAFTConfig(str(folder), **SETTINGS)
    RAFTTrainer(dial.BASE_PATH, scorer, args, Dataset.from_list(QUESTIONS)).train()
    return results(folder)


def dying(*args, **kwargs):
    raise Killed


def killed_while_labelling(patch, trainer):
    """Kills the run in the continuations of the first round's labels."""
    sample = trainer._sampling.sample

    def sample_once(*arguments, **options):
        if options.get("num_continuations"):
            patch.setattr(TransformersSampler, "sample", dying)
        return sample(*arguments, **options)

    patch.setattr(trainer._sampling, "sample", sample_once)


def killed_in_the_training(patch, trainer):
    """Kills the run after the first checkpoint of the reward model's training."""
    step = ERPRMTrainer.training_step

    def training_step(self, *arguments, **options):
        if self.state.global_step == 2:
            raise Killed
        return step(self, *arguments, **options)

    patch.setattr(ERPRMTrainer, "training_step", training_step)


def killed_while_saving(patch, trainer):
    """Kills the run when the reward model is trained, and only a part of it is on the disk."""
    save = ERPRMTrainer.save_model

    def save_model(self, output_dir=None, _internal_call=False):
        if output_dir is None:
            Path(self.args.output_dir, "model.safetensors").write_bytes(b"half")
            raise Killed
        save(self, output_dir, _internal_call)

    patch.setattr(ERPRMTrainer, "save_model", save_model)


def killed_after_the_training(patch, trainer):
    """Kills the run after the training, before the manifest names the reward model."""
    agree = RewardModelRefresh._agreement

    def agreement(self, rows):
        if self._in_use is not None:
            raise Killed
        return agree(self, rows)

    patch.setattr(RewardModelRefresh, "_agreement", agreement)


def killed_after_the_refresh(patch, trainer):
    """Kills the run when the manifest names the reward model, and the round is not finished."""
    run = RewardModelRefresh.run

    def run_once(self, folder):
        run(self, folder)
        raise Killed

    patch.setattr(RewardModelRefresh, "run", run_once)


def killed_in_the_next_round(patch, trainer):
    run = RAFTTrainer._run_round

    def run_round(self, folder, config):
        if folder.index == 1:
            raise Killed
        run(self, folder, config)

    patch.setattr(RAFTTrainer, "_run_round", run_round)


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize(
    "kill",
    [
        killed_while_labelling,
        killed_in_the_training,
        killed_while_saving,
        killed_after_the_refresh,
        killed_in_the_next_round,
    ],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_run(build, straight, kill, tmp_path):
    trainer = build()
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, trainer)
        with pytest.raises(Killed):
            trainer.train()
    torch.manual_seed(12345)
    build().train()
    assert_equal(results(tmp_path / "out"), straight)


@pytest.mark.slow("trains two rounds")
def test_the_same_trainer_resumes_with_the_right_reward_model(build, straight, tmp_path):
    trainer = build()
    with pytest.MonkeyPatch.context() as patch:
        killed_after_the_training(patch, trainer)
        with pytest.raises(Killed):
            trainer.train()
    trainer.train()
    assert_equal(results(tmp_path / "out"), straight)


@pytest.mark.slow("trains two rounds")
def test_a_reward_model_that_got_worse_is_not_used(build, scorer, monkeypatch, caplog, tmp_path):
    values = iter([0.9, 0.8, 0.7, 0.7])
    monkeypatch.setattr(reward_model_refresh, "agreement", lambda rows, scores: next(values))
    trainer = build()
    trainer.train()
    first, second = manifests(trainer)
    assert [entry["refresh"]["accepted"] for entry in (first, second)] == [False, True]
    assert first["refresh"]["reward_model"] == second["reward_model"] == scorer.model_name
    assert second["refresh"]["trained_from"] == scorer.model_name
    assert trainer.scorer.model_name == str(tmp_path / "out" / "round-1" / "reward_model")
    assert "agreement with the grader is 0.800, and was 0.900" in caplog.text
    # A resumed run knows which reward models were accepted.
    shutil.rmtree(tmp_path / "out" / "round-1")
    again = build(num_rounds=1)
    again.train()
    assert again.scorer.model_name == scorer.model_name


@pytest.mark.slow("trains two rounds")
@pytest.mark.parametrize("kind", ["path", "adapter", "implicit"])
def test_reward_models_of_several_kinds_are_refreshed(build, scorer, kind, tmp_path):
    path = saved_reward_model(scorer, tmp_path / "erprm")
    if kind == "adapter":
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model = StepScorer.from_pretrained(path).model
        path = tmp_path / "adapter"
        get_peft_model(model, config).save_pretrained(path)
        scorer.tokenizer.save_pretrained(path)
        scorer.backend.prm_format.save(path)
    if kind == "implicit":
        json_file = path / "prm_format.json"
        saved = json.loads(json_file.read_text())
        json_file.write_text(
            json.dumps({**saved, "head": "implicit", "reference_model": str(dial.BASE_PATH), "beta": 1.0, "eta": None})
        )
    trainer = build(reward_model=str(path))
    trainer.train()
    kinds = {"adapter": "adapter_model.safetensors"}
    weights = [
        load_file(folder / kinds.get(kind, "model.safetensors"))
        for folder in (path, *(tmp_path / "out" / f"round-{index}" / "reward_model" for index in range(2)))
    ]
    for before, after in zip(weights, weights[1:], strict=False):
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[name], after[name]) for name in before)
    assert manifests(trainer)[1]["reward_model"] == str(tmp_path / "out" / "round-0" / "reward_model")
    labels = RolloutDataset(tmp_path / "out" / "round-0" / "labels")
    assert labels.settings.num_continuations == (0 if kind == "implicit" else 2)


class Server:
    """A backend whose model is elsewhere."""

    prm_format, model_name, context_length, weights = FORMAT.with_eta(0.0), "server", None, None

    def score(self, questions, steps, skip_too_long):
        return [[0.5] * len(solution) for solution in steps]


class Collective(Server):
    def give_up(self):
        pass


def test_reward_models_that_cannot_be_trained_are_refused_by_name(build, scorer):
    with pytest.raises(ValueError, match="got a Server, which has no weights to train in this process.*Hub id"):
        build(reward_model=Server())
    with pytest.raises(ValueError, match="got a Collective, whose weights are sharded.*shard_reward_model=False"):
        build(reward_model=Collective())
    unknown = StepScorer(scorer.model, scorer.tokenizer, FORMAT)
    with pytest.raises(ValueError, match="does not record the eta of its labels.*Set trained_eta"):
        build(reward_model=unknown)
    build(reward_model=unknown, trained_eta=0.0)
    build(reward_model=Server(), refresh_reward_model=0)


def test_a_scorer_of_continuations_is_refused_by_name(build, scorer):
    from erprm_trl import MonteCarloScorer

    sampler = TransformersSampler(scorer.model, scorer.tokenizer)
    monte_carlo = MonteCarloScorer(
        sampler, answers=load_questions(QUESTIONS), splitter=FORMAT.splitter, grading="exact"
    )
    with pytest.raises(ValueError, match="got a MonteCarloScorer, which has no weights to train"):
        build(reward_model=monte_carlo)


def test_questions_without_answers_are_refused(build):
    bare = [{"question": row["question"]} for row in QUESTIONS]
    with pytest.raises(ValueError, match="refresh_reward_model: got 5 for training questions without answers"):
        build(questions=bare)
    with pytest.raises(ValueError, match="refresh_reward_model: got 13, expected at most 12, the number of questions"):
        build(refresh_reward_model=13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refresh_reward_model": -1}, "refresh_reward_model: got -1"),
        ({"questions_per_round": 4}, "refresh_reward_model: got 5, expected at most questions_per_round=4"),
        ({"refresh_num_continuations": 0}, "refresh_num_continuations: got 0, expected at least 1"),
        ({"refresh_old_share": 1.0}, "refresh_old_share: got 1.0, expected a share from 0 to below 1"),
        (
            {"refresh_reward_model": 0, "refresh_rollouts": "x"},
            "refresh_rollouts: got 'x' with refresh_reward_model=0",
        ),
    ],
)
def test_invalid_settings_are_errors(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        RAFTConfig(str(tmp_path), **{**SETTINGS, **options})


def test_a_run_of_an_earlier_release_has_no_settings_of_the_refresh(tmp_path):
    assert RAFTConfig(str(tmp_path), **{**SETTINGS, "refresh_reward_model": 0}).refresh_settings == {}
    settings = RAFTConfig(str(tmp_path), **SETTINGS).refresh_settings
    assert settings["refresh_reward_model"] == 5 and settings["refresh_old_share"] == 0.5


def test_a_round_without_a_question_to_label_is_an_error(build):
    held_out = [row for row in dial.make_questions(80, seed=3) if is_held_out(row["question"], 42)]
    trainer = build(questions=held_out)
    with pytest.raises(ValueError, match="all of which are held out .*Raise questions_per_round"):
        trainer._refresh._sample(reward_model_refresh.RoundFolder(trainer.args.output_dir, 0))
