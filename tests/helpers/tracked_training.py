"""Trains a tiny reward model and a tiny policy with every tracker: `python tracked_training.py FOLDER`."""

import os
import sys
from pathlib import Path


TRACKERS = ["wandb", "trackio", "tensorboard"]
TOKEN = "hf_AbCdEfGhIjKlMnOpQrSt"


def common(name):
    """Common arguments: all artifacts are logged, and the arguments contain a secret."""
    return {
        "report_to": TRACKERS,
        "run_name": name,
        "project": name,
        "hub_token": TOKEN,
        "log_artifacts": ["config", "data", "checkpoint"],
        "save_strategy": "steps",
        "save_steps": 2,
    }


def train_reward_model(folder):
    """Trains a reward model on rollouts of the shipped policy, with two evaluations."""
    from step_fakes import settings

    from erprm_trl import ERPRMConfig, ERPRMTrainer, TransformersSampler, collect_rollouts, dial, load_questions

    rollouts = collect_rollouts(
        load_questions(dial.make_questions(6, seed=3)),
        TransformersSampler.from_pretrained(dial.BASE_PATH, max_new_tokens=48),
        folder / "rollouts",
        num_solutions=2,
        num_continuations=2,
        splitter=dial.SEPARATOR,
        grading="exact",
        answer_pattern=dial.ANSWER_PATTERN,
    )
    others = settings(folder / "erprm")
    others = {name: others[name] for name in others if "num_generations" != name != "max_completion_length"}
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "num_logged_solutions": 3}
    options |= {"separator": dial.SEPARATOR, "good_token": dial.GOOD_MARK, "bad_token": dial.BAD_MARK}
    options |= {"prompt_template": "check {question}", "splitter": dial.SEPARATOR, "head": "lm"}
    args = ERPRMConfig(**others | common("erprm") | options)
    ERPRMTrainer(str(dial.BASE_PATH), args, train_dataset=str(folder / "rollouts"), eval_dataset=rollouts).train()


def train_policy(folder):
    """Trains a policy with answers, a KL, a guard and logged completions."""
    from step_fakes import FakeScorer, by_text, encode, generate_fixed, questions, save_tiny, settings, word_level

    from erprm_trl import PolicyGuard, StepGRPOConfig, StepGRPOTrainer

    tokenizer = word_level()
    options = {"max_steps": 2, "log_completions": True, "beta": 0.1, "num_logged_solutions": 2}
    trainer = StepGRPOTrainer(
        str(save_tiny(folder / "tiny", tokenizer)),
        [FakeScorer(by_text)],
        args=StepGRPOConfig(**settings(folder / "grpo") | common("grpo") | options),
        train_dataset=questions(4, answer=["1", "2", "3", "4"]),
        processing_class=tokenizer,
        callbacks=[PolicyGuard(warmup=1, window=1)],
    )
    generate_fixed(trainer, encode(tokenizer, "4 ки 8 </s>", "2 </s>", "3 ки 1 ки 5 </s>", "9 ки 9"))
    trainer.train()


def train_in_rounds(folder):
    """Trains two rounds of RAFT. The run has the folder's name."""
    from datasets import Dataset

    from erprm_trl import RAFTConfig, RAFTTrainer, StepScorer, dial
    from erprm_trl.dial.experiments.chain import FORMAT

    options = {"num_rounds": 2, "num_generations": 2, "max_completion_length": 48, "chunk_size": 4, "max_steps": 2}
    options |= {"drop_uniform": False, "per_device_train_batch_size": 4, "logging_steps": 1, "use_cpu": True}
    options |= {"bf16": False, "gradient_checkpointing": False, "disable_tqdm": True, "num_logged_solutions": 3}
    questions = [{"question": row["question"]} for row in dial.make_questions(6, seed=1)]
    RAFTTrainer(
        dial.BASE_PATH,
        StepScorer.from_pretrained(dial.BASE_PATH, prm_format=FORMAT),
        RAFTConfig(str(folder / "raft"), **common(None) | {"project": "raft"} | options),
        train_dataset=Dataset.from_list(questions),
    ).train()


if __name__ == "__main__":
    import wandb

    root = Path(sys.argv[1])
    os.chdir(root)
    train_reward_model(root)
    wandb.finish()
    train_policy(root)
    wandb.finish()
    train_in_rounds(root)
