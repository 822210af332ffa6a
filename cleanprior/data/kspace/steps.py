r"""From k-space as it was acquired to y: each step is a function of arrays.

K-space is complex64 (slices, coils, rows, columns), the zero frequency in the middle, and F the
orthonormal centred transform.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from .scans import Complex, Numbers

#: Slices of less than this share of the energy of the strongest hold no object.
EMPTY = 0.02
#: Energy that the middle eighth of rows and columns has at least: k-space of an object has most of
#: it there, and an image a few hundredths.
IN_THE_MIDDLE = 0.3
#: A corner is where both frequencies exceed this share of the largest.
CORNER = 0.8
#: Numbers that an estimate of the noise level is made of at least.
LEAST_NUMBERS = 200
#: The median of |z| of a standard normal number.
MEDIAN = 0.6744897501960817


def transform(x: Complex, axes: tuple[int, ...] = (-2, -1)) -> Complex:
    """Return the centred orthonormal Fourier transform along axes."""
    found = np.fft.fftn(np.fft.ifftshift(x, axes=axes), axes=axes, norm="ortho")
    return np.fft.fftshift(found, axes=axes).astype(np.complex64)


def inverse(k_space: Complex, axes: tuple[int, ...] = (-2, -1)) -> Complex:
    """Return the inverse of :func:`transform`."""
    found = np.fft.ifftn(np.fft.ifftshift(k_space, axes=axes), axes=axes, norm="ortho")
    return np.fft.fftshift(found, axes=axes).astype(np.complex64)


def root_sum_of_squares(x: Complex) -> Numbers:
    """Return the root of the sum of squares over coils, (slices, rows, columns)."""
    return np.sqrt((np.abs(x) ** 2).sum(1)).astype(np.float32)


def check_kspace(name: str, k_space: Complex) -> None:
    """Refuse what is no k-space.

    Raises:
        UserError: NaN, all zero, or energy that is not in the middle of the last two axes.
    """
    if not np.isfinite(k_space).all():
        bad = np.argwhere(~np.isfinite(k_space))[0]
        raise UserError(f"'{name}' holds NaN or infinity, first in slice {bad[0]}, coil {bad[1]}")
    energy = (np.abs(k_space.astype(np.complex128)) ** 2).sum((0, 1))
    total = energy.sum()
    if total == 0:
        raise UserError(f"'{name}' is 0 everywhere")
    for shifted, where in ((energy, "the middle"), (np.fft.fftshift(energy), "the corners")):
        halves = [max(1, round(n / 16)) for n in energy.shape]
        rows, columns = (
            slice(n // 2 - half, n // 2 + half + 1)
            for n, half in zip(energy.shape, halves, strict=True)
        )
        share = shifted[rows, columns].sum() / total
        if share >= IN_THE_MIDDLE and where == "the middle":
            return
        if share >= IN_THE_MIDDLE:
            raise UserError(
                f"'{name}': the energy lies in the corners of axes 2 and 3 (rows, columns); move "
                "the zero frequency to the middle (numpy.fft.fftshift)"
            )
    raise UserError(
        f"'{name}': the energy does not lie in the middle of axes 2 and 3 (rows, columns), as that "
        "of k-space does; is it an image? Transform it, or put the axes in that order"
    )


def object_slices(k_space: Complex) -> NDArray[np.intp]:
    """Return which slices hold an object: ends of a volume that are empty are not among them."""
    energy = (np.abs(k_space) ** 2).sum((1, 2, 3))
    return np.flatnonzero(energy > EMPTY * energy.max())


def remove_oversampling(k_space: Complex, rows: int) -> Complex:
    """Keep the middle ``rows`` of the field of view along the readout (rows)."""
    height = k_space.shape[2]
    top = (height - rows) // 2
    image = inverse(k_space, (-2,))[:, :, top : top + rows]
    return transform(image, (-2,))


def prewhiten(k_space: Complex, noise: Complex) -> Complex:
    """Return coils whose noise is white: real and imaginary parts of variance 1.

    Arguments:
        k_space: (slices, coils, rows, columns).
        noise: Samples of noise alone, (coils, n), more than coils.

    Raises:
        UserError: Another number of coils, or too few samples.

    References:
        SENSE: sensitivity encoding for fast MRI (Pruessmann et al., 1999), appendix
    """
    coils = k_space.shape[1]
    if noise.ndim != 2 or noise.shape[0] != coils or noise.shape[1] < 4 * coils:
        raise UserError(
            f"noise samples of shape {noise.shape}; needed: ({coils} coils, at least {4 * coils})"
        )
    values = noise.astype(np.complex128)
    covariance = values @ values.conj().T / values.shape[1] / 2
    try:
        white = np.linalg.inv(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError as error:
        raise UserError("the noise samples of some coils depend on each other") from error
    return np.einsum("dc,scrk->sdrk", white, k_space).astype(np.complex64)


def compress(k_space: Complex, coils: int) -> Complex:
    """Combine coils into fewer virtual ones that keep most energy; white noise stays white.

    Arguments:
        k_space: (slices, coils, rows, columns); one combination for all slices.
        coils: Virtual coils, at most the coils.

    References:
        Array compression for MRI with large coil arrays (Huang et al., 2008)
    """
    flat = np.moveaxis(k_space, 1, 0).reshape(k_space.shape[1], -1).astype(np.complex128)
    _, vectors = np.linalg.eigh(flat @ flat.conj().T)
    first = vectors[:, ::-1][:, :coils].conj().T
    return np.einsum("dc,scrk->sdrk", first, k_space).astype(np.complex64)


def mask_from_zeros(k_space: Complex) -> Numbers:
    """Return what was measured in each slice, (slices, 1, columns) of lines, else (..., rows, ...).

    A position is measured where any coil is not 0. Lines need every row of a column, or none.
    """
    seen = (k_space != 0).any(1)
    columns = seen.any(1, keepdims=True)
    # A row may be 0 in all coils by chance, not a tenth of a line.
    is_line = (seen.sum(1, keepdims=True) > 0.9 * seen.shape[1]) == columns
    return (columns if is_line.all() else seen).astype(np.float32)


def centre_of(mask: Numbers) -> tuple[int, int]:
    """Return rows and columns of the largest middle block that is measured in all slices."""
    always = mask.min(0) > 0
    rows, columns = always.shape
    for side in range(columns, 0, -1):
        high = min(side, rows)
        top, left = rows // 2 - high // 2, columns // 2 - side // 2
        if always[top : top + high, left : left + side].all():
            return high, side
    return 0, 0


def only_centre(k_space: Complex, centre: tuple[int, int]) -> Complex:
    """Return k-space with 0 outside the middle block; of lines the block has all rows."""
    rows, columns = k_space.shape[2:]
    high, wide = (rows if centre[0] == 1 else centre[0]), centre[1]
    top, left = rows // 2 - high // 2, columns // 2 - wide // 2
    found = np.zeros_like(k_space)
    block = (..., slice(top, top + high), slice(left, left + wide))
    found[block] = k_space[block]
    return found


def crop(values: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.generic]:
    """Keep the middle of k-space (of a mask): the same field of view in larger pixels."""
    rows, columns = values.shape[-2:]
    high, wide = (1 if rows == 1 else size[0]), size[1]
    top, left = rows // 2 - high // 2, columns // 2 - wide // 2
    return values[..., top : top + high, left : left + wide]


@dataclass(frozen=True)
class Level:
    """A noise level and where it comes from.

    Attributes:
        value: Standard deviation of real and imaginary parts.
        origin: In words.
    """

    value: float
    origin: str


def level_from_corners(k_space: Complex, mask: Numbers) -> Level:
    """Estimate the noise level from the outer corners of k-space by the median absolute deviation.

    Where too few of the corners are measured, the outermost tenth of what is measured.

    Arguments:
        k_space: (slices, coils, rows, columns).
        mask: (slices, 1 or rows, columns).

    Raises:
        UserError: Hardly anything is measured there.
    """
    rows, columns = k_space.shape[2:]
    down, right = (np.abs(np.arange(n) - n // 2) / (n / 2) for n in (rows, columns))
    corner = (down[:, None] > CORNER) & (right[None] > CORNER)
    seen = np.broadcast_to(mask > 0, (len(k_space), rows, columns))
    where, origin = seen & corner, "the outer corners of k-space"
    if where.sum() * k_space.shape[1] < LEAST_NUMBERS:
        radius = np.broadcast_to(np.hypot(down[:, None], right[None]), seen.shape)
        if not seen.any():
            raise UserError("nothing is measured")
        where = seen & (radius >= np.quantile(radius[seen], 0.9))
        origin = "the outermost tenth of the measured k-space"
    values = np.moveaxis(k_space, 1, 0)[:, where]
    if values.size < LEAST_NUMBERS:
        raise UserError(
            f"only {values.size} numbers lie in the outer k-space, too few for a noise level; set "
            "data.sigma_y (standard deviation of real and imaginary parts, in the file's units)"
        )
    parts = np.abs(np.concatenate([values.real, values.imag], None))
    return Level(float(np.median(parts)) / MEDIAN, f"{origin}, by the median absolute deviation")


def scale_of(images: Numbers) -> Numbers:
    """Return what each slice is divided by: the 99th percentile of its magnitude, (slices,)."""
    return np.percentile(images.reshape(len(images), -1), 99, axis=1).astype(np.float32)


__all__ = [
    "Level",
    "centre_of",
    "check_kspace",
    "compress",
    "crop",
    "inverse",
    "level_from_corners",
    "mask_from_zeros",
    "object_slices",
    "only_centre",
    "prewhiten",
    "remove_oversampling",
    "root_sum_of_squares",
    "scale_of",
    "transform",
]
