"""Checks that the guard stops runs that exploit the reward model, and only these:
`python tests/benchmarks/guard_on_dial.py --seeds 0`.

Policies are trained on dial for more updates than are useful. The credit `sum` without outcome or KL can be hacked,
because it rewards every step. The default is `difference` with graded answers. `difference` without answers is shown,
too. The accuracy is measured on new questions, which the guard does not use.
"""

import argparse
import os
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

from policy_learning import reward_model

from erprm_trl import PolicyGuard
from erprm_trl.dial import make_questions
from erprm_trl.dial.experiments.chain import TEST_SEED
from erprm_trl.dial.experiments.policies import accuracy, train_online


# name: (settings, whether answers are used)
RUNS = {
    "hackable: sum, no outcome, no KL": ({"credit": "sum"}, False),
    "default: difference and answers": ({}, True),
    "no answers: difference, no outcome, no KL": ({}, False),
}


def main():
    """Trains each run and prints whether the guard stopped it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--updates", type=int, default=90)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--output_dir", default="outputs/bench/policy_learning")
    arguments = parser.parse_args()
    test = make_questions(200, TEST_SEED)
    for seed in arguments.seeds:
        folder = Path(arguments.output_dir, f"seed-{seed}")
        model = reward_model(seed, 2.0, folder)
        for name in arguments.runs:
            settings, answers = RUNS[name]
            guard = PolicyGuard()
            trainer = train_online(
                "step_grpo",
                model,
                folder / "guard" / name.split(":")[0],
                updates=arguments.updates,
                answers=answers,
                callbacks=[guard],
                seed=seed,
                logging_steps=1,
                **settings,
            )
            steps = [log["steps/per_answer"] for log in trainer.state.log_history if "steps/per_answer" in log]
            reached = accuracy(trainer.model, trainer.processing_class, test, 4, seed=1)
            print(
                f"seed {seed}, {name}: {trainer.state.global_step} of {arguments.updates} updates, steps per answer "
                f"{steps[0]:.1f} -> {steps[-1]:.1f}, accuracy {reached:.3f}; stopped: {guard.stopped_because}",
                flush=True,
            )


if __name__ == "__main__":
    main()
