"""Options that every loader has; images to a resolution and a number of channels."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
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
        raise UserError(f"resolution={resolution} is not an image size; allowed: at least 1 pixel")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} is not a number of training images; allowed: at least 1")


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
