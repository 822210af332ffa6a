"""Named arrays in a file: npy, npz, HDF5, zarr, safetensors; read by rows where that is possible.

``.npy`` is memory-mapped; HDF5, zarr and safetensors read the rows that are asked for; an array of
an ``.npz`` is decompressed whole.
"""

import importlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..errors import UserError

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5", ".zarr", ".safetensors")


@runtime_checkable
class Rows(Protocol):
    """An array that can be read by slices of its first axis."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def dtype(self) -> Any:
        """Its numpy dtype."""
        ...

    def __getitem__(self, rows: Any) -> Any:
        """Read rows."""
        ...


class _Slices:
    """An array of a safetensors file."""

    def __init__(self, view: Any) -> None:
        self.view = view
        self.shape = tuple(view.get_shape())

    @property
    def dtype(self) -> Any:
        return self.view[:0].dtype

    def __getitem__(self, rows: Any) -> Any:
        return self.view[rows]


@contextmanager
def named_arrays(
    path: Path, what: str = "file of arrays"
) -> Iterator[Mapping[str, Callable[[], Rows]]]:
    """Open a file of arrays: name -> how to get the array. An ``.npy`` holds one, ``array``.

    Arguments:
        path: The file (zarr: the folder).
        what: What the file should be, for errors.

    Raises:
        UserError: No such file, an ending that is not known, a library that is not installed, or a
            file that is damaged (also when that shows while rows are read).
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"'{path}' has no known ending; allowed: {', '.join(SUFFIXES)}")
    if not (path.is_dir() if suffix == ".zarr" else path.is_file()):
        raise UserError(f"'{path}' is not a file; allowed endings: {', '.join(SUFFIXES)}")
    library = {".h5": "h5py", ".hdf5": "h5py", ".zarr": "zarr"}.get(suffix)
    module = optional(library, f"read '{path}'") if library else None
    try:
        with ExitStack() as stack:
            yield _open(path, suffix, module, stack)
    except UserError:
        raise
    except (
        SafetensorError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"'{path}' is damaged or not a {what}: {error}") from error


def _open(
    path: Path, suffix: str, module: Any, stack: ExitStack
) -> Mapping[str, Callable[[], Rows]]:
    if suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return {"array": lambda: array}
    if suffix == ".npz":
        # By a file object: numpy leaves the file open where it is no archive.
        archive = stack.enter_context(path.open("rb"))
        loaded = np.load(archive, allow_pickle=False)
        if not hasattr(loaded, "files"):
            raise ValueError("it is a single array")
        return {name: _getter(stack.enter_context(loaded), name) for name in loaded.files}
    if suffix == ".safetensors":
        file = stack.enter_context(safe_open(path, framework="np"))
        return {name: _slicer(file, name) for name in file.keys()}  # noqa: SIM118
    if suffix == ".zarr":
        root = module.open(str(path), mode="r")
        if not hasattr(root, "keys"):
            return {"array": lambda: root}
        return {name: _getter(root, name) for name in _walk(root)}
    root = stack.enter_context(module.File(path, "r"))
    return {name: _getter(root, name) for name in _walk(root)}


def whole(rows: Rows) -> NDArray[Any]:
    """Read all of an array; it may be a single number."""
    return np.asarray(rows[()] if rows.shape == () else rows[:])


def _getter(archive: Any, name: str) -> Callable[[], Rows]:
    return lambda: archive[name]


def _slicer(file: Any, name: str) -> Callable[[], Rows]:
    def get() -> Rows:
        view = file.get_slice(name)
        # A single number has no slices.
        return _Slices(view) if view.get_shape() else file.get_tensor(name)

    return get


def _walk(group: Any, prefix: str = "") -> Iterator[str]:
    """Yield the names of all arrays below an HDF5 or zarr group, ``group/array``."""
    for name in group.keys():  # noqa: SIM118
        child = group[name]
        if hasattr(child, "keys"):
            yield from _walk(child, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}"


def optional(library: str, purpose: str) -> Any:
    """Import a library that is not installed with the package.

    Raises:
        UserError: It is missing; the message says how to install it.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise UserError(
            f"'{library}' is needed to {purpose} and is not installed; "
            "pip install 'cleanprior[data]'"
        ) from error
