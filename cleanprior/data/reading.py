"""What a user says of a file of measurements: its range, gaps, mask and noise level."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .array_sources import choose
from .containers import named_arrays
from .contents import check_range
from .formats import Frames
from .layouts import check_layout, with_axes
from .photons import Photons

Arrays = dict[str, NDArray[Any]]
#: Names under which a file may hold its mask.
MASKS = ("mask", "params/mask", "array")


@dataclass(frozen=True)
class Reading:
    """How the numbers of a file become measurements of images in [-1, 1].

    Arguments:
        layout: Order of y's axes, one of :data:`cleanprior.data.layouts.LAYOUTS`.
        key: Name of the array that is y, where the file holds several.
        range: The two stored values that become -1 and 1; noise may lie beyond. None: they are in
            units of images already.
        missing: ``"nan"`` where NaN means that nothing was measured: the mask is read from y.
        mask: A file (or a folder with a file for each picture), nonzero = measured; one mask for
            all, or one for each.
        sigma_y: Standard deviation of the noise in the stored units, for a file that holds none.
        photons: Gain, offset and read noise of a detector that counts photons: y is brought to
            noise of one level (:mod:`cleanprior.data.photons`), which needs ``range``.

    Raises:
        UserError: A value that is not offered.
    """

    layout: str | None = None
    key: str | None = None
    range: Sequence[float] | None = None
    missing: str | None = None
    mask: str | None = None
    sigma_y: float | None = None
    photons: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_layout(self.layout)
        limits = check_range(self.range)
        object.__setattr__(self, "range", limits)
        if self.missing not in (None, "nan"):
            raise UserError(f"missing='{self.missing}' is not offered; allowed: nan, null")
        level = self.sigma_y
        if level is not None and not 0 <= level < math.inf:
            raise UserError(f"sigma_y={level} is not a noise level; allowed: a number >= 0")
        if self.detector is not None and limits is None:
            raise UserError("data.photons needs data.range=[LOW,HIGH], the counts of -1 and 1")
        if self.detector is not None and level is not None:
            raise UserError("data.photons says what the noise is; leave data.sigma_y out")

    @property
    def detector(self) -> Photons | None:
        """What counted the photons, or None."""
        return Photons.of(self.photons)

    @property
    def scale(self) -> tuple[float, float]:
        """Factor and offset: a value times the one, plus the other, is in [-1, 1].

        A value as stored, or, of photons, one with noise of standard deviation 1.
        """
        if self.range is None:
            return 1.0, 0.0
        low, high = self.range
        if (detector := self.detector) is not None:
            low, high = (float(v) for v in detector.forward(np.array([low, high])))
        return 2 / (high - low), -(high + low) / (high - low)

    def unit(self, y: NDArray[Any]) -> NDArray[Any]:
        """Return stored values in units of images in [-1, 1]."""
        factor, offset = self.scale
        if (detector := self.detector) is not None:
            y = detector.forward(y)
        return y * factor + offset

    def stored(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return images in [-1, 1] in stored units."""
        factor, offset = self.scale
        values = (np.asarray(x, np.float64) - offset) / factor
        return values if self.detector is None else self.detector.inverse(values)

    def apply(
        self,
        path: Path,
        arrays: Arrays,
        sides: Mapping[str, int],
        names: Sequence[str] | None = None,
    ) -> list[str]:
        """Complete the arrays of one split in place; return what should be told.

        Arguments:
            path: The file, for errors.
            arrays: ``y`` as (n, c, h, w) where it is images, ``sigma_y``, ``params/NAME``.
            sides: Length of y's axes by their letter; empty where y is no image.
            names: The file that each image of a folder comes from.

        Raises:
            UserError: A mask that does not fit, NaN where something was measured, or a range for
                values that have no offset.
        """
        told = []
        if "sigma_y" not in arrays and self.sigma_y is not None:
            arrays["sigma_y"] = np.asarray(float(self.sigma_y))
        told += self._masked(path, arrays, sides, names)
        if gaps := _fill_gaps(arrays):
            told.append(f"y is NaN where nothing was measured ({gaps} entries), read as 0")
        if n := int(np.isnan(arrays["y"]).sum()):
            raise UserError(
                f"'{path}': the measurements hold NaN or infinity in 'y' ({n} times NaN); set "
                "data.missing=nan where it means that nothing was measured"
            )
        if self.range is not None:
            told.append(self._scaled(path, arrays, sides))
        return told

    def _masked(
        self,
        path: Path,
        arrays: Arrays,
        sides: Mapping[str, int],
        names: Sequence[str] | None,
    ) -> list[str]:
        """Make the mask from the user's file and from NaN; return what should be told."""
        told, y = [], arrays["y"]
        if (self.mask or self.missing) and not sides:
            raise UserError(f"'{path}': y of shape {y.shape} is no image, and has no mask")
        if self.mask is not None:
            if "params/mask" in arrays:
                raise UserError(f"'{path}' holds params/mask; leave data.mask out")
            mask = read_masks(Path(self.mask), y.shape, names)
            hidden = np.broadcast_to(mask == 0, y.shape)
            if n := int((hidden & (y != 0) & ~np.isnan(y)).sum()):
                told.append(f"y is read as 0 where data.mask hides it ({n} entries)")
            arrays["y"] = y = np.where(hidden, y.dtype.type(0), y)
            arrays["params/mask"] = np.broadcast_to(mask, (len(y), *mask.shape[1:]))
        if self.missing == "nan":
            seen = ~np.isnan(y)
            if (seen == seen[:, :1]).all():
                seen = seen[:, :1]
            if "params/mask" in arrays:
                seen = seen & (np.broadcast_to(arrays["params/mask"], seen.shape) > 0)
            elif seen.all():
                told.append("y holds no NaN, so that data.missing=nan hides nothing")
            arrays["params/mask"] = seen.astype(np.float32)
            told.append(f"{1 - seen.mean():.1%} of y is NaN or masked: not measured")
        return told

    def _scaled(self, path: Path, arrays: Arrays, sides: Mapping[str, int]) -> str:
        """Bring y and its noise level to units of images; return what should be told."""
        assert self.range is not None
        (low, high), (factor, offset) = self.range, self.scale
        if self.detector is not None and (not sides or "sigma_y" in arrays):
            raise UserError(f"'{path}': data.photons is for images whose file holds no sigma_y")
        if not sides and offset:
            raise UserError(
                f"'{path}': y is no image and has no offset; data.range=[-A,A] scales it"
            )
        y = self.unit(arrays["y"])
        mask = arrays.get("params/mask")
        if mask is not None and mask.ndim == y.ndim:
            y = np.where(np.broadcast_to(mask == 0, y.shape), 0.0, y)
        arrays["y"] = y
        if self.detector is not None:
            arrays["sigma_y"] = np.asarray(factor)
            return (
                f"photons are brought to Gaussian noise of one level, sigma_y = {factor:.6g} "
                f"(generalised Anscombe), by data.range=[{low:g},{high:g}]"
            )
        if "sigma_y" in arrays:
            arrays["sigma_y"] = np.asarray(arrays["sigma_y"] * factor)
        return f"y and sigma_y are read by data.range=[{low:g},{high:g}]"


AS_STORED = Reading()


def read_masks(
    path: Path, shape: Sequence[int], names: Sequence[str] | None = None
) -> NDArray[np.float32]:
    """Read which pixels were measured, (n or 1, c or 1, h, w), 1 = measured.

    Arguments:
        path: A file with one mask, or with one for each image; or a folder with a file for each
            picture, called as it is but for its ending.
        shape: (n, c, h, w) of the measurements.
        names: The file that each image comes from, where they come from a folder.

    Raises:
        UserError: No such file, another size or number, or more than two values.
    """
    if path.is_dir() and path.suffix.lower() != ".zarr":
        if names is None:
            raise UserError(f"data.mask={path} is a folder, and the measurements are one file")
        return _masks_by_name(path, shape, names)
    mask = _mask_file(path)
    n, channels, *size = shape
    fits = mask.shape[0] in (1, n) and mask.shape[1] in (1, channels)
    if not fits or list(mask.shape[2:]) != size:
        raise UserError(
            f"data.mask={path} has the shape {mask.shape}; needed: {size[0]}x{size[1]} pixels, one "
            f"mask for all or {n}"
        )
    return mask


def _masks_by_name(folder: Path, shape: Sequence[int], names: Sequence[str]) -> NDArray[np.float32]:
    from .array_files import files_of

    files = {PurePosixPath(n).with_suffix("").as_posix(): n for n in files_of(folder)}
    found = []
    read: dict[str, NDArray[np.float32]] = {}
    for name in names:
        stem = PurePosixPath(name).with_suffix("").as_posix()
        if stem not in files:
            raise UserError(f"data.mask={folder} holds no mask for '{name}': no file '{stem}.*'")
        if stem not in read:
            count = sum(n == name for n in names)
            read[stem] = read_masks(folder / files[stem], (count, *shape[1:]))
            read[stem] = np.broadcast_to(read[stem], (count, *read[stem].shape[1:]))
            found.append(read[stem])
    return np.concatenate(found)


def _mask_file(path: Path) -> NDArray[np.float32]:
    with named_arrays(path, "mask") as arrays:
        key = next((k for k in MASKS if k in arrays), None)
        rows = choose(path, arrays, key)
        values, layout = with_axes(rows, None)
        mask = np.asarray(values[:])
    if not isinstance(rows, Frames):
        layout = {2: "HW", 3: "NHW", 4: "NCHW"}.get(mask.ndim)
    if mask.dtype.kind not in "biuf" or layout is None:
        raise UserError(f"data.mask={path} holds {mask.dtype} of shape {mask.shape}, no mask")
    if mask.ndim < 4:
        mask = mask.reshape(-1, 1, *mask.shape[-2:])
    kinds = np.unique(mask)
    if np.isnan(mask).any() or len(kinds) > 2 or (len(kinds) == 2 and kinds[0] != 0):
        raise UserError(
            f"data.mask={path} holds {len(kinds)} values from {kinds[0]:g} to {kinds[-1]:g}; "
            "needed: 0 (not measured) and one other value"
        )
    if kinds[-1] == 0:
        raise UserError(f"data.mask={path} says that nothing was measured")
    return (mask != 0).astype(np.float32)


def _fill_gaps(arrays: Arrays) -> int:
    """Set y to 0 where it is NaN and a mask says that nothing was measured; return how often."""
    y, filled = arrays["y"], 0
    for key in ("params/mask", "params/rows"):
        if key not in arrays or not np.isnan(y).any():
            continue
        try:
            hidden = np.broadcast_to(arrays[key] == 0, y.shape) & np.isnan(y)
        except ValueError:
            continue  # of another shape: told when it is compared with the operator
        y = np.where(hidden, y.dtype.type(0), y)
        filled += int(hidden.sum())
    arrays["y"] = y
    return filled
