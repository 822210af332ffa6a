"""A user's own measurements, loaded and split: what ``data=measurements`` builds."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..notices import Notice
from ..operators.base import take
from ..operators.levels import is_white, same_axes
from .layouts import scanned
from .measured import MeasuredData
from .measured_arrays import arrange
from .measurements import Measurements
from .patches import Patches
from .reading import Reading
from .splits import LEAST_HELD_OUT, held_out
from .user_files import Held, read_held


def measured_file(
    path: str | None,
    image_shape: Sequence[int] | None,
    test_share: float,
    layout: str | None = None,
    key: str | None = None,
    range: Sequence[float] | None = None,
    missing: str | None = None,
    mask: str | None = None,
    sigma_y: float | None = None,
    patch: int | None = None,
    stride: int | None = None,
    photons: Sequence[float] | None = None,
) -> MeasuredData:
    """Load a user's measurements; :mod:`cleanprior.data.measured` says what the file holds.

    Arguments:
        path: The file, or a folder with a file for each picture or stack.
        image_shape: (channels, height, width) of the images, or None where y has their shape.
        test_share: Share of measurements held out by a hash of y (of a folder: of the file's name),
            where the file holds no ``test/y`` and the folder no folders for it.
        layout: Order of y's axes, one of :data:`cleanprior.data.layouts.LAYOUTS`; None tells it
            from the file, or else from the shape, by the rule of arrays.
        key: Name of the array that is y, where a file holds several.
        range: The stored values that become -1 and 1; None where y is in these units.
        missing: ``nan`` where NaN means that nothing was measured.
        mask: File with one mask for all or one for each, or a folder with one for each picture.
        sigma_y: Noise level in the stored units, for a file that holds none.
        patch: Side of patches that are cut from y and its masks, for operators on single pixels.
        stride: Pixels from one patch to the next: None for ``patch``, 1 for every position.
        photons: Gain, offset and read noise, where y are counted photons.

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
    if stride is not None and patch is None:
        raise UserError(f"stride={stride} is that of patches; set data.patch, too")
    reading = Reading(layout, key, range, missing, mask, sigma_y, photons)
    squares = None if patch is None else Patches(patch, stride)
    file = Path(path)
    held = read_held(file, image_shape, reading)
    arrays, notices = arrange(file, held.train, held.layout, "", reading, held.names)
    train = Measurements.of(file, arrays)
    test = None
    if held.test:
        arrays, more = arrange(file, held.test, held.layout, "test/", reading, held.test_names)
        test, notices = Measurements.of(file, arrays, split="test/"), (*notices, *more)
    if squares is None:
        train, test, how = _split(file, held, train, test, test_share)
    else:
        train, test, how = _patches(file, held, train, test, test_share, squares)
    image_shape = image_shape or scanned(train.y.shape)
    if image_shape is None and train.y.dim() != 4:
        shape = f"({', '.join(map(str, train.y.shape))})"
        raise UserError(
            f"'{file}' holds y of shape {shape}, which are not images; set "
            "data.image_shape=[channels,height,width]"
        )
    channels, height, width = (image_shape if squares is None else None) or train.y.shape[1:]
    counts = f"{len(train)} measurements for training and {len(test)} held out, {how}"
    notices = (Notice(f"{file.name}: {counts}"), *held.notices, *notices)
    shape_of_one = (int(channels), int(height), int(width))
    scales = {
        split: torch.from_numpy(np.asarray(arrays["scale"], np.float32))
        for split, arrays in (("train", held.train), ("test", held.test))
        if arrays and "scale" in arrays and held.test
    }
    why = "data.patch cuts y" if squares is not None else ""
    why = "data.photons takes roots of y" if photons is not None else why
    return MeasuredData(file.stem, train, test, shape_of_one, notices, why, scales)


def _keys(held: Held, train: Measurements) -> tuple[list[str], str]:
    """Return by what each measurement is held out, and how to say it."""
    if held.names is not None and len(set(held.names)) > 1:
        return held.names, f"by a hash of the names of {len(set(held.names))} files"
    return [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in train.y], (
        "by a hash of each y"
    )


def _split(
    file: Path, held: Held, train: Measurements, test: Measurements | None, share: float
) -> tuple[Measurements, Measurements, str]:
    """Return both splits and how they were told apart.

    Raises:
        UserError: One is too small.
    """
    if test is None:
        keys, how = _keys(held, train)
        is_test = held_out(keys, share)
        return _chosen(train, ~is_test), _chosen(train, is_test), how
    if len(test) < LEAST_HELD_OUT:
        raise UserError(
            f"'{file}' holds one measurement below test/; needed: at least {LEAST_HELD_OUT}, "
            "or none (a share is held out)"
        )
    return train, test, held.how


def _patches(
    file: Path,
    held: Held,
    train: Measurements,
    test: Measurements | None,
    share: float,
    patches: Patches,
) -> tuple[Measurements, Measurements, str]:
    """Return patches of y and of all parameters on its pixels, none in both splits.

    Raises:
        UserError: Parameters that are not on the pixels of y, or too few patches.
    """
    if train.y.dim() != 4:
        raise UserError(f"'{file}': patches are cut from images, and y is none")
    size = (int(train.y.shape[2]), int(train.y.shape[3]))
    for key, value in train.params.items():
        if value.dim() != 4 or tuple(value.shape[2:]) != size:
            raise UserError(
                f"'{file}': params/{key} lies not on the pixels of y, so that patches have none; "
                "leave data.patch out"
            )
    whole, is_test, names = train, None, _keys(held, train)[0]
    if test is not None:
        whole = _together(train, test)
        is_test = [False] * len(train) + [True] * len(test)
        names = [str(i) for i in range(len(whole))]
    places, others, how = patches.split(names, [size] * len(whole), share, is_test)
    channels = sum(v.shape[1] for v in (whole.y, *whole.params.values()))
    cut = [
        _cut(whole, patches, patches.draw(p, None, channels, split))
        for p, split in ((places, "train"), (others, "test"))
    ]
    return cut[0], cut[1], f"patches of {patches.side} pixels {how}"


def _together(train: Measurements, test: Measurements) -> Measurements:
    params = {k: torch.cat([v, test.params[k]]) for k, v in train.params.items()}
    levels = [train.sigma_y, test.sigma_y]
    if levels[0].shape[1:] != levels[1].shape[1:]:
        levels = [same_axes(m.sigma_y, m.y) for m in (train, test)]
    level = torch.cat(levels)
    return Measurements(torch.cat([train.y, test.y]), params, level)


def _cut(whole: Measurements, patches: Patches, places: Tensor) -> Measurements:
    params = {k: patches.cut(list(v), places) for k, v in whole.params.items()}
    if is_white(whole.sigma_y):
        level = whole.sigma_y[places[:, 0]].clone()
    else:
        level = patches.cut(list(same_axes(whole.sigma_y, whole.y)), places)
    return Measurements(patches.cut(list(whole.y), places), params, level)


def _chosen(measured: Measurements, chosen: Tensor) -> Measurements:
    index = chosen.nonzero()[:, 0]
    return Measurements(
        measured.y[index], take(measured.params, index), measured.sigma_y[index].clone()
    )
