"""TIFF, OME-TIFF and ImageJ's TIFF by tifffile: pages of any depth, one file alone."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ..claims import bytes_of, check_claim
from .frames import Form, Frames, native

#: Compressions that turn bytes into bytes, by their number: none, LZW, Deflate (two numbers),
#: PackBits, Zstandard. Those of pictures (JPEG and its kin) change the numbers.
COMPRESSIONS = {1, 5, 8, 32773, 32946, 50000}
#: Dialects whose metadata say how pages belong together.
_DIALECTS = {"shaped", "ome", "imagej"}
#: Dialects that tifffile looks for before these, and which may lie in several files.
_OTHERS = {"lsm", "mmstack", "ndtiff"}


def read(path: Path, library: Any, stack: ExitStack) -> Mapping[str, Callable[[], Frames]]:
    """Return how to read each series of a file; pages of one size are one series.

    Raises:
        UserError: Pages of different sizes in a file that does not say how they belong together,
            another compression, a palette, or sizes that cannot be true.
    """
    tif = stack.enter_context(library.TiffFile(str(path), _multifile=False))
    stored = path.stat().st_size
    flags = set(tif.flags)
    if flags & _DIALECTS and not flags & _OTHERS:
        if "ome" in flags and any(series.kind != "ome" for series in tif.series):
            raise UserError(
                f"'{path}': its OME metadata place pictures in another file, which is not read; "
                "save them as one file, or without OME metadata"
            )
        found = {
            f"series{i}": partial(_series, path, series, stored)
            for i, series in enumerate(tif.series)
        }
    else:
        found = {"array": partial(_pages, path, tif, stored)}
    return found if len(found) != 1 else {"array": next(iter(found.values()))}


def _series(path: Path, series: Any, stored: int) -> Frames:
    _check_page(path, series.keyframe, stored)
    _check_size(path, series.shape, series.dtype, series.keyframe, stored)
    return _frames(series.asarray(), series.axes)


def _pages(path: Path, tif: Any, stored: int) -> Frames:
    pages = list(tif.pages)
    first = tif.pages.first
    for page in pages:
        if page.shape != first.shape or page.dtype != first.dtype:
            raise UserError(
                f"'{path}' holds pages of different sizes or types ({_told(first)}, "
                f"{_told(page)}); save those that belong together as one file"
            )
        _check_page(path, page, stored)
    _check_size(path, (len(pages), *first.shape), first.dtype, first, stored)
    values = np.stack([page.asarray() for page in pages])
    if len(pages) == 1:
        return _frames(values[0], first.axes)
    return _frames(values, f"I{first.axes}")


def _told(page: Any) -> str:
    return f"{'x'.join(map(str, page.shape))} {page.dtype}"


def _check_page(path: Path, page: Any, stored: int) -> None:
    """Refuse what is not decoded, and tiles that claim what the file cannot hold."""
    if int(page.compression) not in COMPRESSIONS:
        raise UserError(
            f"'{path}' is compressed by {_name(page.compression)}, which is not read; save it "
            "without compression, by LZW or by Deflate"
        )
    if page.dtype is None or int(page.photometric) == 3:
        kind = "a palette" if page.dtype is not None else "an unknown type"
        raise UserError(f"'{path}' has pixels of {kind}, which are no measurements")
    check_claim(path, "a tile", bytes_of(page.chunks, page.dtype.itemsize), stored)


def _name(number: Any) -> str:
    return str(getattr(number, "name", number))


def _check_size(path: Path, shape: Any, dtype: Any, page: Any, stored: int) -> None:
    claimed = bytes_of(shape, dtype.itemsize)
    check_claim(path, "pages", claimed, stored)
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 8 * dtype.itemsize
    if int(page.compression) == 1 and claimed * bits // (8 * dtype.itemsize) > stored:
        raise UserError(f"'{path}' claims {claimed:,} bytes of pixels and holds {stored:,}")


def _frames(values: NDArray[Any], axes: str) -> Frames:
    letters = {"Y": "H", "X": "W", "C": "C", "S": "C"}
    values = native(values)
    return Frames(values, "".join(letters.get(a, "N") for a in axes), values.dtype)


def write(path: Path, values: NDArray[Any], form: Form, like: Path | None, library: Any) -> None:
    """Write values as pages, in the dialect, the compression and the resolution of ``like``."""
    letters = _letters(form.axes)
    options: dict[str, Any] = {}
    metadata: dict[str, Any] = {"axes": letters}
    if like is not None:
        with library.TiffFile(str(like), _multifile=False) as tif:
            page, flags = tif.pages.first, set(tif.flags)
            options = {
                "compression": None if int(page.compression) == 1 else page.compression,
                "resolution": page.resolution,
                "resolutionunit": page.resolutionunit,
                "ome": "ome" in flags,
                "imagej": "imagej" in flags and values.dtype in (np.uint8, np.uint16, np.float32),
            }
    if not options.get("ome"):
        options.pop("ome", None)
    colours = values.shape[-1] if letters.endswith("S") else 1
    photometric = "rgb" if colours in (3, 4) else "minisblack"
    planar = {"planarconfig": "contig"} if colours > 1 else {}
    if options.get("imagej"):
        values, metadata = _as_imagej(values, letters)
    library.imwrite(path, values, photometric=photometric, metadata=metadata, **planar, **options)


def _letters(axes: str) -> str:
    """Return tifffile's letters for axes: frames are times, slices, then anything."""
    counts, found = iter("TZQPMR"), ""
    for i, axis in enumerate(axes):
        is_sample = axis == "C" and i == len(axes) - 1
        found += (
            next(counts)
            if axis == "N"
            else {"H": "Y", "W": "X"}.get(axis, "S" if is_sample else "C")
        )
    return found


def _as_imagej(values: NDArray[Any], letters: str) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return values with the axes that ImageJ has, TZCYX and samples."""
    order = [letters.index(a) for a in "TZCYXS" if a in letters]
    kept = "".join(letters[i] for i in order)
    if len(order) != len(letters):
        raise UserError(f"ImageJ's TIFF has no axes {letters}; write another kind of file")
    return values.transpose(order), {"axes": kept}
