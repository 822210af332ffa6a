"""Files of k-space: fastMRI and M4Raw HDF5, ISMRMRD, BART's cfl, numpy arrays.

Whatever the file, a :class:`Scan` is complex64 (slices, coils, rows, columns) with the zero
frequency in the middle. Lines that were left out run along the rows: columns are phase-encoded.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...extras import optional
from ...outside import read_text
from ..claims import bytes_of, check_claim
from ..containers import Rows, named_arrays, whole

#: Endings of files that are read, beside a folder of these.
SUFFIXES = (".h5", ".hdf5", ".npy", ".npz", ".cfl", ".safetensors", ".zarr")
#: Names under which a file may hold its k-space.
NAMES = ("kspace", "array")
#: Coils that a scanner has at most: a longer axis is one of pixels.
MOST_COILS = 128
#: Bytes of a header in words.
HEADER = 1 << 20

Complex = NDArray[np.complexfloating[Any, Any]]
Numbers = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Scan:
    """What a file holds.

    Attributes:
        name: The file's name.
        kspace: (slices, coils, rows, columns).
        mask: (columns,) or (rows, columns) of 0 and 1, 1 = measured, or None.
        maps: Coil maps, (1 or slices, coils, rows, columns), or None.
        noise: Samples of noise alone, (coils, n), or None.
        readout: Rows of the field of view that the scanner reconstructs, or None.
    """

    name: str
    kspace: Complex
    mask: Numbers | None = None
    maps: Complex | None = None
    noise: Complex | None = None
    readout: int | None = None


def read_scan(path: Path, slices: tuple[int, int] | None = None) -> Scan:
    """Read a file of k-space.

    Arguments:
        path: ``.h5`` (fastMRI, M4Raw, ISMRMRD), ``.cfl`` with its ``.hdr``, ``.npy`` or ``.npz``.
        slices: First slice and the one after the last; None for all.

    Raises:
        UserError: Another ending, a damaged file, or an array that is no k-space: which axis is
            wrong.
    """
    suffix = path.suffix.lower()
    if suffix == ".hdr":
        path, suffix = path.with_suffix(".cfl"), ".cfl"
    if suffix not in SUFFIXES:
        raise UserError(f"'{path}' has no known ending; allowed: {', '.join(SUFFIXES)}")
    if suffix == ".cfl":
        return Scan(path.name, _chosen(path, _axes_of_cfl(path, read_cfl(path)), slices))
    with named_arrays(path, "file of k-space") as found:
        if "dataset/data" in found and "kspace" not in found:
            from .ismrmrd_files import read_ismrmrd

            return read_ismrmrd(path, slices)
        name = next((n for n in NAMES if n in found), None)
        if name is None:
            names = ", ".join(sorted(found)) or "none"
            raise UserError(
                f"'{path}' holds no array 'kspace'; found: {names} (of a file with y, params/mask "
                "and params/coil_maps: data=measurements, or store them as data=kspace reads them)"
            )
        stored = found[name]()
        check_axes(path, name, stored)
        k_space = _chosen(path, stored, slices)
        mask = None if "mask" not in found else np.squeeze(whole(found["mask"]())).astype("f4")
        return Scan(path.name, k_space, mask, readout=_readout(path, found))


def is_scan(path: Path) -> bool:
    """Whether a file says of itself that it holds k-space; of a bare array nobody knows."""
    if path.suffix.lower() in (".cfl", ".hdr"):
        return True
    if path.suffix.lower() not in SUFFIXES:
        return False
    try:
        with named_arrays(path, "file of k-space") as found:
            return "y" not in found and bool({NAMES[0], "dataset/data"} & set(found))
    except UserError:
        return False


def check_axes(path: Path, name: str, stored: Rows) -> None:
    """Refuse an array that cannot be (slices, coils, rows, columns).

    Raises:
        UserError: The axis that is wrong, and what to do.
    """
    shape, kind = tuple(stored.shape), np.dtype(stored.dtype).kind
    what = f"'{path}' holds '{name}' of shape {shape}"
    if kind != "c":
        pairs = [i for i, n in enumerate(shape) if n == 2]
        hint = f"axis {pairs[-1]} of length 2 may be real and imaginary part: " if pairs else ""
        raise UserError(
            f"{what} and type {stored.dtype}; k-space is complex: {hint}store it as complex64"
        )
    if len(shape) not in (3, 4) or 0 in shape:
        raise UserError(f"{what}; needed: (slices, coils, rows, columns), or three of these axes")
    coils, last = shape[-3], shape[-1]
    if len(shape) == 4 and last < min(shape[1:3]) / 2:
        raise UserError(
            f"{what}: axis 3 ({last}) looks like coils; needed: (slices, coils, rows, columns), "
            "move it to axis 1"
        )
    if len(shape) == 3 and last < min(shape[:2]) / 2:
        raise UserError(
            f"{what}: axis 2 ({last}) looks like coils; needed: (coils, rows, columns), move it to "
            "axis 0"
        )
    if len(shape) == 4 and coils > MOST_COILS:
        raise UserError(f"{what}: axis 1 ({coils}) are more coils than scanners have")


def _chosen(path: Path, stored: Rows, slices: tuple[int, int] | None) -> Complex:
    """Read slices of a checked array as (slices, coils, rows, columns)."""
    if len(stored.shape) == 3 and path.suffix.lower() in (".h5", ".hdf5"):
        n, several = stored.shape[0], False  # fastMRI's single coil: (slices, rows, columns)
    else:
        n, several = (1 if len(stored.shape) == 3 else stored.shape[0]), True
    first, last = slices or (0, n)
    if not 0 <= first < last <= n:
        raise UserError(f"slices=[{first},{last}]; '{path}' holds the slices 0 to {n - 1}")
    if several and len(stored.shape) == 3:
        values = np.asarray(stored[:])[None]
    else:
        values = np.asarray(stored[first:last])
        values = values if several else values[:, None]
    return values.astype(np.complex64)


def read_cfl(path: Path) -> Complex:
    """Read BART's pair of ``.cfl`` and ``.hdr`` as it lies there: first axis fastest.

    Raises:
        UserError: One of them is missing or damaged.
    """
    words = read_text(path.with_suffix(".hdr"), HEADER).split("\n")
    try:
        line = next(words[i + 1] for i, w in enumerate(words) if w.strip() == "# Dimensions")
        shape = [int(n) for n in line.split()]
    except (StopIteration, IndexError, ValueError) as error:
        raise UserError(f"'{path.with_suffix('.hdr')}' holds no line of dimensions") from error
    if not shape or len(shape) > 32 or min(shape) < 1:
        raise UserError(f"'{path.with_suffix('.hdr')}' holds dimensions that are none: {shape}")
    if not path.is_file():
        raise UserError(f"'{path}' is not a file; it belongs to its .hdr")
    size, claimed = path.stat().st_size, bytes_of(shape, 8)
    check_claim(path, "kspace", claimed, size)
    if size != claimed:
        raise UserError(f"'{path}' has {size:,} bytes and its .hdr claims {claimed:,}")
    return np.fromfile(path, np.complex64).reshape(shape, order="F")


def _axes_of_cfl(path: Path, stored: Complex) -> Complex:
    """Return (slices, coils, rows, columns) of BART's read, phase 1, phase 2, coil, ..., slice.

    Raises:
        UserError: More axes than these, which the message names.
    """
    shape = [*stored.shape, *[1] * (16 - stored.ndim)]
    others = [i for i, n in enumerate(shape) if n > 1 and i not in (0, 1, 3, 13)]
    if others:
        text = ", ".join(f"axis {i} ({shape[i]})" for i in others)
        raise UserError(
            f"'{path}': {text} of BART's order are no rows (0), columns (1), coils (3) or slices "
            "(13); choose one (bart slice), or transform a third encoded axis first"
        )
    found = stored.reshape(shape, order="F").transpose(13, 3, 0, 1, *_rest(shape))
    return np.ascontiguousarray(found.reshape(shape[13], shape[3], shape[0], shape[1]))


def _rest(shape: list[int]) -> list[int]:
    return [i for i in range(len(shape)) if i not in (0, 1, 3, 13)]


def read_maps(path: Path, coils: int, size: tuple[int, int]) -> Complex:
    """Read coil maps of a file, (1 or slices, coils, rows, columns).

    Raises:
        UserError: A damaged file, another number of coils, or maps of another size.
    """
    if path.suffix.lower() in (".cfl", ".hdr"):
        stored = read_cfl(path.with_suffix(".cfl"))
        shape = [*stored.shape, *[1] * (16 - stored.ndim)]
        full = stored.reshape(shape, order="F")
        first = full[:, :, :, :, :1].reshape([*shape[:4], 1, *shape[5:]], order="F")
        values = _axes_of_cfl(path, first)
    else:
        with named_arrays(path, "file of coil maps") as found:
            name = next((n for n in ("coil_maps", "params/coil_maps", "array") if n in found), None)
            if name is None:
                names = ", ".join(sorted(found)) or "none"
                raise UserError(f"'{path}' holds no array 'coil_maps'; found: {names}")
            stored_maps = found[name]()
            check_axes(path, name, stored_maps)
            values = np.asarray(stored_maps[:]).astype(np.complex64)
            values = values if values.ndim == 4 else values[None]
    if values.shape[1] != coils:
        raise UserError(
            f"'{path}' holds maps of {values.shape[1]} coils (axis {values.ndim - 3}) and the "
            f"k-space has {coils}"
        )
    if values.shape[2:] != size:
        raise UserError(f"'{path}' holds maps of {values.shape[2:]} pixels, the k-space of {size}")
    return values


def _readout(path: Path, found: Mapping[str, Callable[[], Rows]]) -> int | None:
    """Return the rows of the reconstructed field of view by an ISMRMRD header, where there is one.

    Raises:
        UserError: A header that is none.
    """
    if "ismrmrd_header" not in found:
        return None
    held: Any = found["ismrmrd_header"]()
    text = held[()]
    return readout_of(path, text if isinstance(text, bytes) else str(text).encode())


def readout_of(path: Path, header: bytes) -> int | None:
    """Return ``reconSpace.matrixSize.x`` scaled to the encoded pixels, by an ISMRMRD header.

    Raises:
        UserError: It is no such header, or declares entities.
    """
    if len(header) > HEADER or b"<!DOCTYPE" in header or b"<!ENTITY" in header:
        raise UserError(f"'{path}': its ismrmrd_header is no plain header")
    try:
        root = ElementTree.fromstring(header)
        number: dict[str, float] = {}
        for space in ("encodedSpace", "reconSpace"):
            for key in ("matrixSize", "fieldOfView_mm"):
                node = root.find(f".//{{*}}{space}/{{*}}{key}/{{*}}x")
                if node is None or node.text is None:
                    return None
                number[f"{space}.{key}"] = float(node.text)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"'{path}': its ismrmrd_header is damaged: {error}") from error
    encoded, fov = number["encodedSpace.matrixSize"], number["encodedSpace.fieldOfView_mm"]
    if not (fov > 0 and math.isfinite(encoded / fov)):
        return None
    return round(encoded * number["reconSpace.fieldOfView_mm"] / fov)


def library(name: str, purpose: str) -> Any:
    """Import a library of the extra ``mri``.

    Raises:
        UserError: It is missing; the message says how to install it.
    """
    return optional(name, purpose, "mri")


__all__ = ["Scan", "check_axes", "read_cfl", "read_maps", "read_scan", "readout_of"]
