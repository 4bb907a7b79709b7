"""What the package says of itself: versions, what it needs, and what comes with it."""

import ast
import pathlib
import re
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import i2x_jax

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Packages whose modules have another name than they.
MODULES = {
    **{"absl": "absl-py", "orbax": "orbax-checkpoint", "PIL": "pillow", "sklearn": "scikit-learn"},
    **{"vl_convert": "vl-convert-python", "tensorflow_datasets": "tensorflow-datasets"},
}
# Imported by others: by TensorFlow Datasets, and by what stands under experiments/.
UNNAMED = {"importlib-resources", "captum", "torch", "ml-collections"}


def stated(lines):
    requirements = (Requirement(line) for line in lines)
    return {canonicalize_name(each.name): each for each in requirements}


BASE = stated(PROJECT["dependencies"])
EXTRAS = stated(line for lines in PROJECT["optional-dependencies"].values() for line in lines)


def pinned(name, python):
    """The versions of a requirements file, and of those it includes, for a version of Python."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith("-r "):
            found |= pinned(line[3:], python)
        elif line and not line.startswith("#"):
            each = Requirement(line)
            if each.marker is None or each.marker.evaluate({"python_version": python}):
                (pin,) = each.specifier
                assert pin.operator == "=="
                found[canonicalize_name(each.name)] = pin.version
    return found


def imported(tree):
    """Names of the packages that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def packages(tree):
    names = set(imported(tree)) - set(sys.stdlib_module_names) - {"i2x_jax", "experiments"}
    return {canonicalize_name(MODULES.get(name, name)) for name in names}


def test_every_package_that_is_imported_is_stated_and_no_other():
    used = set()
    for path in (ROOT / "run.py", *(ROOT / "i2x_jax").rglob("*.py")):
        used |= packages(ast.parse(path.read_text()))
    assert used <= set(BASE) | set(EXTRAS)
    assert set(BASE) | set(EXTRAS) <= used | UNNAMED


def test_no_module_needs_an_extra_to_be_imported():
    for path in (ROOT / "i2x_jax").rglob("*.py"):
        tree = ast.parse(path.read_text())
        at_once = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not packages(ast.Module(at_once, [])) & set(EXTRAS), path


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_what_is_tested_lies_in_the_ranges(python):
    for name, versions in (("requirements.txt", BASE), ("requirements-dev.txt", BASE | EXTRAS)):
        pins = pinned(name, python)
        assert set(versions) - set(pins) <= {"torch", "captum"}
        assert all(versions[name].specifier.contains(pin) for name, pin in pins.items() if name in versions)
    assert not set(pinned("requirements.txt", python)) & set(EXTRAS)
    assert set(pinned("requirements.txt", python)) == set(BASE)
    both = pinned("requirements-baseline.txt", python)
    assert all(EXTRAS[name].specifier.contains(both[name]) for name in ("torch", "captum"))


def test_the_lowest_versions_are_those_of_the_ranges():
    lowest = pinned("requirements-lowest.txt", "3.11")
    ranges = {name: each for name, each in (BASE | EXTRAS).items() if name not in ("torch", "captum")}
    assert {name: f">={version}" for name, version in lowest.items()} == {
        name: str(each.specifier) for name, each in ranges.items()
    }


def test_a_file_that_includes_another_agrees_with_it():
    for name in ("requirements-tfds.txt", "requirements-dev.txt"):
        for python in ("3.11", "3.12"):
            assert pinned("requirements.txt", python).items() <= pinned(name, python).items()


def test_the_version_is_a_literal_and_says_the_same_everywhere():
    tree = ast.parse((ROOT / "i2x_jax" / "__init__.py").read_text())
    (value,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
    ]
    assert value == i2x_jax.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", value)
    assert "version" in PROJECT["dynamic"]


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == i2x_jax.__version__
    assert citation["license"] == PROJECT["license"]
    assert {"message", "title", "authors", "type"} <= set(citation)
    paper = citation["preferred-citation"]
    assert (paper["type"], paper["year"]) == ("article", 2026)
    assert [each["value"] for each in paper["identifiers"]] == ["arXiv:2603.10234"]
    bibtex = re.search(r"author  = \{(.*)\}", (ROOT / "README.md").read_text())[1].split(" and ")
    assert [author["family-names"] for author in paper["authors"]] == bibtex


def test_files_that_are_read_come_with_the_package():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = tool["package-data"]["i2x_jax"]
    package = ROOT / "i2x_jax"
    listed = {path for pattern in patterns for path in package.glob(pattern)}
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others == {path for path in listed if path.is_file()}
    assert package / "py.typed" in listed
