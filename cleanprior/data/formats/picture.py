"""Pictures by Pillow as arrays of numbers: grey or RGB, of 1, 8 or 16 bits or floats."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ..pictures import is_cut, sixteen_bits
from .frames import Form, Frames

_MODES = ("1", "L", "RGB", "I", "F")
#: Formats that change the numbers that they are given.
_LOSSY = (".jpg", ".jpeg")


def read(
    path: Path,
    library: Any,
    stack: ExitStack,  # noqa: ARG001  (closed once it is read)
) -> Mapping[str, Callable[[], Frames]]:
    """Return how to read the picture's numbers.

    Raises:
        UserError: A palette, transparency, or colours other than grey and RGB.
    """

    def get() -> Frames:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            with path.open("rb") as file, library.open(file) as image:
                return _frames(path, image)

    return {"array": get}


def _frames(path: Path, image: Any) -> Frames:
    if image.mode in ("L", "RGB") and is_cut(image):
        values = sixteen_bits(image, path).astype(np.uint16)
    elif image.mode in _MODES or image.mode.startswith("I;16"):
        values = np.asarray(image)
    else:
        raise UserError(
            f"'{path}' has colours of mode {image.mode} (a palette, transparency, ...), which are "
            "no measurements; save it as grey or RGB"
        )
    if image.mode == "I" and image.format == "PNG":
        values = values.astype(np.uint16)
    values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    return Frames(values, "HW" if values.ndim == 2 else "HWC", values.dtype)


def write(
    path: Path,
    values: NDArray[Any],
    form: Form,
    like: Path | None,  # noqa: ARG001  (nothing else belongs to a measurement)
    library: Any,
) -> None:
    """Write one picture.

    Raises:
        UserError: JPEG, which changes the numbers, several frames, or a type that it cannot hold.
    """
    if path.suffix.lower() in _LOSSY:
        raise UserError(f"'{path}': JPEG changes the numbers; write .png or .tif")
    if "N" in form.axes and values.shape[0] == 1:
        values = values[0]
    is_grey = values.ndim == 2
    kinds = (np.bool_, np.uint8, np.uint16) if is_grey else (np.uint8,)
    if values.dtype not in kinds or values.ndim not in (2, 3):
        shape = "x".join(map(str, values.shape))
        raise UserError(
            f"'{path}': a picture of this kind cannot hold {shape} numbers of type {values.dtype}; "
            "write .tif"
        )
    if not is_grey and "C" in form.axes.replace("N", "")[:1]:
        values = np.moveaxis(values, 0, 2)
    image = library.fromarray(np.ascontiguousarray(values))
    image.save(path)
