"""An array on disk as images: its axes, its range, the images of chosen rows."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError, did_you_mean
from .containers import Rows
from .contents import ranges_for, to_unit
from .layouts import ByImage, layout_of, to_nchw, with_axes
from .pixels import fit

#: Rows that are read and converted at a time.
CHUNK = 512
Span = tuple[float, float]


def choose(path: Path, found: Mapping[str, Callable[[], Rows]], key: str | None) -> Rows:
    """Return the array of a file that the user names, or the only one.

    Raises:
        UserError: There is none, none of that name, or several and no name.
    """
    if not found:
        raise UserError(f"'{path}' holds no array")
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


class Source:
    """An array on disk and how its rows become images.

    Arguments:
        path: Its file, for errors.
        rows: The array.
        layout: One of :data:`cleanprior.data.layouts.LAYOUTS`; None tells it from the file, or else
            from the shape.
        may_be_one: Whether an array of two axes is one grey image.

    Attributes:
        layout: The order of its axes.
        span: The least and the largest value of all images.

    Raises:
        UserError: Values that are no pixels, axes that are ambiguous, no images, NaN or infinity.
    """

    def __init__(
        self, path: Path, rows: Rows, layout: str | None, may_be_one: bool = False
    ) -> None:
        self.path = path
        kind = np.dtype(rows.dtype).kind
        if kind not in "biufc":
            raise UserError(f"'{path}' holds values of type {rows.dtype}, which are no pixels")
        rows, layout = with_axes(rows, layout)
        if may_be_one and layout is None and len(rows.shape) == 2:
            layout = "HW"
        self.layout = layout_of(f"'{path}' holds an array", rows.shape, layout)
        self.rows = ByImage(rows, self.layout)
        if 0 in rows.shape:
            raise UserError(f"'{path}' holds an array of no images: shape {rows.shape}")
        self.span = self._span()

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(self.rows.dtype)

    def _chunks(self) -> Sequence[slice]:
        n = len(self)
        return [slice(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)]

    def digests(self) -> list[str]:
        """Return the sha256 of each image's bytes: copies of an image share a split."""
        return [
            hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()
            for rows in self._chunks()
            for row in self.rows[rows]
        ]

    def read(
        self,
        chosen: Tensor | None,
        limit: int | None,
        limits: Span,
        resolution: int | None = None,
        channels: int | None = None,
    ) -> Tensor:
        """Return the images of chosen rows in [-1, 1], (n, c, h, w).

        Arguments:
            chosen: Which rows, or None for all.
            limit: At most that many, or None for all.
            limits: The values that become -1 and 1.
            resolution: Side after centre crop and resize, or None for their own size.
            channels: 1 or 3, or None for their own.
        """
        n = len(self)
        wanted = torch.ones(n, dtype=torch.bool) if chosen is None else chosen
        count = min(int(wanted.sum()), limit or n)
        images: Tensor | None = None
        done = 0
        for rows in self._chunks():
            if done == count or not wanted[rows].any():
                continue
            values = self.rows[rows][wanted[rows].numpy()][: count - done]
            unit = to_unit(to_nchw(values, self.rows.inner), *limits)
            part = fit(unit, resolution, channels)
            if images is None:
                images = torch.empty(count, *part.shape[1:])
            images[done : done + len(part)] = part
            done += len(part)
        assert images is not None
        return images

    def _span(self) -> Span:
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
        return _joined(spans)


def _real(values: NDArray[Any]) -> NDArray[Any]:
    return np.stack([values.real, values.imag]) if np.iscomplexobj(values) else values


def _joined(spans: Sequence[Span]) -> Span:
    return min(s[0] for s in spans), max(s[1] for s in spans)


def span_of(spans: Sequence[Span], place: Path, limits: Span) -> Span:
    """Return the span of all, which ``limits`` must cover.

    Raises:
        UserError: They do not.
    """
    (least, most), (low, high) = _joined(spans), limits
    slack = 1e-5 * (high - low)  # for the rounding of a float range
    if least < low - slack or most > high + slack:
        raise UserError(
            f"'{place}' holds values from {least:.10g} to {most:.10g}; "
            f"data.range=[{low:g}, {high:g}] does not cover them"
        )
    return least, most


def limits_of(place: Path, dtypes: Sequence[np.dtype[Any]], spans: Sequence[Span]) -> Span:
    """Return the values that become -1 and 1 by the type: two values, 8 or 16 bits.

    Raises:
        UserError: Another type, which says nothing of the range, or types of different ranges.
    """
    kinds = sorted(set(dtypes), key=str)
    found = {_limits(kind) for kind in kinds}
    least, most = _joined(spans)
    if None in found:
        named = ", ".join(str(k) for k in kinds if _limits(k) is None)
        raise UserError(
            f"'{place}' holds {named} values, which have no range of their own (all images: "
            f"{least:.10g} to {most:.10g}); set data.range=[LOW,HIGH] to the values that shall "
            f"become -1 and 1, e.g. {ranges_for(least, most)}"
        )
    if len(found) > 1:
        raise UserError(
            f"'{place}': its arrays have the types {' and '.join(map(str, kinds))}; set "
            "data.range=[LOW,HIGH] for all"
        )
    (limits,) = found
    assert limits is not None
    return limits


def _limits(dtype: np.dtype[Any]) -> Span | None:
    if dtype.kind == "b":
        return 0.0, 1.0
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return 0.0, float(np.iinfo(dtype).max)
    return None
