"""DICOM by pydicom: uncompressed pixels alone, decoded here; no decoder of a plug-in is called."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ..claims import bytes_of, check_claim
from .frames import Form, Frames

#: Transfer syntaxes whose pixels are plain numbers -> their order of bytes.
SYNTAXES = {
    "1.2.840.10008.1.2": "<",
    "1.2.840.10008.1.2.1": "<",
    "1.2.840.10008.1.2.2": ">",
}
_COLOURS = ("MONOCHROME1", "MONOCHROME2", "RGB")


def read(
    path: Path,
    library: Any,
    stack: ExitStack,  # noqa: ARG001  (pydicom closes what it read)
) -> Mapping[str, Callable[[], Frames]]:
    """Return how to read the pixels, in the units that RescaleSlope and -Intercept make.

    Raises:
        UserError: Compressed pixels, colours other than grey and RGB, or sizes that cannot be true.
    """

    def get() -> Frames:
        # Before the rest is read: a deflated file expands as it is opened.
        meta = library.filereader.read_file_meta_info(str(path))
        order = _order(path, str(meta.get("TransferSyntaxUID", "")))
        held = library.dcmread(path)
        if str(held.get("PhotometricInterpretation")) not in _COLOURS:
            colours = held.get("PhotometricInterpretation")
            raise UserError(f"'{path}' has pixels of the kind {colours}, not read: save it as grey")
        if "PixelData" not in held:
            raise UserError(f"'{path}' holds no PixelData")
        raw, axes = _pixels(path, held, order)
        slope = float(held.get("RescaleSlope", 1) or 1)
        offset = float(held.get("RescaleIntercept", 0) or 0)
        if (slope, offset) == (1.0, 0.0):
            return Frames(raw, axes, raw.dtype)
        is_whole = slope.is_integer() and offset.is_integer()
        values = raw * slope + offset
        values = values.astype(np.int32 if is_whole else np.float32)
        return Frames(values, axes, raw.dtype, slope, offset)

    return {"array": get}


def _order(path: Path, syntax: str) -> str:
    if syntax not in SYNTAXES:
        raise UserError(
            f"'{path}' keeps its pixels compressed (transfer syntax {syntax or 'unknown'}), which "
            "are not decoded here; decompress it first (dcmdjpeg, dcmdrle or gdcmconv --raw)"
        )
    return SYNTAXES[syntax]


def _pixels(path: Path, held: Any, order: str) -> tuple[NDArray[Any], str]:
    """Return the stored numbers and what their axes are."""
    bits, used = int(held.BitsAllocated), int(held.get("BitsStored", held.BitsAllocated))
    if bits not in (8, 16, 32) or not 0 < used <= bits:
        raise UserError(f"'{path}' has pixels of {bits} bits ({used} used), which are not read")
    samples, frames = int(held.SamplesPerPixel), int(held.get("NumberOfFrames", 1) or 1)
    shape = [frames, int(held.Rows), int(held.Columns), samples]
    axes = "NHWC"
    if samples > 1 and int(held.get("PlanarConfiguration", 0)) == 1:
        shape, axes = [frames, samples, *shape[1:3]], "NCHW"
    claimed, content = bytes_of(shape, bits // 8), bytes(held.PixelData)
    check_claim(path, "PixelData", claimed, len(content))
    if min(shape) < 1 or claimed > len(content):
        raise UserError(f"'{path}' claims {claimed:,} bytes of pixels and holds {len(content):,}")
    kind = "i" if int(held.get("PixelRepresentation", 0)) else "u"
    raw = np.frombuffer(content, f"{order}{kind}{bits // 8}", claimed // (bits // 8))
    values = raw.reshape(shape).astype(f"{kind}{bits // 8}")
    if used < bits:  # what lies above belongs to no pixel
        values = (values << (bits - used)) >> (bits - used)
    for axis, letter in ((axes.index("C"), "C"), (0, "N")):
        if values.shape[axis] == 1:
            values, axes = values.squeeze(axis), axes.replace(letter, "")
    return values, axes


def write(path: Path, values: NDArray[Any], form: Form, like: Path | None, library: Any) -> None:
    """Write a derived, secondary image with the header of ``like`` and a name of its own.

    Raises:
        UserError: No file to take the header from, numbers that are no integers of 8 or 16 bits.
    """
    if like is None:
        raise UserError(f"'{path}': DICOM is written with the header of a DICOM file alone")
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        raise UserError(f"'{path}': DICOM holds integers, not {values.dtype}; write .tif or .nii")
    held = library.dcmread(like)
    order = SYNTAXES[str(held.file_meta.TransferSyntaxUID)]
    axes = form.axes
    held.Rows, held.Columns = (values.shape[axes.index(a)] for a in "HW")
    if "N" in axes:
        held.NumberOfFrames = values.shape[0]
    elif "NumberOfFrames" in held:
        held.NumberOfFrames = 1
    if "C" in axes:
        values = np.moveaxis(values, axes.index("C"), -1)
        held.PlanarConfiguration = 0
    held.ImageType = ["DERIVED", "SECONDARY", *list(held.get("ImageType", []))[2:]]
    held.SOPInstanceUID = library.uid.generate_uid()
    held.file_meta.MediaStorageSOPInstanceUID = held.SOPInstanceUID
    held.BitsStored, held.HighBit = held.BitsAllocated, held.BitsAllocated - 1
    for key in ("SmallestImagePixelValue", "LargestImagePixelValue"):
        if key in held:
            delattr(held, key)
    content = (
        np.ascontiguousarray(values)
        .astype(f"{order}{values.dtype.kind}{values.dtype.itemsize}")
        .tobytes()
    )
    held.PixelData = content + bytes(len(content) % 2)
    held.save_as(path)
