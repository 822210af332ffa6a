"""HDF5 files of anybody: arrays that lie in the file itself, and in nothing that it points to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError

#: Groups within groups.
DEPTH = 32


def arrays_of(path: Path, root: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name (``group/array``) and the data set of every array of an open file.

    Arguments:
        path: The file, for errors.
        root: The open ``h5py.File``.

    Raises:
        UserError: A link or a data set whose bytes lie in another file, groups without end, or
            values that are no numbers.
    """
    yield from _below(path, root, "", 0)


def _below(path: Path, group: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > DEPTH:
        raise UserError(f"'{path}' holds groups within groups without end")
    for key in group:
        name = f"{prefix}{key}"
        kind = type(group.get(key, getlink=True)).__name__
        if kind not in ("HardLink", "SoftLink"):
            raise UserError(f"'{path}' points to another file by '{name}', which is not read")
        child = group[key]
        if hasattr(child, "keys"):
            yield from _below(path, child, f"{name}/", depth + 1)
            continue
        if not hasattr(child, "shape") or child.shape is None:
            continue  # a type, or an empty data set
        if child.external or child.is_virtual:
            raise UserError(
                f"'{path}' keeps the values of '{name}' in another file, which is not read"
            )
        yield name, child
