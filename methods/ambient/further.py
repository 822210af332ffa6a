"""Uses of A and A-tilde in Ambient Diffusion, other than in its loss."""

import torch
from torch import Generator, Tensor

from cleanprior.operators import Operator, Params
from cleanprior.seeding import bernoulli

#: Entries over which the share is averaged: 0.0015 standard error at p = 0.5, delta = 0.1.
ENTRIES = 65_536


def hidden_share(operator: Operator, delta: float, generator: Generator) -> float:
    r"""Estimate which share of what A-tilde hides is shown by A, and therefore scored.

    .. math:: q = \frac{E\,\|A (I - \tilde A^+ \tilde A) z\|^2}
        {E\,\|(I - \tilde A^+ \tilde A) z\|^2}, \quad z_i = \pm 1

    For random masks it is the probability that a pixel hidden by A-tilde is scored,
    :math:`q = (1-p)\delta / (p + (1-p)\delta)`.

    Arguments:
        operator: A family with random parameters and further corruption.
        delta: Passed to its further corruption.
        generator: Source of parameters, further corruption and z.

    Returns:
        q, at least 0; 1 where A-tilde hides nothing.
    """
    channels, height, width = operator.image_shape
    n = max(4, ENTRIES // (channels * height * width))
    drawn = operator.draw(n, generator)
    params, further = (
        {k: v.to(operator.device) for k, v in p.items()}
        for p in (drawn, operator.further(drawn, delta, generator))
    )
    z = (2 * bernoulli((n, *operator.image_shape), 0.5, generator) - 1).to(operator.device)
    hidden = z - operator.A_dagger(operator.A(z, further), further)
    total = float(hidden.square().sum())
    return float(operator.A(hidden, params).square().sum()) / total if total > 0 else 1.0


def flip_together(
    y: Tensor, params: Params, further: Params, generator: Generator
) -> tuple[Tensor, Params, Params]:
    """Mirror half of the images left to right, with all that describes their operators.

    The measurement of a flipped image under the flipped mask is the flipped measurement: no pixel
    is revealed that was hidden before, unlike with a flip before the mask.

    Arguments:
        y: Measurements that are images, (b, c, h, w).
        params: Masks of A, each (b, c, h, w).
        further: Masks of A-tilde, likewise.
        generator: Draws which images are flipped.
    """
    chosen = bernoulli((len(y), 1, 1, 1), 0.5, generator).bool().to(y.device)

    def flip(image: Tensor) -> Tensor:
        assert image.dim() == 4
        return torch.where(chosen, image.flip(-1), image)

    flipped = [{k: flip(v) for k, v in masks.items()} for masks in (params, further)]
    return flip(y), flipped[0], flipped[1]
