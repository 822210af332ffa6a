"""Which axis of an array is what: one rule for images and for measurements.

``N`` counts images, ``C`` channels, ``H`` rows, ``W`` columns. Files of instruments say what their
axes are (:class:`cleanprior.data.formats.Frames`), unless the user says it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .containers import Rows

LAYOUTS = ("NCHW", "NHWC", "NHW", "HWN", "HWCN", "HW", "CHW", "HWC")
#: An axis that is at most this long can be one of channels.
CHANNELS = 4
#: Images are rarely longer than this many times their width; slices of a volume are.
ASPECT = 4


def check_layout(layout: str | None) -> None:
    """Raise a :class:`UserError` unless a layout is offered."""
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"layout='{layout}' is not offered; allowed: {', '.join(LAYOUTS)}")


def detect(shape: Sequence[int]) -> str | None:
    """Tell the layout from a shape of 3 or 4 axes; None where it could be several.

    Four axes: the axis of 1 to 4 channels tells, and where both or none could be one, square
    images do. Three axes are grey images of a number that is neither of their sides: square ones,
    or at least twice as many as their longer side.
    """
    if len(shape) == 3:
        n, short, long = shape[0], min(shape[1:]), max(shape[1:])
        if min(n, short) <= CHANNELS or n in (short, long):
            return None
        return "NHW" if short == long or (n >= 2 * long and long <= ASPECT * short) else None
    if len(shape) != 4:
        return None
    sizes = {"NCHW": (shape[1], shape[2:4]), "NHWC": (shape[3], shape[1:3])}
    possible = [k for k, (channels, _) in sizes.items() if channels <= CHANNELS]
    if len(possible) != 1:
        square = [k for k in possible or sizes if sizes[k][1][0] == sizes[k][1][1]]
        if len(square) != 1:
            return None
        possible = square
    height, width = sizes[possible[0]][1]
    # A colour volume (h, w, slices, 3) is no stack of h images.
    return None if shape[0] == height != width else possible[0]


def layout_of(what: str, shape: Sequence[int], given: str | None) -> str:
    """Return the layout that was given, or the one that the shape tells.

    Raises:
        UserError: A shape of no images, another number of axes, or axes that are ambiguous.
    """
    held = f"{what} of shape ({', '.join(map(str, shape))})"
    if given is not None:
        if len(shape) != len(given):
            raise UserError(f"{held}; layout={given} has {len(given)} axes")
        return given
    if len(shape) not in (3, 4):
        more = " (one image: data.layout=HW)" if len(shape) == 2 else ""
        raise UserError(f"{held}; needed: (n, h, w) or 4 axes{more}")
    found = detect(shape)
    if found is None:
        offered = [k for k in LAYOUTS if len(k) == len(shape)]
        readings = "; ".join(f"{k}: {_reading(shape, k)}" for k in offered)
        raise UserError(f"{held}, whose axes could be several things; set data.layout ({readings})")
    return found


def _reading(shape: Sequence[int], layout: str) -> str:
    size = dict(zip(layout, shape, strict=True))
    return f"{size.get('N', 1)} images of {size.get('C', 1)}x{size['H']}x{size['W']}"


class _One:
    """An array of one image, as an array of images."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.dtype = rows, rows.dtype
        self.shape = (1, *rows.shape)

    def __getitem__(self, chosen: Any) -> NDArray[Any]:
        return np.asarray(self.rows[:])[None][chosen]


def with_axes(rows: Rows, given: str | None) -> tuple[Rows, str | None]:
    """Return an array and its layout, by the user or else by its file; None where none says it.

    Of a file that names its axes all that count images become one, and so do all of channels.
    """
    axes = getattr(rows, "axes", None)
    if given is not None or axes is None or not {"H", "W"} <= set(axes):
        return rows, given
    return gather(rows[:], axes), "NCHW" if "C" in axes else "NHW"


def gather(values: NDArray[Any], axes: str) -> NDArray[Any]:
    """Return an array with one letter an axis as (n, c, h, w), or (n, h, w) without channels."""
    order = [i for letter in "NCHW" for i, a in enumerate(axes) if a == letter]
    size = {k: [n for n, a in zip(values.shape, axes, strict=True) if a == k] for k in "NCHW"}
    shape = [math.prod(size[k]) for k in ("NCHW" if size["C"] else "NHW")]
    return values.transpose(order).reshape(shape)


def scatter(images: NDArray[Any], axes: str, shape: Sequence[int]) -> NDArray[Any]:
    """Undo :func:`gather`: (n, c, h, w) as an array of these axes.

    Arguments:
        images: (n, c, h, w), complex ones with half of the channels.
        axes: A letter an axis.
        shape: The shape of the whole array, for axes of which there are several. Where the images
            are fewer than it counts, the first axis that counts them has them all.
    """
    sizes = dict(zip("NCHW", images.shape, strict=True))
    counts = [i for i, a in enumerate(axes) if a == "N"]
    if len(counts) > 1 and math.prod(shape[i] for i in counts) != len(images):
        kept = [i for i, a in enumerate(axes) if a != "N" or i == counts[0]]
        axes, shape = "".join(axes[i] for i in kept), [shape[i] for i in kept]
    order = [i for letter in "NCHW" for i, a in enumerate(axes) if a == letter]
    lengths = [n if axes.count(a) > 1 else sizes[a] for a, n in zip(axes, shape, strict=True)]
    return images.reshape([lengths[i] for i in order]).transpose(np.argsort(order))


def scanned(shape: Sequence[int]) -> tuple[int, int, int] | None:
    """Return the shape of the complex images that several coils saw, or None where y is no such.

    Arguments:
        shape: That of y; (n, 2, coils, h, w) where coils saw it, in real and imaginary part.
    """
    if len(shape) != 5 or shape[1] != 2:
        return None
    return 2, int(shape[3]), int(shape[4])


class ByImage:
    """An array whose first axis counts images, whatever its layout; read by slices of it.

    Arguments:
        rows: The array.
        layout: One of :data:`LAYOUTS`.
    """

    def __init__(self, rows: Rows, layout: str) -> None:
        if "N" not in layout:
            rows, layout = _One(rows), f"N{layout}"
        self.rows, self.axis = rows, layout.index("N")
        self.inner = layout.replace("N", "")
        size = dict(zip(layout, rows.shape, strict=True))
        self.shape = (size["N"], *(size[k] for k in self.inner))
        self.dtype = rows.dtype

    def __getitem__(self, chosen: slice) -> NDArray[Any]:
        index = (*[slice(None)] * self.axis, chosen)
        return np.moveaxis(np.asarray(self.rows[index if self.axis else chosen]), self.axis, 0)


def to_nchw(values: NDArray[Any], inner: str) -> NDArray[Any]:
    """Return images of the layout ``N`` + ``inner`` as (n, c, h, w).

    Complex ones become two channels for each: all real parts, then all imaginary ones.
    """
    x = values[:, None] if inner == "HW" else values
    x = np.moveaxis(x, 3, 1) if inner == "HWC" else x
    return np.concatenate([x.real, x.imag], 1) if np.iscomplexobj(x) else x
