"""What a constructor declares of its arguments, read from its source: nothing is imported.

A configuration is checked before torch is loaded, and importing a constructor would load it.
"""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path


@cache
def arguments(target: str) -> dict[str, str]:
    """Return the annotation of each argument of ``package.module.Name``, as source text.

    Arguments:
        target: A function, or a class with an ``__init__`` or the fields of a dataclass; its own or
            inherited. Names that a package takes from its modules are followed.

    Returns:
        ``{argument: annotation}``; empty where no source can be found.
    """
    module, _, name = target.rpartition(".")
    file = source(module)
    return {} if file is None else _declared(file, name)


def source(module: str) -> Path | None:
    """Return the source of a module; of its packages only the first is looked up by Python."""
    folder: Path | None = None
    file: Path | None = None
    known = ""
    for part in module.split("."):
        known = f"{known}.{part}" if known else part
        file = None if folder is None else _below(folder, part)
        if file is None:
            file = _found(known)
        if file is None:
            return None
        folder = file.parent if file.name == "__init__.py" else None
    return file


def _below(folder: Path, name: str) -> Path | None:
    for file in (folder / name / "__init__.py", folder / f"{name}.py"):
        if file.is_file():
            return file
    return None


def _found(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # it imports the packages above, which may be anybody's
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


@cache
def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _declared(file: Path, name: str) -> dict[str, str]:
    for node in _tree(file).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return dict(_parameters(node))
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _constructor(file, node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    origin = _origin(file, node)
                    return {} if origin is None else _declared(origin, alias.name)
    return {}


def _origin(file: Path, node: ast.ImportFrom) -> Path | None:
    """Return the source that a ``from ... import`` takes its names from."""
    if not node.level:
        return source(node.module or "")
    folder = file.parent
    for _ in range(node.level - 1):
        folder = folder.parent
    below: Path | None = folder / "__init__.py"
    for part in (node.module or "").split("."):
        if part:
            below = _below(folder, part)
            folder = folder / part
    return below


def _constructor(file: Path, node: ast.ClassDef) -> dict[str, str]:
    for inside in node.body:
        if isinstance(inside, ast.FunctionDef) and inside.name == "__init__":
            return dict(_parameters(inside))
    found: dict[str, str] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id != node.name:
            found |= _declared(file, base.id)
    for inside in node.body:
        # Of a class without a constructor the annotated names are a dataclass's fields.
        if isinstance(inside, ast.AnnAssign) and isinstance(inside.target, ast.Name):
            found[inside.target.id] = ast.unparse(inside.annotation)
    return found


def _parameters(node: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
        if argument.annotation is not None:
            yield argument.arg, ast.unparse(argument.annotation)
