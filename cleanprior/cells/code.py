"""The code that a cell's method is made of, as one hash: read from sources, nothing is imported.

The core has no hash: an edit of a comment there would put every result in doubt. Who changes what
it computes raises the number of a stage (:data:`cleanprior.cells.identity.STAGES`).
"""

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ..config import Config, nested
from ..config.signatures import source

#: The room of the built-in methods: a method is one module or one package in it.
ROOM = "cleanprior.methods"
#: Code of built-in methods, and later code that trains the same weights: the averaged networks of
#: every method after 640 images have the same sha256.
EQUAL = {
    "8e1a35755248d433": "febe92b69570ff48",  # ambient
    "e407422bf3bcc940": "85878b72a3657057",  # ambient_gan
    "30df8c486cf0860c": "72319830c76c4f44",  # ambient_tweedie
    "3e9041dac20711ef": "06fe68bece15c166",  # denoise_then_train
    "07a3faaf18729f34": "6ea051649039f02e",  # em
    "6ea051649039f02e": "70911ad701be298d",  # em
    "235e32c1f4666132": "28a17a8c1420bf22",  # flowdiff
    "29cffe23ef729f02": "764da71172479171",  # gsure
    "72f7dd682a285a25": "ca9b2a57e5480b2f",  # masked_loss
    "0e0d6c8ec5737703": "03972f8662cedc6d",  # naive
    "a5e752836c0fd233": "9d3b6f0f3f1394fe",  # observations
    "5d735f5fe3fb296b": "92e6f20ed6b96bad",  # oracle
    "1dab4c9161d03108": "3dcd05bec745edd4",  # sure_score
    "febe92b69570ff48": "bb56edaacd4de7b3",  # ambient
    "85878b72a3657057": "38538225f8eaaa1a",  # ambient_gan
    "72319830c76c4f44": "a07f2a183987fc65",  # ambient_tweedie
    "06fe68bece15c166": "f059ad296afd6432",  # denoise_then_train
    "70911ad701be298d": "c2a3d64e8638ac6c",  # em
    "28a17a8c1420bf22": "96732f6a79cf35ef",  # flowdiff
    "764da71172479171": "ce585822d1643bc7",  # gsure
    "3dcd05bec745edd4": "3f6436575af80f42",  # sure_score
    "38538225f8eaaa1a": "9df27e10dd5dd10d",  # ambient_gan
    "3b804d211190b3b0": "fc507993cc5bc8ee",  # em
    "528b405cb755167c": "5b8e9a92dda316a5",  # denoise_then_train
    "fc507993cc5bc8ee": "28429ed03d6c0c3e",  # em
    "31e033d894898e9f": "46628372a3fb3759",  # ambient
    "9df27e10dd5dd10d": "ce4c0725fe7c02e7",  # ambient_gan
    "ce4c0725fe7c02e7": "c20c970e75df63ca",  # ambient_gan
    "b8c8bb101b1e6406": "3b804d211190b3b0",  # em
    "96732f6a79cf35ef": "4efc917fe40d4c46",  # flowdiff
    "4efc917fe40d4c46": "e098fc05b0ec7e0c",  # flowdiff
    "03972f8662cedc6d": "eedd18969c6fddd8",  # naive
    "92e6f20ed6b96bad": "750dde226a1095e2",  # oracle
    "5b8e9a92dda316a5": "bee18670641e9ca5",  # denoise_then_train
    "840bf12dca308f13": "5a179cebb4993468",  # ssdu_then_train
    "28429ed03d6c0c3e": "5b56630b2d8da2b7",  # em
    "a08c1d13123cdff9": "5db95e1210b4c35a",  # es_then_train
    "5b56630b2d8da2b7": "762cb773eea2c98a",  # em
    "494e65ec40de175c": "38ca0ac25d4df098",  # diffem
}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def method_code(config: Config) -> str:
    """Return the hash of a method's sources, 16 hexadecimal digits.

    These are the module or the package of the method's class and what it imports of its room. Of a
    stranger's method they are all modules of its top-level package, and what they import of the
    built-in methods; of a stranger's operator as well.

    Arguments:
        config: A composed configuration.
    """
    digest = hashlib.sha256()
    for name, text in sorted(_sources(_targets(config)).items()):
        lines = statements(text)
        digest.update(f"{name}\0{len(lines)}\0".encode() + lines)
    return digest.hexdigest()[:16]


def latest(code: str) -> str:
    """Return the last code that is known to train the same weights, by :data:`EQUAL`."""
    while code in EQUAL:
        code = EQUAL[code]
    return code


def statements(text: bytes) -> bytes:
    """Return a source without comments, docstrings, blank lines and blanks at the end of a line.

    A better word in a docstring changes no result, and must not put one in doubt. A source that
    cannot be read is returned as it is.
    """
    try:
        tree = ast.parse(text)
        tokens = list(tokenize.tokenize(io.BytesIO(text).readline))
    except (SyntaxError, ValueError, tokenize.TokenError):
        return text
    lines = text.decode(tokens[0].string).splitlines()
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            first, row = node.body[0], getattr(node, "lineno", 0)
            if first.lineno > row:  # else it shares its line with the definition
                last = first.end_lineno or first.lineno
                lines[first.lineno - 1 : last] = [""] * (last - first.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip()).encode()


def _targets(config: Config) -> list[str]:
    """Return the units that a configuration names, the core's left out."""
    named = [config[group].get("_target_") for group in ("method", "operator")]
    if (first := nested.first_stage(config["method"])) is not None:
        named.append(first.get("_target_"))
    units = [_unit(str(target).rpartition(".")[0]) for target in named]
    return [unit for unit in units if unit is not None]


def _unit(module: str) -> str | None:
    """Return what is watched as a whole: a built-in method, or a stranger's top-level package."""
    parts = module.split(".")
    if parts[0] != "cleanprior":
        return parts[0] or None
    return ".".join(parts[:3]) if len(parts) > 2 and ".".join(parts[:2]) == ROOM else None


def _sources(units: list[str]) -> dict[str, bytes]:
    """Return the sources of units and of the built-in methods that they import, by module."""
    found: dict[str, bytes] = {}
    seen: set[str] = set()
    waiting = list(units)
    while waiting:
        unit = waiting.pop()
        if unit in seen:
            continue
        seen.add(unit)
        for name, package, path in _modules(unit):
            text = found[name] = path.read_bytes()
            reached = {_unit(module) for module in _imports(text, package)}
            waiting += [u for u in reached if u is not None and u.startswith(f"{ROOM}.")]
    return found


def _modules(unit: str) -> Iterator[tuple[str, str, Path]]:
    """Yield each module of a unit: its name, its package, its file."""
    file = source(unit)
    if file is None:
        return
    if file.name != "__init__.py":
        yield unit, unit.rpartition(".")[0], file
        return
    for path in sorted(file.parent.rglob("*.py")):
        inside = path.relative_to(file.parent).with_suffix("").parts
        package = ".".join([unit, *inside[:-1]])
        yield package if inside[-1] == "__init__" else f"{package}.{inside[-1]}", package, path


@lru_cache(maxsize=256)
def _imports(text: bytes, package: str) -> frozenset[str]:
    """Return the absolute names that a source imports at any depth, and what it takes of them.

    Arguments:
        text: The source.
        package: The package that its relative imports start from.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            above = above[: len(above) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return frozenset(found)
