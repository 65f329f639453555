"""The memory recipe, and that the pages quote what it prints."""

import re
import shlex

import pytest
from recipe_runs import RECIPES, parse

from erprm_trl import dial
from erprm_trl.functional import Architecture, count_parameters, memory_per_gpu


COMMAND = re.compile(r"^(?:erprm memory|python recipes/estimate_memory\.py) (.*?)  # (.*)$", re.MULTILINE)
PAGES = [RECIPES.parent / "docs" / "scaling.md", *sorted(RECIPES.glob("*/README.md"))]
QUOTED = [path for path in PAGES if COMMAND.search(path.read_text(encoding="utf-8"))]


def estimate(*arguments):
    recipe, arguments = parse("estimate_memory", arguments)
    return recipe.main(*arguments)


def test_a_folder_and_its_sizes_are_the_same(capsys):
    by_folder = estimate("--model_name_or_path", dial.BASE_PATH, "--num_gpus", 2, "--zero_stage", 2, "--lora_r", 4)
    printed = capsys.readouterr().out
    from transformers import AutoConfig

    architecture = Architecture.from_config(AutoConfig.from_pretrained(dial.BASE_PATH))
    assert f"{count_parameters(architecture):,} parameters" in printed and "bfloat16" in printed
    tied = ["--tie_word_embeddings", architecture.tied_embeddings]
    options = ["--num_gpus", 2, "--zero_stage", 2, "--lora_r", 4]
    assert estimate("--sizes", *architecture[:7], *tied, *options) == by_folder
    assert by_folder == memory_per_gpu(
        architecture, 8, 1024, precision="bfloat16", zero_stage=2, num_gpus=2, lora_rank=4
    )


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="either --model_name_or_path or --sizes"):
        estimate()


@pytest.mark.parametrize("path", QUOTED, ids=lambda path: path.parent.name)
def test_the_pages_quote_what_it_prints(path):
    text = path.read_text(encoding="utf-8")
    commands = COMMAND.findall(text)
    for arguments, stage in commands:
        report = estimate(*shlex.split(arguments))
        names = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers", "other", "total")
        rows = [line for line in text.splitlines() if line.startswith(f"| `{stage}` | ")]
        row = next(line for line in rows if line.count("|") == len(names) + 2)
        assert row.split("| ", 2)[2] == " | ".join(f"{report[name] / 2**30:.2f}" for name in names) + " |"
