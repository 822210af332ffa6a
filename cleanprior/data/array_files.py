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
from ..notices import Notice
from .containers import Rows, named_arrays
from .contents import check_range, judge_span, ranges_for, to_unit
from .datasets import CleanData, copies
from .layouts import ByImage, check_layout, layout_of, to_nchw
from .pixels import check_options, fit
from .splits import held_out, role, told

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

    Unsigned integers of 8 or 16 bits are scaled by the range of their dtype (uint8: 0 is -1 and 255
    is 1). Signed and wider integers and floats have no range of their own: ``range`` says which
    values are -1 and 1. Complex images become two channels, real and imaginary part.

    Arguments:
        path: A file of :data:`cleanprior.data.containers.SUFFIXES`.
        key: Name of the array; None where the file holds a single one.
        test_key: Name of the array of the test split; None holds images out by their content.
        layout: One of :data:`cleanprior.data.layouts.LAYOUTS`; None tells it from the shape.
        range: The two values that become -1 and 1, or None for the range of 8 or 16 bits.
        resolution: Side after centre crop and resize, or None for the images' own size.
        channels: 1 or 3, or None for the images' own.
        test_share: Share of images held out by a hash of their content.
        limit: Keep that many training images (the first ones), or None for all.

    Raises:
        UserError: A file or an array that is not there, a layout that is ambiguous, values without
            a range or outside it, (almost) a constant, or an option outside its range.
    """
    check_options(resolution, channels, test_share, limit)
    check_layout(layout)
    limits = check_range(range)
    if path is None:
        raise UserError("data=arrays needs data.path=FILE with an array of images")
    file = Path(path)
    with named_arrays(file) as found:
        train = _Source(file, _choose(file, found, key), layout, limits, resolution, channels)
        others = [k for k in found if k not in (key, test_key) and role(k) == "test"]
        if test_key is not None:
            if test_key == key:
                raise UserError(f"data.key and data.test_key are both '{key}'; name two arrays")
            test = _Source(
                file, _choose(file, found, test_key), layout, limits, resolution, channels
            )
            notices = train.judge(test)
            x, truth = train.read(None, limit), test.read(None, None)
            how = f"of the arrays '{key or 'the other one'}' and '{test_key}'"
        else:
            notices = train.judge()
            is_test = held_out(train.digests(), test_share)
            x, truth = train.read(~is_test, limit), train.read(is_test, None)
            how = "by a hash of each image's content"
            if others:
                how += f" (data.test_key={others[0]} holds out that array)"
    size = "x".join(map(str, x.shape[1:]))
    split = Notice(f"{file.name}: {told(len(x), len(truth), how)}; {size} (layout {train.layout})")
    notices = (split, *notices, *copies(file.name, x, truth))
    return CleanData(file.stem, x, truth, notices=notices)


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
        limits: tuple[float, float] | None,
        resolution: int | None,
        channels: int | None,
    ) -> None:
        self.path, self.is_declared = path, limits is not None
        self.resolution, self.channels = resolution, channels
        kind = np.dtype(rows.dtype).kind
        if kind not in "biufc":
            raise UserError(f"'{path}' holds values of type {rows.dtype}, which are no pixels")
        self.layout = layout_of(f"'{path}' holds an array", rows.shape, layout)
        self.rows = ByImage(rows, self.layout)
        if 0 in rows.shape:
            raise UserError(f"'{path}' holds an array of no images: shape {rows.shape}")
        self.span = self._span()
        self.low, self.high = limits or self._limits()

    def _chunks(self) -> Sequence[slice]:
        n = self.rows.shape[0]
        return [slice(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)]

    def digests(self) -> list[str]:
        """Return the sha256 of each image's bytes: copies of an image share a split."""
        return [
            hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()
            for rows in self._chunks()
            for row in self.rows[rows]
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
            values = self.rows[rows][wanted[rows].numpy()][: count - done]
            part = fit(self._to_images(values), self.resolution, self.channels)
            if images is None:
                images = torch.empty(count, *part.shape[1:])
            images[done : done + len(part)] = part
            done += len(part)
        assert images is not None
        return images

    def judge(self, other: "_Source | None" = None) -> tuple[Notice, ...]:
        """Return what should be told of the values, together with those of the test split.

        Raises:
            UserError: They are (almost) a constant, or the two arrays have not one range.
        """
        spans = [self.span] if other is None else [self.span, other.span]
        if other is not None and (self.low, self.high) != (other.low, other.high):
            raise UserError(
                f"'{self.path}': the arrays for training and testing have the types "
                f"{self.rows.dtype} and {other.rows.dtype}; set data.range=[LOW,HIGH] for both"
            )
        found = min(s[0] for s in spans), max(s[1] for s in spans)
        return judge_span(self.path.name, found, (self.low, self.high), self.is_declared)

    def _span(self) -> tuple[float, float]:
        """Return the least and the largest value of all images.

        Raises:
            UserError: NaN or infinity.
        """
        spans = []
        for rows in self._chunks():
            values = _real(self.rows[rows])
            if not np.isfinite(values).all():
                raise UserError(
                    f"'{self.path}' holds NaN or infinity in images {rows.start} to {rows.stop - 1}"
                )
            spans.append((float(values.min()), float(values.max())))
        return min(s[0] for s in spans), max(s[1] for s in spans)

    def _to_images(self, values: NDArray[Any]) -> Tensor:
        """Scale to [-1, 1], (n, c, h, w)."""
        (least, most), low, high = self.span, self.low, self.high
        slack = 1e-5 * (high - low)  # for the rounding of a float range
        if least < low - slack or most > high + slack:
            raise UserError(
                f"'{self.path}' holds values from {least:.10g} to {most:.10g}; "
                f"data.range=[{low:g}, {high:g}] does not cover them"
            )
        return to_unit(to_nchw(values, self.rows.inner), low, high)

    def _limits(self) -> tuple[float, float]:
        """Return the values that become -1 and 1 by the type: two values, 8 or 16 bits.

        Raises:
            UserError: Another type, which says nothing of the range.
        """
        dtype = np.dtype(self.rows.dtype)
        if dtype.kind == "b":
            return 0.0, 1.0
        if dtype.kind == "u" and dtype.itemsize <= 2:
            return 0.0, float(np.iinfo(dtype).max)
        least, most = self.span
        raise UserError(
            f"'{self.path}' holds {dtype} values, which have no range of their own (all images: "
            f"{least:.10g} to {most:.10g}); set data.range=[LOW,HIGH] to the values that shall "
            f"become -1 and 1, e.g. {ranges_for(least, most)}"
        )


def _real(values: NDArray[Any]) -> NDArray[Any]:
    return np.stack([values.real, values.imag]) if np.iscomplexobj(values) else values
