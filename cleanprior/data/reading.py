"""What a user says of a file of measurements: its range, gaps, mask and noise level."""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .contents import check_range
from .layouts import check_layout
from .mask_files import Mask, Masks, open_masks
from .photons import Photons

Arrays = dict[str, NDArray[Any]]


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

    @contextmanager
    def opened(
        self,
        path: Path,
        shape: Sequence[int],
        held: Collection[str],
        is_image: bool,
        names: Sequence[str] | None = None,
    ) -> "Iterator[Pass]":
        """Begin to complete the arrays of one split, block by block.

        Arguments:
            path: The file, for errors.
            shape: That of y, (n, c, h, w) where it is images.
            held: Names of the arrays that the file holds.
            is_image: Whether it is images.
            names: The file that each image of a folder comes from.

        Raises:
            UserError: A mask that does not fit, or a range for values that have no offset.
        """
        if (self.mask or self.missing) and not is_image:
            raise UserError(f"'{path}': y of shape {tuple(shape)} is no image, and has no mask")
        if self.mask is not None and "params/mask" in held:
            raise UserError(f"'{path}' holds params/mask; leave data.mask out")
        if self.detector is not None and (not is_image or "sigma_y" in held):
            raise UserError(f"'{path}': data.photons is for images whose file holds no sigma_y")
        if self.range is not None and not is_image and self.scale[1]:
            raise UserError(
                f"'{path}': y is no image and has no offset; data.range=[-A,A] scales it"
            )
        with ExitStack() as stack:
            masks = None
            if self.mask is not None:
                masks = stack.enter_context(open_masks(Path(self.mask), shape, names))
            yield Pass(path, self, masks)


@dataclass
class Pass:
    """The arrays of one split on their way to what operators have.

    Of what is a fact of the whole split, only whether all channels are measured together has to be
    known before the first block: :meth:`look` at all of y where :attr:`is_looking`.

    Arguments:
        path: The file, for errors.
        reading: What the user says of it.
        masks: Of the user's file of masks, or None.
    """

    path: Path
    reading: Reading
    masks: Masks | None
    _is_together: bool = True
    _covered: int = 0
    _gaps: int = 0
    _nan: int = 0
    _seen: int = 0
    _of: int = 0
    _has_mask: bool = False

    @property
    def is_looking(self) -> bool:
        """Whether all of y has to be looked at first."""
        return self.reading.missing == "nan"

    def look(self, y: NDArray[Any], first: int) -> None:
        """Look at a block of y, (b, c, h, w), whose images are counted from ``first`` on."""
        seen = ~np.isnan(self._masked({"y": y}, first)["y"])
        self._is_together = self._is_together and bool((seen == seen[:, :1]).all())

    def __call__(self, arrays: Arrays, first: int) -> None:
        """Complete a block of the arrays in place.

        Arguments:
            arrays: ``y`` as (b, c, h, w) where it is images, ``params/NAME``, and noise levels of
                its entries.
            first: The number of its first image.
        """
        y = arrays["y"]
        if self.masks is not None:
            self._covered += self._stray(y, first)
            self._masked(arrays, first)
        if self.reading.missing == "nan":
            self._find_gaps(arrays)
        self._gaps += _fill_gaps(arrays)
        self._nan += int(np.isnan(arrays["y"]).sum())
        if self.reading.range is None:
            return
        y = self.reading.unit(arrays["y"])
        if "sigma_y" in arrays:
            arrays["sigma_y"] = arrays["sigma_y"] * self.reading.scale[0]
        mask = arrays.get("params/mask")
        if mask is not None and mask.ndim == y.ndim:
            y = np.where(np.broadcast_to(mask == 0, y.shape), 0.0, y)
        arrays["y"] = y

    def level(self, held: NDArray[Any] | None) -> NDArray[Any] | None:
        """Return the noise level in units of images, of that in the file; None where none is."""
        factor = self.reading.scale[0]
        if self.reading.detector is not None:
            return np.asarray(factor)
        if held is None and self.reading.sigma_y is not None:
            held = np.asarray(float(self.reading.sigma_y))
        if held is None or self.reading.range is None:
            return held
        return np.asarray(held * factor)

    def end(self) -> list[str]:
        """Return what should be told of all blocks.

        Raises:
            UserError: NaN where something was measured.
        """
        told = []
        if self._covered:
            told.append(f"y is read as 0 where data.mask hides it ({self._covered} entries)")
        if self.reading.missing == "nan":
            if self._seen == self._of and not self._has_mask:
                told.append("y holds no NaN, so that data.missing=nan hides nothing")
            share = 1 - self._seen / self._of
            told.append(f"{share:.1%} of y is NaN or masked: not measured")
        if self._gaps:
            told.append(f"y is NaN where nothing was measured ({self._gaps} entries), read as 0")
        if self._nan:
            raise UserError(
                f"'{self.path}': the measurements hold NaN or infinity in 'y' ({self._nan} times "
                "NaN); set data.missing=nan where it means that nothing was measured"
            )
        if self.reading.range is not None:
            low, high = self.reading.range
            span = f"data.range=[{low:g},{high:g}]"
            if self.reading.detector is None:
                told.append(f"y and sigma_y are read by {span}")
            else:
                told.append(
                    "photons are brought to Gaussian noise of one level, sigma_y = "
                    f"{self.reading.scale[0]:.6g} (generalised Anscombe), by {span}"
                )
        return told

    def _mask(self, y: NDArray[Any], first: int) -> Mask:
        assert self.masks is not None
        return self.masks(first, first + len(y))

    def _stray(self, y: NDArray[Any], first: int) -> int:
        """Return how many values the user's mask hides."""
        hidden = np.broadcast_to(self._mask(y, first) == 0, y.shape)
        return int((hidden & (y != 0) & ~np.isnan(y)).sum())

    def _masked(self, arrays: Arrays, first: int) -> Arrays:
        """Hide what the user's mask hides; the mask becomes an array."""
        if self.masks is not None:
            y, mask = arrays["y"], self._mask(arrays["y"], first)
            arrays["y"] = np.where(np.broadcast_to(mask == 0, y.shape), y.dtype.type(0), y)
            arrays["params/mask"] = np.broadcast_to(mask, (len(y), *mask.shape[1:]))
        return arrays

    def _find_gaps(self, arrays: Arrays) -> None:
        """Take NaN as not measured."""
        seen = ~np.isnan(arrays["y"])
        if self._is_together:
            seen = seen[:, :1]
        if "params/mask" in arrays:
            self._has_mask = True
            seen = seen & (np.broadcast_to(arrays["params/mask"], seen.shape) > 0)
        self._seen, self._of = self._seen + int(seen.sum()), self._of + seen.size
        arrays["params/mask"] = seen.astype(np.float32)


AS_STORED = Reading()


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
