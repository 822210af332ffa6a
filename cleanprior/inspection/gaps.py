"""What of y was not measured: NaN, zeros, full and dead pixels; masks compared, not believed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Share of entries at one extreme value from which they are called saturated.
SATURATED = 1e-3
#: Frames from which a pixel that never changes is called dead.
FRAMES = 5
#: Places that are named.
NAMED = 4


@dataclass(frozen=True)
class Gaps:
    """Entries that are perhaps none of the measurement.

    Attributes:
        nan: How many are NaN.
        zeros: Share of the others that are exactly 0.
        saturated: The largest value and the share of entries that have it, where they pile up.
        dead: Pixels of one value in all frames, (c, h, w).
    """

    nan: int
    zeros: float
    saturated: tuple[float, float] | None
    dead: NDArray[np.bool_]


def gaps_of(y: NDArray[Any]) -> Gaps:
    """Look for gaps in y, (n, c, h, w) in the file's units."""
    lost = np.isnan(y)
    known = y[~lost]
    zeros = float((known == 0).mean()) if known.size else 0.0
    saturated = None
    if known.size and known.dtype.kind != "c":
        top = known.max()
        share = float((known == top).mean())
        # Values just below are rare where a detector is full, and many where the range ends so.
        near = float(((known < top) & (known >= top - 0.02 * (top - known.min()))).mean())
        if share >= SATURATED and share > 2 * near and top != known.min() and top != 0:
            saturated = float(top.real), share
    dead = np.zeros(y.shape[1:], bool)
    if len(y) >= FRAMES:
        first = y[:1]
        dead = ((y == first) | (lost & lost[:1])).all(0)
    return Gaps(int(lost.sum()), zeros, saturated, dead)


def law_of(mask: NDArray[Any]) -> str:
    """Say what masks are: one for all, or drawn for each; by lines or by pixels.

    Arguments:
        mask: (n, c, h, w), 1 = measured; an axis may be 1 long.
    """
    n = len(mask)
    missing = 1 - float(mask.mean())
    different = len({row.tobytes() for row in np.ascontiguousarray(mask)})
    if n == 1:
        who = "that of a single image"
    elif different == 1:
        who = "the same in all images: one fixed mask"
    elif different < n:
        who = f"{different} different ones for {n} images"
    else:
        who = "another one for each image"
    if missing == 0:
        return "complete: nothing is missing"
    what = f"{missing:.1%} missing"
    height, width = mask.shape[2:]
    if width > 1 and height > 1:
        if (mask == mask[:, :, :1]).all():
            what += ", whole columns"
        elif (mask == mask[:, :, :, :1]).all():
            what += ", whole rows"
    return f"{what}; {who}"


def places(hidden: NDArray[np.bool_]) -> str:
    """Name pixels: whole rows or columns where they are, else the first few.

    Arguments:
        hidden: (c, h, w), or any shape for places without rows and columns.
    """
    if hidden.ndim != 3:
        found = np.flatnonzero(hidden)
        return f"entries {_listed([str(i) for i in found])}"
    flat = np.asarray(hidden.all(0))
    if not flat.any():
        flat = np.asarray(hidden.any(0))
    rows, columns = np.asarray(flat.all(1)), np.asarray(flat.all(0))
    parts = []
    if rows.any():
        parts.append(f"rows {_runs(np.flatnonzero(rows))}")
    if columns.any():
        parts.append(f"columns {_runs(np.flatnonzero(columns))}")
    rest = flat & ~rows[:, None] & ~columns[None]
    if rest.any():
        parts.append("(row, column) " + _listed([f"({r}, {c})" for r, c in np.argwhere(rest)]))
    return "; ".join(parts)


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + more


def _runs(numbers: NDArray[Any]) -> str:
    """Return ``3-5, 9``."""
    found: list[list[int]] = []
    for i in numbers.tolist():
        if found and i == found[-1][1] + 1:
            found[-1][1] = i
        else:
            found.append([i, i])
    return _listed([f"{a}" if a == b else f"{a}-{b}" for a, b in found])
