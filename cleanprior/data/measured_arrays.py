"""Arrays of a measurement file as operators have them.

What a file may hold in another way than :mod:`cleanprior.data.measured` says: images as
(n, h, w, c) or (n, h, w), complex values, NaN where nothing was measured, one parameter for all; y
alone, in an instrument's units (:mod:`cleanprior.data.reading`).
"""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from ..mapped import LARGE, Pile, scratch_folder
from ..notices import Notice
from ..operators.levels import check_levels
from .array_sources import choose
from .containers import Rows, named_arrays, whole
from .formats import format_of
from .layouts import CHANNELS, ByImage, detect, layout_of, to_nchw
from .reading import AS_STORED, Reading

Arrays = dict[str, NDArray[Any]]
#: Bytes of measurements, as float32, that are read and brought into form at a time.
BLOCK = 32 << 20


@contextmanager
def open_arrays(path: Path, key: str | None = None) -> Iterator[dict[str, dict[str, Rows]]]:
    """Open the arrays of a measurement file as they are stored, by split (``train``, ``test``).

    Arguments:
        path: The file.
        key: Name of the array that is y; None is ``y``, or the only array of a file that has one.

    Returns:
        Arrays by their name, whose rows are read when they are asked for; that of an instrument is
        read already, as :class:`cleanprior.data.formats.Frames`.

    Raises:
        UserError: The file is missing or damaged, or holds an array that is not known.
    """
    with named_arrays(path, "measurement file", by_rows=True) as found:
        yield _by_split(path, found, key)


def _by_split(
    path: Path, found: Mapping[str, Callable[[], Rows]], key: str | None
) -> dict[str, dict[str, Rows]]:
    splits: dict[str, dict[str, Rows]] = {"train": {}, "test": {}}
    names = ", ".join(sorted(found)) or "none"
    if key is None and "y" not in found and set(found) == {"array"}:
        key = "array"
    if key not in (None, "y") or format_of(path) is not None:
        splits["train"]["y"] = _numbers(path, key or "y", choose(path, found, key), "biufc")
        found = {k: get for k, get in found.items() if k != "y" and _is_known(k)}
    elif "y" not in found:
        more = "; choose the one that is y by data.key=NAME" if found else ""
        raise UserError(f"'{path}' holds no array 'y'; found: {names}{more}")
    for stored, get in found.items():
        name = stored.replace(".", "/")
        part = name.removeprefix("test/")
        if not _is_known(stored):
            raise UserError(
                f"'{path}' holds '{stored}', which is not a part of measurements; allowed: y, "
                f"sigma_y, scale, params/NAME, and the same below test/; found: {names}"
            )
        array = _numbers(path, stored, get(), "biufc" if part == "y" else "biuf")
        splits["train" if name == part else "test"][part] = array
    return splits


def _is_known(name: str) -> bool:
    part = name.replace(".", "/").removeprefix("test/")
    return part in ("y", "sigma_y", "scale") or part.startswith("params/")


def _numbers(path: Path, name: str, array: Rows, kinds: str) -> Rows:
    """Return an array that holds numbers of some kinds."""
    if np.dtype(array.dtype).kind not in kinds:
        raise UserError(
            f"'{path}' is damaged or not a measurement file: '{name}' holds values of type "
            f"{array.dtype}"
        )
    return array


def y_layout(
    path: Path, y: Rows, image_shape: Sequence[int] | None, given: str | None
) -> str | None:
    """Tell the layout of y by the rule of arrays; None where its axes are no images.

    Where the shape leaves it open, four axes are (n, c, h, w), as measurement files are defined, if
    the second one is of 1 to 4 channels.

    Arguments:
        path: The file, for errors.
        y: The measurements as stored.
        image_shape: (channels, height, width) of the images, where the user said it.
        given: The user's layout.

    Raises:
        UserError: Another number of axes than the layout has, or axes that are ambiguous.
    """
    what = f"'{path}' holds y"
    if given is not None:
        return layout_of(what, y.shape, given)
    if image_shape is not None:
        channels, height, width = image_shape
        stored = channels // 2 if _is_complex(y) and channels % 2 == 0 else channels
        if len(y.shape) == 3:
            return "NHW" if (stored, *y.shape[1:]) == (1, height, width) else None
        if len(y.shape) != 4 or stored not in (y.shape[1], y.shape[3]):
            return None
        return "NCHW" if y.shape[1] == stored else "NHWC"
    if len(y.shape) not in (3, 4):
        return None
    if len(y.shape) == 4 and detect(y.shape) is None and y.shape[1] <= CHANNELS:
        return "NCHW"
    return layout_of(what, y.shape, None)


def _is_complex(array: Rows) -> bool:
    return np.dtype(array.dtype).kind == "c"


def arrange(
    path: Path,
    arrays: Mapping[str, Rows],
    layout: str | None,
    split: str = "",
    reading: Reading = AS_STORED,
    names: Sequence[str] | None = None,
) -> tuple[dict[str, Tensor], tuple[Notice, ...]]:
    """Return one split as float32 tensors, images as (n, c, h, w), and what should be told.

    Arrays are read and brought to that form in blocks of :data:`BLOCK` bytes; a tensor that is
    large lies in a file (:class:`cleanprior.mapped.Pile`).

    Arguments:
        path: The file, for errors.
        arrays: One split of :func:`open_arrays`.
        layout: That of y, by :func:`y_layout`.
        split: What stands before the names of this split, ``""`` or ``"test/"``.
        reading: What the user says of the file.
        names: The file that each image of a folder comes from.

    Raises:
        UserError: Another number of axes, complex values that are no images, NaN, a mask or a range
            that does not fit, or a disk with too little room.
    """
    y = arrays["y"]
    told = []
    sides: dict[str, int] = {}
    blocks_of_y: Callable[[int, int], NDArray[Any]] = lambda a, b: np.asarray(y[a:b])  # noqa: E731
    shape: tuple[int, ...] = tuple(y.shape)
    if layout is not None:
        layout = layout_of(f"'{path}' holds {split}y", y.shape, layout)
        if 0 in y.shape:
            raise UserError(f"'{path}' holds {split}y of no images: shape {tuple(y.shape)}")
        sides = dict(zip(layout, y.shape, strict=True))
        images = ByImage(y, layout)
        blocks_of_y = lambda a, b: to_nchw(images[a:b], images.inner)  # noqa: E731
        none = np.empty((0, *images.shape[1:]), images.dtype)
        shape = (images.shape[0], *to_nchw(none, images.inner).shape[1:])
        if layout != "NCHW":
            size = "x".join(map(str, shape[1:]))
            told.append(f"{split}y was read as {layout}: {shape[0]} images of {size}")
        if _is_complex(y):
            told.append(f"{split}y is complex: real and imaginary part are two channels")
    elif _is_complex(y):
        raise UserError(
            f"'{path}' holds complex {split}y of shape {y.shape}, which are not images; store real "
            "and imaginary part as two channels"
        )
    if len(shape) == 0:
        raise UserError("y has shape (); needed: (n, ...) with n above 0")
    n = shape[0]
    params = {
        key: _parameter(key, value, shape, sides, layout)
        for key, value in arrays.items()
        if key.startswith("params/") or (key == "sigma_y" and _is_map(value))
    }
    row = 4 * math.prod(shape[1:]) + sum(p.row for p in params.values())
    _check_room(path, n * row)
    firsts = range(0, max(n, 1), max(1, BLOCK // max(1, row)))
    spans = [(first, min(first + firsts.step, n)) for first in firsts]
    kind = np.float32 if reading.range is None else np.float64
    piles: dict[str, Pile] = {}
    try:
        with reading.opened(path, shape, set(arrays), bool(sides), names) as completed:
            if completed.is_looking:
                for a, b in spans:
                    completed.look(blocks_of_y(a, b), a)
            for a, b in spans:
                found: Arrays = {"y": blocks_of_y(a, b).astype(kind)}
                found |= {key: parameter.block(a, b) for key, parameter in params.items()}
                completed(found, a)
                for key, value in found.items():
                    part = np.ascontiguousarray(value.astype(np.float32)).reshape(value.shape)
                    piles.setdefault(key, Pile()).add(torch.from_numpy(part))
            told += [f"{split}{text}" for text in completed.end()]
            level = None if "sigma_y" in params else completed.level(_level(arrays))
        tensors = {key: pile.tensor() for key, pile in piles.items()}
    finally:
        for pile in piles.values():
            pile.close()
    if level is not None:
        tensors["sigma_y"] = torch.from_numpy(np.asarray(level.astype(np.float32)))
    return tensors, tuple(Notice(f"{path.name}: {text}") for text in told)


def _check_room(path: Path, size: int) -> None:
    """Refuse what does not fit the disk: all of it, and then its two splits.

    Raises:
        UserError: There is too little room.
    """
    if size <= LARGE:
        return
    folder = scratch_folder()
    folder = next(place for place in (folder, *folder.parents) if place.is_dir())
    if (free := shutil.disk_usage(folder).free) < 2 * size:
        raise UserError(
            f"'{path}' holds measurements of {size / 2**30:.3g} GB as float32, and '{folder}' has "
            f"{free / 2**30:.3g} GB free; needed: twice as much while they are split, and then once"
        )


def _is_map(level: Rows) -> bool:
    """Whether noise levels are those of entries of y, and not of images."""
    size = math.prod(level.shape)
    return size > 1 and len(level.shape) > 1 and size != level.shape[0]


def _level(arrays: Mapping[str, Rows]) -> NDArray[Any] | None:
    """Return the noise level of a file, () or (n,)."""
    if "sigma_y" not in arrays:
        return None
    value = whole(arrays["sigma_y"])
    return value.reshape(()) if value.size == 1 else value.reshape(-1)


@dataclass(frozen=True)
class _Parameter:
    """A parameter with one row for each image, its axes in the order of y's; read block by block.

    Attributes:
        stored: As it lies in the file.
        order: Its axes in the order of y's, that of images first; None for one that it lacks.
        is_one: Whether there is one for all images.
    """

    stored: Rows
    order: tuple[int | None, ...]
    is_one: bool

    @property
    def row(self) -> int:
        """Bytes of that of one image, as float32."""
        return 4 * math.prod(self.stored.shape[i] for i in self.order[1:] if i is not None)

    def block(self, first: int, last: int) -> NDArray[Any]:
        """Return those of images from ``first`` to one before ``last``."""
        if self.is_one:
            value = whole(self.stored)
        else:
            place = self.order[0]
            assert place is not None
            rows = slice(first, last)
            value = np.asarray(self.stored[(*[slice(None)] * place, rows) if place else rows])
        value = value.transpose([i for i in self.order if i is not None])
        for place, axis in enumerate(self.order):
            value = np.expand_dims(value, place) if axis is None else value
        return np.broadcast_to(value, (last - first, *value.shape[1:])) if self.is_one else value


def _parameter(
    key: str, value: Rows, y: tuple[int, ...], sides: Mapping[str, int], layout: str | None
) -> _Parameter:
    """Find the axes of a parameter, or of noise levels, of measurements of a shape.

    Raises:
        UserError: It is that of another number of images.
    """
    name, n = key.removeprefix("params/"), y[0]
    shape, count = tuple(value.shape), len(value.shape)
    order: tuple[int | None, ...] = tuple(range(count))
    if sides:
        size, channels = (sides["H"], sides["W"]), sides.get("C", 1)
        if layout == "NHWC" and count == 4 and shape[1:3] == size and shape[3] in (1, channels):
            order = (0, 3, 1, 2)
        elif layout == "HWN" and shape == (*size, n):
            order = (2, None, 0, 1)
        elif layout == "HWCN" and count == 4 and shape[-1] == n:
            order = (3, 2, 0, 1)
        elif count == 3 and shape[1:] == size and shape[0] in (1, n):
            order = (0, None, 1, 2)
        elif shape == size and size[0] != n:
            order = (None, None, 0, 1)
    if not order:
        raise UserError(f"params '{name}' are a single number; needed: a row for each image")
    length = 1 if order[0] is None else shape[order[0]]
    if length not in (1, n):
        if key == "sigma_y":
            check_levels(torch.empty(shape, device="meta"), torch.empty(y, device="meta"))
        raise UserError(f"params '{name}' describe {length} images; y holds {n}")
    return _Parameter(value, order, length == 1 and n > 1)
