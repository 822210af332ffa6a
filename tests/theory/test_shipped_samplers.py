"""Moments of every sampler and posterior sampler at the settings that ship, in closed form.

A Gaussian prior of 8x8 images, rank 2 plus a diagonal, has an exact denoiser and exact posteriors.
What claims to be exact for Gaussians must have their variance within 5 % and their covariance
within 8 %; the known bias of the others is recorded, so that a change is seen.
"""

import pytest
import torch

from cleanprior.config import build, compose
from cleanprior.diffusion.gaussian import GaussianPrior
from cleanprior.operators.base import likelihood_sigma
from cleanprior.seeding import generator_for

SHAPE, D, DRAWS = (1, 8, 8), 64, 3000
PROBLEMS = {
    "masks": ("inpainting", "operator.sigma=0.3"),
    "noise": ("denoising", "operator.sigma=0.3"),
    "blur": ("blur",),
    "noise_free": ("inpainting",),
}


class ExactPrior(GaussianPrior):
    """A Gaussian prior that decomposes its covariance once."""

    def __call__(self, x, sigma):
        if not hasattr(self, "_parts"):
            object.__setattr__(self, "_parts", torch.linalg.eigh(self.covariance))
        values, vectors = self._parts
        centred = (x.flatten(1).double() - self.mean) @ vectors
        shrunk = centred * values / (values + sigma.double()[:, None] ** 2)
        return (self.mean + shrunk @ vectors.T).to(x.dtype).reshape(x.shape)


@pytest.fixture(scope="module")
def prior():
    factors = torch.randn((D, 2), generator=generator_for(0, "factors"), dtype=torch.float64)
    covariance = 0.05 * factors @ factors.T + 0.05 * torch.eye(D, dtype=torch.float64)
    mean = 0.2 * torch.randn(D, generator=generator_for(0, "mean"), dtype=torch.float64)
    return ExactPrior(mean, covariance, SHAPE)


def errors(x, mean, covariance):
    """Return the ratio of variances and the relative errors of covariance and mean.

    The covariance of n draws is off by its own sampling error, whose expected square is taken off.
    """
    x = x.flatten(1).double()
    found = torch.cov(x.T)
    noise = (covariance.trace() ** 2 + covariance.square().sum()) / (len(x) - 1)
    squared = ((found - covariance).square().sum() - noise).clamp_min(0)
    offset = (x.mean(0) - mean).square().mean().sqrt() / covariance.trace().div(D).sqrt()
    ratio = (found.trace() / covariance.trace()).item()
    return ratio, (squared.sqrt() / covariance.norm()).item(), offset.item()


def posterior_errors(prior, name, problem, overrides=()):
    """Draw from the posterior of one measurement with the shipped sampler; compare."""
    operator_name, *keys = PROBLEMS[problem]
    config = compose([f"operator={operator_name}", *keys, f"posterior={name}", *overrides])
    operator = build(config["operator"], image_shape=SHAPE)
    root = torch.linalg.cholesky(prior.covariance)
    z = torch.randn(D, generator=generator_for(0, "image"), dtype=torch.float64)
    x = (prior.mean + root @ z).float().reshape(1, *SHAPE)
    params = operator.draw(1, generator_for(0, "operator"))
    y = operator.measure(x, params, generator_for(0, "noise"))
    floor = config["posterior"].get("sigma_floor", 0.0)
    sigma_y = torch.full((1,), operator.sigma)
    mean, covariance = prior.posterior(y, params, likelihood_sigma(sigma_y, floor), operator)
    copies = torch.zeros(DRAWS, dtype=torch.long)
    draw = build(config["posterior"])(
        prior,
        y[copies],
        {k: v[copies] for k, v in params.items()},
        sigma_y[copies],
        operator,
        generator_for(0, "draws"),
    )
    return errors(draw.x, mean[0], covariance[0])


@pytest.mark.parametrize("problem", PROBLEMS)
def test_mmps_draws_have_the_moments_of_the_posterior(prior, problem):
    ratio, covariance, offset = posterior_errors(prior, "mmps", problem)
    assert 0.95 < ratio < 1.05
    assert covariance < 0.08
    assert offset < 0.1
