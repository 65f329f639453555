"""The quickstart in miniature: its results, and that its output is short and without noise."""

import json

import pytest

from erprm_trl.scripts.quickstart import QuickstartArguments, format_policy_table, main


NOISE = ("{'", "FutureWarning", "UserWarning", "Loading weights", "train split", "Setting accelerator", "it/s", "Map:")


@pytest.mark.slow("trains every stage")
@pytest.mark.filterwarnings("always::FutureWarning")
def test_the_quickstart_in_miniature(tmp_path, capfd):
    small = {"train_questions": 4, "num_continuations": 2, "test_questions": 3, "num_samples": 4, "max_steps": 2}
    small |= {"updates": 1, "rounds": 1, "questions_per_round": 8, "etas": [0.0, float("inf")]}
    main(QuickstartArguments(str(tmp_path), **small))

    summary = json.loads((tmp_path / "summary.json").read_text())
    scores = {"pass@1", "pass@4", "majority@4", "best_of_4", "baselines", "auc_within_questions", "gap_closed"}
    assert set(summary) == {*scores, "policies", "seconds"}
    assert set(summary["policies"]) == {"before", "raft", "step_grpo", "step_ppo"}
    assert all(0 <= point["low"] <= point["mean"] <= point["high"] <= 1 for point in summary["policies"].values())
    assert set(summary["best_of_4"]) == {"0", "inf"}
    assert set(summary["best_of_4"]["inf"]) == {"min", "last", "product", "mean"}
    assert (tmp_path / "best_of_n.png").stat().st_size > 5000

    results, progress = capfd.readouterr()
    lines = [*results.splitlines(), *progress.splitlines()]
    assert len(lines) <= 60
    assert [line for line in lines if any(noise in line for noise in NOISE)] == []
    assert progress.splitlines()[0] == f"Log: {tmp_path / '_quickstart.log'}"
    # Three models, one round of RAFT, step GRPO and step PPO
    assert progress.count("Training: 100%") == 6 and progress.count("Reward model, ") == 3
    assert "best of 4 by" in results and "step PPO" in results and "report.html" in results
    log = (tmp_path / "_quickstart.log").read_text()
    assert "FutureWarning" in log and "train_loss" in log  # nothing is lost


def test_the_table_of_policies():
    point = {"mean": 0.5, "low": 0.25, "high": 0.75}
    table = format_policy_table({"before": point, "step_ppo": point}, 2.0)
    first, before, ppo = table.splitlines()
    assert first.startswith("policy, trained on the step scores of eta = 2 alone") and first.endswith("pass@1")
    assert before.split() == ["before", "training", "0.500", "[0.250,", "0.750]"]
    assert ppo.startswith("step PPO  ") and before.index("0.500") == first.index("pass@1")
