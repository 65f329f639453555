"""The overhead of step rewards: an update of StepGRPOTrainer compared with one of trl.GRPOTrainer with the same reward
model as a scalar reward function, in alternation in one process: `python tests/benchmarks/step_grpo_overhead.py`.

Both trainers are constructed again for each turn and start from the shipped policy, so that they sample texts of the
same lengths. The first update of a turn is a warm-up and is not counted.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from erprm_trl import StepGRPOConfig, StepGRPOTrainer, StepRewardFunction, StepScorer
from erprm_trl.dial import BASE_PATH, make_questions
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.dial.experiments.policies import CPU_QUIET
from erprm_trl.policy import prompt_dataset
from erprm_trl.rollouts import load_questions


def main():
    """Runs the turns, and prints the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    scorer = StepScorer.from_pretrained(BASE_PATH, prm_format=FORMAT, batch_size=256)
    dataset = prompt_dataset(load_questions(make_questions(500, 3)), answers=False)
    seconds: dict[str, list[list[float]]] = {"GRPOTrainer": [], "StepGRPOTrainer": []}  # of the updates of each turn
    for turn in range(arguments.turns):
        for name in seconds:
            config, trainer_class = {
                "GRPOTrainer": (GRPOConfig, GRPOTrainer),
                "StepGRPOTrainer": (StepGRPOConfig, StepGRPOTrainer),
            }[name]
            with tempfile.TemporaryDirectory() as folder:
                args = config(
                    folder,
                    max_steps=arguments.updates,
                    per_device_train_batch_size=256,
                    num_generations=8,
                    max_completion_length=64,
                    learning_rate=1e-6,
                    beta=0.0,  # not StepGRPOConfig's default for step scores alone, which needs a reference model
                    logging_steps=1,
                    seed=turn,
                    **CPU_QUIET,
                )
                reward = StepRewardFunction(scorer)
                trainer = trainer_class(BASE_PATH, [reward], args=args, train_dataset=dataset)
                trainer.remove_callback(PrinterCallback)
                trainer.train()
            times = [log["step_time"] for log in trainer.state.log_history if "step_time" in log]
            seconds[name].append(times[1:])
    for name, turns in seconds.items():
        times = sum(turns, [])
        low, middle, high = statistics.quantiles(times, n=4)
        print(f"{name}: {middle:.3f} s per update (quartiles {low:.3f} to {high:.3f}, n={len(times)})")
    ratios = [
        statistics.median(plain) / statistics.median(ours) for plain, ours in zip(*seconds.values(), strict=True)
    ]
    spread = statistics.median(ratios), min(ratios), max(ratios)
    print("speed relative to GRPOTrainer: {:.3f} ({:.3f} to {:.3f})".format(*spread))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        report = {"seconds": seconds, "ratios": {"policy_update_vs_scalar_grpo": spread}}
        arguments.output.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
