"""Settings of short RAFT runs on dial, and an exception that kills a run."""

from erprm_trl import dial


DIAL = {
    "num_rounds": 2,
    "num_generations": 4,
    "max_completion_length": 64,
    "generation_batch_size": 64,
    "chunk_size": 4,
    "grading": "exact",
    "answer_pattern": dial.ANSWER_PATTERN,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "drop_uniform": False,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "report_to": "none",
}


class Killed(BaseException):
    """An exception that no handler catches."""
