"""NIfTI by nibabel: slices and volumes, ``.nii`` and ``.nii.gz``."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ..claims import bytes_of, check_claim
from .frames import Form, Frames, native


def read(
    path: Path,
    library: Any,
    stack: ExitStack,  # noqa: ARG001  (nibabel opens a file for each read)
) -> Mapping[str, Callable[[], Frames]]:
    """Return how to read the image: axes are rows, columns, slices, times, vectors.

    Raises:
        UserError: Another format of nibabel's, colours stored as records, or sizes that cannot be
            true.
    """
    image = library.load(path)
    if not isinstance(image, library.Nifti1Image | library.Nifti2Image):
        raise UserError(f"'{path}' is {type(image).__name__}, not NIfTI")

    def get() -> Frames:
        proxy, stored = image.dataobj, path.stat().st_size
        kind = np.dtype(proxy.dtype)
        if kind.kind not in "iufc":
            raise UserError(f"'{path}' holds values of type {kind}, which are no numbers")
        claimed = bytes_of(proxy.shape, kind.itemsize)
        check_claim(path, "array", claimed, stored)
        if path.suffix.lower() != ".gz" and claimed > stored:
            raise UserError(f"'{path}' claims {claimed:,} bytes and holds {stored:,}")
        slope, offset = float(proxy.slope), float(proxy.inter)
        is_scaled = (slope, offset) != (1.0, 0.0)
        values = np.asarray(proxy if is_scaled else proxy.get_unscaled())
        if is_scaled and kind.itemsize <= 2:
            values = values.astype(np.float32)
        axes = "HWNNCCC"[: values.ndim]
        return Frames(native(values), axes, kind.newbyteorder("="), slope, offset)

    return {"array": get}


def write(path: Path, values: NDArray[Any], form: Form, like: Path | None, library: Any) -> None:
    """Write one image with the header and the affine of ``like``."""
    header, affine = None, np.eye(4)
    if like is not None:
        source = library.load(like)
        header, affine = source.header.copy(), source.affine
    if values.dtype in (np.bool_, np.float16):
        values = values.astype(np.uint8 if values.dtype == np.bool_ else np.float32)
    image = library.Nifti1Image(values, affine, header, dtype=values.dtype)
    image.header.set_data_dtype(values.dtype)
    image.header.set_slope_inter(form.slope, form.offset)
    library.save(image, path)
