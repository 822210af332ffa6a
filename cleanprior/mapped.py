"""Tensors that lie in a file: as large as the disk, read by rows, and not kept in memory.

:func:`map_tensors` gives ordinary tensors over a memory map. Whoever indexes one makes its pages
resident, as the system has it. :func:`rows` and :func:`blocks` read the same numbers past the map
into fresh memory, so that a process which goes through all of a file a hundred times is no larger
than one which has read a batch. Both take any tensor: one in memory is indexed as always.
A :class:`Pile` becomes such a tensor where it is large: what comes part by part is never all there.
"""

import json
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from .files import RefusedWrite, refused

#: Bytes that are read, checked or written at a time.
BLOCK = 1 << 20
#: Bytes from which a :class:`Pile` lies in a file.
LARGE = 32 << 20
_HAS_READS = hasattr(os, "preadv")


@dataclass(frozen=True)
class _Mapping:
    """A file in the address space of this process.

    Attributes:
        path: The file, for errors.
        handle: Its descriptor: it can be read when the file's name is gone.
        start: Address of its first byte.
        length: Bytes.
        held: The map.
    """

    path: Path
    handle: int
    start: int
    length: int
    held: "weakref.ref[mmap.mmap]"

    def read(self, offset: int, content: memoryview) -> None:
        """Fill ``content`` with the bytes from an offset on.

        Raises:
            OSError: The file has become shorter.
        """
        done = 0
        while done < len(content):
            count = os.preadv(self.handle, [content[done:]], offset + done)
            if count == 0:
                raise OSError(f"'{self.path}' was cut short while it was read")
            done += count


_mappings: dict[int, _Mapping] = {}


def map_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, and its metadata; only the header is read.

    What is written into a tensor stays in this process.

    Raises:
        SafetensorError: It is no such file.
        OSError: It cannot be read.
    """
    with safe_open(path, framework="np") as file:  # checks that names, shapes and bytes agree
        metadata = file.metadata() or {}
        names = list(file.keys())
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        head = int.from_bytes(os.read(handle, 8), "little")
        described = json.loads(os.read(handle, head))
    except BaseException:
        os.close(handle)
        raise
    content = _map(handle, path)
    found = {}
    for name in names:
        entry = described[name]
        first, last = (8 + head + int(v) for v in entry["data_offsets"])
        flat = torch.from_numpy(content[first:last])
        found[name] = flat.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found, metadata


def _map(handle: int, path: Path) -> NDArray[np.uint8]:
    """Return the bytes of an open file, which is closed when nobody has them any more."""
    try:
        held = mmap.mmap(handle, 0, access=mmap.ACCESS_COPY)
        if hasattr(mmap, "MADV_RANDOM"):
            held.madvise(mmap.MADV_RANDOM)
        content = np.frombuffer(held, np.uint8)
    except BaseException:
        os.close(handle)
        raise
    start = content.ctypes.data
    _mappings[start] = _Mapping(path, handle, start, len(content), weakref.ref(held))
    weakref.finalize(held, _close, start)
    return content


def _close(start: int) -> None:
    os.close(_mappings.pop(start).handle)


#: safetensors' names of what measurements may be made of.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {v: k for k, v in _DTYPES.items()}


def _place(tensor: Tensor) -> tuple[_Mapping, int] | None:
    """Return the file and the offset of a tensor in it, or None where it lies in memory."""
    if not _mappings or not _HAS_READS or tensor.device.type != "cpu":
        return None
    if tensor.dim() == 0 or not tensor.is_contiguous():
        return None
    if not tensor.is_inference() and tensor._version:
        return None  # somebody has written into it: the map has what the file has not
    address = tensor.data_ptr()
    for mapping in _mappings.values():
        if mapping.start <= address < mapping.start + mapping.length:
            return mapping, address - mapping.start
    return None


def is_in_file(tensor: Tensor) -> bool:
    """Whether a tensor lies in a file, from which its rows are read."""
    return _place(tensor) is not None


def release(tensor: Tensor) -> None:
    """Have the system take back the memory of what was read from a tensor's map."""
    place = _place(tensor)
    held = None if place is None else place[0].held()
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor in memory, not copied."""
    if not tensor.numel():
        return memoryview(b"")
    # A single number may have any stride.
    flat = tensor.as_strided((tensor.numel(),), (1,))
    content: Any = flat.view(torch.uint8).numpy().data
    return memoryview(content)


def _read(mapping: _Mapping, offset: int, like: Tensor, first: int, count: int) -> Tensor:
    """Read consecutive rows of a tensor that begins at an offset."""
    found = torch.empty((count, *like.shape[1:]), dtype=like.dtype, device="cpu")
    if found.numel():
        size = found.nbytes // count
        mapping.read(offset + first * size, bytes_of(found))
    return found


def rows(tensor: Tensor, index: Tensor | slice) -> Tensor:
    """Return ``tensor[index]``; of a tensor in a file only these rows are in memory.

    Arguments:
        tensor: Shape (n, ...).
        index: Positions, a mask, or a slice, as torch takes them.
    """
    place = _place(tensor)
    if place is None or not isinstance(index, Tensor) or index.dtype != torch.int64:
        return tensor[index]
    if index.dim() != 1 or len(index) == 0:
        return tensor[index]
    low, high = (int(v) for v in index.aminmax())
    if low < 0 or high >= len(tensor):
        return tensor[index]  # counted from the end, or refused
    mapping, offset = place
    if high - low + 1 == len(index) and bool((index.diff() == 1).all()):
        return _read(mapping, offset, tensor, low, len(index))
    found = torch.empty((len(index), *tensor.shape[1:]), dtype=tensor.dtype, device="cpu")
    if found.numel():
        content, size = bytes_of(found), found.nbytes // len(index)
        for i, position in enumerate(index.tolist()):
            mapping.read(offset + position * size, content[i * size : (i + 1) * size])
    return found


def blocks(tensor: Tensor, size: int = BLOCK) -> Iterator[Tensor]:
    """Yield consecutive rows of a tensor, about ``size`` bytes at a time.

    Arguments:
        tensor: Shape (n, ...).
        size: Bytes of a block; at least one row is read.
    """
    place = _place(tensor)
    each = max(1, tensor[:1].numel() * tensor.element_size())
    count = max(1, size // each)
    for first in range(0, len(tensor), count):
        n = min(count, len(tensor) - first)
        if place is None:
            yield tensor[first : first + n]
        else:
            yield _read(*place, tensor, first, n)


_scratch: ContextVar[Path | None] = ContextVar("_scratch", default=None)


@contextmanager
def scratch_in(folder: Path | None) -> Iterator[None]:
    """Have piles that are begun inside the block lie in this folder; None: the system's."""
    token = _scratch.set(folder)
    try:
        yield
    finally:
        _scratch.reset(token)


def scratch_folder() -> Path:
    """Return the folder in which large piles lie."""
    return _scratch.get() or Path(tempfile.gettempdir())


class Pile:
    """Rows of a tensor that are added part by part, and are in memory while they are few.

    From :data:`LARGE` bytes on they lie in a file without a name in the folder of
    :func:`scratch_in`: it is gone with the tensor, and with the process however that ends.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._like: Tensor | None = None
        self._file: IO[bytes] | None = None
        self._count = self._size = 0

    def add(self, part: Tensor) -> None:
        """Add rows, (k, ...), which nobody changes afterwards.

        Raises:
            RefusedWrite: The disk is full, or takes no files.
        """
        if self._like is None:
            self._like = part[:0].clone()
        self._count += len(part)
        self._size += part.nbytes
        self._parts.append(part)
        if self._file is None and self._size <= LARGE:
            return
        try:
            if self._file is None:
                folder = scratch_folder()
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            for whole in self._parts:
                self._file.write(bytes_of(whole.contiguous()))
        except OSError as error:
            self.close()
            raise RefusedWrite(refused(scratch_folder(), error)) from error
        self._parts = []

    def tensor(self) -> Tensor:
        """Return all rows; the pile is empty afterwards."""
        assert self._like is not None, "nothing was added"
        parts, self._parts = self._parts, []
        if self._file is None:
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        try:
            self._file.flush()
            handle = os.dup(self._file.fileno())
        except OSError as error:
            raise RefusedWrite(refused(scratch_folder(), error)) from error
        finally:
            self.close()
        flat = torch.from_numpy(_map(handle, scratch_folder()))
        return flat.view(self._like.dtype).reshape(self._count, *self._like.shape[1:])

    def close(self) -> None:
        """Leave nothing in a file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


__all__ = [
    "BLOCK",
    "DTYPE_NAMES",
    "LARGE",
    "Pile",
    "blocks",
    "bytes_of",
    "is_in_file",
    "map_tensors",
    "release",
    "rows",
    "scratch_folder",
    "scratch_in",
]
