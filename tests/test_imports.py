"""The order of the rooms: imports below ``mpfast/`` run one way, and a room's face defines nothing."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mpfast

from .references import run_python

# From left to right; a room may import those to its left. "" is the package itself.
ORDER = ["_core", "_cuda", "_native", "support", "arrays", "operators", "checkpoints", "spectra", "masks"]
ORDER += ["reconstruct", "models", "", "integrations", "bench", "cli", "__main__"]
STRANGERS = {frozenset({"checkpoints", "operators"})}  # rooms that do not know each other
FACE = {"__all__", "__getattr__", "__dir__"}  # what a face may define
FILES = {
    ".".join(file.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for folder in [Path(mpfast.__file__).parent]
    for file in sorted(folder.rglob("*.py"))
}
FACES = [name for name, file in FILES.items() if file.name == "__init__.py"]
STUBS = {"mpfast._core", "mpfast._cuda"}
# Files that other rooms name: a public module, and what the native core is loaded through.
NAMED = {"mpfast.spectra.lowrank", "mpfast._native", *STUBS}


def room(module: str) -> str:
    """Return "spectra" of "mpfast.spectra.edge"."""
    return [*module.split("."), ""][1]


def imported(module: str) -> Iterator[str]:
    """Yield the modules that a file imports, at any depth of it; a name stands for its file."""
    package = module if module in FACES else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            outer = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*outer, *filter(None, [node.module])])
            inner = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if name in FILES or name in STUBS else source for name in inner]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "mpfast" and name != module)


EDGES = {module: sorted(set(imported(module))) for module in FILES}


def test_no_circle_of_files():
    try:
        TopologicalSorter(EDGES).prepare()
    except CycleError as error:
        pytest.fail(f"files import each other: {' -> '.join(error.args[1])}")


def test_rooms_are_imported_from_left_to_right():
    assert {room(module) for module in FILES} <= set(ORDER)
    wrong = [
        f"{module} imports {other}"
        for module, others in EDGES.items()
        for other in others
        if ORDER.index(room(other)) > ORDER.index(room(module)) or frozenset({room(module), room(other)}) in STRANGERS
    ]
    assert not wrong


def test_rooms_import_rooms_and_siblings_import_files():
    """Another room is known by its face; the own face, and the package itself, by nobody in the room."""
    wrong = []
    for module, others in EDGES.items():
        for other in others:
            own_face = other in FACES and module.startswith(f"{other}.")  # also the package, everybody's own
            file_of_another = room(module) != room(other) and other not in FACES and other not in NAMED
            if own_face or file_of_another:
                wrong.append(f"{module} imports {other}")
    assert not wrong


@pytest.mark.parametrize("face", FACES)
def test_a_face_defines_nothing(face):
    for node in ast.parse(FILES[face].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            defined = {node.name}
        elif isinstance(node, ast.Assign):
            defined = {target.id for target in node.targets if isinstance(target, ast.Name)}
        else:
            assert isinstance(node, ast.Import | ast.ImportFrom | ast.If | ast.Expr), f"{face}: line {node.lineno}"
            continue
        assert defined <= FACE, face


@pytest.mark.parametrize("face", [name for name in FACES if not name.startswith(("mpfast.cli", "mpfast.integrations"))])
def test_a_face_shows_what_it_exports(face):
    """Every name is there, none is hidden by a module, and `dir` of the package shows nothing else."""
    module = importlib.import_module(face)
    for name in module.__all__:
        thing = getattr(module, name)
        assert f"{face}.{name}" not in FILES or inspect.ismodule(thing), name
    if face == "mpfast":
        assert set(dir(module)) == {*module.__all__, "__version__"}


def test_an_import_loads_numpy_alone():
    code = (
        "import sys; before = {name.partition('.')[0] for name in sys.modules}; import mpfast; "
        "print(*({name.partition('.')[0] for name in sys.modules} - before - set(sys.stdlib_module_names)))"
    )
    assert set(run_python("-c", code).stdout.split()) == {"mpfast", "numpy"}


HERE = Path(__file__).parent
USERS = [file for folder in (HERE, HERE.parent / "benchmarks") for file in sorted(folder.rglob("*.py"))]


def named(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Yield every module of ours, what is imported from it, inside functions too, and what the file calls that."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "mpfast":
            yield from ((str(node.module), alias.name, alias.asname or alias.name) for alias in node.names)


@pytest.mark.parametrize("file", USERS, ids=lambda file: str(file.relative_to(HERE.parent)))
def test_what_is_imported_is_there(file):
    """Also in tests and benchmarks that do not run on this machine; and so is what is used of a module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    kept = {(node.value.id, node.attr) for node in nodes if isinstance(node.ctx, ast.Store)}
    attributes = {(node.value.id, node.attr) for node in nodes} - kept
    for module, name, called in sorted(set(named(tree))):
        try:
            source = importlib.import_module(module)
        except ImportError as error:
            if (error.name or "").split(".")[0] == "mpfast" and f"{module}.{name}" not in STUBS:
                raise
            continue  # something optional is not installed
        if f"{module}.{name}" in STUBS:
            continue
        found = getattr(source, name) if hasattr(source, name) else importlib.import_module(f"{module}.{name}")
        if inspect.ismodule(found):
            missing = {used for owner, used in attributes if owner == called and not hasattr(found, used)}
            assert not missing, f"{found.__name__} has no {sorted(missing)}"


def test_the_package_loads_nothing_that_only_writing_and_threads_need() -> None:
    """A name of `mpfast.support` that is asked for at once loads all files before it, and `import mpfast` waits."""
    later = ("safe_files", "directory_marks", "output_directories", "workers", "log", "freed_memory")
    code = f"import sys, mpfast; print([name for name in {later} if 'mpfast.support.' + name in sys.modules])"
    assert run_python("-c", code).stdout.split() == ["[]"]
