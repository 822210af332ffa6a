"""A user's own measurements, loaded and split: what ``data=measurements`` builds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..mapped import Pile, blocks, release
from ..notices import Notice
from ..operators.levels import is_white, same_axes
from .containers import whole
from .layouts import scanned
from .measured import MeasuredData
from .measured_arrays import BLOCK, arrange
from .measurements import Measurements
from .patches import Patches
from .reading import Reading
from .shelf import splits
from .splits import LEAST_HELD_OUT, digests_of, held_out, held_out_rows
from .user_files import Held, open_held


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

    The file is read in blocks. Measurements that are large lie in files of their own
    (:mod:`cleanprior.data.shelf`), so that memory is that of a block, whatever their number.

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
    with open_held(file, image_shape, reading) as held:
        arrays, notices = arrange(file, held.train, held.layout, "", reading, held.names)
        train = Measurements.of(file, arrays)
        test = None
        if held.test:
            arrays, more = arrange(file, held.test, held.layout, "test/", reading, held.test_names)
            test, notices = Measurements.of(file, arrays, split="test/"), (*notices, *more)
        scales = {
            split: torch.from_numpy(whole(arrays["scale"]).astype(np.float32))
            for split, arrays in (("train", held.train), ("test", held.test))
            if "scale" in arrays and held.test
        }
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
    why = "data.patch cuts y" if squares is not None else ""
    why = "data.photons takes roots of y" if photons is not None else why
    return MeasuredData(file.stem, train, test, shape_of_one, notices, why, scales)


def _files(held: Held) -> list[str] | None:
    """Return the file that each measurement comes from, where there are several."""
    return held.names if held.names is not None and len(set(held.names)) > 1 else None


def _split(
    file: Path, held: Held, train: Measurements, test: Measurements | None, share: float
) -> tuple[Measurements, Measurements, str]:
    """Return both splits and how they were told apart.

    Raises:
        UserError: One is too small.
    """
    if test is None:
        names = _files(held)
        if names is None:
            is_test, how = held_out_rows(digests_of(train.y), share), "by a hash of each y"
        else:
            is_test = held_out(names, share)
            how = f"by a hash of the names of {len(set(names))} files"
        places = [of.nonzero()[:, 0] for of in (~is_test, is_test)]
        return *splits((train, places[0]), (train, places[1])), how
    if len(test) < LEAST_HELD_OUT:
        raise UserError(
            f"'{file}' holds one measurement below test/; needed: at least {LEAST_HELD_OUT}, "
            "or none (a share is held out)"
        )
    return *splits((train, None), (test, None)), held.how


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
    images, is_test, names = train, None, _files(held)
    if test is not None:
        images = _together(train, test)
        is_test = [False] * len(train) + [True] * len(test)
        names = [str(i) for i in range(len(images))]
    elif names is None:
        names = [digest.decode() for digest in digests_of(train.y)]
    places, others, how = patches.split(names, [size] * len(images), share, is_test)
    cut = [
        _cut(images, patches, patches.draw(p, None, 0, split))
        for p, split in ((places, "train"), (others, "test"))
    ]
    return *splits((cut[0], None), (cut[1], None)), f"patches of {patches.side} pixels {how}"


def _together(train: Measurements, test: Measurements) -> Measurements:
    pairs = {k: [v, test.tensors()[k]] for k, v in train.tensors().items()}
    if train.sigma_y.shape[1:] != test.sigma_y.shape[1:]:
        pairs["sigma_y"] = [same_axes(m.sigma_y, m.y) for m in (train, test)]
    return _of({k: _joined(pair) for k, pair in pairs.items()})


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    pile = Pile()
    for tensor in tensors:
        for part in blocks(tensor):
            pile.add(part)
    return pile.tensor()


def _cut(images: Measurements, patches: Patches, places: Tensor) -> Measurements:
    """Return patches of y and of its parameters, cut in blocks."""
    tensors, found = images.tensors(), {}
    if is_white(images.sigma_y):
        found["sigma_y"] = tensors.pop("sigma_y")[places[:, 0]].clone()
    else:
        tensors["sigma_y"] = same_axes(images.sigma_y, images.y)
    for name, tensor in tensors.items():
        pile = Pile()
        each = 4 * tensor.shape[1] * patches.side**2
        for some in places.split(max(1, BLOCK // each)):
            pile.add(patches.cut(tensor, some))
            release(images.tensors()[name])
        found[name] = pile.tensor()
    return _of(found)


def _of(tensors: dict[str, Tensor]) -> Measurements:
    params = {k.removeprefix("params."): v for k, v in tensors.items() if k.startswith("params.")}
    return Measurements(tensors["y"], params, tensors["sigma_y"])
