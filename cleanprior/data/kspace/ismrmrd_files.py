"""ISMRMRD raw data: lines of 2D Cartesian scans put in their places, noise lines apart."""

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ..claims import bytes_of, check_claim
from .scans import Complex, Scan, library, readout_of

#: Numbers of a line's indices that must be 0: one of each is read.
FIRST = ("average", "contrast", "phase", "repetition", "set")


def read_ismrmrd(path: Path, slices: tuple[int, int] | None = None) -> Scan:
    """Read the first average, contrast, phase, repetition and set of a 2D Cartesian scan.

    The file's own arrays have been checked to lie in it by :func:`..containers.named_arrays`.

    Raises:
        UserError: A scan with a second encoded axis, lines of different lengths, or no line.
    """
    ismrmrd = library("ismrmrd", f"read '{path}'")
    data = ismrmrd.Dataset(str(path), "dataset", mode="r")
    try:
        lines, noise, header = [], [], data.read_xml_header()
        for i in range(data.number_of_acquisitions()):
            one = data.read_acquisition(i)
            if one.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
                noise.append(np.asarray(one.data))
            elif not any(getattr(one.idx, key) for key in FIRST):
                lines.append(one)
    finally:
        data.close()
    if not lines:
        raise UserError(f"'{path}' holds no line of k-space")
    k_space = _in_places(path, lines)
    first, last = slices or (0, len(k_space))
    if not 0 <= first < last <= len(k_space):
        raise UserError(
            f"slices=[{first},{last}]; '{path}' holds the slices 0 to {len(k_space) - 1}"
        )
    found = np.concatenate(noise, 1).astype(np.complex64) if noise else None
    text = header if isinstance(header, bytes) else str(header).encode()
    readout = readout_of(path, text)
    return Scan(path.name, k_space[first:last], noise=found, readout=readout)


def _in_places(path: Path, lines: list[Any]) -> Complex:
    """Return (slices, coils, rows, columns) of lines.

    Raises:
        UserError: Lines that do not belong together.
    """
    shapes = {np.asarray(one.data).shape for one in lines}
    if len(shapes) > 1:
        raise UserError(f"'{path}' holds lines of different shapes: {sorted(shapes)[:4]}")
    if any(one.idx.kspace_encode_step_2 for one in lines):
        raise UserError(
            f"'{path}' encodes a third axis (kspace_encode_step_2); transform it and store slices"
        )
    coils, rows = shapes.pop()
    columns = 1 + max(int(one.idx.kspace_encode_step_1) for one in lines)
    count = 1 + max(int(one.idx.slice) for one in lines)
    claimed = bytes_of((count, coils, rows, columns), 8)
    check_claim(path, "dataset/data", claimed, path.stat().st_size)
    found = np.zeros((count, coils, rows, columns), np.complex64)
    for one in lines:
        found[one.idx.slice, :, :, one.idx.kspace_encode_step_1] = one.data
    return found


__all__ = ["read_ismrmrd"]
