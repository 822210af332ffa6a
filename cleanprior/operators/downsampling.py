r"""Downsampling: a low-pass filter with periodic edges, then every f-th pixel."""

import torch
from deepinv.physics import Downsampling as DownsamplingPhysics
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from ..config.checks import check_choice
from .base import ImageShape, Operator, Params

#: deepinv's ``gaussian`` is left out: A A^T is then singular in float32.
FILTERS = ("bicubic", "bilinear", "sinc")


class Downsampling(Operator):
    r"""One fixed downsampling for all images, with noise: :math:`y = S (h * x) + \sigma_y z`.

    y has shape (channels, height / factor, width / factor).

    Arguments:
        image_shape: Shape of an image, (channels, height, width), sides divisible by ``factor``.
        factor: Downsampling factor, at least 2.
        filter: ``bicubic``, ``bilinear`` or ``sinc``.
        sigma: Noise level in units of x, at least 0.

    Raises:
        ValueError: A factor that does not divide the image's sides, a filter that is unknown or
            larger than the image.
    """

    has_parts = True

    def __init__(self, image_shape: ImageShape, factor: int, filter: str, sigma: float) -> None:
        _, height, width = image_shape
        divisors = [
            f for f in range(2, min(height, width) + 1) if height % f == 0 and width % f == 0
        ]
        if factor not in divisors:
            allowed = ", ".join(map(str, divisors)) or "none for these images"
            raise ValueError(
                f"factor={factor} does not divide images of {height}x{width}; allowed: {allowed}"
            )
        check_choice("filter", filter, FILTERS)
        physics = DownsamplingPhysics(
            img_size=tuple(image_shape), filter=filter, factor=factor, padding="circular"
        )
        if max(physics.filter.shape[-2:]) > min(height, width):
            raise ValueError(
                f"the {filter} filter of factor {factor} is larger than images of "
                f"{height}x{width}; choose a smaller factor or filter=bilinear"
            )
        super().__init__(physics, image_shape, sigma)
        self.factor = factor
        self.filter = filter
        # A A^T is a circular convolution on the coarse grid: its kernel is its answer to a point.
        point = torch.zeros(1, image_shape[0], height // factor, width // factor)
        point[..., 0, 0] = 1
        answer = physics.A(physics.A_adjoint(point))
        self._gram = torch.fft.rfft2(answer.double()).real

    @property
    @override
    def name(self) -> str:
        return "downsampling"

    def A_dagger(self, y: Float[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        r"""Return :math:`A^\top (A A^\top)^{-1} y`, exactly: the inner matrix is circulant."""
        gram = self._gram.to(y.device)
        solved = torch.fft.irfft2(torch.fft.rfft2(y.double()) / gram, s=y.shape[-2:])
        return self.A_adjoint(solved.to(y.dtype), params)
