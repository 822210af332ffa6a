r"""A user's own measurements: a file of y, operator parameters and noise levels, no clean image.

The file is an ``.npz``, HDF5 (``.h5``), zarr or ``.safetensors`` with the arrays

=================== ===================== ======================================================
name                shape                 what
=================== ===================== ======================================================
``y``               (n, ...)              measurements, in units of images in [-1, 1]; entries
                                          that were not measured are 0
``sigma_y``         () or (n,)            standard deviation of the noise, in the same units
``params/NAME``     (n, ...)              a parameter of the operator, e.g. ``params/mask``,
                                          (n, 1, h, w), 1 = measured
``test/...``        the same              measurements to hold out; without them a share is held
                                          out by a hash of each measurement
=================== ===================== ======================================================

For masks, blur and noise y has the shape of the images, (n, c, h, w). ``.`` instead of ``/`` in a
name is the same.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from ..errors import UserError, did_you_mean
from ..notices import Notice
from ..operators.base import ImageShape, Operator, take
from ..seeding import generator_for
from .containers import SUFFIXES, optional
from .measurements import Measurements, read_splits
from .splits import held_out

#: Measurements that are checked at a time.
CHUNK = 512
#: y beyond 4 + 10 sigma_y is on another scale than images in [-1, 1], noise and all.
LARGEST, OUTLIER = 4.0, 10.0


@dataclass(frozen=True)
class MeasuredData:
    """Measurements of images that nobody has, in two disjoint splits.

    Attributes:
        name: Name of the data set, for tables.
        train: What the methods train on.
        test: Held-out measurements, for restoration.
        image_shape: Shape of one image, (channels, height, width).
        notices: What a user should know of them, told when they are loaded.
    """

    name: str
    train: Measurements
    test: Measurements
    image_shape: ImageShape
    notices: tuple[Notice, ...] = ()

    def split(self, name: str) -> Measurements:
        """Return the measurements of ``train`` or ``test``."""
        return self.train if name == "train" else self.test

    def check(self, operator: Operator) -> None:
        """Check that these are measurements of ``operator``.

        Raises:
            UserError: Parameters that are missing, unknown or of another shape, a y of another
                shape or scale, values where nothing was measured, or another noise level.
        """
        check_measurements(self.train, operator)
        check_measurements(self.test, operator, "test/")
        largest = max(self.train.sigma_y.max().item(), self.test.sigma_y.max().item())
        if abs(largest - operator.sigma) > 1e-5 * max(largest, operator.sigma):
            raise UserError(
                f"the measurements have a sigma_y of (at most) {largest:.6g}, and "
                f"operator.sigma is {operator.sigma:g}; set operator.sigma={largest:.6g}"
            )


def check_measurements(measured: Measurements, operator: Operator, split: str = "") -> None:
    """Check that measurements are those of ``operator``.

    Arguments:
        measured: The measurements.
        operator: Their operator.
        split: What stands before the names of this split in its file.

    Raises:
        UserError: Parameters that are missing, unknown or of another shape, a y of another shape
            or scale, or values where nothing was measured.
    """
    _check_params(measured, operator, split)
    for index in torch.arange(len(measured)).split(CHUNK):
        _check_y(measured, index, operator, split)


def _check_params(measured: Measurements, operator: Operator, split: str) -> None:
    drawn = operator.draw(1, generator_for(0, "shapes"))
    needed = {k: tuple(v.shape[1:]) for k, v in drawn.items()}
    held = ", ".join(f"{split}params/{k}" for k in measured.params) or "no parameters"
    for key, shape in needed.items():
        wanted = f"{split}params/{key} of shape {_shape((len(measured), *shape))}"
        if key not in measured.params:
            raise UserError(f"operator {operator.name} needs {wanted}; the file holds {held}")
        found = tuple(measured.params[key].shape)
        if found[1:] != shape:
            raise UserError(
                f"operator {operator.name} needs {wanted}; the file's has {_shape(found)}"
            )
    for key in measured.params.keys() - needed.keys():
        allowed = ", ".join(f"params/{k}" for k in needed) or "none"
        raise UserError(
            f"'{split}params/{key}' is no parameter of operator {operator.name}; its parameters: "
            f"{allowed}.{did_you_mean(key, needed)}"
        )


def _check_y(measured: Measurements, index: Tensor, operator: Operator, split: str) -> None:
    y, params = measured.y[index], take(measured.params, index)
    one = take(params, slice(0, 1))
    shape = tuple(operator.A(torch.zeros(1, *operator.image_shape), one).shape[1:])
    if y.shape[1:] != shape:
        raise UserError(
            f"{split}y has shape {_shape(measured.y.shape)}; {operator.name} makes "
            f"{_shape((len(measured), *shape))} of images {operator.image_shape}; set "
            "data.image_shape=[channels,height,width] where y has not the shape of the images"
        )
    seen = operator.observed(y, params)
    first = int(index[0])
    if not ((seen == 0) | (seen == 1)).all():
        raise UserError(f"{split}params tell of measured entries by 1 and others by 0; found more")
    if (stray := ((1 - seen) * y != 0).flatten(1).any(1)).any():
        number = first + int(stray.nonzero()[0])
        raise UserError(
            f"{split}y of image {number} holds values where its parameters say that nothing was "
            "measured; set them to 0, or mend the mask (1 = measured)"
        )
    if not operator.is_image(y):
        return
    limit = LARGEST + OUTLIER * measured.sigma_y[index].reshape(-1, *[1] * (y.dim() - 1))
    if (outside := (y.abs() > limit).flatten(1).any(1)).any():
        place = int(outside.nonzero()[0])
        raise UserError(
            f"{split}y of image {first + place} reaches {y[place].abs().max():g}; images are in "
            f"[-1, 1] and sigma_y is {measured.sigma_y[index][place]:g} in the same units: scale "
            "both (8 bits: y = 2 y / 255 - 1 where measured, sigma_y = 2 sigma_y / 255)"
        )


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def measured_file(
    path: str | None, image_shape: Sequence[int] | None, test_share: float
) -> MeasuredData:
    """Load a user's measurements; the module says what the file holds.

    Arguments:
        path: The file.
        image_shape: (channels, height, width) of the images, or None where y has their shape.
        test_share: Share of measurements held out by a hash of y, where the file holds no
            ``test/y``.

    Raises:
        UserError: The file is missing, damaged, lacks an array or holds one that is not known, or
            holds shapes or values that are none of measurements.
    """
    if path is None:
        raise UserError(
            "data=measurements needs data.path=FILE with the arrays y, sigma_y and params/NAME"
        )
    if not 0 < test_share < 1:
        raise UserError(f"test_share={test_share} is not a share; allowed: between 0 and 1")
    if image_shape is not None and (len(image_shape) != 3 or min(image_shape) < 1):
        raise UserError(f"image_shape={image_shape}; allowed: [channels,height,width]")
    file = Path(path)
    splits = read_splits(file)
    train = Measurements.of(file, splits["train"])
    if splits["test"]:
        test = Measurements.of(file, splits["test"], split="test/")
    else:
        if len(train) < 2:
            raise UserError(f"'{file}' holds one measurement; needed: at least 2, one is held out")
        keys = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in train.y]
        is_test = held_out(keys, test_share)
        train, test = _chosen(train, ~is_test), _chosen(train, is_test)
    if image_shape is None and train.y.dim() != 4:
        raise UserError(
            f"'{file}' holds y of shape {_shape(train.y.shape)}, which are no images; set "
            "data.image_shape=[channels,height,width]"
        )
    channels, height, width = image_shape or train.y.shape[1:]
    return MeasuredData(file.stem, train, test, (int(channels), int(height), int(width)))


def _chosen(measured: Measurements, chosen: Tensor) -> Measurements:
    index = chosen.nonzero()[:, 0]
    return Measurements(
        measured.y[index], take(measured.params, index), measured.sigma_y[index].clone()
    )


def write_splits(path: Path, train: Measurements, test: Measurements | None = None) -> None:
    """Write measurements as a file that :func:`measured_file` reads.

    Arguments:
        path: ``.npz``, ``.h5`` or ``.safetensors``.
        train: Measurements to train on.
        test: Measurements to hold out, or None.

    Raises:
        UserError: Another ending, a library that is missing, or a disk that refuses.
    """
    arrays: dict[str, Any] = {}
    for prefix, measured in (("", train), ("test/", test)):
        if measured is not None:
            for key, value in measured.tensors().items():
                name = prefix + key.replace("params.", "params/")
                arrays[name] = np.ascontiguousarray(value.numpy())
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
