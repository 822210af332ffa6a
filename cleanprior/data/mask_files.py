"""Files that say which pixels were measured, read block by block."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..mapped import BLOCK
from .array_sources import choose
from .containers import named_arrays
from .formats import Frames
from .layouts import with_axes

#: Names under which a file may hold its mask.
MASKS = ("mask", "params/mask", "array")
Mask = NDArray[np.float32]
#: The masks of the images from a first to one after the last: (k or 1, c or 1, h, w).
Masks = Callable[[int, int], Mask]


@contextmanager
def open_masks(
    path: Path, shape: Sequence[int], names: Sequence[str] | None = None
) -> Iterator[Masks]:
    """Open what says which pixels were measured, 1 = measured.

    Arguments:
        path: A file with one mask, or with one for each image; or a folder with a file for each
            picture, called as it is but for its ending.
        shape: (n, c, h, w) of the measurements.
        names: The file that each image comes from, where they come from a folder; the images of a
            file lie side by side.

    Raises:
        UserError: No such file, another size or number, or more than two values.
    """
    if path.is_dir() and path.suffix.lower() != ".zarr":
        if names is None:
            raise UserError(f"data.mask={path} is a folder, and the measurements are one file")
        yield _ByName(path, shape, names)
        return
    with _opened(path) as stored:
        (count, many, *inner), (n, channels, *size) = stored.shape, shape
        if count not in (1, n) or many not in (1, channels) or inner != size:
            raise UserError(
                f"data.mask={path} has the shape {stored.shape}; needed: {size[0]}x{size[1]} "
                f"pixels, one mask for all or {n}"
            )
        yield lambda first, last: stored[0:1] if count == 1 else stored[first:last]


class _ByName:
    """Masks of a folder: those of one file at a time are in memory."""

    def __init__(self, folder: Path, shape: Sequence[int], names: Sequence[str]) -> None:
        from .array_files import files_of

        files = {PurePosixPath(n).with_suffix("").as_posix(): n for n in files_of(folder)}
        self._folder, self._shape, self._names, self._counts = folder, shape, names, Counter(names)
        self._files: dict[str, str] = {}
        self._begins: dict[str, int] = {}
        for i, name in enumerate(names):
            if name in self._files:
                continue
            stem = PurePosixPath(name).with_suffix("").as_posix()
            if stem not in files:
                raise UserError(
                    f"data.mask={folder} holds no mask for '{name}': no file '{stem}.*'"
                )
            self._files[name], self._begins[name] = files[stem], i
        self._last: tuple[str, Mask] | None = None
        self._channels = 0

    def __call__(self, first: int, last: int) -> Mask:
        found = []
        while first < last:
            name = self._names[first]
            begin, count = self._begins[name], self._counts[name]
            end = min(last, begin + count)
            found.append(self._of(name, count)[first - begin : end - begin])
            first = end
        return np.concatenate(found)

    def _of(self, name: str, count: int) -> Mask:
        if self._last is None or self._last[0] != name:
            path, shape = self._folder / self._files[name], (count, *self._shape[1:])
            with open_masks(path, shape) as masks:
                one = masks(0, count)
            self._channels = self._channels or one.shape[1]
            if one.shape[1] != self._channels:
                raise UserError(
                    f"data.mask={self._folder} holds masks of {self._channels} channels and of "
                    f"{one.shape[1]} ('{name}')"
                )
            self._last = name, np.broadcast_to(one, (count, *one.shape[1:]))
        return self._last[1]


class _Stored:
    """The masks of a file as (n, c, h, w), 1 where a value is not 0."""

    def __init__(self, rows: Any, shape: tuple[int, ...]) -> None:
        self._rows, self.shape = rows, shape

    def __getitem__(self, chosen: slice) -> Mask:
        stored = np.asarray(self._rows[:] if len(self._rows.shape) == 2 else self._rows[chosen])
        return (stored.reshape(-1, *self.shape[1:]) != 0).astype(np.float32)


@contextmanager
def _opened(path: Path) -> Iterator[_Stored]:
    """Open a file of masks that holds 0 and one other value."""
    with named_arrays(path, "mask", by_rows=True) as arrays:
        key = next((k for k in MASKS if k in arrays), None)
        rows = choose(path, arrays, key)
        is_known = isinstance(rows, Frames)
        rows, layout = with_axes(rows, None)
        dimensions = len(rows.shape)
        if not is_known:
            layout = {2: "HW", 3: "NHW", 4: "NCHW"}.get(dimensions)
        if np.dtype(rows.dtype).kind not in "biuf" or layout is None:
            kind = np.dtype(rows.dtype)
            raise UserError(f"data.mask={path} holds {kind} of shape {rows.shape}, no mask")
        shape = tuple(int(n) for n in rows.shape)
        if dimensions < 4:
            shape = (1 if dimensions == 2 else shape[0], 1, *shape[-2:])
        kinds = _values(rows)
        if np.isnan(kinds).any() or len(kinds) > 2 or (len(kinds) == 2 and kinds[0] != 0):
            raise UserError(
                f"data.mask={path} holds {len(kinds)} values from {kinds[0]:g} to {kinds[-1]:g}; "
                "needed: 0 (not measured) and one other value"
            )
        if kinds[-1] == 0:
            raise UserError(f"data.mask={path} says that nothing was measured")
        yield _Stored(rows, shape)


def _values(rows: Any) -> NDArray[Any]:
    """Return the different values of an array, sorted."""
    if len(rows.shape) < 3:
        return np.unique(np.asarray(rows[:]))
    row = max(1, int(np.prod(rows.shape[1:])) * np.dtype(rows.dtype).itemsize)
    count = max(1, 16 * BLOCK // row)
    found = np.unique(np.asarray(rows[:count]))
    for first in range(count, rows.shape[0], count):
        found = np.union1d(found, np.unique(np.asarray(rows[first : first + count])))
    return found
