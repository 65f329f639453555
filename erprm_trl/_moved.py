"""Keeps old import paths working for this release, after the folders were rearranged.

An import of an old path gives the same objects, with a warning that names the new path. `import erprm_trl` installs
the finder.
"""

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType


# The modules that now define the names of an old module, by old path. All paths are relative to `erprm_trl`.
MODULES: dict[str, tuple[str, ...]] = {
    "dial.chain": ("dial.experiments.chain",),
    "dial.policies": ("dial.experiments.policies",),
    "functional.activation_memory": ("memory.activations",),
    "functional.architecture": ("memory.architecture",),
    "functional.recalibration": ("functional.value_noise",),
    "functional.training_memory": ("memory.training",),
    "functional.value_errors": ("functional.value_noise", "functional.soft_values"),
    "functional.value_uncertainty": ("functional.value_posterior",),
    "policy.live_policy": ("policy.raft.policy_sampler",),
    "policy.policy_tracking": ("policy.online.tracking",),
    "policy.raft_config": ("policy.raft.raft_config",),
    "policy.raft_rounds": ("policy.raft.rounds",),
    "policy.raft_sampling": ("policy.raft.sampling",),
    "policy.raft_scores": ("policy.raft.sampling",),
    "policy.raft_trainer": ("policy.raft.raft_trainer",),
    "policy.resuming": ("policy.online.generation_buffer",),
    "policy.step_config": ("policy.online.step_config",),
    "policy.step_grpo_trainer": ("policy.online.step_grpo_trainer",),
    "policy.step_ppo_trainer": ("policy.online.step_ppo_trainer",),
    "policy.step_tokens": ("policy.step_alignment",),
    "policy.step_trainer": ("policy.online.step_trainer",),
    "policy.value_head": ("policy.online.value_head",),
    "report.calibration_plots": ("report.plots",),
    "report.evaluation_tables": ("report.tables",),
    "report.inline_svg": ("report.svg",),
    "report.page_figures": ("report.figures",),
    "report.page_sections": ("report.sections",),
    "report.solution_data": ("report.solutions",),
    "reward_model.dataset_forms": ("reward_model.trainer.dataset_formats",),
    "reward_model.erprm_config": ("reward_model.trainer.erprm_config",),
    "reward_model.erprm_tracking": ("reward_model.trainer.tracking",),
    "reward_model.erprm_trainer": ("reward_model.trainer.erprm_trainer",),
    "reward_model.finite_training": ("training.nonfinite",),
    "reward_model.format_presets": ("reward_model.presets",),
    "reward_model.implicit_scores": ("reward_model.scoring.implicit",),
    "reward_model.model_loading": ("reward_model.scoring.loading", "reward_model.heads", "io.adapters"),
    "reward_model.model_setup": ("reward_model.trainer.model_setup", "reward_model.heads"),
    "reward_model.packing": ("reward_model.collator",),
    "reward_model.remote_scoring": ("reward_model.scoring.remote", "reward_model.scoring.renamed"),
    "reward_model.scoring_connections": ("reward_model.scoring.server",),
    "reward_model.scoring_server": ("reward_model.scoring.server",),
    "reward_model.sharded_scoring": ("reward_model.scoring.sharded", "reward_model.scoring.renamed"),
    "reward_model.step_examples": ("reward_model.trainer.preprocessing",),
    "reward_model.training_metrics": ("reward_model.trainer.metrics",),
    "reward_model.whole_checkpoints": ("training.checkpoints",),
    "rollouts._grading_pool": ("rollouts.grading.pool",),
    "rollouts._grading_worker": ("rollouts.grading.worker",),
    "rollouts.chunk_work": ("rollouts.chunk",),
    "rollouts.damaged_files": ("io.file_checks",),
    "rollouts.endpoint_client": ("io.http_client", "io.config_values"),
    "rollouts.endpoint_sampling": ("rollouts.sampling.endpoint_sampler",),
    "rollouts.growing_cache": ("rollouts.sampling.kv_cache",),
    "rollouts.import_path": ("io.config_values",),
    "rollouts.json_fields": ("io.config_values",),
    "rollouts.lazy_sequence": ("io.on_disk_sequence",),
    "rollouts.rows": ("rollouts.shards",),
    "rollouts.shared_cache": ("rollouts.sampling.kv_cache",),
    "rollouts.step_labels": ("rollouts.labels",),
    "rollouts.steps": ("steps",),
    "rollouts.stop_strings": ("rollouts.sampling.stop_strings",),
    "rollouts.store": (
        "rollouts.dataset",
        "rollouts.shards",
    ),
    "rollouts.transformers_sampling": ("rollouts.sampling.transformers_sampler",),
    "rollouts.vllm_sampling": ("rollouts.sampling.vllm_sampler",),
    "rollouts.whole_files": ("io.atomic_files",),
    "selection.calibration": ("selection.evaluation.calibration",),
    "selection.guided_decoding": ("selection.search.guided_decoding",),
    "selection.particles": ("selection.search.particles",),
    "selection.picks": ("selection.best_of",),
    "selection.processbench": ("selection.evaluation.processbench",),
    "selection.processbench_figures": ("selection.evaluation.processbench_f1",),
    "selection.processbench_scores": ("selection.evaluation.score_cache",),
    "selection.question_search": ("selection.search.question_search",),
    "tracking": ("training.tracking",),
    "tracking.coloured_steps": ("training.tracking.coloured_steps",),
    "tracking.figures": ("training.tracking.figures",),
    "tracking.redaction": ("io.redaction",),
    "tracking.throughput": ("training.tracking.throughput",),
    "tracking.trackers": ("training.tracking.trackers",),
    "tracking.tracking_config": ("training.tracking.tracking_config",),
    "tracking.training_tracker": ("training.tracking.training_tracker",),
}
# New names of classes, by old name.
RENAMED = {
    "FiniteTraining": "StopOnNonFinite",
    "WholeCheckpoints": "CrashSafeCheckpoints",
    "LivePolicy": "PolicySampler",
    "LazySequence": "OnDiskSequence",
}
# Names that a package still exports although their module is now in another package, by package.
NAMES = {
    "functional": {
        "Architecture": "memory",
        "count_lora_parameters": "memory",
        "count_parameters": "memory",
        "memory_per_gpu": "memory",
        "state_bytes": "memory",
    },
}


class MovedModules:
    """Finder and loader for the old paths (PEP 451)."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        """Returns the spec of an old path, and `None` for any other name."""
        root, _, moved = name.partition(".")
        if root != __package__ or moved not in MODULES:
            return None
        return ModuleSpec(name, self, is_package=any(old.startswith(f"{moved}.") for old in MODULES))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Creates a module that looks up every name in the new modules."""
        moved = spec.name.partition(".")[2]
        homes = [f"{__package__}.{home}" for home in MODULES[moved]]
        warnings.warn(f"{spec.name} moved to {' and '.join(homes)}.", FutureWarning, stacklevel=2)
        module = ModuleType(spec.name, f"Moved to {' and '.join(homes)}.")
        module.__getattr__ = lambda name: _find(spec.name, homes, name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing, because names are looked up when they are used."""


def moved_names(package: str):
    """Makes `__getattr__` for a package that still exports names of modules that are now in another package."""

    def __getattr__(name: str):
        homes = NAMES[package.partition(".")[2]]
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__package__}.{homes[name]}"), name)

    return __getattr__


def install() -> None:
    """Adds the finder once, before all others. Otherwise a leftover folder with old byte code would be imported as a
    namespace package."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())


def _find(old: str, homes: list[str], name: str):
    if not name.startswith("__"):
        for home in homes:
            module = importlib.import_module(home)
            for current in (name, RENAMED.get(name, name)):
                if hasattr(module, current):
                    return getattr(module, current)
    raise AttributeError(f"module {old!r} has no attribute {name!r}. Its names are now in {' and '.join(homes)}")
