r"""Gaussian blur with periodic edges, diagonal in the Fourier basis."""

from typing import ClassVar

import torch
from deepinv.physics import BlurFFT

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

    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"fixed", "svd", "same_shape", "gaussian", "null_space"}
    )

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
    def name(self) -> str:  # noqa: D102
        return "blur"
