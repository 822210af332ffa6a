"""Pixels to images in [-1, 1]: ranges, centre crop, resizing, grey and RGB."""

from pathlib import PurePath

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as pil
from torchvision.transforms import v2

from ..errors import UserError


def check_options(
    resolution: int | None, channels: int | None, test_share: float, limit: int | None
) -> None:
    """Check what every loader is told, before a file is read.

    Raises:
        UserError: A value outside its range.
    """
    if channels not in (None, 1, 3):
        raise UserError(f"channels={channels} is not offered; allowed: 1 (grey) or 3 (RGB)")
    if not 0 < test_share < 1:
        raise UserError(f"test_share={test_share} is not a share; allowed: between 0 and 1")
    if resolution is not None and resolution < 1:
        raise UserError(f"resolution={resolution} is no image; allowed: at least 1 pixel")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} is no count of training images; allowed: at least 1")


def from_picture(
    image: Image.Image, resolution: int, channels: int, name: str | PurePath
) -> Float[Tensor, "c h w"]:
    """Return a picture as an image in [-1, 1]: its central square, resized by area.

    Arguments:
        image: The picture, of 8 or 16 bits a channel.
        resolution: Side in pixels.
        channels: 1 for grey, 3 for RGB.
        name: The picture's name, for errors.

    Raises:
        UserError: Pixels of 32 bits, whose range is not known.
    """
    image = _to_eight_bits(image, name).convert("L" if channels == 1 else "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    mode = pil.InterpolationMode.BOX if side >= resolution else pil.InterpolationMode.BICUBIC
    image = pil.resize(pil.crop(image, top, left, side, side), [resolution, resolution], mode)
    array = np.asarray(image, dtype=np.float32).reshape(resolution, resolution, channels)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)


def _to_eight_bits(image: Image.Image, name: str | PurePath) -> Image.Image:
    """Scale 16-bit grey to 8 bits (Pillow's own conversion cuts it off at 255)."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(f"'{name}' has 32-bit pixels of unknown range; save it with 8 or 16 bits")
    return image


def fit(
    x: Float[Tensor, "n c h w"], resolution: int | None, channels: int | None
) -> Float[Tensor, "n k s t"]:
    """Bring images in [-1, 1] to a resolution and a number of channels.

    Arguments:
        x: Images.
        resolution: Side of the central square after resizing: the mean of blocks of pixels where
            they fit exactly, else an antialiased bilinear resize. None keeps the images' own size.
        channels: 1 for grey, 3 for RGB, None for the images' own.

    Raises:
        UserError: A change of channels that has no meaning, as from 2 to 3.
    """
    if resolution is not None and x.shape[2:] != (resolution, resolution):
        height, width = x.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        x = x[:, :, top : top + side, left : left + side]
        if side % resolution == 0:
            x = F.avg_pool2d(x, side // resolution)
        else:
            x = v2.functional.resize(x, [resolution, resolution], antialias=True)
    if channels is None or channels == x.shape[1]:
        return x
    if (x.shape[1], channels) == (3, 1):
        return v2.functional.rgb_to_grayscale(x)
    if (x.shape[1], channels) == (1, 3):
        return x.repeat(1, 3, 1, 1)
    raise UserError(
        f"channels={channels}, and the images have {x.shape[1]}; allowed: {x.shape[1]}"
        + (", or 1 and 3 into each other" if x.shape[1] in (1, 3) else "")
    )
