"""Runs every Python block of the README and the pages, in the order of its page, and checks their commands."""

import doctest
import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
from doc_pages import PAGES, ROOT, blocks, command_problems, commands, make_world, names, page_name, shrink


SERVER = re.compile(r"http://[\w.-]+:8100")
WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.slow("trains and samples as the pages do")
@pytest.mark.parametrize("page", WITH_PYTHON, ids=page_name)
def test_the_python_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    """In one namespace, with tiny models and datasets in folders that have the names of those on the Hub."""
    from transformers import TrainingArguments

    code = blocks(page, "python")
    make_world(tmp_path, "\n".join(block.text for block in code))
    monkeypatch.chdir(tmp_path)
    check = TrainingArguments.__post_init__

    def shrunk(self):
        shrink(self)
        check(self)

    monkeypatch.setattr(TrainingArguments, "__post_init__", shrunk)
    namespace = names(tmp_path)
    with served_scores(code) as url:
        for block in code:
            if block.is_run:
                run(replace(block, text=SERVER.sub(url, block.text)), page, namespace)


@contextmanager
def served_scores(code):
    """The address of a scoring server in the place of those that the pages name, if they name any."""
    if not any(SERVER.search(block.text) for block in code):
        yield ""
        return
    from serving import serving

    from erprm_trl import StepScorer
    from erprm_trl.reward_model.scoring.server import scoring_app

    with serving(scoring_app(StepScorer.from_pretrained("outputs/erprm"))) as url:
        yield url


def run(block, page, namespace):
    """Runs a block; one with `>>>` must also print what it shows."""
    if block.text.lstrip().startswith(">>>"):
        test = doctest.DocTestParser().get_doctest(block.text, namespace, page_name(page), str(page), block.line)
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        printed = []
        doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=printed.append, clear_globs=False)
        namespace.update(test.globs)
        assert not printed, "".join(printed)
    else:
        padded = "\n" * (block.line - 1) + block.text  # a traceback then shows the line of the page
        exec(compile(padded, str(page), "exec"), namespace)


def test_blocks_are_found_with_their_lines_and_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n```python\nx = 1\n```\n<!-- not run: needs a GPU -->\n```python\ny = 2\n```\n```bash\nls\n```\n"
    )
    first, second = blocks(page, "python")
    assert (first.text, first.line, first.is_run) == ("x = 1\n", 3, True)
    assert (second.text, second.line, second.is_run) == ("y = 2\n", 7, False)
    assert [block.text for block in blocks(page, "bash")] == ["ls\n"]


def test_a_block_that_prints_something_else_fails():
    from doc_pages import Block

    page = ROOT / "docs" / "page.md"
    run(Block("python", ">>> 1 + 1\n2\n", 1, True), page, {})
    with pytest.raises(AssertionError, match="Expected"):
        run(Block("python", ">>> 1 + 1\n3\n", 1, True), page, {})


def test_few_blocks_are_not_run():
    skipped = [
        f"{page_name(page)}:{block.line}" for page in PAGES for block in blocks(page, "python") if not block.is_run
    ]
    assert len(skipped) <= 4, skipped


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_commands_of_a_page_exist_with_their_files_and_options(page, monkeypatch):
    pytest.importorskip("erprm_trl.cli")
    monkeypatch.chdir(ROOT)
    problems = [
        f"{page_name(page)}:{line}: {' '.join(words)}: {problem}"
        for words, line in commands(page)
        for problem in command_problems(words)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("make nothing", "no target nothing"),
        ("python recipes/nothing.py", "no file recipes/nothing.py"),
        ("python recipes/best_of_n.py --config recipes/dial/nothing.yaml", "no file recipes/dial/nothing.yaml"),
        ("python -m erprm_trl.nothing", "no module erprm_trl.nothing"),
        ("python tests/benchmarks/kills.py --nothing 2", "no option --nothing"),
        ("erprm nothing", "no command erprm nothing"),
        ("erprm score --nothing 2", "no option --nothing"),
        ("erprm train --nothing 2", "no option --nothing"),
        ("erprm train --recipe nothing", "nothing"),
        ("python recipes/best_of_n.py --nothing 1", "no option --nothing"),
    ],
)
def test_commands_that_do_not_exist_are_found(command, problem, monkeypatch):
    pytest.importorskip("erprm_trl.cli")
    monkeypatch.chdir(ROOT)
    assert any(problem in text for text in command_problems(command.split()))


def test_commands_are_found_in_blocks_and_in_text(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Run `make lint` first.\n```bash\nA=1 erprm train \\\n    --eta 2  # hard\nls && pwd\n```\n")
    assert commands(page) == [
        (["erprm", "train", "--eta", "2"], 3),
        (["ls"], 3),
        (["pwd"], 3),
        (["make", "lint"], 1),
    ]
