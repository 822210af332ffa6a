r"""Denoising: :math:`y = x + \sigma_y z`."""

from deepinv.physics import Denoising as DenoisingPhysics
from typing_extensions import override

from .base import ImageShape, Operator


class Denoising(Operator):
    """Additive white Gaussian noise, A = I.

    Arguments:
        image_shape: Shape of an image, (channels, height, width).
        sigma: Noise level in units of x (images in [-1, 1]), at least 0.
    """

    has_parts = True

    def __init__(self, image_shape: ImageShape, sigma: float) -> None:
        super().__init__(DenoisingPhysics(), image_shape, sigma)

    @property
    @override
    def name(self) -> str:
        return "denoising"
