"""Runs a few updates of a step trainer with a vLLM engine in its own process, and checks their samples and weights."""

import math

from datasets import Dataset
from vllm_oracles import greedy_ids

from erprm_trl import dial


ROWS = dial.make_questions(16, seed=5)
QUESTIONS = [row["question"] for row in ROWS[:6]]
LONGEST = 60
SETTINGS = {
    "use_vllm": True,
    "vllm_mode": "colocate",
    "max_steps": 4,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": LONGEST,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "grading": "exact",
    "answer_pattern": dial.ANSWER_PATTERN,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
}


def train(trainer_class, config_class, scorer, folder, **options):
    """Runs four updates with a learning rate large enough to detect samples of an old policy, and an evaluation."""
    peft_config = options.pop("peft_config", None)
    dataset = Dataset.from_list([{"prompt": row["question"], "answer": row["answer"]} for row in ROWS])
    args = config_class(str(folder), **{**SETTINGS, **options})
    trainer = trainer_class(
        dial.BASE_PATH, scorer, args, dataset, eval_dataset=dataset.select(range(4)), peft_config=peft_config
    )
    trainer.train()
    trainer.evaluate()
    return trainer


def assert_trained_on_its_own_samples(trainer):
    """Checks that every batch was sampled with the weights of its update, by the probabilities of its tokens."""
    updates = [entry for entry in trainer.state.log_history if "loss" in entry]
    (evaluation,) = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert len(updates) == 4
    assert all(math.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in updates)
    if trainer.vllm_importance_sampling_correction:  # TRL compares and logs the probabilities only then
        differences = [entry["sampling/sampling_logp_difference/max"] for entry in updates]
        differences.append(evaluation["eval_sampling/sampling_logp_difference/max"])
        assert max(differences) < 1e-4
        assert all(abs(entry["sampling/importance_sampling_ratio/mean"] - 1) < 1e-4 for entry in updates)


def assert_engine_has_the_trained_weights(trainer, first_policy):
    """Checks that the engine's greedy completions equal the trained model's, and differ from the first policy's."""
    tokenizer = trainer.processing_class
    trainer.vllm_generation.temperature = 0.0
    prompts = [tokenizer(question)["input_ids"] for question in QUESTIONS]
    sampled, _ = trainer._generate_single_turn(prompts, None, {}, 1)
    model = trainer.model.eval()
    assert [list(ids) for ids in sampled] == greedy_ids(model, tokenizer, QUESTIONS, LONGEST)
    assert [list(ids) for ids in sampled] != greedy_ids(first_policy, tokenizer, QUESTIONS, LONGEST)
