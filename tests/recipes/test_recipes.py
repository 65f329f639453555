"""Every recipe's YAML parses, and every recipe's `main` runs the chain in miniature, as a user would."""

import json

import pytest
from recipe_runs import RECIPES, SMALL_POLICY, parse, save_base_as_reward_model

from erprm_trl import load_questions


SCORER_FILES = {
    "monte_carlo_scorer.yaml",
    "policy_continuations.yaml",
}  # they stand for a reward model, and are no configurations of commands
YAML = sorted(path for path in RECIPES.glob("*/*.yaml") if path.name not in SCORER_FILES)
CPU = ["--use_cpu", "true", "--bf16", "false"]


def script_of(path):
    if path.stem == "train_mixture":
        return "train_erprm"
    return "collect_rollouts" if path.stem.startswith("collect") else path.stem


@pytest.mark.parametrize("path", YAML, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_yaml_parses(path):
    name = script_of(path)
    parse(name, ["--config", str(path), *(CPU if name.startswith("train_") else [])])


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.py")), ids=lambda path: path.name)
def test_recipes_are_thin(path):
    assert len(path.read_text().splitlines()) <= 80


@pytest.mark.slow("trains every stage")
def test_the_dial_chain_in_miniature(tmp_path, monkeypatch, capsys):
    """collect, collect_test, train_erprm and best_of_n with the dial YAML, made small."""
    monkeypatch.chdir(RECIPES.parent)
    small = ["--dataset_kwargs", '{"num_questions": 4, "seed": 1}', "--chunk_size", "2"]
    for config, out, more in (
        ("collect", "rollouts", ["--num_continuations", "2"]),
        ("collect_test", "samples", ["--num_solutions", "3"]),
    ):
        yaml = str(RECIPES / "dial" / f"{config}.yaml")
        recipe, (arguments,) = parse(
            "collect_rollouts", ["--config", yaml, "--output_dir", str(tmp_path / out), *small, *more]
        )
        recipe.main(arguments)
    yaml = str(RECIPES / "dial" / "train_erprm.yaml")
    paths = [
        "--rollouts",
        str(tmp_path / "rollouts"),
        "--eval_rollouts",
        str(tmp_path / "rollouts"),
        "--output_dir",
        str(tmp_path / "erprm"),
    ]
    for options in ([], ["--head", "token", "--use_peft", "true"]):
        recipe, arguments = parse(
            "train_erprm",
            ["--config", yaml, *paths, "--max_steps", "2", "--per_device_train_batch_size", "4", *options],
        )
        trainer = recipe.main(*arguments)
        assert trainer.state.global_step == 2
    recipe, (arguments,) = parse(
        "best_of_n",
        [
            "--samples",
            str(tmp_path / "samples"),
            "--reward_models",
            str(tmp_path / "erprm"),
            "--output_dir",
            str(tmp_path / "best"),
        ],
    )
    curves = recipe.main(arguments)
    assert sorted(curves["pass"]) == [1, 2]
    assert {path.name for path in (tmp_path / "best").iterdir()} == {
        "best_of_n.json",
        "best_of_n.png",
        "step_scores.json",
    }
    assert "best of 2 by" in capsys.readouterr().out


@pytest.mark.slow("runs every evaluation recipe")
def test_the_evaluation_recipes_in_miniature(tmp_path, monkeypatch, capsys):
    """processbench, calibration and best_of_n with two reward models, on the dial YAML made small."""
    monkeypatch.chdir(RECIPES.parent)
    models = [save_base_as_reward_model(tmp_path / "one"), save_base_as_reward_model(tmp_path / "two")]

    def run(name, config, *options):
        yaml = str(RECIPES / "dial" / f"{config}.yaml")
        recipe, (arguments,) = parse(name, ["--config", yaml, "--output_dir", str(tmp_path / config), *options])
        return recipe.main(arguments)

    small = ["--dataset_kwargs", '{"num_questions": 3, "seed": 1}', "--num_continuations", "2"]
    run("collect_rollouts", "collect_held_out", *small)
    rollouts = str(tmp_path / "collect_held_out")
    results = run("calibration", "calibration", "--rollouts", rollouts, "--reward_models", *models)
    assert json.loads((tmp_path / "calibration" / "calibration.json").read_text()) == results
    assert (tmp_path / "calibration" / "calibration.png").stat().st_size > 5000
    printed = capsys.readouterr().out
    assert "2 continuations each, value at eta = 2.0" in printed and "success rates (error" in printed

    recipe, (arguments,) = parse(
        "inspect_labels", ["--rollouts", rollouts, "--output_dir", str(tmp_path / "noise"), "--eta", "0"]
    )
    noise = recipe.main(arguments)
    assert json.loads((tmp_path / "noise" / "label_noise.json").read_text()) == noise
    assert (tmp_path / "noise" / "label_noise.png").stat().st_size > 5000
    assert "standard error of a label" in capsys.readouterr().out

    etas = ["--eta", "0", "2", "--trained_eta", "0"]
    read = run("best_of_n", "best_of_n", "--samples", rollouts, "--reward_models", models[0], *etas)
    assert list(read["models"]) == [f"{models[0]} (eta = 0)", f"{models[0]} (eta = 2)"]
    run("best_of_n", "best_of_n", "--samples", rollouts, "--reward_models", *models)
    differences = json.loads((tmp_path / "best_of_n" / "paired_differences.json").read_text())
    assert differences["models"][models[1]]["min"]["test"]["p_value"] == 1.0
    assert "minus that of" in capsys.readouterr().out

    rows = [
        {"id": str(i), "problem": f"Tom dial {i} . right 1 . ?", "steps": [f"{i} + 1 = {i + off}"], "label": off - 2}
        for i in range(8)
        for off in (1, 2)
    ]
    (tmp_path / "dial.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--dataset", str(tmp_path / "dial.jsonl"), "--reward_models", *models, "--validation_share", "0.5"]
    results = run("processbench", "processbench", *data)
    assert results["validation"]["by"] == "share" and results["validation"]["solutions"] % 2 == 0
    assert results["models"][models[1]]["f1_minus_first"]["mean"] == 0.0
    assert len(list((tmp_path / "processbench" / "scores").glob("*/step_scores.json"))) == 2
    assert "Thresholds: chosen on" in capsys.readouterr().out


@pytest.mark.slow("trains three policies")
@pytest.mark.parametrize("name", sorted(SMALL_POLICY))
def test_the_policy_recipes_in_miniature(name, tmp_path, monkeypatch):
    """Two updates with the dial YAML; the shipped base stands for the reward model."""
    monkeypatch.chdir(RECIPES.parent)
    scorer = save_base_as_reward_model(tmp_path / "erprm")
    yaml = str(RECIPES / "dial" / f"{name}.yaml")
    questions = ["--train_questions_kwargs", '{"num_questions": 8, "seed": 1}', "--max_steps", "2"]
    if name == "train_raft":
        questions += ["--eval_questions_kwargs", '{"num_questions": 2, "seed": 2}', "--use_cpu", "true"]
    out = ["--reward_model", scorer, "--output_dir", str(tmp_path / "policy"), "--save_strategy", "no"]
    etas = ["--eta", "2.0", "--trained_eta", "0.0", *([] if name == "train_raft" else ["--beta", "0.0"])]
    recipe, arguments = parse(name, ["--config", yaml, *questions, *out, *etas, *SMALL_POLICY[name]])
    trainer = recipe.main(*arguments)
    assert trainer.state.global_step == 2
    assert (trainer.scorer if name == "train_raft" else trainer.step_reward.scorer).prm_format.eta == 2.0
    assert (tmp_path / "policy" / "model.safetensors").is_file()
    assert "erprm-trl" in (tmp_path / "policy" / "README.md").read_text()


@pytest.mark.slow("trains two policies")
@pytest.mark.parametrize(
    ("reward_model", "options"),
    [
        ("none", ["--credit", "log_ratio", "--eta", "20", "--splitter", "ки"]),
        ("recipes/dial/policy_continuations.yaml", ["--gamma", "0"]),
    ],
    ids=["log_ratio", "monte_carlo"],
)
def test_step_grpo_without_a_reward_model(reward_model, options, tmp_path, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    yaml = str(RECIPES / "dial" / "train_step_grpo.yaml")
    questions = ["--train_questions_kwargs", '{"num_questions": 8, "seed": 1}', "--max_steps", "2"]
    questions += ["--use_answers", "true", "--grading", "exact", "--answer_pattern", r"answer (\d+)"]
    out = ["--reward_model", reward_model, "--output_dir", str(tmp_path / "policy"), "--save_strategy", "no"]
    name = "train_step_grpo"
    recipe, arguments = parse(name, ["--config", yaml, *questions, *out, *options, *SMALL_POLICY[name]])
    trainer = recipe.main(*arguments)
    assert trainer.state.global_step == 2 and (tmp_path / "policy" / "model.safetensors").is_file()


@pytest.mark.slow("trains three policies")
@pytest.mark.parametrize("name", sorted(SMALL_POLICY))
def test_the_policy_recipes_go_on_with_an_adapter_on_questions_in_columns_of_any_name(name, tmp_path, monkeypatch):
    import zoo
    from peft import LoraConfig, get_peft_model

    from erprm_trl import dial

    save_base_as_reward_model(tmp_path / "erprm")
    adapter = get_peft_model(zoo.load_dial_policy()[0], LoraConfig(r=2, target_modules="all-linear"))
    adapter.save_pretrained(tmp_path / "adapter")  # without a tokenizer
    rows = [{"text": row["question"], "result": row["answer"]} for row in dial.make_questions(8, seed=1)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("HOME", str(tmp_path))
    options = {
        "model_name_or_path": "~/adapter",
        "dataset_name": "~/rows.jsonl",
        "question_column": "text",
        "answer_column": "result",
        "reward_model": "~/erprm",
        "output_dir": "~/policy",
        "train_questions_kwargs": "null",
        "eval_questions_kwargs": "null",
        "save_strategy": "no",
        "max_steps": "1",
        "logging_steps": "1",
        "use_answers": "true",
    }
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    yaml = str(RECIPES / "dial" / f"{name}.yaml")
    more = ["--use_cpu", "true", "--drop_uniform", "false"] if name == "train_raft" else []
    recipe, arguments = parse(name, ["--config", yaml, *SMALL_POLICY[name], *more, *arguments])
    trainer = recipe.main(*arguments)
    assert [entry["grad_norm"] > 0 for entry in trainer.state.log_history if "grad_norm" in entry] == [True]
    assert (tmp_path / "policy" / "adapter_model.safetensors").is_file()
    log = {key for entry in trainer.state.log_history for key in entry}
    assert log & {"raft/accuracy", "rewards/answer_reward/mean"}


@pytest.mark.slow("trains a policy")
@pytest.mark.parametrize("options", [[], ["--level", "step", "--completion", "step"]], ids=["solutions", "steps"])
def test_pairs_and_dpo_in_miniature(options, tmp_path, monkeypatch, capsys):
    """Pairs of hand-made rollouts in both file formats, and two updates with the dial YAML."""
    from datasets import load_dataset
    from pair_folders import solution, write_collection

    monkeypatch.chdir(RECIPES.parent)
    right = solution([" 1 + 2 = 3 ки", " answer 3 ки"], 1.0, [1.0] * 8)
    wrong = solution([" 1 + 2 = 4 ки", " answer 4 ки"], 0.0, [0.0] * 8)
    sampler = {"model": "erprm_trl/dial/base", "use_chat_template": False}
    rollouts = write_collection(tmp_path / "rollouts", [[right, wrong]] * 3, sampler)
    for file_format in ("parquet", "jsonl"):
        where = ["--rollouts", str(rollouts), "--output_dir", str(tmp_path / file_format)]
        recipe, (arguments,) = parse(
            "pairs",
            ["--config", str(RECIPES / "dial" / "pairs.yaml"), *where, "--file_format", file_format, *options],
        )
        assert recipe.main(arguments).pairs == 3
    written = [load_dataset(str(tmp_path / name), split="train").to_list() for name in ("parquet", "jsonl")]
    assert written[0] == written[1] and len(written[0]) == 3
    assert json.loads((tmp_path / "jsonl" / "pairs.json").read_text())["counts"]["questions_with_pairs"] == 3
    assert "3 of 3 questions have 3 pairs." in capsys.readouterr().out
    out = ["--dataset_name", str(tmp_path / "jsonl"), "--output_dir", str(tmp_path / "policy"), "--use_cpu", "true"]
    more = ["--max_steps", "2", "--eval_dataset_name", str(tmp_path / "parquet" / "pairs.parquet")]
    recipe, arguments = parse("train_dpo", ["--config", str(RECIPES / "dial" / "train_dpo.yaml"), *out, *more])
    trainer = recipe.main(*arguments)
    assert trainer.state.global_step == 2 and len(trainer.eval_dataset) == 3
    assert (tmp_path / "policy" / "model.safetensors").is_file()
    assert "erprm-trl" in (tmp_path / "policy" / "README.md").read_text()


def test_pairs_need_the_columns_of_pairs(tmp_path):
    from erprm_trl.scripts.dpo import load_pairs

    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl: got the columns .*expected prompt, chosen and rejected"):
        load_pairs(str(tmp_path / "rows.jsonl"), None, "train")


@pytest.mark.parametrize("options", [[], ["--method", "beam", "--eta", "null", "--token_budget", "90"]], ids=str)
def test_guided_search_in_miniature(options, tmp_path, monkeypatch):
    """Two rounds, a step each, for two questions; the shipped base stands for the reward model."""
    monkeypatch.chdir(RECIPES.parent)
    scorer = save_base_as_reward_model(tmp_path / "erprm")
    yaml = str(RECIPES / "dial" / "guided_search.yaml")
    small = ["--dataset_kwargs", '{"num_questions": 2, "seed": 1}', "--width", "3", "--max_steps", "2"]
    out = ["--reward_model", scorer, "--output_dir", str(tmp_path / "guided")]
    recipe, (arguments,) = parse("guided_search", ["--config", yaml, *small, *out, *options])
    summary = recipe.main(arguments)
    rows = [json.loads(line) for line in (tmp_path / "guided" / "solutions.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(len(row["solutions"][0]["steps"]) == 2 for row in rows)
    assert summary["tokens_generated"] == sum(row["tokens_generated"] for row in rows) / 2 > 0


def test_guided_search_reads_named_columns(tmp_path, monkeypatch):
    """The columns of the question and of the answer have names that are not guessed."""
    monkeypatch.chdir(RECIPES.parent)
    (question,) = load_questions("erprm_trl.dial:make_questions", dataset_kwargs={"num_questions": 1, "seed": 1})
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"asked": question.question, "wanted": question.answer}) + "\n")
    scorer = save_base_as_reward_model(tmp_path / "erprm")
    yaml = str(RECIPES / "dial" / "guided_search.yaml")
    rows = ["--dataset_name", str(source), "--dataset_kwargs", "{}", "--dataset_split", "train"]
    columns = ["--question_column", "asked", "--answer_column", "wanted"]
    out = ["--reward_model", scorer, "--output_dir", str(tmp_path / "guided"), "--width", "2", "--max_steps", "1"]
    recipe, (arguments,) = parse("guided_search", ["--config", yaml, *rows, *columns, *out])
    recipe.main(arguments)
    (row,) = [json.loads(line) for line in (tmp_path / "guided" / "solutions.jsonl").read_text().splitlines()]
    assert row["question"] == question.question


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="expected exactly one of --rollouts, --dataset_name and mixture"):
        parse("train_erprm", ["--output_dir", "x", "--model_name_or_path", "y", *CPU])
