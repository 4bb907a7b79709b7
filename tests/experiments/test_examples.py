"""Python in README.md and BUILD.md, and the notebook, do what they say, on runs small enough for tests."""

import ast
import os
import re
import shutil

import nbformat
import pytest
from nbclient import NotebookClient
from own_networks import CHECKPOINTS, STEPS, LinenNet, linen_variables
from programs import ROOT, blocks, environment

NOTEBOOK = ROOT / "experiments" / "examples" / "explore_run.ipynb"


def shown_by(block, names):
    """Runs a block, and returns the value of each of its lines that are there to show something."""
    values = {}
    for statement in ast.parse(block).body:
        code = ast.unparse(statement)
        if isinstance(statement, ast.Expr):
            values[code] = eval(code, names)
        else:
            exec(code, names)
    return values


@pytest.fixture
def in_a_folder_with_runs_digits(finished, tmp_path, monkeypatch):
    """Where the documents' commands are given: their `runs/digits` is this session's finished run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs/digits")


def test_every_python_block_is_run_here():
    assert [len(blocks(document)) for document in ("README.md", "BUILD.md", "DESIGN.md")] == [3, 2, 0]


@pytest.mark.parametrize(("document", "number"), [("README.md", 0), ("BUILD.md", 1)])
@pytest.mark.usefixtures("in_a_folder_with_runs_digits")
def test_what_is_asked_of_a_run(document, number):
    names = {}
    values = shown_by(blocks(document)[number], names)
    assert names["run"].path.parts[-2:] == ("runs", "digits")
    assert len(values) >= 3
    assert all(value is not None for value in values.values())


def test_scenes_without_a_part():
    names = {}
    (shapes,) = shown_by(blocks("BUILD.md")[0], names).values()
    assert set(shapes[:4]) <= set(names["parts"].PARTS)
    assert shapes[4] in names["parts"].SHAPES[8:]
    assert (names["images"] != names["bare"]).any((1, 2, 3)).all()


def test_a_network_of_your_own(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    kept = [(step, linen_variables(held)) for step, held in zip(STEPS, CHECKPOINTS, strict=True)]
    names = {"net": LinenNet(), "kept": kept} | data._asdict()
    (separating,) = shown_by(blocks("README.md")[2], names).values()
    run = names["run"]
    assert run.path == tmp_path / "runs" / "mine"
    assert tuple(run.steps) == STEPS
    assert separating == run.explanation.pairs[0].separating
    assert separating


def test_the_notebook_is_stored_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all((cell.outputs, cell.execution_count) == ([], None) for cell in cells if cell.cell_type == "code")


def test_the_notebook_walks_through_a_run(base, finished):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": NOTEBOOK.parent}})
    client.execute(env=environment(base) | {"RUN_DIR": os.fspath(finished)})
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    shown = [output.data for output in outputs if "data" in output]
    # A prototype, each separating prototype, two charts, and one image.
    assert sum("image/png" in data for data in shown) >= 7
    text = "\n".join(output.text for output in outputs if output.output_type == "stream")
    assert "6 and 7: " in text
    assert "The same image, handed over without a label, is taken for" in text
    markdown = [data["text/markdown"] for data in shown if "text/markdown" in data]
    assert len(markdown) == 1
    assert "to measure a fit" in markdown[0]


def test_the_notebook_uses_the_public_api_alone():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert re.findall(r"^(?:from|import) i2x_jax.*$", code, re.MULTILINE) == ["from i2x_jax import Run"]
    assert not re.search(r"\._[a-z]", code)
