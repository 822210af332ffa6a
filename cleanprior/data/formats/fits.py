"""FITS by astropy: every image of a file, by its EXTNAME or its number."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ..claims import bytes_of, check_claim
from .frames import Form, Frames, native

#: Parts of a file that are listed.
MOST = 10_000


def read(path: Path, library: Any, stack: ExitStack) -> Mapping[str, Callable[[], Frames]]:
    """Return how to read each image; one image alone is ``array``.

    The last two axes are rows and columns, those before count frames.

    Raises:
        UserError: More parts than such files have, or sizes that cannot be true.
    """
    stack.enter_context(_quiet())
    # What is scaled cannot be mapped; values are read one image at a time, once checked.
    file = stack.enter_context(library.open(path, memmap=False))
    stored = path.stat().st_size
    found: dict[str, Callable[[], Frames]] = {}
    for number, part in enumerate(file):
        if number == MOST:
            raise UserError(f"'{path}' has more than {MOST:,} parts")
        if not part.is_image or not part.shape:
            continue
        name = part.name if part.name and part.name not in found else str(number)
        found[name] = partial(_frames, path, name, part, stored)
    return found if len(found) != 1 else {"array": next(iter(found.values()))}


def _frames(path: Path, name: str, part: Any, stored: int) -> Frames:
    # Astropy changes the header as it reads the numbers.
    bits = int(part.header["BITPIX"])
    slope, offset = float(part.header.get("BSCALE", 1)), float(part.header.get("BZERO", 0))
    claimed = bytes_of(part.shape, abs(bits) // 8)
    check_claim(path, name, claimed, stored)
    if type(part).__name__ != "CompImageHDU" and claimed > stored:
        raise UserError(f"'{path}' claims {claimed:,} bytes for '{name}' and holds {stored:,}")
    values = native(np.asarray(part.data))
    axes = "N" * (values.ndim - 2) + "HW" if values.ndim > 1 else "W"
    if values.dtype.kind in "iub" or bits < 0:
        return Frames(values, axes, values.dtype)
    return Frames(values, axes, np.dtype("uint8" if bits == 8 else f"int{bits}"), slope, offset)


def write(path: Path, values: NDArray[Any], form: Form, like: Path | None, library: Any) -> None:
    """Write one image with the header of the first image of ``like`` that has its size."""
    header = None
    with _quiet():
        if like is not None:
            with library.open(like, memmap=False) as file:
                images = [h for h in file if h.is_image and h.shape]
                same = [h for h in images if h.shape[-2:] == values.shape[-2:]] or images
                header = same[0].header.copy()
            for key in ("CHECKSUM", "DATASUM", "BLANK", "XTENSION"):
                header.remove(key, ignore_missing=True)
        is_scaled = (form.slope, form.offset) != (1.0, 0.0)
        if header is not None:
            header.remove("BSCALE", ignore_missing=True)
            header.remove("BZERO", ignore_missing=True)
        if values.dtype in (np.bool_, np.float16):
            values = values.astype(np.uint8 if values.dtype == np.bool_ else np.float32)
        part = library.PrimaryHDU(values, header)
        if is_scaled:
            # The header's words come last: astropy would scale the numbers again.
            part.header["BSCALE"], part.header["BZERO"] = form.slope, form.offset
            part._bscale, part._bzero = form.slope, form.offset
        library.HDUList([part]).writeto(path, overwrite=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Astropy warns of odd headers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
