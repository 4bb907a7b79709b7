"""The house itself: packages in the order of the flow, no circles, functions that can be read at a glance."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# What lies under all stands first; a package imports only from those above it.
FLOW = (
    ("config",),
    ("schema", "streams"),
    ("devices",),
    ("data",),
    ("models",),
    ("training",),
    ("evidence",),
    ("explanation",),
    ("refinement",),
    ("results",),
    ("report",),
    ("pipeline",),
    ("api",),
    ("command",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(FLOW) for name in names}
MOST_LINES, MOST_PARAMETERS = 62, 8


def modules(folder):
    """Dotted names and paths of all Python files below a folder of the repository."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


PACKAGE, EXPERIMENTS = modules("i2x_jax"), modules("experiments")


def imported(path, known):
    """The known modules that a file imports, wherever in it: inside functions and for types alone as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            # A member of a module stands for the module.
            found |= {name} & known.keys() or {name.rpartition(".")[0]} & known.keys()
    return found


GRAPH = {name: imported(path, PACKAGE | EXPERIMENTS) for name, path in (PACKAGE | EXPERIMENTS).items()}


def part(module):
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("name", [name for name in PACKAGE if part(name)])
def test_a_package_imports_only_what_the_flow_has_passed(name):
    later = {
        other
        for other in GRAPH[name]
        # The names that the package shows to others lead anywhere, and are for others.
        if other == "i2x_jax" or not part(other) or RANK[part(other)] > RANK[part(name)]
    }
    assert not later


def test_every_package_has_its_place_in_the_flow():
    assert {part(name) for name in PACKAGE} - {""} <= set(RANK)
    assert not (ROOT / "i2x_jax" / "explain").exists()  # it would hide the function


def test_no_module_imports_itself_by_way_of_others():
    # Public names are looked up when they are asked for: no import of what they stand for.
    graph = {name: others - {"i2x_jax"} for name, others in GRAPH.items() if name != "i2x_jax"}
    done = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("name", PACKAGE)
def test_the_package_knows_nothing_of_the_experiments(name):
    assert not {other for other in GRAPH[name] if other.startswith("experiments")}


def functions():
    for name, path in PACKAGE.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{name}.{node.name}", node


def test_functions_are_short_and_take_few_arguments():
    long, wide = {}, {}
    for name, node in functions():
        # What it says of itself does not count.
        documented = ast.get_docstring(node) is not None
        first = node.body[1 if documented and len(node.body) > 1 else 0].lineno if node.body else node.lineno
        long[name] = node.end_lineno - first + 1
        names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        wide[name] = len([each for each in names if each not in ("self", "cls")])
    assert not {name: lines for name, lines in long.items() if lines > MOST_LINES}
    assert not {name: count for name, count in wide.items() if count > MOST_PARAMETERS}
