"""The arrows between rooms: methods -> core <- benchmarks, and no other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "core": ROOT / "cleanprior",
    "methods": ROOT / "methods",
    "benchmarks": ROOT / "benchmarks",
}
PACKAGE = {
    "core": "cleanprior",
    "methods": "cleanprior.methods",
    "benchmarks": "cleanprior.benchmarks",
}
FILES = [(room, path) for room, folder in ROOMS.items() for path in sorted(folder.rglob("*.py"))]


def room_of(module):
    """Return the room that a module belongs to, or None for a third party's."""
    parts = module.split(".")
    if parts[0] in ("methods", "benchmarks", "configs"):
        return f"bare {parts[0]}"
    if parts[0] != "cleanprior":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ("methods", "benchmarks") else "core"


def imported(source, package):
    """Yield the absolute names of all modules that a source imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*kept, base] if base else kept)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            literal = node.args[0]
            if isinstance(literal, ast.Constant):
                yield str(literal.value)


def forbidden(room, source, package):
    reached = {room_of(name) for name in imported(source, package)} - {None}
    return reached - {room, "core"}


def package_of(room, path):
    inside = path.relative_to(ROOMS[room]).parent.parts
    return ".".join([PACKAGE[room], *inside])


#: The door of the package names what a person calls, a bench too; it loads nothing by itself.
DOOR = ROOT / "cleanprior" / "__init__.py"


@pytest.mark.parametrize(("room", "path"), FILES, ids=[str(p.relative_to(ROOT)) for _, p in FILES])
def test_a_module_imports_only_its_own_room_and_the_core(room, path):
    allowed = {"benchmarks"} if path == DOOR else set()
    assert forbidden(room, path.read_text(), package_of(room, path)) <= allowed


@pytest.mark.parametrize(
    ("room", "source", "reached"),
    [
        ("core", "import cleanprior.methods.em", {"methods"}),
        ("core", "from . import methods", {"methods"}),
        ("core", "from .benchmarks.cells import run", {"benchmarks"}),
        ("core", "def f():\n    from cleanprior import benchmarks", {"benchmarks"}),
        ("core", "import importlib\nimportlib.import_module('cleanprior.methods')", {"methods"}),
        ("methods", "from cleanprior.benchmarks import cells", {"benchmarks"}),
        ("methods", "from ..benchmarks import cells", {"benchmarks"}),
        ("benchmarks", "from cleanprior.methods.em import EM", {"methods"}),
        ("benchmarks", "from methods.em import EM", {"bare methods"}),
        ("methods", "from cleanprior.data import Batch\nfrom .em import EM\nimport torch", set()),
        ("core", "from .data import digits\nfrom . import registry", set()),
    ],
)
def test_the_walk_finds_a_forbidden_arrow(room, source, reached):
    assert forbidden(room, source, PACKAGE[room]) == reached


def test_every_room_was_walked():
    assert {room for room, _ in FILES} >= {"core", "methods"}
    assert len(FILES) > 20
