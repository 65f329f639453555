"""Tests collections with different numbers of rewards per prefix: budgets, labels, crashes, processes, YAML."""

import math
from pathlib import Path

import pytest
import tabular_policy
import torch
from fake_sampler import FakeSampler
from launched_collection import collect_in_processes
from recipe_runs import RECIPES, parse
from zoo import load_dial_policy

from erprm_trl import dial
from erprm_trl.functional import fit_beta_prior, posterior_value, soft_value
from erprm_trl.rollouts import Question, RolloutDataset, TransformersSampler, collect_rollouts
from erprm_trl.rollouts.summary import _quantile


QUESTIONS = [Question(f"q{index}?", str(index % 3)) for index in range(7)]
SETTINGS = {
    "num_solutions": 3,
    "num_continuations": 4,
    "allocation": "adaptive",
    "grading": "exact",
    "answer_pattern": r"answer (\d+)",
    "chunk_size": 2,
    "show_progress": False,
}


def prefix_texts(row):
    return ["".join(row.steps[:length]) for length in range(1, len(row.steps))]


@pytest.mark.parametrize("reuse", [True, False])
def test_the_budget_and_the_counts_of_continuations(tmp_path, reuse):
    sampler = FakeSampler()
    data = collect_rollouts(QUESTIONS, sampler, tmp_path, **SETTINGS, reuse_continuations=reuse)
    summary = data.manifest["summary"]
    sampled = sum(prompts * samples for prompts, samples, _ in sampler.calls)
    assert summary["rollouts"] == sampled
    assert summary["sharing"]["generated"] == sampled - 21
    assert 0 < summary["sharing"]["generated"] <= 4 * summary["prefixes"]
    assert summary["sharing"]["saved"] == 4 * summary["prefixes"] - summary["sharing"]["generated"]
    assert len({seed for _, _, seed in sampler.calls}) == len(sampler.calls)
    assert (summary["sharing"]["reused"] > 0) == reuse
    assert set(summary["sharing"]["label_std"]) == {"0", "2", "10"}
    assert data.settings.target_etas == data.manifest["config"]["target_etas"] == [0.0, 2.0, 10.0]
    shared_by_solutions = 0
    for rows in data.solutions():
        seen = {}
        for row in rows:
            texts = prefix_texts(row)
            assert len(row.prefix_rewards) == len(row.prefix_generated) == len(texts)
            for text, rewards, generated in zip(texts, row.prefix_rewards, row.prefix_generated, strict=True):
                assert rewards and len(rewards) >= generated
                if text in seen:
                    assert rewards == seen[text] and generated == 0
                    shared_by_solutions += 1
                elif not reuse:
                    assert len(rewards) == generated
                seen[text] = rewards
                # solutions that begin with the prefix count without sampling
                known = sum("".join(other.steps).startswith(text) for other in rows)
                assert len(rewards) >= generated + (known if reuse else 0)
    assert shared_by_solutions > 0


@pytest.mark.slow("collects many times")
def test_prefixes_with_certain_labels_get_no_continuations(tmp_path):
    full = collect_rollouts(QUESTIONS, FakeSampler(), tmp_path / "all", **SETTINGS, tolerance=0.0)
    saving = collect_rollouts(QUESTIONS, FakeSampler(), tmp_path / "some", **SETTINGS, tolerance=0.25)
    assert full.manifest["summary"]["sharing"]["saved"] == 0
    saved = saving.manifest["summary"]["sharing"]["saved"]
    assert 0 < saved == 4 * saving.manifest["summary"]["prefixes"] - saving.manifest["summary"]["sharing"]["generated"]


def test_labels_are_posterior_means_with_their_deviation(tmp_path):
    data = collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **SETTINGS)
    labels, sample = data.labels(2.0), data.labels(2.0, estimator="sample")
    assert labels.column_names == ["prompt", "completions", "labels", "label_std"]
    assert sample.column_names == data.labels(math.inf).column_names == ["prompt", "completions", "labels"]
    usable = [row for row in data.rows if not row.unusable]
    for row, example, plain in zip(usable, labels, sample, strict=True):
        assert example["label_std"][-1] == 0.0 and example["labels"][-1] == plain["labels"][-1] == row.outcome_reward
        for rewards, value in zip(row.prefix_rewards, plain["labels"][:-1], strict=True):
            assert value == pytest.approx(soft_value(torch.tensor(rewards), 2.0).item())
    # each distinct prefix counts once for the prior, even if several solutions share it
    distinct = {
        (row.question_index, text): rewards
        for row in usable
        for text, rewards in zip(prefix_texts(row), row.prefix_rewards, strict=True)
    }
    counts = torch.tensor([[sum(rewards), len(rewards) - sum(rewards)] for rewards in distinct.values()])
    prior = fit_beta_prior(*counts.T)
    for row, example in zip(usable, labels, strict=True):
        for rewards, mean, deviation in zip(
            row.prefix_rewards, example["labels"][:-1], example["label_std"][:-1], strict=True
        ):
            s = torch.tensor([float(sum(rewards))])
            expected = posterior_value(s, len(rewards) - s, 2.0, prior)
            assert (mean, deviation) == pytest.approx([part.item() for part in expected], rel=1e-6)


def test_the_summary_has_the_standard_deviations_of_labels(tmp_path):
    data = collect_rollouts(QUESTIONS * 3, FakeSampler(), tmp_path, **SETTINGS)
    spread = data.manifest["summary"]["sharing"]["label_std"]["2"]
    deviations = torch.tensor(
        [deviation for row in data.labels(2.0)["label_std"] for deviation in row[:-1]], dtype=torch.float64
    )
    expected = deviations.quantile(torch.tensor([0.5, 0.9, 1.0], dtype=torch.float64)).tolist()
    assert [spread["median"], spread["90%"], spread["largest"]] == pytest.approx(expected, rel=1e-12)
    assert spread["mean"] == pytest.approx(deviations.mean().item(), rel=1e-12)
    values, counts = deviations.unique(return_counts=True)
    for q in (0.0, 0.03, 0.5, 0.77, 1.0):
        assert _quantile(values, counts, q) == pytest.approx(deviations.quantile(q).item(), rel=1e-12)


def test_a_fixed_collection_can_have_posterior_labels(tmp_path):
    data = collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **{**SETTINGS, "allocation": "fixed"})
    assert data.rows[0].prefix_generated is None and "prefix_generated" not in data.rows[0].to_json()
    assert "allocation" not in data.manifest["config"]
    assert "sharing" not in data.manifest["summary"]
    assert data.labels(2.0).column_names == ["prompt", "completions", "labels"]
    posterior = data.labels(0.0, estimator="posterior")
    assert "label_std" in posterior.column_names
    never = [
        (example["labels"][index], example["label_std"][index])
        for row, example in zip((row for row in data.rows if not row.unusable), posterior, strict=True)
        for index, rewards in enumerate(row.prefix_rewards)
        if sum(rewards) == 0
    ]
    assert never and all(0 < mean < 0.35 and deviation > 0.02 for mean, deviation in never)
    with pytest.raises(ValueError, match="estimator: got 'median'"):
        data.labels(0.0, estimator="median")
    with pytest.raises(ValueError, match="eta: got inf|`eta` is inf"):
        data.labels(math.inf, estimator="posterior")


def test_the_mean_of_reused_rewards_is_the_value(tmp_path):
    """Uses a policy with known probabilities, and averages the sample mean of each prefix over 400 questions."""
    questions = [Question(f"question {index}", "x") for index in range(400)]
    data = collect_rollouts(
        questions,
        tabular_policy.TabularSampler(),
        tmp_path,
        num_solutions=2,
        num_continuations=2,
        reuse_continuations=True,
        grading="exact",
        answer_pattern=r"end (\w)",
        chunk_size=50,
        show_progress=False,
    )
    means, inherited = {}, 0
    for row in data.rows:
        for text, rewards, generated in zip(prefix_texts(row), row.prefix_rewards, row.prefix_generated, strict=True):
            if generated:  # once per question
                means.setdefault(text, []).append(sum(rewards) / len(rewards))
                inherited += len(rewards) - generated
    assert inherited > 1000 and len(means) == 6
    for text, sample_means in means.items():
        steps = tuple(f"{step}\n" for step in text.split())
        truth = sum(p for whole, p in tabular_policy.solutions(steps) if whole[-1] == "end x")
        error = (torch.tensor(sample_means).var() / len(sample_means)).sqrt().item()
        assert abs(sum(sample_means) / len(sample_means) - truth) < 4 * error, text


def shard_bytes(folder):
    return (Path(folder) / "rollouts-00000.jsonl").read_bytes()


@pytest.mark.slow("collects many times")
@pytest.mark.parametrize("cut", [1, 17, 33, 58])
def test_a_collection_interrupted_anywhere_resumes_with_the_same_rows(tmp_path, cut):
    collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **SETTINGS)
    whole, manifest = shard_bytes(tmp_path), (tmp_path / "manifest.json").read_bytes()
    (tmp_path / "rollouts-00000.jsonl").write_bytes(whole[: len(whole) * cut // 60])
    collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **SETTINGS)
    assert shard_bytes(tmp_path) == whole
    again = FakeSampler()
    collect_rollouts(QUESTIONS, again, tmp_path, **SETTINGS)
    assert again.calls == [] and len((tmp_path / "manifest.json").read_bytes()) == pytest.approx(len(manifest), abs=4)


@pytest.mark.slow("collects many times")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"allocation": "fixed"}, "allocation was 'adaptive' and is now None"),
        ({"tolerance": 0.1}, "tolerance was 0.02 and is now 0.1"),
        ({"target_etas": [2.0]}, r"target_etas was \[0.0, 2.0, 10.0\] and is now \[2.0\]"),
        ({"reuse_continuations": False}, "reuse_continuations was True and is now False"),
    ],
)
def test_a_different_allocation_needs_another_folder(tmp_path, change, message):
    collect_rollouts(QUESTIONS[:1], FakeSampler(), tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match=message):
        collect_rollouts(QUESTIONS[:1], FakeSampler(), tmp_path, **{**SETTINGS, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"allocation": "greedy"}, "allocation: got 'greedy', expected 'fixed' or 'adaptive'"),
        ({"target_etas": [0.0, math.inf]}, "target_etas: got .*expected finite numbers"),
        ({"target_etas": []}, "target_etas: got .*at least one"),
        ({"tolerance": -1.0}, "tolerance: got -1.0"),
        ({"num_continuations": 0}, "num_continuations: got 0 with allocation='adaptive'"),
    ],
)
def test_errors_name_invalid_settings(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **{**SETTINGS, **change})


def adaptive_collection(folder, policy=None):
    """Three chunks on dial, with the value of the bare question."""
    return collect_rollouts(
        [Question(**row) for row in dial.make_questions(5, seed=5)],
        TransformersSampler(*(policy or load_dial_policy()), max_new_tokens=24, batch_size=64),
        folder,
        num_continuations=3,
        allocation="adaptive",
        include_question=True,
        splitter=dial.SEPARATOR,
        grading="exact",
        answer_pattern=dial.ANSWER_PATTERN,
        chunk_size=2,
        show_progress=False,
    )


@pytest.mark.slow("starts two processes")
def test_two_processes_write_the_same_rows_as_one(tmp_path, dial_policy):
    collect_in_processes(adaptive_collection, tmp_path / "many", 2)
    single = adaptive_collection(tmp_path / "one", dial_policy)
    double = RolloutDataset(tmp_path / "many")
    assert double.rows == single.rows and double.labels(2.0)[:] == single.labels(2.0)[:]
    question = [row for row in single.rows if row.question_index == 0]
    assert question[0].question_rewards == question[1].question_rewards
    assert len(question[0].question_rewards) == question[0].question_generated + 2  # and the two solutions


@pytest.mark.slow("runs a recipe")
def test_a_small_run_of_the_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(RECIPES.parent)
    small = ["--dataset_kwargs", '{"num_questions": 3, "seed": 1}', "--output_dir", str(tmp_path)]
    yaml = RECIPES / "dial" / "collect_adaptive.yaml"
    recipe, (config,) = parse("collect_rollouts", ["--config", yaml, *small])
    assert (config.allocation, config.target_etas, config.tolerance) == ("adaptive", [0.0, 2.0, 10.0], 0.02)
    recipe.main(config)
    assert RolloutDataset(tmp_path).settings.is_adaptive
    assert "Standard deviation of a label at eta = 2" in capsys.readouterr().out
