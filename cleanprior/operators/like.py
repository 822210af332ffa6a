"""Measurements of other images as a batch of images was measured: its operators, its noise."""

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

    Arguments:
        operator: The forward operator.
        x: Images.
        params: Of the operator, one for each image.
        sigma_y: Noise levels, units of x: (b,), or a map (:mod:`.levels`).
        generator: Source of randomness.
    """
    y = operator.A(x, params)
    noise = randn_like(y.detach(), generator) * operator.observed(y, params)
    return y + column(sigma_y, y) * noise


__all__ = ["measured_like"]
