"""RAFT with vLLM: each round's engine loads the previous round's policy, and is freed before the training. Also with
an adapter, and with two processes."""

import json

import distributed_runs
import psutil
import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from vllm_oracles import greedy_ids

from erprm_trl import dial
from erprm_trl.policy import RAFTConfig, RAFTTrainer
from erprm_trl.policy.raft import policy_sampler as live_policy
from erprm_trl.policy.raft.rounds import read_rows
from erprm_trl.rollouts import Prompt, VLLMSampler


pytestmark = pytest.mark.slow("starts vLLM engines")


ROWS = dial.make_questions(12, seed=1)
QUESTIONS = [row["question"] for row in ROWS[:6]]
LONGEST = 64


class EngineProcesses(TrainerCallback):
    """Records the number of running engines when a round's training begins."""

    def __init__(self):
        self.counts = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.counts.append(count_engines())


def count_engines():
    """The number of engines that this process started."""
    living = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    return sum("EngineCore" in " ".join(child.cmdline()) for child in living)


@pytest.fixture
def greedy_of_engines(monkeypatch):
    """Records each engine's greedy completions before it samples for the trainer, by the folder that it loaded."""
    seen = {}

    class Watched(VLLMSampler):
        def sample(self, prompts, num_samples, seed):
            if self.model_name not in seen:
                assert count_engines() == 1
                temperature, self.temperature = self.temperature, 0
                questions = [Prompt(question) for question in QUESTIONS]
                seen[self.model_name] = [
                    list(completion.token_ids) for (completion,) in super().sample(questions, 1, 0)
                ]
                self.temperature = temperature
            return super().sample(prompts, num_samples, seed)

    monkeypatch.setattr(live_policy, "VLLMSampler", Watched)
    return seen


def test_each_round_samples_from_the_previous_rounds_policy(dial_scorer, greedy_of_engines, tmp_path):
    engines = EngineProcesses()
    args = RAFTConfig(
        str(tmp_path),
        num_rounds=2,
        use_vllm=True,
        vllm_kwargs={"dtype": "float32", "enforce_eager": True},  # compilation takes longer than it saves here
        num_generations=6,
        max_completion_length=LONGEST,
        chunk_size=4,
        drop_uniform=False,
        grading="exact",
        answer_pattern=dial.ANSWER_PATTERN,
        per_device_train_batch_size=2,
        learning_rate=2e-3,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = RAFTTrainer(dial.BASE_PATH, dial_scorer, args, Dataset.from_list(ROWS), callbacks=[engines])
    trainer.train()
    assert engines.counts == [0, 0]
    assert count_engines() == 0
    folders = [tmp_path / name for name in ("first-policy", "round-0/policy")]
    assert list(greedy_of_engines) == [str(folder) for folder in folders]
    completions = [greedy_of_engines[str(folder)] for folder in folders]
    assert completions[0] != completions[1]
    tokenizer = trainer.processing_class
    for folder, sampled in zip(folders, completions, strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        assert sampled == greedy_ids(model, tokenizer, QUESTIONS, LONGEST)
    for index in (0, 1):
        picks = read_rows(tmp_path / f"round-{index}" / "picks.jsonl")
        assert 0 < len(picks) <= len(ROWS)
        for pick in picks:
            assert pick["prompt_ids"] == tokenizer(pick["prompt"])["input_ids"]
            assert tokenizer.decode(pick["completion_ids"][:-1]) == pick["completion"].strip()
            assert pick["completion_ids"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_two_processes_sample_with_an_engine_each(lora, tmp_path):
    distributed_runs.save_models(tmp_path)
    options = {"use_vllm": True, "vllm_kwargs": {"dtype": "float32", "enforce_eager": True}}
    config = distributed_runs.CONFIGS / "cpu_ddp.yaml"
    facts = distributed_runs.launch(tmp_path, config, ("raft",), accumulation=1, lora=lora, raft=options)["raft"]
    assert "error" not in facts, facts["error"]
    assert facts["world"] == 2 and len(facts["losses"]) == distributed_runs.UPDATES
    for index in range(2):
        samples = tmp_path / "raft" / f"round-{index}" / "samples"
        settings = json.loads((samples / "manifest.json").read_text())["config"]["sampler"]
        assert settings["backend"] == "vllm"
        shards = sorted(samples.glob("*.jsonl"))
        assert len(shards) == 2 and all(shard.stat().st_size > 0 for shard in shards)
    assert (tmp_path / "raft" / "merged-policy").exists() == lora
