"""The notebook runs from beginning to end on a CPU, and its committed outputs have no error."""

import re

import pytest
from doc_pages import ROOT


NOTEBOOK = ROOT / "docs" / "notebooks" / "first_reward_model.ipynb"


def texts(notebook):
    return [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]


def test_the_notebook_is_committed_with_its_outputs():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code)
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert not re.search(r"/(home|root|work|tmp)/", "".join(texts(notebook)))


@pytest.mark.slow("collects, trains and scores on the embedded task")
def test_the_notebook_runs_and_its_reward_model_beats_majority_voting(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    table = next(text for text in texts(notebook) if "majority@16" in text)
    majority, trained = (
        float(re.search(rf"^{name}\s+([\d.]+)", table, re.M)[1]) for name in ("majority@16", "eta = 2")
    )
    assert trained > majority
    assert (tmp_path / "outputs" / "notebook" / "best_of_n.png").stat().st_size > 5000
