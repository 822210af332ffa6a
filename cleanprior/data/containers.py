"""Named arrays in a file: npy, npz, HDF5, zarr, safetensors; read by rows where that is possible.

``.npy`` is memory-mapped; HDF5, zarr and safetensors read the rows that are asked for; an array of
an ``.npz`` is decompressed whole. Files of instruments are read by :mod:`cleanprior.data.formats`.
"""

import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..extras import optional
from .claims import bytes_of, check_claim
from .formats import FORMATS, Format, format_of, suffix_of
from .hdf5_files import arrays_of
from .zarr_files import check_zarr

#: Files of arrays, which may hold several by name.
SUFFIXES = (".npy", ".npz", ".h5", ".hdf5", ".zarr", ".safetensors")
#: All that is read: those, and what instruments write.
READ = (*SUFFIXES, *(suffix for found in FORMATS for suffix in found.suffixes))


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
    suffix = suffix_of(path)
    if suffix not in READ:
        raise UserError(f"'{path}' has no known ending; allowed: {', '.join(READ)}")
    if not (path.is_dir() if suffix == ".zarr" else path.is_file()):
        raise UserError(f"'{path}' is not a file; allowed endings: {', '.join(READ)}")
    found = format_of(path)
    if found is not None:
        module = optional(found.library, f"read '{path}'", found.extra)
    else:
        library = {".h5": "h5py", ".hdf5": "h5py", ".zarr": "zarr"}.get(suffix)
        module = optional(library, f"read '{path}'") if library else None
    try:
        with ExitStack() as stack:
            if found is not None:
                yield _guarded(found, path, module, stack)
            else:
                yield _opened(path, suffix, module, stack)
    except UserError:
        raise
    except (
        SafetensorError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        ArithmeticError,
        RuntimeError,  # an encrypted archive
        SystemError,  # of a codec in C
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        told = " ".join(str(error).split())
        raise UserError(f"'{path}' is damaged or not a {what}: {told}") from error


def _opened(
    path: Path, suffix: str, module: Any, stack: ExitStack
) -> Mapping[str, Callable[[], Rows]]:
    """Open a file whose bytes may be anything; libraries raise what they like on such."""
    try:
        return _open(path, suffix, module, stack)
    except (UserError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{error}" or type(error).__name__) from error


def _guarded(
    found: Format, path: Path, module: Any, stack: ExitStack
) -> Mapping[str, Callable[[], Rows]]:
    """Return how to read the arrays of an instrument's file; each may be damaged anywhere."""

    def guard(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:
            raise ValueError(f"{error}" or type(error).__name__) from error

    arrays = guard(lambda: found.functions().read(path, module, stack))
    return {name: partial(guard, get) for name, get in arrays.items()}


def _open(
    path: Path, suffix: str, module: Any, stack: ExitStack
) -> Mapping[str, Callable[[], Rows]]:
    if suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays; call it .npz")
        return {"array": lambda: array}
    if suffix == ".npz":
        # By a file object: numpy leaves the file open where it is no archive.
        file = stack.enter_context(path.open("rb"))
        archive = stack.enter_context(zipfile.ZipFile(file))
        names = [n for n in archive.namelist() if n.endswith(".npy")]
        stored = path.stat().st_size
        return {n.removesuffix(".npy"): _member(path, archive, n, stored) for n in names}
    if suffix == ".safetensors":
        tensors = stack.enter_context(safe_open(path, framework="np"))
        return {name: _slicer(path, tensors, name) for name in tensors.keys()}  # noqa: SIM118
    if suffix == ".zarr":
        stored = check_zarr(path)
        root = module.open(str(path), mode="r")
        named = _walk(root) if hasattr(root, "keys") else [("array", root)]
    else:
        root, stored = stack.enter_context(module.File(path, "r")), path.stat().st_size
        named = arrays_of(path, root)
    return {name: _checked(path, name, array, stored) for name, array in named}


def _member(path: Path, archive: zipfile.ZipFile, name: str, stored: int) -> Callable[[], Rows]:
    """Return how to read an array of an ``.npz``, once its header says how large it is."""

    def get() -> Rows:
        with archive.open(name) as file:
            version = np.lib.format.read_magic(file)
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if header is None:
                raise ValueError(f"'{name}' has numpy's format {version}")
            shape, _, dtype = header(file)
        claimed = bytes_of(shape, dtype.itemsize)
        check_claim(path, name, claimed, stored)
        if not dtype.hasobject and claimed > archive.getinfo(name).file_size:
            raise ValueError(f"'{name}' claims {claimed:,} bytes and holds fewer")
        with archive.open(name) as file:
            found: Rows = np.lib.format.read_array(file, allow_pickle=False)
        return found

    return get


def _checked(path: Path, name: str, array: Any, stored: int) -> Callable[[], Rows]:
    """Return how to get an array whose rows are read later, where its size can be true."""

    def get() -> Rows:
        check_claim(path, name, bytes_of(array.shape, array.dtype.itemsize), stored)
        found: Rows = array
        return found

    return get


def whole(rows: Rows) -> NDArray[Any]:
    """Read all of an array; it may be a single number."""
    return np.asarray(rows[()] if rows.shape == () else rows[:])


def _slicer(path: Path, file: Any, name: str) -> Callable[[], Rows]:
    def get() -> Rows:
        view = file.get_slice(name)
        check_claim(path, name, path.stat().st_size, path.stat().st_size)
        # A single number has no slices.
        return _Slices(view) if view.get_shape() else file.get_tensor(name)

    return get


def _walk(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name and the array of all below a zarr group, ``group/array``."""
    for name in group.keys():  # noqa: SIM118
        child = group[name]
        if hasattr(child, "keys"):
            yield from _walk(child, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", child
