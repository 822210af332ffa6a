"""Named arrays in a file: npy, npz, HDF5, zarr, safetensors; read by rows where that is possible.

HDF5, zarr, safetensors and ``.npy`` read the rows that are asked for, and so does a large array of
an ``.npz``, whose rows are best asked for in their order. Files of instruments are read by
:mod:`cleanprior.data.formats`.
"""

import lzma
import math
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
from ..mapped import LARGE
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
    """An array of a safetensors file, which is mapped while rows are read and not longer."""

    def __init__(self, path: Path, name: str, view: Any) -> None:
        self._path, self._name = path, name
        self.shape, self.dtype = tuple(view.get_shape()), view[:0].dtype

    def __getitem__(self, rows: Any) -> Any:
        with safe_open(self._path, framework="np") as file:
            return file.get_slice(self._name)[rows]


class _Npy:
    """The array of an ``.npy``, which is mapped while rows are read and not longer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        stored = self._mapped()
        self.shape, self.dtype = stored.shape, stored.dtype

    def _mapped(self) -> NDArray[Any]:
        array = np.load(self._path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays; call it .npz")
        return array

    def __getitem__(self, rows: Any) -> Any:
        return np.array(self._mapped()[rows])


class _Member:
    """A large array of an ``.npz``, decompressed row by row.

    Where rows are asked for that lie before the last ones, it begins again.
    """

    def __init__(
        self, archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._archive, self._name = archive, name
        self.shape, self.dtype = shape, dtype
        self._row = math.prod(shape[1:]) * dtype.itemsize
        self._file: Any = None
        self._next = 0

    def __getitem__(self, rows: Any) -> Any:
        first, last, step = _span(rows, self.shape[0])
        if not isinstance(rows, slice) or step != 1:
            return self[:][rows]
        if self._file is None or first < self._next:
            self._file, self._next = self._archive.open(self._name), 0
            _npy_header(self._file, self._name)
        while self._next < first:
            count = min(first - self._next, max(1, (1 << 20) // max(1, self._row)))
            self._bytes(count)
        return np.frombuffer(self._bytes(last - first), self.dtype).reshape(-1, *self.shape[1:])

    def _bytes(self, count: int) -> bytes:
        content: bytes = self._file.read(count * self._row)
        if len(content) != count * self._row:
            raise ValueError(f"'{self._name}' ends early")
        self._next += count
        return content


def _span(rows: Any, count: int) -> tuple[int, int, int]:
    first, last, step = (rows if isinstance(rows, slice) else slice(None)).indices(count)
    return first, max(first, last), step


def _npy_header(file: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, whether the first axis is the fastest, and type of an array in numpy's format."""
    version = np.lib.format.read_magic(file)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if header is None:
        raise ValueError(f"'{name}' has numpy's format {version}")
    shape, is_fortran, dtype = header(file)
    return shape, is_fortran, dtype


@contextmanager
def named_arrays(
    path: Path, what: str = "file of arrays", by_rows: bool = False
) -> Iterator[Mapping[str, Callable[[], Rows]]]:
    """Open a file of arrays: name -> how to get the array. An ``.npy`` holds one, ``array``.

    Arguments:
        path: The file (zarr: the folder).
        what: What the file should be, for errors.
        by_rows: Whether arrays are read by some of their rows at a time, so that they may be larger
            than this machine's memory.

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
                yield _opened(path, suffix, module, stack, by_rows)
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
    path: Path, suffix: str, module: Any, stack: ExitStack, by_rows: bool
) -> Mapping[str, Callable[[], Rows]]:
    """Open a file whose bytes may be anything; libraries raise what they like on such."""
    try:
        return _open(path, suffix, module, stack, by_rows)
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
    path: Path, suffix: str, module: Any, stack: ExitStack, by_rows: bool
) -> Mapping[str, Callable[[], Rows]]:
    if suffix == ".npy":
        array = _Npy(path)
        return {"array": lambda: array}
    if suffix == ".npz":
        # By a file object: numpy leaves the file open where it is no archive.
        file = stack.enter_context(path.open("rb"))
        archive = stack.enter_context(zipfile.ZipFile(file))
        names = [n for n in archive.namelist() if n.endswith(".npy")]
        stored = path.stat().st_size
        return {n.removesuffix(".npy"): _member(path, archive, n, stored, by_rows) for n in names}
    if suffix == ".safetensors":
        tensors = stack.enter_context(safe_open(path, framework="np"))
        return {name: _slicer(path, tensors, name, by_rows) for name in tensors.keys()}  # noqa: SIM118
    if suffix == ".zarr":
        stored = check_zarr(path)
        root = module.open(str(path), mode="r")
        named = _walk(root) if hasattr(root, "keys") else [("array", root)]
    else:
        root, stored = stack.enter_context(module.File(path, "r")), path.stat().st_size
        named = arrays_of(path, root)
    return {name: _checked(path, name, array, stored, by_rows) for name, array in named}


def _member(
    path: Path, archive: zipfile.ZipFile, name: str, stored: int, by_rows: bool
) -> Callable[[], Rows]:
    """Return how to read an array of an ``.npz``, once its header says how large it is."""

    def get() -> Rows:
        with archive.open(name) as file:
            shape, is_fortran, dtype = _npy_header(file, name)
        claimed = bytes_of(shape, dtype.itemsize)
        by_row = by_rows and bool(shape) and not is_fortran and not dtype.hasobject
        check_claim(path, name, claimed, stored, by_row)
        if not dtype.hasobject and claimed > archive.getinfo(name).file_size:
            raise ValueError(f"'{name}' claims {claimed:,} bytes and holds fewer")
        if by_row and claimed > LARGE:
            return _Member(archive, name, shape, dtype)
        with archive.open(name) as file:
            found: Rows = np.lib.format.read_array(file, allow_pickle=False)
        return found

    return get


def _checked(path: Path, name: str, array: Any, stored: int, by_rows: bool) -> Callable[[], Rows]:
    """Return how to get an array whose rows are read later, where its size can be true."""

    def get() -> Rows:
        check_claim(path, name, bytes_of(array.shape, array.dtype.itemsize), stored, by_rows)
        found: Rows = array
        return found

    return get


def whole(rows: Rows) -> NDArray[Any]:
    """Read all of an array; it may be a single number."""
    return np.asarray(rows[()] if rows.shape == () else rows[:])


def _slicer(path: Path, file: Any, name: str, by_rows: bool) -> Callable[[], Rows]:
    def get() -> Rows:
        view = file.get_slice(name)
        check_claim(path, name, path.stat().st_size, path.stat().st_size, by_rows)
        # A single number has no slices.
        return _Slices(path, name, view) if view.get_shape() else file.get_tensor(name)

    return get


def _walk(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name and the array of all below a zarr group, ``group/array``."""
    for name in group.keys():  # noqa: SIM118
        child = group[name]
        if hasattr(child, "keys"):
            yield from _walk(child, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", child
