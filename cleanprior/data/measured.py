r"""A user's own measurements: a file of y, operator parameters and noise levels, no clean image.

The file is an ``.npz``, HDF5 (``.h5``), zarr or ``.safetensors`` with the arrays

=================== ===================== ======================================================
name                shape                 what
=================== ===================== ======================================================
``y``               (n, ...)              measurements, in units of images in [-1, 1]; entries
                                          that were not measured are 0
``sigma_y``         (), (n,) or y's       standard deviation of the noise, in the same units; of
                                          each entry in y's shape, of each channel in (n, c, 1, 1)
``params/NAME``     (n, ...)              a parameter of the operator, e.g. ``params/mask``,
                                          (n, 1, h, w), 1 = measured
``test/...``        the same              measurements to hold out; without them a share is held
                                          out by a hash of each measurement
=================== ===================== ======================================================

For masks, blur and noise y has the shape of the images, (n, c, h, w); :mod:`measured_arrays
<cleanprior.data.measured_arrays>` says which other ways to store it are read. ``.`` instead of
``/`` in a name is the same. Files of instruments, which hold y alone, and folders of them are read
with what the user says of them, :class:`cleanprior.data.reading.Reading`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from ..errors import UserError, did_you_mean
from ..extras import optional
from ..mapped import blocks, rows
from ..notices import Notice
from ..operators.base import ImageShape, Operator, few, first, take
from ..operators.levels import column, same_axes
from ..seeding import generator_for
from .containers import SUFFIXES
from .contents import LEAST_SHARE
from .measurements import Batch, Measurements

#: y beyond 4 + 10 sigma_y is on another scale than images in [-1, 1], noise and all.
LARGEST, OUTLIER = 4.0, 10.0
#: y below this is on another scale too, as k-space that a scanner wrote.
SMALLEST = 0.01


@dataclass(frozen=True)
class MeasuredData:
    """Measurements of images that nobody has, in two disjoint splits.

    Attributes:
        name: Name of the data set, for tables.
        train: What the methods train on.
        test: Held-out measurements, for restoration.
        image_shape: Shape of one image, (channels, height, width).
        notices: What a user should know of them, told when they are loaded.
        per_pixel: What was done to single pixels of y, so that A must not mix them; or nothing.
        scales: What restorations of a split are multiplied by, (n,), where they have a scale of
            their own; by ``train`` and ``test``.
        law: The operator that they are measurements of, its name and keys, where their reader
            knows it.
    """

    name: str
    train: Measurements
    test: Measurements
    image_shape: ImageShape
    notices: tuple[Notice, ...] = ()
    per_pixel: str = ""
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    law: Mapping[str, Any] | None = None

    def split(self, name: str) -> Measurements:
        """Return the measurements of ``train`` or ``test``."""
        return self.train if name == "train" else self.test

    def check(self, operator: Operator) -> tuple[Notice, ...]:
        """Check that these are measurements of ``operator``.

        Returns:
            What should be told.

        Raises:
            UserError: Parameters that are missing, unknown, of another shape or of another law, a y
                of another shape or scale, values where nothing was measured, or another noise
                level.
        """
        if self.law is not None and operator.name != self.law["name"]:
            words = " ".join(f"operator.{k}={v}" for k, v in self.law.items() if k != "name")
            raise UserError(
                f"{self.name} are measurements of another operator than {operator.name}; set "
                f"operator={self.law['name']} {words}"
            )
        if self.per_pixel and not operator.capabilities & {"mask", "identity"}:
            raise UserError(f"{self.per_pixel}, and {operator.name} mixes pixels; leave it out")
        train = check_measurements(self.train, operator)
        test = check_measurements(self.test, operator, "test/")
        for split, measured in (("", self.train), ("test/", self.test)):
            _check_law(measured, operator, split)
        _check_level(max(_largest(m.sigma_y) for m in (self.train, self.test)), operator)
        found = (*(train or test), *_law(self.train, operator))
        return tuple(replace(n, text=f"{self.name}: {n.text}") for n in found)


def check_split(measured: Measurements, operator: Operator) -> tuple[Notice, ...]:
    """Check that measurements to train on are those of ``operator``, its law and noise included.

    Returns:
        What should be told.

    Raises:
        UserError: As :meth:`MeasuredData.check`.
    """
    found = check_measurements(measured, operator)
    _check_law(measured, operator)
    _check_level(_largest(measured.sigma_y), operator)
    return (*found, *_law(measured, operator))


def _check_law(measured: Measurements, operator: Operator, split: str = "") -> None:
    if measured.params and (reason := operator.mismatch(measured.params)) is not None:
        raise UserError(f"{split}params of the {len(measured)} measurements: {reason}")


def _largest(sigma_y: Tensor) -> float:
    return max(part.max().item() for part in blocks(sigma_y))


def _check_level(largest: float, operator: Operator) -> None:
    if abs(largest - operator.sigma) > 1e-5 * max(largest, operator.sigma):
        raise UserError(
            f"the measurements have a sigma_y of (at most) {largest:.6g}, and "
            f"operator.sigma is {operator.sigma:g}; set operator.sigma={largest:.6g}"
        )


def check_measurements(
    measured: Measurements, operator: Operator, split: str = ""
) -> tuple[Notice, ...]:
    """Check that measurements are those of ``operator``.

    Arguments:
        measured: The measurements.
        operator: Their operator.
        split: What stands before the names of this split in its file.

    Returns:
        What should be told.

    Raises:
        UserError: Parameters that are missing, unknown or of another shape, a y of another shape
            or scale, or values where nothing was measured.
    """
    check_shapes(measured, operator, split)
    seen = _Seen()
    for index in torch.arange(len(measured)).split(few(measured.y[:1].nbytes)):
        _check_y(measured, index, operator, split, seen)
    return tuple(_scale(seen, operator, measured, split))


@dataclass
class _Seen:
    """What the measured entries of y look like."""

    count: int = 0
    below: int = 0
    least: float = float("inf")
    most: float = float("-inf")

    def add(self, y: Tensor, sigma_y: Tensor, seen: Tensor) -> None:
        values, levels = y[seen > 0], same_axes(sigma_y, y)
        if len(values):
            self.count += len(values)
            self.below += int((values < -2 * levels[seen > 0]).sum())
            self.least = min(self.least, values.min().item())
            self.most = max(self.most, values.max().item())


def _scale(seen: _Seen, operator: Operator, measured: Measurements, split: str) -> Iterator[Notice]:
    """Tell of a y whose scale is not that of images in [-1, 1].

    Raises:
        UserError: Nothing was measured, or all of y is one number.
    """
    if seen.count == 0:
        raise UserError(f"{split}params say that nothing was measured in any image (1 = measured)")
    if seen.least == seen.most:
        raise UserError(f"{split}y is {seen.least:g} wherever it was measured: nothing to learn")
    largest = max(-seen.least, seen.most)
    if largest < SMALLEST:
        text = f"{split}y reaches only {largest:.3g}; images are in [-1, 1] and y in the same units"
        yield Notice(f"{text}: multiply y and sigma_y by about {1 / largest:.1g}", True)
        return
    if measured.y.dim() != 4 or "fourier" in operator.capabilities:
        return
    # Of images in [0, 1] at most 2.3 % of y lie two standard deviations of the noise below 0.
    has_noise = _largest(measured.sigma_y) > 0
    if seen.below <= 0.03 * seen.count * has_noise and seen.most > 0:
        text = f"{split}y has no values below 0 but for its noise ({seen.least:.3g} the least)"
        advice = "if they are in [0, 1], store 2 y - 1 where measured, and 2 sigma_y"
        yield Notice(f"{text}; images are in [-1, 1]: {advice}", True)
    elif seen.most - seen.least < 2 * LEAST_SHARE:
        text = f"{split}y lies from {seen.least:.3g} to {seen.most:.3g}, and images in [-1, 1]"
        yield Notice(f"{text}: almost a constant; distances will look too good", True)


def _law(measured: Measurements, operator: Operator) -> Iterator[Notice]:
    """Tell of parameters that are no random draws."""
    found = operator.with_law_of(measured.params)
    gained, shown = found.capabilities - operator.capabilities, operator.shown(measured.params)
    if "fixed" in gained:
        names = ", ".join(f"params/{k}" for k in measured.params)
        yield Notice(f"{names}: equal for all images, {operator.name} is one fixed operator", True)
    if "null_space" in gained and shown is not None:
        text = f"{int((~shown).sum())} of {shown.numel()} entries of y are measured in no image"
        yield Notice(f"{text}: what lies there comes from the method, not from y (null)", True)


def check_shapes(measured: Measurements | Batch, operator: Operator, split: str = "") -> None:
    """Check that parameters and y have the names and shapes that ``operator`` gives them.

    Raises:
        UserError: Parameters that are missing, unknown or of another shape, a y of another shape.
    """
    _check_params(measured, operator, split)
    zero = torch.zeros(1, *operator.image_shape)
    shape = tuple(operator.A(zero, first(measured.params)).shape[1:])
    if measured.y.shape[1:] != shape:
        raise UserError(
            f"{split}y has shape {_shape(measured.y.shape)}; {operator.name} makes "
            f"{_shape((len(measured), *shape))} of images {operator.image_shape}"
            + _advice(measured.y, operator, shape)
        )


def _check_params(measured: Measurements | Batch, operator: Operator, split: str) -> None:
    drawn = operator.draw(1, generator_for(0, "shapes"))
    needed = {k: tuple(v.shape[1:]) for k, v in drawn.items()}
    held = ", ".join(f"{split}params/{k}" for k in measured.params) or "no parameters"
    for key, shape in needed.items():
        wanted = f"{split}params/{key} of shape {_shape((len(measured), *shape))}"
        if key not in measured.params:
            raise UserError(
                f"operator {operator.name} needs {wanted}; the measurements have {held}"
            )
        found = tuple(measured.params[key].shape)
        if found[1:] != shape:
            raise UserError(f"operator {operator.name} needs {wanted}; theirs has {_shape(found)}")
    for key in sorted(measured.params.keys() - needed.keys()):
        allowed = ", ".join(f"params/{k}" for k in needed) or "none"
        raise UserError(
            f"'{split}params/{key}' is not a parameter of operator {operator.name}; its parameters "
            f"are: {allowed}.{did_you_mean(key, needed)}"
        )


def _check_y(
    measured: Measurements, index: Tensor, operator: Operator, split: str, total: _Seen
) -> None:
    y, params = rows(measured.y, index), take(measured.params, index)
    seen = operator.observed(y, params)
    begin = int(index[0])
    if not ((seen == 0) | (seen == 1)).all():
        raise UserError(
            f"{split}params must be 1 (measured) or 0 (not measured); other values found"
        )
    if (stray := ((1 - seen) * y != 0).flatten(1).any(1)).any():
        number = begin + int(stray.nonzero()[0])
        raise UserError(
            f"{split}y of image {number} holds values where its parameters say that nothing was "
            "measured; set them to 0, or mend the mask (1 = measured)"
        )
    sigma_y = rows(measured.sigma_y, index)
    total.add(y, sigma_y, seen)
    if not operator.is_image(y):
        return
    limit = LARGEST + OUTLIER * column(sigma_y, y)
    if (outside := (y.abs() > limit).flatten(1).any(1)).any():
        place = int(outside.nonzero()[0])
        raise UserError(
            f"{split}y of image {begin + place} reaches {y[place].abs().max():g}; images are in "
            f"[-1, 1] and sigma_y is {sigma_y[place].max():g} in the same units: scale "
            "both (8 bits: y = 2 y / 255 - 1 where measured, sigma_y = 2 sigma_y / 255), or set "
            "data.range=[LOW,HIGH] to the values that shall become -1 and 1"
        )


def _advice(y: Tensor, operator: Operator, shape: tuple[int, ...]) -> str:
    """Say what to set where y has another shape than A x."""
    if y.shape[1:] == operator.image_shape and shape != operator.image_shape:
        return "; set data.image_shape=[channels,height,width] to the shape of the images, not of y"
    if sorted(y.shape[1:]) == sorted(shape):
        return "; set data.layout to the order of y's axes, e.g. NHWC"
    return "; choose the operator that y was measured with, or mend the file"


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def write_splits(
    path: Path,
    train: Measurements,
    test: Measurements | None = None,
    scales: Mapping[str, Tensor] | None = None,
) -> None:
    """Write measurements as a file that :func:`measured_file` reads.

    Arguments:
        path: ``.npz``, ``.h5`` or ``.safetensors``.
        train: Measurements to train on.
        test: Measurements to hold out, or None.
        scales: What restorations of ``train`` and ``test`` are multiplied by, (n,) each.

    Raises:
        UserError: Another ending, a library that is missing, or a disk that refuses.
    """
    arrays: dict[str, Any] = {}
    for prefix, measured in (("", train), ("test/", test)):
        if measured is not None:
            for key, value in measured.tensors().items():
                name = prefix + key.replace("params.", "params/")
                arrays[name] = np.ascontiguousarray(value.numpy())
    for split, scale in (scales or {}).items():
        prefix = "" if split == "train" else "test/"
        if f"{prefix}y" in arrays:
            arrays[f"{prefix}scale"] = scale.numpy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            np.savez(path, **arrays)
        elif path.suffix == ".safetensors":
            save_file(arrays, path)
        elif path.suffix in (".h5", ".hdf5"):
            with optional("h5py", f"write '{path}'").File(path, "w") as file:
                for name, value in arrays.items():
                    file[name] = value
        else:
            raise UserError(
                f"'{path}' has no ending that is written; allowed: "
                + ", ".join(s for s in SUFFIXES if s not in (".npy", ".zarr"))
            )
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error}") from error
