"""The parts of `tests/benchmarks` that other numbers depend on: measures, records, packing, and the list of tables."""

import json
import random
import re
import shlex
import sys
from argparse import Namespace
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pytest
import torch
from doc_pages import PAGES, command_problems, commands, page_name
from safetensors.torch import load_file, save_file

import erprm_trl


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "benchmarks"))
import bench  # noqa: E402
import gpu_day  # noqa: E402
import injected_errors  # noqa: E402
from gpu_stages import carry, measures, records, tables  # noqa: E402


# Injected errors

LINES = [
    "He buys 3*4=<<3*4=12>>12 eggs.",
    "He eats 2, so 12 - 2 = <<12-2=10>>10 are left.",
    "10/4 = <<10/4=2.5>>2.5 each.",
]


def test_only_the_chosen_equation_of_a_copy_is_wrong():
    recomputed = injected_errors.recomputed
    assert recomputed(LINES, 0, "15") == [
        "He buys 3*4=15 eggs.", "He eats 2, so 15 - 2 = 13 are left.", "13/4 = 3.25 each."
    ]  # fmt: skip
    assert recomputed(LINES, 1, "14") == [
        "He buys 3*4=12 eggs.",
        "He eats 2, so 12 - 2 = 14 are left.",
        "14/4 = 3.5 each.",
    ]
    assert recomputed(LINES, 0, "1") is None  # 1 - 2 is negative
    assert recomputed(["12 and 3*4=<<3*4=12>>12"], 0, "15") is None  # 12 is also a number of the question or a step
    assert recomputed(["3*4=<<3*4=11>>11"], 0, "15") is None  # wrong before
    assert injected_errors.value_of("2*x") is None and injected_errors.value_of("__import__('os')") is None


def test_the_first_wrong_step_of_a_copy_is_where_its_equation_is():
    question, answer = "Tom buys eggs.", "\n".join([*LINES, "#### 2.5"])
    pairs = [injected_errors.pair_of(question, answer, random.Random(seed)) for seed in range(40)]
    assert {pair[2] for pair in pairs if pair} == {0, 1, 2}
    for right, copy, step in filter(None, pairs):
        assert right == [injected_errors.EQUATION.sub("", line) for line in LINES]
        assert right[:step] == copy[:step] and right[step] != copy[step]
    assert injected_errors.pair_of("12 or 10 or 2.5 eggs", answer, random.Random(0)) is None


# Measures


def test_mfu_by_six_flops_per_parameter():
    # 6 * 1000 + 12 * 2 layers * 10 wide * 50 tokens = 18,000 FLOPs per token, 100 tokens/s, of 7.2 million FLOP/s
    assert measures.simple_mfu(100.0, 1000, 2, 10, 50.0, 7.2e6) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("intervals", "length"),
    [([], 0.0), ([(0, 2), (1, 3)], 3.0), ([(5, 6), (0, 4), (1, 2)], 5.0), ([(0, 1), (1, 2)], 2.0)],
    ids=["none", "overlap", "inside another", "touching"],
)
def test_the_length_of_a_union_of_intervals(intervals, length):
    assert measures.covered(intervals) == length


def test_a_profile_lists_the_longest_kernels_and_the_idle_share():
    events = [("gemm", 0.0, 0.4), ("add", 0.4, 0.5), ("gemm", 0.3, 0.6), ("copy", 0.9, 1.0)]
    profile = measures.top_kernels(events, 2.0, count=2)
    assert profile["idle_share"] == pytest.approx(1 - 0.7 / 2.0)
    assert profile["kernels"] == 4
    longest, second = profile["top"]
    assert (longest["name"], longest["calls"]) == ("gemm", 2)
    assert longest["ms"] == pytest.approx(700.0) and longest["share"] == pytest.approx(0.35)
    assert second["ms"] == pytest.approx(100.0)


def test_a_part_inside_another_is_not_counted_twice():
    times = iter([0.0, 2.0, 5.0, 6.0, 10.0, 11.0])
    clock = measures.Clock(lambda: next(times))
    inner = clock.part("inner", lambda: None)
    clock.part("outer", inner)()  # outer from 0 to 2 and from 5 to 6, inner from 2 to 5
    inner()  # from 10 to 11
    assert clock.seconds == {"outer": 3.0, "inner": 4.0}


def test_a_profile_of_an_update_is_made_on_a_cpu():
    profile = measures.ProfileUpdate(3)
    for step in (1, 2, 3):
        torch.ones(8, 8) @ torch.ones(8, 8)
        profile.on_step_end(None, Namespace(global_step=step), None)
    assert profile.summary["device"] == "CPU" and profile.summary["kernels"] > 0
    assert {"name", "ms", "calls", "share"} == set(profile.summary["top"][0])


# Records and tables


def test_records_survive_a_last_line_that_was_cut_off(tmp_path):
    records.write_record(tmp_path, {"stage": "training", "kind": "note"})
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"stage": "trai')
    assert [record["kind"] for record in records.read_records(tmp_path)] == ["note"]


def test_a_report_without_records_names_the_fix(tmp_path):
    with pytest.raises(FileNotFoundError, match="Run stages with --output"):
        records.read_records(tmp_path)


def test_the_commit_of_an_unpacked_project_is_in_its_file(tmp_path):
    assert records.commit_of(tmp_path) == "unknown"
    (tmp_path / "COMMIT").write_text("abc123\n")
    assert records.commit_of(tmp_path) == "abc123"


def test_the_report_has_the_measurements_and_the_notes():
    top = [{"name": "void gemm<a|b>", "ms": 12.34, "calls": 7, "share": 0.5}]
    profile = {"seconds": 0.025, "kernels": 9, "idle_share": 0.31, "device": "GPU", "top": top}
    about = {"device": "NVIDIA H100", "cores": 16, "python": "3.12.3", "versions": {"torch": "2.11.0"}}
    page = tables.report(
        [
            {"stage": "training", "kind": "start", "environment": about, "commit": "abc", "rehearse": False},
            {"stage": "training", "kind": "training", "model": "1B", "variant": "defaults",
             "tokens_per_second": 51234.5, "mfu": 0.4567, "memory_gib": 40.04, "peak_tflops": 989.0,
             "profile": profile},
            {"stage": "training", "kind": "training", "model": "1B", "variant": "Liger", "note": "out of memory"},
            {"stage": "training", "kind": "end", "limit": 130.0, "seconds": 129.6, "ended": "stopped at its limit"},
        ]
    )  # fmt: skip
    assert "NVIDIA H100, 16 CPU cores, Python 3.12.3; commit abc. torch 2.11.0. Full sizes." in page
    assert "| training | 130 | 130 | stopped at its limit |" in page
    assert "| 1B | defaults | 51,234 | 0.457 |  | 40.0 | 31% |  |" in page
    assert "| 1B | Liger |  |  |  |  |  | out of memory |" in page
    assert "relative to 989 TFLOP/s" in page
    assert "| `void gemm<a\\|b>` | 12.3 | 7 | 50.0% |" in page


def test_a_stage_that_overruns_is_stopped_and_keeps_its_log(tmp_path):
    log = tmp_path / "stage.log"
    assert gpu_day.run_limited(["sh", "-c", "echo measured; sleep 60"], log, 0.3) == "stopped at its limit"
    assert log.read_text() == "measured\n"


def test_a_stage_that_fails_shows_its_last_line(tmp_path):
    ended = gpu_day.run_limited(["sh", "-c", "echo first; echo no memory >&2; exit 3"], tmp_path / "s.log", 30)
    assert ended == "failed with exit status 3, see s.log: no memory"


# Packing


@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])
def test_weights_on_the_levels_of_their_block_are_restored_exactly(bits):
    levels = 2**bits - 1
    codes = np.random.default_rng(bits).integers(0, levels + 1, (10, 32))
    codes[:, 0], codes[:, 1] = 0, levels  # the block's lowest and highest value
    blocks = (codes * 0.25 - 3.0).astype(np.float32)
    assert np.array_equal(carry.restore(carry.quantise(blocks, bits), bits), blocks)


def test_a_block_of_equal_weights_is_restored():
    blocks = np.full((2, 32), 0.125, np.float32)
    assert np.allclose(carry.restore(carry.quantise(blocks, 8), 8), blocks, atol=1e-9)


@pytest.fixture
def packed(tmp_path):
    """A packed model, a file and the originals: (folder of the parts, tensors)."""
    model = tmp_path / "model"
    model.mkdir()
    tensors = {"layer.weight": torch.randn(64, 32), "norm.weight": torch.randn(10), "odd.weight": torch.randn(3, 5)}
    save_file(tensors, model / "model.safetensors")
    (model / "config.json").write_text("{}")
    data = tmp_path / "gsm8k_train.jsonl"
    data.write_bytes(np.random.default_rng(0).bytes(20_000))  # is not compressed, so it spans several parts
    folders = {"data": [(data, "gsm8k_train.jsonl")]}
    carry.pack(folders, tmp_path / "parts", model, 8, 4096)
    return tmp_path / "parts", tensors


def test_packing_and_unpacking_gives_the_same_files(packed, tmp_path):
    parts, tensors = packed
    sizes = [path.stat().st_size for path in sorted(parts.glob("part-*"))]
    assert len(sizes) > 3 and max(sizes) == 4096 and sizes[:-1] == [4096] * (len(sizes) - 1)
    carry.unpack(parts, tmp_path / "target")
    assert (tmp_path / "target/data/gsm8k_train.jsonl").read_bytes() == (tmp_path / "gsm8k_train.jsonl").read_bytes()
    assert (tmp_path / "target/model/config.json").read_text() == "{}"
    assert {path.name for path in (tmp_path / "target").iterdir()} == {"data", "model"}
    restored = load_file(tmp_path / "target/model/model.safetensors")
    assert set(restored) == set(tensors)
    assert {tensor.dtype for tensor in restored.values()} == {torch.bfloat16}
    for name in ("norm.weight", "odd.weight"):
        assert torch.equal(restored[name], tensors[name].bfloat16())
    error = (restored["layer.weight"].float() - tensors["layer.weight"]).abs().reshape(-1, 32).max(1).values
    blocks = tensors["layer.weight"].reshape(-1, 32)
    # Half a level of the block, and the rounding to bfloat16
    bound = (blocks.max(1).values - blocks.min(1).values) / 510 + blocks.abs().max(1).values / 256
    assert (error <= bound).all()


def test_the_unpacker_next_to_the_parts_needs_nothing_of_the_project(packed):
    parts, _ = packed
    source = (parts / "unpack.py").read_text()
    assert not re.search(r"^\s*(from|import) (erprm_trl|gpu_|\.)", source, re.MULTILINE)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="packs the files that git tracks")
def test_the_project_is_packed_with_its_version_and_its_commit(tmp_path):
    gpu_day.pack(["--output", str(tmp_path / "parts")])
    carry.unpack(tmp_path / "parts", tmp_path)
    project = tmp_path / "project"
    assert (project / "tests" / "benchmarks" / "gpu_day.py").is_file()
    (found,) = distributions(name="erprm_trl", path=[str(project)])
    assert found.version == erprm_trl.__version__
    assert records.commit_of(project) == records.commit_of(ROOT)
    assert {path.name[:4] for path in (tmp_path / "parts").iterdir()} == {"part", "unpa"}


def test_a_damaged_part_is_named(packed, tmp_path):
    parts, _ = packed
    data = bytearray((parts / "part-01").read_bytes())
    data[7] ^= 1
    (parts / "part-01").write_bytes(data)
    with pytest.raises(ValueError, match=r"part-01: got 4096 bytes .* The part is damaged. Copy it again"):
        carry.unpack(parts, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_missing_part_is_named(packed, tmp_path):
    parts, _ = packed
    (parts / "part-02").unlink()
    with pytest.raises(FileNotFoundError, match="Copy part-02 again"):
        carry.unpack(parts, tmp_path / "target")


def test_the_wheels_for_a_gpu_machine_are_the_tested_versions():
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    lines = (ROOT / "tests" / "benchmarks" / "gpu_requirements.txt").read_text().splitlines()
    wheels = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {"trl", "datasets", "peft", "math-verify"} <= set(wheels)
    assert {name: version for name, version in wheels.items() if tested.get(name, version) != version} == {}


# The list of all tables


def quoted(command):
    """A command of the list as the words of a page, without the interpreter."""
    words = shlex.split(command)
    return [words[0] if "/" in words[0] else f"tests/benchmarks/{words[0]}", *words[1:]]


# Commands on the pages that show how to run a script, and not what printed a table.
EXAMPLES = [
    ["tests/benchmarks/scoring_speed.py"],
    quoted(f"{bench.GSM8K.replace('POLICY', 'Qwen/Qwen2.5-Coder-0.5B-Instruct')}"),
]


def benchmark_commands():
    """The commands on the pages that run a benchmark."""
    for page in PAGES:
        for words, line in commands(page):
            if len(words) > 1 and words[1].startswith("tests/benchmarks/"):
                yield page, line, words[1:]


def test_the_commands_of_the_pages_are_in_the_list_of_make_bench():
    known = [quoted(table.command) for table in bench.BENCHES] + [quoted(same) for same in bench.SAME] + EXAMPLES
    known += [["tests/benchmarks/bench.py"], ["tests/benchmarks/gpu_day.py"]]
    missing = [
        f"{page_name(page)}:{line}: {shlex.join(words)}"
        for page, line, words in benchmark_commands()
        if words not in known and words[0] not in ("tests/benchmarks/bench.py", "tests/benchmarks/gpu_day.py")
    ]
    assert not missing, f"add a Table to tests/benchmarks/bench.py for {missing}"


def test_the_readme_of_the_benchmarks_has_commands_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    listed = commands(ROOT / "tests" / "benchmarks" / "README.md")
    assert len(listed) > 8
    assert not [problem for words, _ in listed for problem in command_problems(words)]


def test_the_list_of_make_bench_has_scripts_and_pages_that_exist():
    names = [table.name for table in bench.BENCHES]
    assert len(names) == len(set(names))
    assert set(bench.SAME.values()) <= set(names)
    for table in bench.BENCHES:
        script = quoted(table.command)[0]
        assert (ROOT / script).is_file(), table.name
        for page, headers in table.places.items():
            text = (ROOT / page).read_text(encoding="utf-8")
            assert Path(script).name in text or "make quickstart" in text, f"{page} does not name {script}"
            for start in headers:
                assert f"\n{start}" in text, f"{page} has no table that begins with {start}"


# Tables of numbers that nothing measures, by page and beginning of the header.
NOT_MEASURED = {
    "docs/concepts.md": ("| success rate |",),  # a formula
    "docs/grading.md": ("| written | read as |",),  # examples, which the tests of grading contain
    "docs/migrating_from_trl.md": ("| `PPOConfig` |",),  # defaults
    "docs/policies.md": ("| signal |",),  # defaults
    "docs/results.md": ("| question |",),  # repeats numbers of its sections
    "docs/scaling.md": ("| option |", "| GiB per GPU |"),  # repeats docs/benchmarks.md; estimates that a test checks
    "docs/scoring.md": ("| preset |",),  # names of models
}


def number_tables(page):
    """The headers of a page's tables with at least four decimal or large numbers."""
    tables_of_page = re.findall(r"(?:^[ ]*\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [
        text.strip().split("\n")[0]
        for text in tables_of_page
        if len(re.findall(r"\d\.\d|\d,\d{3}", "\n".join(text.split("\n")[2:]))) >= 4
    ]


def test_every_table_of_numbers_has_a_command_that_prints_it():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    unknown = []
    for page in pages:
        name = page_name(page)
        starts = [*NOT_MEASURED.get(name, ())]
        for table in bench.BENCHES:
            starts += table.places.get(name, ())
        unknown += [f"{name}: {header}" for header in number_tables(page) if not header.startswith(tuple(starts))]
    assert not unknown, f"name the command of these tables in tests/benchmarks/bench.py: {unknown}"


def test_the_page_of_the_benchmarks_names_every_script():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    missing = [path.name for path in (ROOT / "tests" / "benchmarks").glob("*.py") if f"`{path.name}" not in page]
    assert not missing, f"docs/benchmarks.md: add a row for {missing}"


def test_commands_are_run_once_and_failures_do_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    counted = "echo row >> runs.txt; echo 'progress 10%' >&2; echo '| a | 1 |'"
    benches = [
        bench.Table("slow", "slow.py", 9, {}),
        bench.Table("fails", "fails.py", 1, {}),
        bench.Table("works", "works.py", 2, {}, folders=("kept",)),
        bench.Table("gpu", "gpu.py", 3, {}, needs="nothing-here"),
    ]
    scripts = {"fails": "echo half of it; echo why >&2; exit 4", "works": counted, "slow": "exit 1"}
    monkeypatch.setattr(bench, "BENCHES", benches)

    def shell(table, options):
        return f"needs {table.needs}" if table.needs else ["sh", "-c", scripts[table.name]]

    monkeypatch.setattr(bench, "words_of", shell)
    assert bench.main(["--max_minutes", "5"]) == 1
    assert bench.main(["--only", "works", "gpu"]) == 0
    assert (tmp_path / "runs.txt").read_text() == "row\n"
    about, table = (tmp_path / "outputs/bench/tables/works.txt").read_text().split("\n", 1)
    assert table == "| a | 1 |\n" and json.loads(about.removeprefix("# "))["commit"]
    log = (tmp_path / "outputs/bench/tables/fails.failed.txt").read_text()
    assert "half of it" in log and "why" in log
    assert not (tmp_path / "outputs/bench/tables/works.failed.txt").exists()
    assert not (tmp_path / "outputs/bench/tables/fails.txt").exists()
    printed = capsys.readouterr().out
    assert (
        "failed with exit status 4" in printed and "was done" in printed and "skipped: needs nothing-here" in printed
    )
    (tmp_path / "kept").mkdir()
    assert bench.main(["--only", "works", "--again"]) == 0
    assert (tmp_path / "runs.txt").read_text() == "row\nrow\n"
    assert not (tmp_path / "kept").exists() and len(list(tmp_path.glob("kept-*"))) == 1


def test_placeholders_of_a_command_are_replaced_or_named():
    table = next(table for table in bench.BENCHES if table.name == "gsm8k_experiment")
    options = Namespace(model=None, data=Path("/data"), cases=None)
    assert bench.words_of(table, options) == "needs --model"
    options.model = Path("/policy")
    words = bench.words_of(table, options)
    assert words[words.index("--policy") + 1] == "/policy"
    assert words[words.index("--train_data") + 1] == "/data/gsm8k_train.jsonl"
    assert words[words.index("--separator") + 1] == "<|fim_pad|>"
    cases = next(table for table in bench.BENCHES if table.name == "grading_cases")
    assert bench.words_of(cases, options) == "needs --cases"
