"""What the modules of `results` import: nothing that comes later, not even inside a function, and no circle."""

import ast
import pathlib

import i2x_jax

PACKAGE = pathlib.Path(i2x_jax.__file__).parent
LATER = ("report", "pipeline", "api", "command")
# Where a peak is goes to `evidence`, as everything about places on the map does.
KNOWN = {("story", "i2x_jax.report.contact_sheet"), ("story", "i2x_jax.report.contact_sheet.peaks_of")}


def imported(path):
    """Every module of this project that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("i2x_jax"):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("i2x_jax"))


def test_results_import_nothing_later():
    found = {(path.stem, name) for path in (PACKAGE / "results").glob("*.py") for name in imported(path)}
    assert len(found) > 20
    later = {(stem, name) for stem, name in found if name.startswith(tuple(f"i2x_jax.{each}" for each in LATER))}
    assert later <= KNOWN


def test_what_a_run_is_made_of_does_not_know_runs():
    for path in (PACKAGE / "results").glob("*.py"):
        if path.stem != "opened_run":
            assert not [name for name in imported(path) if "opened_run" in name], path
