"""Arrays of a measurement file as operators have them.

What a file may hold in another way than :mod:`cleanprior.data.measured` says: images as
(n, h, w, c) or (n, h, w), complex values, NaN where nothing was measured, one parameter for all; y
alone, in an instrument's units (:mod:`cleanprior.data.reading`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from ..notices import Notice
from .array_sources import choose
from .containers import Rows, named_arrays, whole
from .formats import Frames, format_of
from .layouts import CHANNELS, ByImage, detect, layout_of, to_nchw
from .reading import AS_STORED, Reading

Arrays = dict[str, NDArray[Any]]


def read_arrays(path: Path, key: str | None = None) -> dict[str, dict[str, Any]]:
    """Read the arrays of a measurement file as they are stored, by split (``train``, ``test``).

    Arguments:
        path: The file.
        key: Name of the array that is y; None is ``y``, or the only array of a file that has one.

    Returns:
        Arrays by their name; that of an instrument as :class:`cleanprior.data.formats.Frames`.

    Raises:
        UserError: The file is missing or damaged, or holds an array that is not known.
    """
    splits: dict[str, dict[str, Any]] = {"train": {}, "test": {}}
    with named_arrays(path, "measurement file") as found:
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


def _numbers(path: Path, name: str, rows: Rows, kinds: str) -> Any:
    """Return an array in memory; one that names its axes keeps them."""
    array = rows if isinstance(rows, Frames) else whole(rows)
    if array.dtype.kind not in kinds:
        raise UserError(
            f"'{path}' is damaged or not a measurement file: '{name}' holds values of type "
            f"{array.dtype}"
        )
    return array


def y_layout(
    path: Path, y: NDArray[Any], image_shape: Sequence[int] | None, given: str | None
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
        stored = channels // 2 if np.iscomplexobj(y) and channels % 2 == 0 else channels
        if y.ndim == 3:
            return "NHW" if (stored, *y.shape[1:]) == (1, height, width) else None
        if y.ndim != 4 or stored not in (y.shape[1], y.shape[3]):
            return None
        return "NCHW" if y.shape[1] == stored else "NHWC"
    if y.ndim not in (3, 4):
        return None
    if y.ndim == 4 and detect(y.shape) is None and y.shape[1] <= CHANNELS:
        return "NCHW"
    return layout_of(what, y.shape, None)


def arrange(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    layout: str | None,
    split: str = "",
    reading: Reading = AS_STORED,
    names: Sequence[str] | None = None,
) -> tuple[dict[str, Tensor], tuple[Notice, ...]]:
    """Return one split as float32 tensors, images as (n, c, h, w), and what should be told.

    Arguments:
        path: The file, for errors.
        arrays: One split of :func:`read_arrays`.
        layout: That of y, by :func:`y_layout`.
        split: What stands before the names of this split, ``""`` or ``"test/"``.
        reading: What the user says of the file.
        names: The file that each image of a folder comes from.

    Raises:
        UserError: Another number of axes, complex values that are no images, NaN, a mask or a range
            that does not fit.
    """
    y = arrays["y"]
    told = []
    sides: dict[str, int] = {}
    if layout is not None:
        layout = layout_of(f"'{path}' holds {split}y", y.shape, layout)
        if 0 in y.shape:
            raise UserError(f"'{path}' holds {split}y of no images: shape {y.shape}")
        sides = dict(zip(layout, y.shape, strict=True))
        ordered = ByImage(y, layout)
        images = to_nchw(ordered[slice(None)], ordered.inner)
        if layout != "NCHW":
            size = "x".join(map(str, images.shape[1:]))
            told.append(f"{split}y was read as {layout}: {len(images)} images of {size}")
        if np.iscomplexobj(y):
            told.append(f"{split}y is complex: real and imaginary part are two channels")
        y = images
    elif np.iscomplexobj(y):
        raise UserError(
            f"'{path}' holds complex {split}y of shape {y.shape}, which are not images; store real "
            "and imaginary part as two channels"
        )
    kind = np.float32 if reading.range is None else np.float64
    found: dict[str, NDArray[Any]] = {"y": y.astype(kind)}
    n = len(y) if y.ndim else 0
    for key, value in arrays.items():
        if key == "sigma_y":
            if value.size == 1 or value.ndim < 2 or value.size == len(value):
                found[key] = value.reshape(()) if value.size == 1 else value.reshape(-1)
            else:
                found[key] = _parameter(value, n, sides, layout)
        elif key not in ("y", "scale"):
            found[key] = _parameter(value, n, sides, layout)
    told += [f"{split}{text}" for text in reading.apply(path, found, sides, names)]
    tensors = {k: torch.from_numpy(v.astype(np.float32)) for k, v in found.items()}
    return tensors, tuple(Notice(f"{path.name}: {text}") for text in told)


def _parameter(
    value: NDArray[Any], n: int, sides: Mapping[str, int], layout: str | None
) -> NDArray[Any]:
    """Return a parameter with one row for each image, its axes in the order of y's."""
    if sides:
        size, channels = (sides["H"], sides["W"]), sides.get("C", 1)
        if layout == "NHWC" and value.ndim == 4 and value.shape[1:3] == size:
            if value.shape[3] in (1, channels):
                value = np.moveaxis(value, 3, 1)
        elif layout == "HWN" and value.shape == (*size, n):
            value = np.moveaxis(value, 2, 0)[:, None]
        elif layout == "HWCN" and value.ndim == 4 and value.shape[-1] == n:
            value = np.transpose(value, (3, 2, 0, 1))
        if value.ndim == 3 and value.shape[1:] == size and len(value) in (1, n):
            value = value[:, None]
        elif value.shape == size and size[0] != n:
            value = value[None, None]
    if value.ndim and len(value) == 1 and n > 1:
        value = np.broadcast_to(value, (n, *value.shape[1:]))
    return value
