"""Measurements of other images as a batch of images was measured: its operators, its noise."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ..seeding import randn_like
from .base import Operator, Params
from .levels import column


def measured_like(
    operator: Operator,
    x: Float[Tensor, "b c h w"],
    params: Params,
    sigma_y: Float[Tensor, "b ..."],
    generator: Generator,
) -> Float[Tensor, "b ..."]:
    r"""Return :math:`A x + \sigma_y z` with fresh noise on what is measured; differentiable in x.

    Where an instrument's noise has no Gaussian approximation (``noise.as=none``), what the
    instrument records of the images; ``sigma_y`` has then no part in it.

    Arguments:
        operator: The forward operator.
        x: Images.
        params: Of the operator, one for each image.
        sigma_y: Noise levels, units of x: (b,), or a map (:mod:`.levels`).
        generator: Source of randomness.

    Raises:
        ValueError: A gradient is asked for, and the instrument's noise has none.
    """
    if operator.noise is not None and operator.noise.told == "none":
        if (
            x.requires_grad
            and torch.is_grad_enabled()
            and "differentiable" not in operator.capabilities
        ):
            raise ValueError(f"{operator.name}: what is recorded of an image has no gradient in it")
        return operator.measure(x, params, generator)
    y = operator.A(x, params)
    noise = randn_like(y.detach(), generator) * operator.observed(y, params)
    return y + column(sigma_y, y) * noise


__all__ = ["measured_like"]
