r"""Random masks: each pixel is missing with probability p, drawn once for each image."""

import torch
from deepinv.physics import Inpainting
from jaxtyping import Float
from torch import Generator, Tensor
from typing_extensions import override

from ..mapped import blocks
from ..seeding import bernoulli
from .base import ImageShape, Operator, Params, beyond_chance, distinct, mean


def further_mask(
    mask: Float[Tensor, "b c h w"], delta: float, generator: Generator
) -> Float[Tensor, "b c h w"]:
    r"""Erase each observed pixel again with probability ``delta``.

    .. math:: \tilde A = B A, \quad B_{ii} \sim \mathrm{Bernoulli}(1 - \delta)

    Arguments:
        mask: Observed pixels, 1 = seen.
        delta: Probability of erasing a seen pixel, in [0, 1).
        generator: Source of randomness.

    Returns:
        The further mask, element-wise at most ``mask``.

    Raises:
        ValueError: ``delta`` outside [0, 1).

    References:
        Ambient Diffusion (Daras et al., 2023), section 3.1, arXiv:2305.19256
    """
    if not 0 <= delta < 1:
        raise ValueError(f"delta={delta} is not a probability of erasing; allowed: [0, 1)")
    return mask * bernoulli(mask.shape, 1 - delta, generator).to(mask.device)


class RandomInpainting(Operator):
    """Random inpainting: pixels are missing independently, with optional noise on the seen ones.

    Arguments:
        image_shape: Shape of an image, (channels, height, width).
        p: Probability that a pixel is **missing**, in [0, 1).
        per_channel: Draw a mask for each channel instead of one for all.
        sigma: Noise level on observed pixels, in units of x, at least 0.

    Raises:
        ValueError: ``p`` outside [0, 1) or ``sigma`` negative.
    """

    has_parts = True

    def __init__(self, image_shape: ImageShape, p: float, per_channel: bool, sigma: float) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"p={p} is not a share of missing pixels; allowed: [0, 1)")
        super().__init__(Inpainting(img_size=tuple(image_shape)), image_shape, sigma)
        self.p = float(p)
        self.per_channel = per_channel

    @property
    @override
    def name(self) -> str:
        return "inpainting"

    @override
    def draw(self, n: int, generator: Generator) -> Params:
        channels, height, width = self.image_shape
        shape = (n, channels if self.per_channel else 1, height, width)
        return {"mask": bernoulli(shape, 1 - self.p, generator)}

    @override
    def mismatch(self, params: Params) -> str | None:
        mask = params["mask"]
        missing = 1 - mean(mask)
        # Masks that repeat say no more than one of them.
        draws = distinct(mask) * mask[0].numel()
        if beyond_chance(missing, self.p, draws):
            return (
                f"the masks hide {missing:.1%} of the pixels and operator.p is {self.p:g}; set "
                f"operator.p={missing:.3g}"
            )
        is_equal = mask.shape[1] > 1 and all(bool((m == m[:, :1]).all()) for m in blocks(mask))
        if self.per_channel and is_equal and missing > 0:
            return (
                "the masks are equal in all channels and operator.per_channel is true; set "
                "operator.per_channel=false and store params/mask with one channel"
            )
        return None

    @override
    def observed(self, y: Float[Tensor, "b ..."], params: Params) -> Float[Tensor, "b ..."]:
        return params["mask"].expand_as(y)

    @override
    def further(self, params: Params, delta: float, generator: Generator) -> Params:
        return {"mask": further_mask(params["mask"], delta, generator)}

    def supervision(self, further: Params, delta: float) -> Float[Tensor, "n d"]:
        r"""Return how probable it is that A shows each pixel, given A-tilde.

        1 where A-tilde does, elsewhere :math:`q = (1-p)\delta / (p + (1-p)\delta)`.
        """
        scored = (1 - self.p) * delta
        scored = scored / (self.p + scored) if scored > 0 else 0.0
        mask = further["mask"].double()
        shown = mask + (1 - mask) * scored
        return shown.expand(len(mask), *self.image_shape).flatten(1)

    @override
    def describe(self, params: Params, n: int) -> Float[Tensor, "n c h w"]:
        return params["mask"]

    @property
    @override
    def description_channels(self) -> int:
        return self.image_shape[0] if self.per_channel else 1

    @override
    def matrix(self, params: Params, n: int) -> Float[Tensor, "n m d"]:
        mask = params["mask"].expand(n, *self.image_shape).flatten(1).double()
        return torch.diag_embed(mask)
