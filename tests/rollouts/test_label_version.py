"""Tests that the version of labels and encoded examples is raised when the code that computes them changes. Cached
files are reused until the version is raised."""

import ast
import functools
import hashlib
from pathlib import Path

import pytest

from erprm_trl.reward_model.trainer.preprocessing import ENCODING_VERSION
from erprm_trl.rollouts.labels import LABEL_VERSION


PACKAGE = Path(__file__).parents[2] / "erprm_trl"

# The hash of the code, by version. Record a new hash here, see `test_the_version_is_raised_when_the_code_changes`.
RECORDED_LABELS = {1: "9e66048ebe490131", 2: "96182137985477da", 3: "13cd6b297c9398f7"}
RECORDED_ENCODING = {
    1: "59906ecb54030a9f", 2: "640fcb79d37908dc", 3: "c6d3fdbf21f0d8a1", 4: "d42597b23adf9a25", 5: "29f83f66db273cfc"
}  # fmt: skip

# Entry points of the code: module, and name of a function, class or method. Everything that they use of this package
# is included.
LABELS = [
    ("rollouts/labels.py", "labelled_example"),
    ("rollouts/labels.py", "PosteriorValues"),
    ("rollouts/label_source.py", "LabelSource._examples"),
    ("rollouts/label_source.py", "LabelSource.labels"),
    ("rollouts/label_cleaning.py", "LabelCleaning.kept"),
    ("rollouts/judge_verdicts.py", "JudgeVerdicts._ask"),
    ("rollouts/records.py", "RolloutRow.prefix"),
    ("rollouts/records.py", "RolloutRow.is_usable"),
]
ENCODING = [
    ("reward_model/trainer/preprocessing.py", "encode_batch"),
    ("reward_model/trainer/preprocessing.py", "_checked_features"),
    ("rollouts/label_source.py", "LabelSource.encoded"),
    ("reward_model/prm_format.py", "PRMFormat.render_prompt"),
    ("reward_model/prm_format.py", "PRMFormat.token_ids"),
]
CODE = {
    "labels": (LABELS, "rollouts/labels.py", "LABEL_VERSION", LABEL_VERSION, RECORDED_LABELS),
    "encoding": (
        ENCODING, "reward_model/trainer/preprocessing.py", "ENCODING_VERSION", ENCODING_VERSION, RECORDED_ENCODING
    ),
}  # fmt: skip


class Normalised(ast.NodeTransformer):
    """Removes everything that does not affect results: docstrings, annotations and error messages. (Comments are not
    in the tree.)"""

    def visit_Expr(self, node):
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_AnnAssign(self, node):
        if node.value is None:
            return ast.Expr(node.target)
        return self.generic_visit(ast.Assign([node.target], node.value))

    def visit_Raise(self, node):
        return ast.Raise()

    def visit_arg(self, node):
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.generic_visit(node)


def read(module):
    return (PACKAGE / module).read_text(encoding="utf-8")


def definitions(tree):
    """The definitions of a module, by name."""
    nodes = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            nodes[node.name] = node
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef):
                    nodes[f"{node.name}.{method.name}"] = method
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                nodes |= {name.id: node for name in ast.walk(target) if isinstance(name, ast.Name)}
    return nodes


def imported(tree, module):
    """Module and original name of each name that is imported from this package."""
    homes = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = Path(module).parents[node.level - 1] / (node.module or "").replace(".", "/")
            for alias in node.names:
                homes[alias.asname or alias.name] = (f"{base.as_posix()}.py", alias.name)
    return homes


@functools.cache
def parsed(source):
    return ast.parse(source)


def code_of(entries, source=read):
    """The normalised code that the entries use, by (module, name)."""
    code, todo = {}, list(entries)
    while todo:
        module, name = todo.pop()
        if (module, name) in code:
            continue
        tree = parsed(source(module))
        node = Normalised().visit(definitions(tree)[name])
        code[module, name] = ast.unparse(ast.fix_missing_locations(node))
        used = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
        homes = imported(tree, module)
        todo += [(module, other) for other in used & definitions(tree).keys()]
        todo += [homes[other] for other in used & homes.keys()]
    return code


def hash_of(entries, source=read):
    return hashlib.sha256(repr(sorted(code_of(entries, source).items())).encode()).hexdigest()[:16]


@pytest.mark.parametrize("what", CODE)
def test_the_version_is_raised_when_the_code_changes(what):
    entries, module, name, version, recorded = CODE[what]
    current = hash_of(entries)
    assert recorded.get(version) == current, (
        f"The code that makes {what} has changed: its hash is {current!r}, and {recorded.get(version)!r} is recorded "
        f"for {name} = {version}. If its results change in any bit, raise {name} in erprm_trl/{module}, and add "
        f"{{{version + 1}: {current!r}}} to RECORDED_{what.upper()} in this file. If they do not (new names, another "
        f"order), replace the recorded hash of version {version}."
    )


EDITS = {
    "rollouts/labels.py": ("float(row.outcome_reward), None", "1 - float(row.outcome_reward), None"),
    "rollouts/label_source.py": ('Value("float64")', 'Value("float32")'),
    "rollouts/label_cleaning.py": ("abs(step - failing) > tolerance", "abs(step - failing) >= tolerance"),
    "rollouts/judge_verdicts.py": ("if score <= 0.5", "if score < 0.5"),
    "rollouts/records.py": ("self.steps[:num_steps]", "self.steps[: num_steps + 1]"),
    "functional/soft_values.py": ("def soft_value(", "def soft_value(_=0, *"),
    "functional/precision.py": ("values.to(torch.float32)", "values.to(torch.bfloat16)"),
    "functional/value_posterior.py": ("_STEP = 0.25", "_STEP = 0.5"),
    "steps.py": ("ends.append(splitter.strip() or splitter)", "ends.append(splitter)"),
    "io/text_lists.py": ("if not isinstance(text, str):", "if isinstance(text, str):"),
    "reasoning.py": ('"<think>", "</think>"', '"<thought>", "</thought>"'),
    "reward_model/encoding.py": ("bisect_right(ends, len(prompt))", "bisect_left(ends, len(prompt))"),
    "reward_model/prm_format.py": ("def render_prompt(self, question: str,", "def render_prompt(self, text: str,"),
    "reward_model/trainer/dataset_formats.py": (
        'Row(text(row, "prompt"), texts(',
        'Row(text(row, "question"), texts(',
    ),
    "reward_model/trainer/dataset_rows.py": (
        '[value or "" for value in values]',
        "[value or None for value in values]",
    ),
    "reward_model/trainer/published_forms.py": ("float(index != label)", "float(index == label)"),
    "reward_model/trainer/preprocessing.py": ("labels = row.labels[: len(positions)]", "labels = row.labels"),
    "reward_model/trainer/row_problems.py": ("if not 0 <= label <= 1:", "if not 0 < label < 1:"),
}


@pytest.mark.parametrize("edited", EDITS)
def test_an_edit_of_each_file_changes_a_hash(edited):
    old, new = EDITS[edited]
    assert old in read(edited)

    def source(module):
        return read(module).replace(old, new) if module == edited else read(module)

    assert any(hash_of(entries, source) != hash_of(entries) for entries in (LABELS, ENCODING))


def test_edits_cover_every_file_that_computes_labels():
    for what in CODE:
        assert {module for module, _ in code_of(CODE[what][0])} <= EDITS.keys()
    makes_labels = {name for _, name in code_of(LABELS)}
    assert {"soft_value", "fit_beta_prior", "posterior_value", "success_counts", "clean_step", "_GRID"} <= makes_labels
    assert not {"expected_change", "precision_weights", "split_steps", "LABEL_VERSION"} & makes_labels


def test_docstrings_comments_and_other_functions_do_not_change_the_hash():
    def documented(module):
        tree = ast.parse(read(module))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.body.insert(0, ast.Expr(ast.Constant("Another docstring.")))
        source = ast.unparse(ast.fix_missing_locations(tree))
        return f"# A comment.\n{source}\n\ndef something_new(x: int) -> int:\n    return x\n"

    for entries in (LABELS, ENCODING):
        assert hash_of(entries, documented) == hash_of(entries)
