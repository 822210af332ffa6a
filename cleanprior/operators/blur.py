r"""Gaussian and motion blur with periodic edges, diagonal in the Fourier basis."""

import math

import torch
from deepinv.physics import BlurFFT
from torch import Tensor
from typing_extensions import override

from .base import ImageShape, Operator


class GaussianBlur(Operator):
    """One fixed Gaussian blur for all images, with noise.

    The kernel is a truncated Gaussian, renormalised to sum 1; edges are periodic, so that y has
    the shape of x and the singular values are those of the Fourier transform of the kernel.

    Arguments:
        image_shape: Shape of an image, (channels, height, width).
        kernel_size: Side of the kernel in pixels: odd, at most the image's smaller side.
        blur_std: Standard deviation of the kernel in pixels, above 0.
        sigma: Noise level in units of x, at least 0.

    Raises:
        ValueError: A kernel that is even, larger than the image, or of no width.
    """

    has_parts = True

    def __init__(
        self, image_shape: ImageShape, kernel_size: int, blur_std: float, sigma: float
    ) -> None:
        limit = min(image_shape[1:])
        if kernel_size % 2 == 0 or not 1 <= kernel_size <= limit:
            raise ValueError(
                f"kernel_size={kernel_size} does not fit images of "
                f"{image_shape[1]}x{image_shape[2]}; allowed: odd numbers from 1 to {limit}"
            )
        if not blur_std > 0:
            raise ValueError(f"blur_std={blur_std} is not a width in pixels; allowed: above 0")
        offset = torch.arange(kernel_size) - (kernel_size - 1) / 2
        line = torch.exp(-0.5 * (offset / blur_std) ** 2)
        kernel = torch.outer(line, line)[None, None]
        physics = BlurFFT(img_size=tuple(image_shape), filter=kernel / kernel.sum())
        super().__init__(physics, image_shape, sigma)
        self.kernel_size = kernel_size
        self.blur_std = float(blur_std)

    @property
    @override
    def name(self) -> str:
        return "blur"


def line_kernel(length: float, angle: float) -> Tensor:
    """Return the kernel of a straight motion at constant speed, (k, k), sum 1, k odd.

    Arguments:
        length: Pixels that a point covers, at least 1 (1 is no blur).
        angle: Direction in degrees: 0 along a row, 90 along a column.
    """
    reach = math.ceil((length - 1) / 2)
    # 64 points a pixel, each shared among its four neighbours; more points change nothing visible.
    along = torch.linspace(-1, 1, 64 * math.ceil(length) + 1, dtype=torch.float64)
    along = along * (length - 1) / 2
    turn = math.radians(angle)
    grid = torch.arange(-reach, reach + 1, dtype=torch.float64)
    rows = (1 - (grid[:, None] + math.sin(turn) * along).abs()).clamp_min(0)
    columns = (1 - (grid[:, None] - math.cos(turn) * along).abs()).clamp_min(0)
    kernel = rows @ columns.T
    return (kernel / kernel.sum()).float()


class MotionBlur(Operator):
    """One fixed straight motion for all images, with noise; edges are periodic.

    Arguments:
        image_shape: Shape of an image, (channels, height, width).
        length: Pixels that a point covers, from 1 to the image's smaller side less 1 (or less 0
            where that side is odd).
        angle: Direction in degrees: 0 along a row, 90 along a column.
        sigma: Noise level in units of x, at least 0.

    Raises:
        ValueError: A length that is below 1 or does not fit the image.
    """

    has_parts = True

    def __init__(self, image_shape: ImageShape, length: float, angle: float, sigma: float) -> None:
        shorter = min(image_shape[1:])
        limit = shorter - 1 + shorter % 2
        if not 1 <= length <= limit:
            raise ValueError(
                f"length={length} does not fit images of {image_shape[1]}x{image_shape[2]}; "
                f"allowed: 1 to {limit} pixels"
            )
        if not math.isfinite(angle):
            raise ValueError(f"angle={angle}; allowed: a number of degrees")
        kernel = line_kernel(length, angle)[None, None]
        super().__init__(BlurFFT(img_size=tuple(image_shape), filter=kernel), image_shape, sigma)
        self.length = float(length)
        self.angle = float(angle)

    @property
    @override
    def name(self) -> str:
        return "motion blur"
