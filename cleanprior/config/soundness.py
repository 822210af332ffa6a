"""Whether the code that a plug-in's configuration names can be imported. Light: no torch.

Importing a part loads torch. So its source is read first; only what looks wrong there (a name that
nothing binds, a module that nobody has installed, a statement that raises) is imported, and what
that raises is the answer. Sound code costs no import, and no verdict rests on reading alone.
"""

import ast
import builtins
import importlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import signatures

_MODULE = {*dir(builtins), "__name__", "__file__", "__doc__", "__path__", "__package__", "__spec__"}
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def locate(target: str) -> Any:
    """Import what ``package.module.Name`` names.

    Raises:
        UserError: It cannot be imported: what its import raised.
    """
    module, _, name = target.rpartition(".")
    if not module or not all(part.isidentifier() for part in target.split(".")):
        raise UserError(f"'{target}' is not package.module.Name")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        # A class inside a class has no module of its own.
        if error.name == module and "." in module and (outer := _outer(module)) is not None:
            return _attribute(outer, name, target)
        raise _refusal(target, error) from error
    except (Exception, SystemExit) as error:  # the boundary of somebody's code
        raise _refusal(target, error) from error


def _outer(module: str) -> Any:
    package, _, name = module.rpartition(".")
    try:
        return getattr(importlib.import_module(package), name, None)
    except (Exception, SystemExit):
        return None


def _attribute(outer: Any, name: str, target: str) -> Any:
    try:
        return getattr(outer, name)
    except AttributeError as error:
        raise _refusal(target, error) from error


def _refusal(target: str, error: BaseException) -> UserError:
    text = " ".join(str(error).split())
    return UserError(f"'{target}' cannot be imported: {type(error).__name__}: {text}")


def code_fault(target: str) -> str | None:
    """Return why ``package.module.Name`` cannot be imported, or None."""
    module, _, name = target.rpartition(".")
    file = signatures.source(module)
    is_sound = file is not None and not _is_suspect(file, module) and _has(file, name)
    parents = [module.rsplit(".", i)[0] for i in range(1, module.count(".") + 1)]
    for parent in parents:
        file = signatures.source(parent)
        is_sound = is_sound and (file is None or not _is_suspect(file, parent))
    if is_sound:
        return None
    try:
        locate(target)
    except UserError as error:
        return str(error)
    return None


@cache
def _is_suspect(file: Path, module: str, seen: frozenset[Path] = frozenset()) -> bool:
    """Whether importing a module may fail, as far as its source shows."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return True
    reached = list(_reached(tree.body))
    if any(isinstance(node, (ast.Raise, ast.Assert)) for node in reached):
        return True
    if _unbound(reached):
        return True
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    imports = [node for node in reached if isinstance(node, (ast.Import, ast.ImportFrom))]
    return any(_is_missing(node, package, seen | {file}) for node in imports)


def _reached(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported: nothing inside a function."""
    queue: list[ast.AST] = list(body)
    while queue:
        node = queue.pop()
        yield node
        if isinstance(node, _SCOPES):
            below: list[Any] = [*node.args.defaults, *node.args.kw_defaults]
            below += getattr(node, "decorator_list", [])
            queue.extend(n for n in below if n is not None)
        else:
            queue.extend(ast.iter_child_nodes(node))


def _bound(nodes: list[ast.AST]) -> set[str]:
    """Return the names that statements bind; with ``*`` where nobody can say which."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found


def _unbound(nodes: list[ast.AST]) -> set[str]:
    bound = _bound(nodes)
    if "*" in bound:
        return set()
    loaded = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return loaded - bound - _MODULE


def _has(file: Path, name: str) -> bool:
    """Whether a module has a name, as far as its source shows."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return False
    bound = _bound(list(_reached(tree.body)))
    below = file.parent / name
    is_module = file.name == "__init__.py" and (
        below.is_dir() or below.with_suffix(".py").is_file()
    )
    return is_module or bool(bound & {name, "*", "__getattr__"})


def _is_missing(node: ast.Import | ast.ImportFrom, package: str, seen: frozenset[Path]) -> bool:
    """Whether an import may fail: followed inside the package itself and inside this one."""
    if isinstance(node, ast.Import):
        return any(_find(alias.name, package, seen) for alias in node.names)
    module = node.module or ""
    if node.level:
        kept = package.split(".")
        kept = kept[: len(kept) - node.level + 1]
        module = ".".join([*kept, module] if module else kept)
    if _find(module, package, seen):
        return True
    file = signatures.source(module) if _is_followed(module, package) else None
    return file is not None and not all(_has(file, a.name) for a in node.names if a.name != "*")


def _is_followed(module: str, package: str) -> bool:
    return module.split(".")[0] in ("cleanprior", package.split(".")[0])


def _find(module: str, package: str, seen: frozenset[Path]) -> bool:
    """Whether a module may be absent or suspect itself."""
    if not _is_followed(module, package):
        try:
            return importlib.util.find_spec(module.split(".")[0]) is None
        except (ImportError, ValueError):
            return True
    file = signatures.source(module)
    if file is None:
        return True
    is_ours = module.split(".")[0] == "cleanprior"
    return not is_ours and file not in seen and _is_suspect(file, module, seen)
