"""Mutation tests: `python tests/benchmarks/mutants.py [--only step_losses encoding]`.

Each mutant is a small mistake in a copy of the tree, which the tests of its module should detect. The benchmark prints
the mutants that survive, and the share of killed ones. `--json` saves the list.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).parents[2]


class Mutant(NamedTuple):
    """A text in a file and its replacement."""

    file: str
    text: str
    becomes: str


# Module: its tests, and pairs (text, mistake). Each text occurs once in its module.
MUTANTS = {
    "functional/soft_values.py": (
        ["tests/functional/test_soft_values.py"],
        [
            ("if eta > 0 else rewards.amin(dim, keepdim=True)", "if eta < 0 else rewards.amin(dim, keepdim=True)"),
            ("near_one = mean_expm1 > -0.5", "near_one = mean_expm1 > -1.5"),
            ("return rewards.amax(dim) if eta > 0 else rewards.amin(dim)", "return rewards.amax(dim)"),
            ("return 1 - soft_value_from_rate(1 - p, -eta)", "return soft_value_from_rate(1 - p, -eta)"),
            ("_SMALLEST_ETA = 1e-30", "_SMALLEST_ETA = 1e-5"),
            ("rewards = at_least_float32(rewards)", "rewards = rewards"),
            ("mean_expm1 = (1 - p) * math.expm1(-eta)", "mean_expm1 = (1 - p) * (math.exp(-eta) - 1)"),
        ],
    ),
    "functional/step_losses.py": (
        ["tests/functional/test_step_losses.py"],
        [
            ("return logits[..., 0] - logits[..., 1] if", "return logits[..., 1] - logits[..., 0] if"),
            ("logits = at_least_float32(logits)", "logits = logits"),
            ("reduction=reduction)", 'reduction="mean")'),
        ],
    ),
    "functional/precision.py": (
        ["tests/functional/test_precision.py"],
        [("values if values.dtype == torch.float64 else values.to(torch.float32)", "values.to(torch.float32)")],
    ),
    "functional/aggregation.py": (
        ["tests/functional/test_aggregation.py"],
        [
            ("masked_fill(~mask, torch.inf).amin(-1)", "masked_fill(~mask, 0.0).amin(-1)"),
            ("positions.masked_fill(~mask, -1).argmax", "positions.argmax"),
            ("masked_fill(~mask, 1.0).prod(-1)", "masked_fill(~mask, 0.0).prod(-1)"),
            (".sum(-1) / num_steps", ".sum(-1) / scores.shape[-1]"),
        ],
    ),
    "functional/advantages.py": (
        ["tests/functional/test_advantages.py"],
        [
            ("torch.inf).cummin(-1).values", "torch.inf).amin(-1, keepdim=True).expand_as(scores)"),
            ("(-scores / temperature)", "(scores / temperature)"),
            (
                "before = torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], dim=-1)",
                "before = values.roll(1, -1)",
            ),
            ("(mask.cumsum(-1) == mask.sum(-1, keepdim=True))", "(mask.cumsum(-1) == 1)"),
            ("masked_moments(grouped, grouped_mask, dim=-1)", "masked_moments(grouped, grouped_mask | True, dim=-1)"),
            ("means.squeeze(-1).repeat_interleave(group_size)", "means.squeeze(-1).repeat(group_size)"),
            ("device=mask.device).masked_fill(~mask, num_tokens)", "device=mask.device).expand_as(mask)"),
            ("masked_fill(mask, gamma * gae_lambda)", "masked_fill(mask, gae_lambda)"),
            ("owner = torch.searchsorted(ends, tokens)", "owner = torch.searchsorted(ends, tokens, right=True)"),
            (".masked_fill(~mask.bool(), 0.0), mask.bool()", ", mask.bool()"),
        ],
    ),
    "functional/policy_losses.py": (
        ["tests/functional/test_policy_losses.py"],
        [
            ("torch.maximum(losses, clipped_losses) / 2", "torch.minimum(losses, clipped_losses) / 2"),
            ("torch.expm1(-difference) + difference", "torch.expm1(difference) - difference"),
            (".clamp(-clip_range, clip_range)", ".clamp(-1.0, clip_range)"),
        ],
    ),
    "functional/masked.py": (
        ["tests/functional/test_masked.py"],
        [
            ("return count, mean, squares / (count - 1).clamp_min(1)", "return count, mean, squares / count"),
            ("terms.sum(dim, keepdim=True)", "terms.sum(0, keepdim=True)"),
            ("sums = all_reduce(sums) if all_reduce else sums", "sums = sums"),
            ("squares = all_reduce(squares) if all_reduce else squares", "squares = squares"),
            ("torch.where(target_variance > rounding, ", "torch.where(target_variance >= 0, "),
        ],
    ),
    "functional/score_metrics.py": (
        ["tests/functional/test_score_metrics.py"],
        [
            ("negatives_in_tie / 2", "negatives_in_tie"),
            ("edges, right=True)", "edges, right=False)"),
            ("gap_by_bin.abs().sum()", "gap_by_bin.sum().abs()"),
        ],
    ),
    "functional/value_posterior.py": (
        ["tests/functional/test_value_posterior.py"],
        [
            ("return successes, counts - successes", "return successes, counts"),
            ("loss = log.square().sum() / 2 - likelihood", "loss = -likelihood"),
            ("at_least_float32(label_std).square())", "at_least_float32(label_std))"),
            ("return rate * (1 - rate) * (better - worse).square()", "return rate * (better - worse).square()"),
        ],
    ),
    "reward_model/encoding.py": (
        ["tests/reward_model/test_encoding.py"],
        [
            ("positions.append(len(ids) - 1)", "positions.append(len(ids) - 2)"),
            ("piece = [*(between if step_index else []), *step_ids, *separator]", "piece = [*step_ids, *separator]"),
            ("len(ids) + len(piece) > max_length", "len(ids) + len(piece) >= max_length"),
            ("return max(bisect_left(starts, end), bisect_right(ends, end))", "return bisect_right(ends, end)"),
            (
                "ids, positions, inside = [*leading, *ids_of[prompt]], [], None",
                "ids, positions, inside = [*ids_of[prompt]], [], None",
            ),
            ("if inside is None and _contains(step_ids, separator):", "if False:"),
            ("if separator and separator in step", "if False"),
            ("return bool(part) and any(", "return any("),
        ],
    ),
    "reward_model/attention.py": (
        ["tests/reward_model/test_attention.py"],
        [
            ("not all(flags)", "not any(flags)"),
            ("dim=-1) != 1).cumsum(-1)", "dim=-1) != 1).long()"),
            ('if padding_mask is not None and _said("is_padded"):', "if False:"),
        ],
    ),
    "reward_model/step_logits.py": (
        ["tests/reward_model/test_step_logits.py"],
        [
            (".float().flip(-1)", ".float()"),
            ("[token_ids.good, token_ids.bad]", "[token_ids.bad, token_ids.good]"),
            ("            del language_head.forward", "            pass"),
            (
                "with torch.autocast(hidden.device.type, enabled=False):",
                "with torch.autocast(hidden.device.type, enabled=True):",
            ),
        ],
    ),
    "reward_model/collator.py": (
        ["tests/reward_model/test_collator.py"],
        [
            ("bisect_left(spaces, (lengths[index], 0))", "bisect_left(spaces, (lengths[index] + 1, 0))"),
            ("row_of[index], start_of[index] = row, start", "row_of[index], start_of[index] = row, 0"),
            ("starts.append(filled[row])", "starts.append(0)"),
            ("ends += [total] if total > ends[-1] else []", "ends += []"),
            ("if not gap <= 1e-3 * max(size, 1.0):", "if False:"),
        ],
    ),
    "reward_model/trainer/erprm_trainer.py": (
        ["tests/reward_model/trainer/test_erprm_trainer.py", "tests/reward_model/trainer/test_label_weighting.py"],
        [
            ("weighted.sum() / num_items_in_batch.clamp(min=1) * self.accelerator.num_processes", "weighted.mean()"),
            ('losses * inputs["step_weights"].flatten()[index] if', "losses if"),
            ("self.prm_format.save(output_dir or self.args.output_dir)", "pass"),
            ("self._num_tokens = int(counts[-1]) if counts else 0", "self._num_tokens = 0"),
            ('logs[f"{prefix}loss"] = loss', "pass"),
            ("labels = smoothed_labels(labels, self.args.label_smoothing_factor)", "pass"),
        ],
    ),
    "reward_model/trainer/data_setup.py": (
        ["tests/reward_model/trainer/test_data_setup.py"],
        [
            ("args.train_on_last_step_only and is_training", "args.train_on_last_step_only"),
            ("args.label_weighting if is_training", "args.label_weighting if True"),
        ],
    ),
    "reward_model/trainer/metrics.py": (
        ["tests/reward_model/trainer/test_predictions.py"],
        [("else logits.flip(-1)", "else logits")],
    ),
    "rollouts/dataset.py": (
        ["tests/rollouts/test_collect.py"],
        [("                if len(rows) != rows_in_chunk[chunk]:\n", "                if False:\n")],
    ),
    "rollouts/shards.py": (
        ["tests/rollouts/test_collect.py"],
        [
            ('if not line.endswith(b"\\n"):', "if False:"),
            ("        os.truncate(shard, end)", "        pass"),
            ("        if len(rows) == rows_in_chunk[chunk]:\n            done", "        if True:\n            done"),
            ("end = starts[-1]", "end = starts[0]"),
        ],
    ),
    "rollouts/sampling/kv_cache.py": (
        ["tests/rollouts/sampling/test_kv_cache.py"],
        [
            ("grouped = (query * scaling)", "grouped = query"),
            ("self.prompts.unread = True", "pass"),
            ("return self.prompt_keys.shape[-2] + self.own_length()", "return self.own_length()"),
            ("if len(prompts) < before:", "if False:"),
            ("scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)", "pass"),
            ("self._full = self.num_prompts * self.most == len(owners)", "self._full = True"),
            (" or any(kwargs.get(name) is not None for name in MORE_THAN_PLAIN)", ""),
        ],
    ),
    "rollouts/grading/pool.py": (
        ["tests/rollouts/grading/test_grader.py"],
        [("waited = min(time.monotonic() - started, MOMENT)", "waited = time.monotonic() - started")],
    ),
    "io/atomic_files.py": (
        ["tests/io/test_atomic_files.py", "tests/rollouts/test_collect.py"],
        [
            ("        os.replace(temporary, path)", "        temporary.unlink()"),
            ("            temporary.unlink()", "            pass"),
        ],
    ),
    "training/checkpoints.py": (
        ["tests/training/test_checkpoints.py"],
        [
            ("self.seed + self.epoch", "self.seed"),
            ("        os.replace(checkpoint, aside)", "        return"),
            ("if self.state.global_step >= self.state.max_steps:", "if False:"),
        ],
    ),
    "training/nonfinite.py": (
        ["tests/training/test_nonfinite.py"],
        [
            ('raise self._not_finite("the loss", loss)', "pass"),
            ("and not math.isfinite(grad_norm) and", "and math.isfinite(grad_norm) and"),
            ('raise self._not_finite("a weight", largest)', "pass"),
        ],
    ),
    "policy/online/generation_buffer.py": (
        ["tests/policy/online/test_generation_buffer.py"],
        [("torch.tensor([sizes == _sizes(args)]", "torch.tensor([file.exists()]")],
    ),
    "rollouts/chunk.py": (
        ["tests/rollouts/test_collect.py", "tests/rollouts/test_adaptive_collection.py"],
        [
            (
                "for num_steps in range(1, len(row.steps))] if row.is_usable",
                "for num_steps in range(1, len(row.steps) + 1)] if row.is_usable",
            ),
            (
                "            prompt.prefix + continuation.text\n            for prompt, continuations_K",
                "            continuation.text\n            for prompt, continuations_K",
            ),
            ("derived_seed(self.settings.seed, chunk, purpose)", "derived_seed(self.settings.seed, 0, purpose)"),
        ],
    ),
    "policy/step_alignment.py": (
        ["tests/policy/test_step_alignment.py"],
        [
            ("start - offset >= step_ends[step]", "start - offset > step_ends[step]"),
            ("return text, [0, *ends[:-1]]", "return text, ends"),
            ('if "".join(pieces) != text:', "if False:"),
            ("offset = decoded.rfind(text)", "offset = decoded.find(text)"),
        ],
    ),
    "policy/completions.py": (
        ["tests/policy/test_completions.py"],
        [
            ("ends = [end - len(opening) for end in", "ends = [end for end in"),
            ("is_thinking = False  #", "pass  #"),
            ("if is_thinking and THINK_OPEN not in text", "if THINK_OPEN not in text"),
        ],
    ),
    "conversations.py": (
        ["tests/test_conversations.py"],
        [
            ('return _MARKS.sub("&lt;", text)', "return text"),
            ('"\\n".join(part for part in parts if part)', "parts[-1]"),
            ("            parts = []", "            pass"),
        ],
    ),
    "policy/turns.py": (
        ["tests/policy/test_turns.py"],
        [
            ("if own and not after]", "if own]"),
            ("(all(tool_mask) or num_turns < len(messages))", "True"),
            ("return list(map(sum, tool_masks))", "return list(map(len, tool_masks))"),
        ],
    ),
    "policy/online/tool_tokens.py": (
        ["tests/policy/online/test_tool_tokens.py"],
        [
            ('mask * batch["tool_mask"]', "mask"),
            ('return [{**row, "tool_mask": mask} for', "return [row for"),
        ],
    ),
    "policy/online/step_trainer.py": (
        ["tests/policy/online/test_step_grpo_trainer.py"],
        [
            ("outcomes = outcomes.masked_fill(~is_known, torch.nan)", "pass"),
            ("return self.num_generations if self.model.training else self.num_generations_eval", "return 1"),
            ("start = self.accelerator.process_index * len(batch)", "start = 0 * len(batch) + 1"),
            ("both = ~(graded.isnan() | scored.isnan())", "both = ~graded.isnan() & (graded < 2)"),
        ],
    ),
    "policy/online/step_grpo_trainer.py": (
        ["tests/policy/online/test_step_grpo_trainer.py"],
        [
            ("return advantages * mask", "return advantages"),
            (
                "rewards = subtract_initial_value(rewards, steps.mask, self._question_values(steps))",
                "rewards = subtract_initial_value(rewards, steps.mask, 0.0)",
            ),
            (
                "advantages = advantages + self.outcome_weight * outcome[steps.local]",
                "advantages = advantages + outcome[steps.local]",
            ),
            ("scale=scale, gamma=self.args.gamma)", "scale=scale)"),
        ],
    ),
    "policy/online/reward_model_updates.py": (
        ["tests/policy/online/test_reward_model_updates.py"],
        [
            ('reduction="none") * repeats', 'reduction="none")'),
            ("(losses.sum() / num_solutions).backward()", "losses.mean().backward()"),
            ("master.grad is None else master.grad + gradient", "master.grad is None else gradient"),
            ("if part.scores and not math.isnan(outcomes[row])", "if part.scores"),
            ("name: weight if weight.dtype == torch.float32 else weight.detach().float()", "name: weight"),
            ('if trainer.args.update_reward_model == "after_scoring":', "if False:"),
        ],
    ),
    "policy/online/step_ppo_trainer.py": (
        ["tests/policy/online/test_step_ppo_trainer.py"],
        [
            ("returns = advantages + values", "returns = advantages"),
            ("rewards = rewards - penalty", "rewards = rewards + penalty"),
            (
                "last = (positions * mask).argmax(-1, keepdim=True)",
                "last = positions.expand_as(mask).argmax(-1, keepdim=True)",
            ),
            ("self.beta = 0.0\n", "pass\n"),
            (
                'tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes',
                'tokens = inputs["num_items_in_batch"].clamp(min=1) * 2',
            ),
            ("values = values.float() * mask", "values = values.float()"),
            ("values = values_of_rows(values, output[LACKS_OUTCOME])", "values = values[..., 0]"),
            (
                "values = values_of_rows(values, inputs.get(LACKS_OUTCOME))",
                "values = values.unflatten(1, (-1,))[..., 0]",
            ),
            ("self.args.gamma, self.args.gae_lambda)", "1.0, self.args.gae_lambda)"),
        ],
    ),
    "policy/raft/rounds.py": (
        ["tests/policy/raft/test_rounds.py"],
        [
            ("key=lambda index: -scores[index])", "key=lambda index: scores[index])"),
            ("if drop_uniform and len(rewards) == 1:", "if len(rewards) == 1:"),
            ("scores[index] < score_threshold", "scores[index] <= score_threshold"),
            ("if deduplicate and text in seen:", "if text in seen:"),
        ],
    ),
    "selection/best_of.py": (
        ["tests/selection/test_best_of.py"],
        [
            ("ratios = np.clip(ranks - n + 1, 0, None) / ranks", "ratios = np.clip(ranks - n, 0, None) / ranks"),
            ("return run_mean[run].reshape(scores_QN.shape)", "return sorted_correct"),
        ],
    ),
}


def mutants(only: list[str]) -> list[tuple[Mutant, list[str]]]:
    """The mutants of the modules whose names hold one of these, all without; each with its tests."""
    chosen = []
    for module, (tests, pairs) in MUTANTS.items():
        if only and not any(name in module for name in only):
            continue
        source = (ROOT / "erprm_trl" / module).read_text(encoding="utf-8")
        for text, becomes in pairs:
            if source.count(text) != 1:
                raise ValueError(
                    f"{module}: got {source.count(text)} places with {text!r}, expected exactly one. Update the list."
                )
            chosen.append((Mutant(module, text, becomes), tests))
    return chosen


def copy_tree(folder: Path) -> None:
    """Copies all files that git tracks or does not ignore."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def run_tests(folder: Path, tests: list[str], timeout: float) -> str:
    """Returns `passed`, `killed` or, if the tests did not end in time, `hung`."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "hung"
    if done.returncode not in (0, 1, 2):  # 2: the module cannot be imported
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return "killed" if done.returncode else "passed"


def main() -> None:
    """Runs every mutant and prints the survivors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="Modules whose names contain one of these.")
    parser.add_argument("--timeout", type=float, default=900.0, help="Time limit of a mutant's tests, in seconds.")
    parser.add_argument("--json", default="outputs/bench/mutants.json")
    options = parser.parse_args()
    outcomes, started = [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "tree")
        copy_tree(folder)
        healthy: set[str] = set()
        for mutant, tests in mutants(options.only):
            for test in set(tests) - healthy:
                if run_tests(folder, [test], options.timeout) != "passed":
                    raise RuntimeError(f"{test} fails without a mutant. Fix it first.")
                healthy.add(test)
            path = folder / "erprm_trl" / mutant.file
            source = path.read_text(encoding="utf-8")
            path.write_text(source.replace(mutant.text, mutant.becomes), encoding="utf-8")
            outcome = run_tests(folder, tests, options.timeout)
            path.write_text(source, encoding="utf-8")
            outcomes.append({**mutant._asdict(), "outcome": "survived" if outcome == "passed" else outcome})
            print(f"{outcomes[-1]['outcome']:<9} {mutant.file}: {mutant.text.strip()[:90]}", flush=True)
    survivors = [entry for entry in outcomes if entry["outcome"] == "survived"]
    killed = len(outcomes) - len(survivors)
    print(f"{killed} of {len(outcomes)} killed ({killed / len(outcomes):.0%}), {time.monotonic() - started:.0f} s")
    for entry in survivors:
        print(f"survived: {entry['file']}: {entry['text']!r} -> {entry['becomes']!r}")
    Path(options.json).parent.mkdir(parents=True, exist_ok=True)
    Path(options.json).write_text(json.dumps(outcomes, indent=2))


if __name__ == "__main__":
    main()
