"""Runs every Python block of the README and the pages, in the order of its page, and checks their commands."""

import doctest

import pytest
from doc_pages import PAGES, ROOT, blocks, make_world, names, page_name, shrink


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
    for block in code:
        if block.is_run:
            run(block, page, namespace)


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
    page.write_text("a\n```python\nx = 1\n```\n<!-- not run: needs a GPU -->\n```python\ny = 2\n```\n```bash\nls\n```\n")
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
    skipped = [f"{page_name(page)}:{block.line}" for page in PAGES for block in blocks(page, "python") if not block.is_run]
    assert len(skipped) <= 4, skipped
