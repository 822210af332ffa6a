r"""Coil maps of scans, :math:`\sum_c |S_c|^2 = 1` at every pixel, from the centre of k-space."""

import numpy as np

from ...errors import UserError
from .scans import Complex, library
from .steps import inverse, root_sum_of_squares

#: Side of the kernels, of the calibration square at most and at least, and the threshold on
#: singular values: Uecker et al. and sigpy's defaults.
KERNEL, LARGEST, SMALLEST, THRESHOLD = 6, 24, 4, 0.02


def espirit(k_space: Complex, centre: tuple[int, int]) -> Complex:
    """Estimate maps by ESPIRiT (sigpy), the phase of the first coil being 0.

    Nothing is cropped: outside the object a map is a unit vector, too, so that no pixel of x is
    hidden from all coils.

    Arguments:
        k_space: (slices, coils, rows, columns).
        centre: Rows and columns of the middle block that is measured; rows 1 for lines.

    Raises:
        UserError: A centre of fewer than 4 columns, or sigpy is not installed.

    References:
        ESPIRiT: an eigenvalue approach to autocalibrating parallel MRI (Uecker et al., 2014)
    """
    rows = k_space.shape[2] if centre[0] == 1 else centre[0]
    width = min(rows, centre[1], LARGEST)
    if width < SMALLEST:
        raise UserError(
            f"the measured centre has {centre[1]} columns; maps need at least {SMALLEST}: give "
            "them by data.maps=FILE"
        )
    app = library("sigpy.mri.app", "estimate coil maps (data.maps=espirit)")
    found = [
        app.EspiritCalib(
            np.ascontiguousarray(one),
            calib_width=width,
            thresh=THRESHOLD,
            kernel_width=min(KERNEL, width - 1),
            crop=0,
            show_pbar=False,
        ).run()
        for one in k_space
    ]
    return normalised(np.stack(found).astype(np.complex64))


def from_centre(centre_only: Complex) -> Complex:
    """Return the coils' images of the centre over their root sum of squares: no library needed."""
    return normalised(inverse(centre_only))


def normalised(maps: Complex) -> Complex:
    """Return maps whose squares sum to 1; where all coils are 0, all are equal."""
    power = root_sum_of_squares(maps)[:, None]
    flat = np.full_like(maps, maps.shape[1] ** -0.5)
    return np.where(power > 1e-12, maps / np.maximum(power, 1e-12), flat).astype(np.complex64)


def check_cover(name: str, maps: Complex, image: np.ndarray) -> None:
    """Refuse maps that are 0 where the object is.

    Arguments:
        name: The file of the maps.
        maps: (slices, coils, rows, columns).
        image: Magnitude of the centre's image, (slices, rows, columns).

    Raises:
        UserError: A hundredth of the object's energy lies where no coil sees anything.
    """
    dark = np.broadcast_to(root_sum_of_squares(maps) < 1e-3, image.shape)
    lost = float((image**2 * dark).sum() / (image**2).sum())
    if lost > 0.01:
        raise UserError(
            f"'{name}': the maps are 0 where {lost:.1%} of the object's energy lies; give maps of "
            "the whole object (ESPIRiT: a smaller crop)"
        )


def take_phase(maps: Complex, centre_only: Complex) -> Complex:
    """Put the phase of the centre's image into the maps, so that x is nearly real and positive."""
    combined = (maps.conj() * inverse(centre_only)).sum(1, keepdims=True)
    return (maps * np.exp(1j * np.angle(combined))).astype(np.complex64)


__all__ = ["check_cover", "espirit", "from_centre", "normalised", "take_phase"]
