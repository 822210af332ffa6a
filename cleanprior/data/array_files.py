"""Clean images from arrays on disk: npy, npz, HDF5, zarr, safetensors."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError, did_you_mean
from .containers import Rows, named_arrays
from .datasets import CleanData, held_out
from .pixels import check_options, fit

LAYOUTS = ("NCHW", "NHWC", "NHW")
#: Rows that are read and converted at a time.
CHUNK = 512


def arrays(
    path: str | None,
    key: str | None,
    test_key: str | None,
    layout: str | None,
    range: Sequence[float] | None,
    resolution: int | None,
    channels: int | None,
    test_share: float,
    limit: int | None,
) -> CleanData:
    """Load images from an array of a file, converted chunk by chunk.

    Integers are scaled by the range of their dtype (uint8: 0 is -1 and 255 is 1). Floats have no
    range of their own: ``range`` says which values are -1 and 1. Complex images become two
    channels, real and imaginary part.

    Arguments:
        path: A file of :data:`cleanprior.data.containers.SUFFIXES`.
        key: Name of the array; None where the file holds a single one.
        test_key: Name of the array of the test split; None holds images out by their content.
        layout: ``NCHW``, ``NHWC`` or ``NHW``; None tells it by the axis of 1 to 4 channels.
        range: The two values that become -1 and 1, or None for the range of an integer dtype.
        resolution: Side after centre crop and resize, or None for the images' own size.
        channels: 1 or 3, or None for the images' own.
        test_share: Share of images held out by a hash of their content.
        limit: Keep that many training images (the first ones), or None for all.

    Raises:
        UserError: A file or an array that is not there, a layout that is ambiguous, floats without
            a range or outside it, or an option outside its range.
    """
    check_options(resolution, channels, test_share, limit)
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"layout='{layout}' is not offered; allowed: {', '.join(LAYOUTS)}")
    if range is not None and (len(range) != 2 or not range[0] < range[1]):
        raise UserError(f"range={range} is no range; allowed: [LOW, HIGH] with LOW below HIGH")
    if path is None:
        raise UserError("data=arrays needs data.path=FILE with an array of images")
    file = Path(path)
    with named_arrays(file) as found:
        train = _Source(file, _choose(file, found, key), layout, range, resolution, channels)
        if test_key is not None:
            test = _Source(
                file, _choose(file, found, test_key), layout, range, resolution, channels
            )
            return CleanData(file.stem, train.read(None, limit), test.read(None, None))
        is_test = held_out(train.digests(), test_share)
        x = train.read(~is_test, limit), train.read(is_test, None)
        return CleanData(file.stem, *x)


def _choose(path: Path, found: Mapping[str, Callable[[], Rows]], key: str | None) -> Rows:
    if key is None and len(found) == 1:
        return next(iter(found.values()))()
    names = ", ".join(sorted(found)) or "none"
    if key is None:
        raise UserError(f"'{path}' holds several arrays: {names}; choose one by data.key=NAME")
    if key not in found:
        raise UserError(
            f"'{path}' holds no array '{key}'; found: {names}.{did_you_mean(key, found)}"
        )
    return found[key]()


class _Source:
    """An array on disk and how its rows become images."""

    def __init__(
        self,
        path: Path,
        rows: Rows,
        layout: str | None,
        limits: Sequence[float] | None,
        resolution: int | None,
        channels: int | None,
    ) -> None:
        self.path, self.rows = path, rows
        self.resolution, self.channels = resolution, channels
        self.layout = layout or _detect(path, rows.shape)
        if len(rows.shape) != len(self.layout):
            raise UserError(
                f"'{path}' holds an array of shape {rows.shape}; layout={self.layout} has "
                f"{len(self.layout)} axes"
            )
        self.low, self.high = _limits(path, rows, limits)

    def _chunks(self) -> Sequence[slice]:
        n = self.rows.shape[0]
        return [slice(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)]

    def digests(self) -> list[str]:
        """Return the sha256 of each image's bytes: copies of an image share a split."""
        return [
            hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()
            for rows in self._chunks()
            for row in np.asarray(self.rows[rows])
        ]

    def read(self, chosen: Tensor | None, limit: int | None) -> Tensor:
        """Return the images of the chosen rows, at most ``limit``."""
        n = self.rows.shape[0]
        wanted = torch.ones(n, dtype=torch.bool) if chosen is None else chosen
        count = min(int(wanted.sum()), limit or n)
        images: Tensor | None = None
        done = 0
        for rows in self._chunks():
            if done == count or not wanted[rows].any():
                continue
            values = np.asarray(self.rows[rows])[wanted[rows].numpy()][: count - done]
            part = fit(self._to_images(values, rows), self.resolution, self.channels)
            if images is None:
                images = torch.empty(count, *part.shape[1:])
            images[done : done + len(part)] = part
            done += len(part)
        if images is None:
            raise UserError(f"'{self.path}' holds an array of no images: shape {self.rows.shape}")
        return images

    def _to_images(self, values: NDArray[Any], rows: slice) -> Tensor:
        """Scale to [-1, 1], (n, c, h, w)."""
        if np.iscomplexobj(values):
            axis = {"NCHW": 1, "NHWC": 3, "NHW": 1}[self.layout]
            parts = (values.real, values.imag)
            values = np.stack(parts, 1) if self.layout == "NHW" else np.concatenate(parts, axis)
        elif self.layout == "NHW":
            values = values[:, None]
        x = torch.from_numpy(values.astype(np.float32))
        if self.layout == "NHWC":
            x = x.permute(0, 3, 1, 2)
        if not torch.isfinite(x).all():
            raise UserError(
                f"'{self.path}' holds NaN or infinity in images {rows.start} to {rows.stop - 1}"
            )
        # The extra share allows for the rounding of a float range.
        slack = 1e-5 * (self.high - self.low)
        if x.min() < self.low - slack or x.max() > self.high + slack:
            raise UserError(
                f"'{self.path}' holds values from {x.min():g} to {x.max():g} in images "
                f"{rows.start} to {rows.stop - 1}; data.range=[{self.low:g}, {self.high:g}] "
                "does not cover them"
            )
        return (2 * (x - self.low) / (self.high - self.low) - 1).clamp(-1, 1)


def _detect(path: Path, shape: tuple[int, ...]) -> str:
    """Tell the layout from a shape."""
    if len(shape) == 3:
        return "NHW"
    if len(shape) != 4:
        raise UserError(f"'{path}' holds an array of shape {shape}; needed: (n, h, w) or 4 axes")
    first, last = shape[1] <= 4, shape[3] <= 4
    if first == last:
        what = "could be both NCHW and NHWC" if first else "has no axis of 1 to 4 channels"
        raise UserError(
            f"'{path}' holds an array of shape {shape}, which {what}; set data.layout to one of "
            + ", ".join(LAYOUTS)
        )
    return "NCHW" if first else "NHWC"


def _limits(path: Path, rows: Rows, given: Sequence[float] | None) -> tuple[float, float]:
    """Return the values that become -1 and 1."""
    dtype = np.dtype(rows.dtype)
    if given is not None:
        return float(given[0]), float(given[1])
    if dtype.kind == "b":
        return 0.0, 1.0
    if dtype.kind in "iu":
        return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    if dtype.kind not in "fc":
        raise UserError(f"'{path}' holds values of type {dtype}, which are no pixels")
    sample = np.asarray(rows[slice(0, CHUNK)])
    sample = np.stack([sample.real, sample.imag]) if np.iscomplexobj(sample) else sample
    span = f"{np.nanmin(sample):g} to {np.nanmax(sample):g}" if sample.size else "none"
    raise UserError(
        f"'{path}' holds {dtype} values, which have no range of their own (the first "
        f"{CHUNK} images: {span}); set data.range=[LOW,HIGH] to the values that shall "
        "become -1 and 1"
    )
