"""A Gaussian law of images in closed form: rank two plus a diagonal."""

import torch

from cleanprior.gaussian.dense import GaussianPrior
from cleanprior.operators.base import ImageShape
from cleanprior.seeding import generator_for


def two_factors(shape: ImageShape) -> GaussianPrior:
    """Return a prior whose covariance has two large directions, and whose mean is not 0."""
    d = shape[0] * shape[1] * shape[2]
    factors = torch.randn((d, 2), generator=generator_for(0, "factors"), dtype=torch.float64)
    covariance = 0.05 * factors @ factors.T + 0.05 * torch.eye(d, dtype=torch.float64)
    mean = 0.2 * torch.randn(d, generator=generator_for(0, "mean"), dtype=torch.float64)
    return GaussianPrior(mean, covariance, shape)
