"""Collects rollouts: questions -> solutions -> graded continuations of every step prefix.

    python recipes/collect_rollouts.py --config recipes/dial/collect.yaml
    accelerate launch --num_processes 2 recipes/collect_rollouts.py --config recipes/dial/collect.yaml

Killed at any moment, the same command continues where it was.
"""

from trl import TrlParser

from erprm_trl.rollouts import CollectConfig


def main(config: CollectConfig) -> None:
    """Runs one collection and says how it went."""
    rollouts = config.run()
    print(f"{config.output_dir}: {rollouts.manifest['summary']}")


if __name__ == "__main__":
    main(TrlParser(CollectConfig).parse_args_and_config()[0])
    from accelerate import PartialState

    PartialState().destroy_process_group()  # at its end torch may abort a launched process
