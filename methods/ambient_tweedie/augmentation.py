r"""Augmentation of noisy images: a flip, which keeps white noise white, or a warp, which does not.

``after_noise`` is what ambient-laws does (EDM's pipeline on the noisy image): scale, rotation and
anisotropic scale, each with a probability of its own. Interpolation averages neighbouring pixels,
so that the noise of a warped image is correlated and weaker than the level that the loss believes.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    appendix F.2, arXiv:2206.00364
    How much is a noisy image worth? (Daras et al., 2024), arXiv:2411.02780
"""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional

from cleanprior.seeding import bernoulli

AUGMENTATIONS = ("none", "flip", "after_noise")
#: Standard deviation of log2 of both scales, EDM's.
SCALE = 0.2


def warp_matrices(n: int, probability: float, generator: Generator) -> Float[Tensor, "n 2 2"]:
    """Draw the linear part of each image's warp; the identity where nothing applies.

    Arguments:
        n: How many.
        probability: Of each of scale, rotation and anisotropic scale, in [0, 1].
        generator: Source of randomness.
    """

    def turn(angle: Tensor) -> Tensor:
        c, s = angle.cos(), angle.sin()
        return torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)

    on = bernoulli((3, n), probability, generator)
    scale = 2 ** (SCALE * torch.randn(n, generator=generator) * on[0])
    angle = math.pi * (2 * torch.rand(n, generator=generator) - 1) * on[1]
    ratio = 2 ** (SCALE * torch.randn(n, generator=generator) * on[2])
    axis = math.pi * (2 * torch.rand(n, generator=generator) - 1) * on[2]
    stretch = turn(axis) @ torch.diag_embed(torch.stack([ratio, 1 / ratio], 1)) @ turn(-axis)
    return scale[:, None, None] * (turn(angle) @ stretch)


def augment(
    y: Float[Tensor, "b c h w"], kind: str, probability: float, generator: Generator
) -> Float[Tensor, "b c h w"]:
    """Return a changed copy of each image.

    Arguments:
        y: Images.
        kind: ``none``, ``flip`` (left to right, half of the images) or ``after_noise``.
        probability: Of each warp of ``after_noise``.
        generator: Source of randomness.
    """
    if kind == "none":
        return y
    if kind == "flip":
        chosen = bernoulli((len(y), 1, 1, 1), 0.5, generator).bool().to(y.device)
        return torch.where(chosen, y.flip(-1), y)
    linear = warp_matrices(len(y), probability, generator)
    affine = torch.cat([linear, torch.zeros(len(y), 2, 1)], 2).to(y)
    grid = functional.affine_grid(affine, list(y.shape), align_corners=False)
    return functional.grid_sample(y, grid, padding_mode="reflection", align_corners=False)
