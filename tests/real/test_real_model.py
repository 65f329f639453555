"""Every stage on a real language model, with the YAML files of a recipe except for the model, the data and the sizes.

    make test-real REAL_MODEL=FOLDER_OR_HUB_ID

The stages run in order, and each reads the files of the stages before it.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from recipe_runs import RECIPES, parse

from erprm_trl import RolloutDataset, StepScorer
from erprm_trl.steps import split_steps


MODEL = os.environ.get("REAL_MODEL")
DATA = os.environ.get("REAL_DATA", str(Path(__file__).parents[1] / "data" / "gsm8k_form.jsonl"))
FOLDER = RECIPES / "qwen2.5-math-1.5b-gsm8k"
pytestmark = [
    pytest.mark.skipif(not MODEL, reason="set REAL_MODEL to the folder or Hub id of a language model"),
    pytest.mark.slow("runs a real language model"),
]

ON_CPU = not torch.accelerator.is_available()
POLICY = ["--model_name_or_path", str(MODEL), "--dataset_name", DATA, "--dataset_config", "null"]
SAMPLING = [*POLICY, "--dataset_split", "train", "--backend", "transformers", "--max_new_tokens", "96"]
SAMPLING += ["--model_init_kwargs", '{"dtype": "bfloat16"}']
TRAINING = ["--dtype", "bfloat16", "--use_peft", "true", "--lora_target_modules", "all-linear", "--max_steps", "2"]
TRAINING += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--logging_steps", "1"]
TRAINING += ["--learning_rate", "1e-4", "--warmup_steps", "0", "--report_to", "none", "--save_strategy", "no"]
TRAINING += ["--use_cpu", str(ON_CPU)]
ONLINE = ["--num_generations", "2", "--max_completion_length", "64", "--use_vllm", "false", "--max_questions", "2"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The folder of all stages."""
    return tmp_path_factory.mktemp("real")


def run(name, *options, yaml=None):
    """Runs the `main` of a recipe with one of the YAML files and these arguments."""
    config = [] if yaml is False else ["--config", str(FOLDER / f"{yaml or name}.yaml")]
    recipe, arguments = parse(name, [*config, *map(str, options)])
    return recipe.main(*arguments)


def logged(trainer, key):
    return [row[key] for row in trainer.state.log_history if key in row]


def test_a_killed_collection_is_resumed(work):
    options = [*SAMPLING, "--output_dir", str(work / "rollouts"), "--max_questions", "3", "--chunk_size", "1"]
    options += ["--num_solutions", "2", "--num_continuations", "2"]
    command = [sys.executable, str(RECIPES / "collect_rollouts.py"), "--config", str(FOLDER / "collect.yaml")]
    process = subprocess.Popen([*command, *options], cwd=RECIPES.parent)
    shard = work / "rollouts" / "rollouts-00000.jsonl"
    while process.poll() is None and not (shard.exists() and shard.stat().st_size):
        time.sleep(0.5)
    assert process.poll() is None, "the collection ended before it wrote a chunk"
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = shard.read_bytes()
    run("collect_rollouts", *options, yaml="collect")
    assert shard.read_bytes().startswith(before)
    rollouts = RolloutDataset(work / "rollouts")
    assert len(rollouts) == 6
    for row in rollouts:
        assert row.steps == split_steps(row.text, "whole_lines")
        assert [len(rewards) for rewards in row.prefix_rewards] == [2] * (len(row.steps) - 1)


def test_labels_are_computed(work):
    rollouts = RolloutDataset(work / "rollouts")
    by_eta = [[label for row in rollouts.labels(eta) for label in row["labels"]] for eta in (0.0, 2.0, math.inf)]
    assert by_eta[0]
    for low, middle, high in zip(*by_eta, strict=True):
        assert 0.0 <= low <= middle <= high <= 1.0


@pytest.mark.parametrize("head", ["lm", "token"])
def test_reward_models_are_trained_and_score(work, head):
    folder = work / f"erprm-{head}"
    options = [*TRAINING, "--rollouts", work / "rollouts", "--output_dir", folder, "--head", head]
    trainer = run("train_erprm", "--model_name_or_path", MODEL, *options)
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))
    assert all(norm > 0 for norm in logged(trainer, "grad_norm"))
    row = RolloutDataset(work / "rollouts")[0]
    scorer = StepScorer.from_pretrained(folder)
    steps = scorer.split(row.text)
    (scores,) = scorer.score([row.question], [steps])
    assert len(scores) == len(steps) and all(0.0 < score < 1.0 for score in scores)
    # A step's score depends only on the text before it, so a prefix has the same scores as the whole solution.
    (prefix,) = scorer.score([row.question], [steps[:1]])
    assert prefix[0] == pytest.approx(scores[0], abs=0.02)  # bfloat16 weights


def test_best_of_n_is_measured(work):
    options = ["--output_dir", str(work / "samples"), "--max_questions", "2", "--num_solutions", "4"]
    run("collect_rollouts", *SAMPLING, *options, yaml="collect_test")
    models = [work / "erprm-lm", work / "erprm-token"]
    curves = run(
        "best_of_n", "--samples", work / "samples", "--reward_models", *models, "--output_dir", work / "best_of_n"
    )
    assert sorted(curves["pass"]) == [1, 2, 4] and len(curves["models"]) == 2


def test_guided_search_finds_solutions(work):
    sampler = {"prompt_template": "{question}\nOne step per line.", "max_new_tokens": 48}
    sampler["model_init_kwargs"] = {"dtype": "bfloat16"}
    options = ["--model_name_or_path", MODEL, "--dataset_name", DATA, "--dataset_split", "train"]
    options += ["--max_questions", "1", "--backend", "transformers", "--sampler_kwargs", json.dumps(sampler)]
    options += ["--reward_model", work / "erprm-lm", "--output_dir", work / "guided", "--width", "2"]
    summary = run("guided_search", *options, "--max_steps", "3")
    assert summary["tokens_generated"] > 0 and summary["steps_scored"] > 0
    (row,) = map(json.loads, (work / "guided" / "solutions.jsonl").read_text().splitlines())
    for solution in row["solutions"]:
        assert solution["text"] == "".join(split_steps(solution["text"], "whole_lines"))


def test_raft_trains(work):
    options = [*POLICY, *TRAINING, "--reward_model", work / "erprm-lm", "--output_dir", work / "raft"]
    options += ["--dataset_test_split", "null", "--use_answers", "false", "--num_rounds", "1"]
    options += ["--num_generations", "2", "--max_completion_length", "64", "--questions_per_round", "2"]
    options += ["--stop", "\n\n"]  # the model rarely ends a solution within 64 tokens
    trainer = run("train_raft", *options)
    assert all(norm > 0 for norm in logged(trainer, "grad_norm"))
    assert (work / "raft" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", ["train_step_grpo", "train_step_ppo"])
def test_online_policies_train(work, name):
    options = [*POLICY, *TRAINING, *ONLINE, "--reward_model", work / "erprm-lm", "--output_dir", work / name]
    trainer = run(name, *options)
    assert trainer.state.global_step == 2
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))
    assert (work / name / "adapter_model.safetensors").exists()


def test_the_report_is_written(work):
    run("report", "--folder", work, yaml=False)
    page = (work / "report.html").read_text(encoding="utf-8")
    assert "erprm-lm" in page and "best of" in page.lower()
