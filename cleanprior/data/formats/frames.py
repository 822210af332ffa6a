"""An array of an instrument's file: its numbers, what each axis is, how they are stored."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Form:
    """How an array lies in a file: what is needed to write another one like it.

    Attributes:
        axes: A letter an axis, see :class:`Frames`.
        shape: Its shape.
        stored: Type of the numbers on disk.
        slope: A stored number times this, plus ``offset``, is a value.
        offset: See ``slope``.
    """

    axes: str
    shape: tuple[int, ...]
    stored: np.dtype[Any]
    slope: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Frames:
    """An array whose file says what its axes are.

    Attributes:
        values: The numbers that the file means, slope and offset applied, axes as stored.
        axes: A letter an axis: ``H`` rows, ``W`` columns, ``C`` channels, ``N`` anything that
            counts pictures (frames, slices, times); ``N`` and ``C`` may stand several times.
        stored: Type of the numbers on disk.
        slope: A stored number times this, plus ``offset``, is a value.
        offset: See ``slope``.
    """

    values: NDArray[Any]
    axes: str
    stored: np.dtype[Any]
    slope: float = 1.0
    offset: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as stored."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.values.dtype

    @property
    def form(self) -> Form:
        """How it lies in its file."""
        return Form(self.axes, self.shape, self.stored, self.slope, self.offset)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        return np.asarray(self.values[rows])


def native(values: NDArray[Any]) -> NDArray[Any]:
    """Return values in this machine's order of bytes."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def to_stored(values: NDArray[Any], form: Form) -> NDArray[Any]:
    """Return values as numbers of the type on disk: rounded and cut to its range, if integers."""
    if form.stored.kind == "c":
        return values.astype(form.stored)
    raw = (np.asarray(values, np.float64) - form.offset) / form.slope
    if form.stored.kind == "b":
        return raw >= 0.5
    if form.stored.kind in "iu":
        limits = np.iinfo(form.stored)
        # float64 has no room for the largest 64-bit integers.
        top = np.nextafter(float(limits.max), 0) if limits.bits == 64 else limits.max
        raw = np.clip(np.rint(raw), limits.min, top)
    return raw.astype(form.stored)
