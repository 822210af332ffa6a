"""Restorations that somebody else made: read from files, judged as a route that returns them."""

import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from ..data.containers import named_arrays, whole
from ..data.measurements import Batch
from ..data.pictures import PictureReader
from ..diffusion.posterior import Draw
from ..errors import UserError
from ..fingerprint import is_hidden, is_picture
from ..operators.base import ImageShape
from ..outside import check_regular
from ..training.route import Route

#: Files of arrays that are read.
SUFFIXES = (".npz", ".npy", ".safetensors")
#: Name of the array, where a file holds several: what ``cleanprior restore`` writes.
KEY = "x"
#: Absolute values above it cannot be images in [-1, 1], however far a restorer overshoots.
LARGEST = 20.0
#: Bits of unsigned integers that have a range of their own.
_INTEGERS = {"uint8": 255.0, "uint16": 65535.0}


def read_restorations(path: Path, shape: ImageShape) -> Float[Tensor, "k n c h w"]:
    """Read restorations in the order of their measurements.

    Arguments:
        path: An array file (see :data:`SUFFIXES`) with floats in [-1, 1] or unsigned integers of 8
            or 16 bits, (n, c, h, w) or (k, n, c, h, w) for k draws of each measurement; or a folder
            that holds one such file, or pictures, which are taken in the order of their names with
            numbers read as numbers (2.png before 10.png).
        shape: Shape of one image, (channels, height, width).

    Returns:
        float32, one draw of each where the file does not hold several.

    Raises:
        UserError: Nothing that can be read, several files of arrays, another shape, NaN, values
            that are no images.
    """
    if not path.is_dir():
        return _from_array(path, shape)
    try:
        files = [p for p in path.iterdir() if not is_hidden(p.name)]
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error
    arrays = sorted(p for p in files if p.suffix.lower() in SUFFIXES)
    if len(arrays) > 1:
        raise UserError(f"'{path}' holds {', '.join(p.name for p in arrays)}; name one of them")
    if arrays:
        return _from_array(arrays[0], shape)
    pictures = sorted((p for p in files if is_picture(p.name)), key=lambda p: _in_order(p.name))
    if not pictures:
        raise UserError(
            f"'{path}' is no saved prior, and holds no restorations: pictures, or one file "
            f"({', '.join(SUFFIXES)})"
        )
    return torch.stack([_picture(p, shape) for p in pictures])[None]


def _in_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a key that sorts names with their numbers as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(int(p), "") if i % 2 else (0, p) for i, p in enumerate(parts)], name


def _from_array(path: Path, shape: ImageShape) -> Tensor:
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"'{path}' is neither a saved prior nor a file of restorations "
            f"({', '.join(SUFFIXES)}), nor a folder of such"
        )
    with named_arrays(path, "file of images") as found:
        if len(found) != 1 and KEY not in found:
            held = ", ".join(sorted(found)) or "nothing"
            raise UserError(f"'{path}' holds {held}; needed: one array, or one called '{KEY}'")
        values = whole(found[KEY if KEY in found else next(iter(found))]())
    return _checked(path, values, shape)


def _checked(path: Path, values: NDArray[np.generic], shape: ImageShape) -> Tensor:
    if values.ndim not in (4, 5) or tuple(values.shape[-3:]) != shape or values.size == 0:
        needed = ", ".join(map(str, shape))
        raise UserError(
            f"'{path}' holds an array of shape {tuple(values.shape)}; needed: (n, {needed}), or "
            f"(k, n, {needed}) for k draws of each measurement"
        )
    kind = str(values.dtype)
    if kind in _INTEGERS:
        x = torch.from_numpy(values.astype(np.float32)) * (2 / _INTEGERS[kind]) - 1
    elif np.issubdtype(values.dtype, np.floating):
        x = torch.from_numpy(values.astype(np.float32))
    else:
        raise UserError(f"'{path}' holds {kind}; needed: floats in [-1, 1], uint8 or uint16")
    if not torch.isfinite(x).all():
        raise UserError(f"'{path}' holds NaN or infinity")
    if x.abs().max() > LARGEST:
        raise UserError(
            f"'{path}' holds values from {x.min():.4g} to {x.max():.4g}; needed: images in "
            "[-1, 1], e.g. x / 127.5 - 1"
        )
    return x if x.dim() == 5 else x[None]


def _picture(path: Path, shape: ImageShape) -> Tensor:
    """Read a picture that has the images' size: nothing is cut or resized."""
    channels, height, width = shape
    if height != width:
        raise UserError(f"images of {height}x{width} pixels are read from an array file only")
    check_regular(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of odd metadata
        try:
            with Image.open(path) as image:
                if image.size == (width, height):
                    return PictureReader(height, channels, None)(image, path)
                found = "x".join(map(str, reversed(image.size)))
        except UserError:
            raise
        except Exception as error:  # a decoder may raise anything on a damaged file
            raise UserError(f"'{path}' is not a readable picture: {error}") from error
    raise UserError(f"'{path}' has {found} pixels; needed: {height}x{width}")


def given_route(x: Float[Tensor, "k n c h w"], is_point: bool) -> Route:
    """Return the route that answers measurement i with the restorations of number i.

    Arguments:
        x: k restorations of each measurement.
        is_point: Whether they are estimates that would be the same each time, not draws of p(x|y).

    Raises:
        UserError: Several point estimates of a measurement.
    """
    if is_point and len(x) > 1:
        raise UserError(f"{len(x)} restorations of each measurement are draws, no point estimate")
    asked: Counter[int] = Counter()

    def restore(batch: Batch, _: list[Generator]) -> Draw:
        chosen = []
        for i in batch.index.tolist():
            chosen.append(x[asked[i] % len(x), i])
            asked[i] += 1
        return Draw(torch.stack(chosen), 0)

    reason = "restorations alone: nothing samples p(x)"
    return Route("given", restore=restore, reason=reason, kind="point" if is_point else "draws")


__all__ = ["given_route", "read_restorations"]
