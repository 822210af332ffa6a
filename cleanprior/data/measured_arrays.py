"""Arrays of a measurement file as operators have them.

What a file may hold in another way than :mod:`cleanprior.data.measured` says: images as
(n, h, w, c) or (n, h, w), complex values, NaN where nothing was measured, one parameter for all.
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
from .containers import named_arrays, whole
from .layouts import CHANNELS, ByImage, detect, layout_of, to_nchw

Arrays = dict[str, NDArray[Any]]


def read_arrays(path: Path) -> dict[str, Arrays]:
    """Read the arrays of a measurement file as they are stored, by split (``train``, ``test``).

    Raises:
        UserError: The file is missing or damaged, or holds an array that is not known.
    """
    splits: dict[str, Arrays] = {"train": {}, "test": {}}
    with named_arrays(path, "measurement file") as found:
        names = ", ".join(sorted(found)) or "none"
        if "y" not in found:
            raise UserError(f"'{path}' holds no array 'y'; found: {names}")
        for stored, get in found.items():
            name = stored.replace(".", "/")
            key = name.removeprefix("test/")
            if key not in ("y", "sigma_y") and not key.startswith("params/"):
                raise UserError(
                    f"'{path}' holds '{stored}', which is not a part of measurements; allowed: y, "
                    f"sigma_y, params/NAME, and the same below test/; found: {names}"
                )
            array = whole(get())
            if array.dtype.kind not in ("biufc" if key == "y" else "biuf"):
                raise UserError(
                    f"'{path}' is damaged or not a measurement file: '{stored}' holds values of "
                    f"type {array.dtype}"
                )
            splits["train" if name == key else "test"][key] = array
    return splits


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
    path: Path, arrays: Mapping[str, NDArray[Any]], layout: str | None, split: str = ""
) -> tuple[dict[str, Tensor], tuple[Notice, ...]]:
    """Return one split as float32 tensors, images as (n, c, h, w), and what should be told.

    Arguments:
        path: The file, for errors.
        arrays: One split of :func:`read_arrays`.
        layout: That of y, by :func:`y_layout`.
        split: What stands before the names of this split, ``""`` or ``"test/"``.

    Raises:
        UserError: Another number of axes, or complex values that are no images.
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
    found: dict[str, NDArray[Any]] = {"y": y.astype(np.float32)}
    n = len(y) if y.ndim else 0
    for key, value in arrays.items():
        if key == "sigma_y":
            found[key] = value.reshape(()) if value.size == 1 else value.reshape(len(value), -1)
            if found[key].ndim and found[key].shape[1] == 1:
                found[key] = found[key][:, 0]
        elif key != "y":
            found[key] = _parameter(value, n, sides, layout)
    gaps = _fill_gaps(found)
    if gaps:
        told.append(f"{split}y is NaN where nothing was measured ({gaps} entries), read as 0")
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


def _fill_gaps(arrays: dict[str, NDArray[Any]]) -> int:
    """Set y to 0 where it is NaN and a mask says that nothing was measured; return how often."""
    y, filled = arrays["y"], 0
    for key in ("params/mask", "params/rows"):
        if key not in arrays or not np.isnan(y).any():
            continue
        try:
            hidden = np.broadcast_to(arrays[key] == 0, y.shape) & np.isnan(y)
        except ValueError:
            continue  # of another shape: told when it is compared with the operator
        y = np.where(hidden, np.float32(0), y)
        filled += int(hidden.sum())
    arrays["y"] = y
    return filled
