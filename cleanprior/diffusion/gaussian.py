r"""A Gaussian prior in closed form: fitted to measurements by EM, exact posterior, exact denoiser.

Starting point of EM methods and of flows; the oracle of the theory tests.

References:
    Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024),
    section 4.2 (Gaussian initial fit), arXiv:2405.13712
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ..data.measurements import Measurements
from ..operators.base import ImageShape, Operator, Params, likelihood_sigma

# Dense covariances and one dense A for each image: 1,024 pixels take 8 MB a matrix in float64.
MAX_PIXELS = 1024


@dataclass(frozen=True)
class GaussianPrior:
    r""":math:`x \sim N(\mu, C)` over flattened images, in float64.

    Attributes:
        mean: (d,).
        covariance: (d, d), symmetric positive definite.
        image_shape: Shape of one image.
    """

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]
    image_shape: ImageShape

    def __call__(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        r"""Return :math:`E[x|x_\sigma] = \mu + C (C + \sigma^2 I)^{-1} (x_\sigma - \mu)`."""
        values, vectors = torch.linalg.eigh(self.covariance)
        centred = (x.flatten(1).double() - self.mean) @ vectors
        shrunk = centred * values / (values + sigma.double()[:, None] ** 2)
        return (self.mean + shrunk @ vectors.T).to(x.dtype).reshape(x.shape)

    def posterior(
        self,
        y: Float[Tensor, "b ..."],
        params: Params,
        sigma_y: Float[Tensor, " b"],
        operator: Operator,
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d d"]]:
        r"""Return mean and covariance of p(x|y) for each measurement (Kalman update)."""
        a = operator.matrix(params, len(y))
        ac = a @ self.covariance
        noise = sigma_y.double()[:, None, None] ** 2 * torch.eye(a.shape[1], dtype=a.dtype)
        gain = torch.linalg.solve(ac @ a.mT + noise, ac).mT
        residual = y.flatten(1).double() - (a @ self.mean)
        mean = self.mean + (gain @ residual[:, :, None])[:, :, 0]
        covariance = self.covariance - gain @ ac
        return mean, (covariance + covariance.mT) / 2

    def posterior_root(
        self,
        y: Float[Tensor, "b ..."],
        params: Params,
        sigma_y: Float[Tensor, " b"],
        operator: Operator,
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d d"]]:
        """Return the posterior mean and the symmetric square root of its covariance."""
        mean, covariance = self.posterior(y, params, sigma_y, operator)
        values, vectors = torch.linalg.eigh(covariance)
        return mean, (vectors * values.clamp_min(0).sqrt()[:, None, :]) @ vectors.mT

    def draw(
        self,
        y: Float[Tensor, "b ..."],
        params: Params,
        sigma_y: Float[Tensor, " b"],
        operator: Operator,
        generator: Generator,
    ) -> Float[Tensor, "b c h w"]:
        """Draw one image from p(x|y) for each measurement."""
        mean, root = self.posterior_root(y, params, sigma_y, operator)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        x = mean + (root @ noise[:, :, None])[:, :, 0]
        return x.float().reshape(len(y), *self.image_shape)


def log_likelihood(prior: GaussianPrior, data: Measurements, operator: Operator) -> float:
    """Return the mean log-density of the observed entries of y under a Gaussian prior, in nats."""
    total = 0.0
    for index in torch.arange(len(data)).split(256):
        b = data.batch(index)
        seen = operator.observed(b.y, b.params).flatten(1).bool()
        a = operator.matrix(b.params, len(b))
        c = a @ prior.covariance @ a.mT
        c = c + b.sigma_y.double()[:, None, None] ** 2 * torch.eye(c.shape[1], dtype=c.dtype)
        r = b.y.flatten(1).double() - a @ prior.mean
        for i in range(len(b)):
            s = seen[i]
            if not s.any():
                continue  # an image of which nothing was seen has likelihood 1
            centre = torch.zeros(int(s.sum()), dtype=c.dtype)
            law = torch.distributions.MultivariateNormal(centre, c[i][s][:, s])
            total += law.log_prob(r[i, s]).item()
    return total / len(data)


def fit_gaussian(
    data: Measurements,
    operator: Operator,
    sigma_floor: float,
    iterations: int,
    generator: Generator,
    limit: int = 16384,
    advance: Callable[[int], None] = lambda n: None,
) -> GaussianPrior:
    r"""Fit :math:`N(\mu, C)` to measurements by exact EM.

    E: posterior mean :math:`m_i` and covariance :math:`V_i` of each image. M: :math:`\mu` = mean of
    m_i, :math:`C` = mean of :math:`V_i + (m_i-\mu)(m_i-\mu)^\top`. The likelihood never decreases.

    Arguments:
        data: The measurements.
        operator: Their operator.
        sigma_floor: Noise level of the likelihood where sigma_y is 0.
        iterations: EM iterations.
        generator: Chooses a subset when there are more than ``limit`` measurements.
        limit: Measurements used at most.
        advance: Told 1 after each iteration.

    Raises:
        ValueError: Images of more than :data:`MAX_PIXELS` numbers.
    """
    shape = operator.image_shape
    d = shape[0] * shape[1] * shape[2]
    if d > MAX_PIXELS:
        raise ValueError(
            f"a dense Gaussian fit needs images of at most {MAX_PIXELS} numbers; these have {d}"
        )
    index = torch.arange(len(data))
    if len(data) > limit:
        index = torch.randperm(len(data), generator=generator)[:limit]
    # 0.3 I: a broad start on [-1, 1], as in the feasibility study of the flow recipe.
    prior = GaussianPrior(
        torch.zeros(d, dtype=torch.float64), 0.3 * torch.eye(d, dtype=torch.float64), shape
    )
    chunk = max(1, 2**22 // d**2)
    for _ in range(iterations):
        first, second = torch.zeros_like(prior.mean), torch.zeros_like(prior.covariance)
        for part in index.split(chunk):
            b = data.batch(part)
            sigma = likelihood_sigma(b.sigma_y, sigma_floor)
            m, v = prior.posterior(b.y, b.params, sigma, operator)
            first += m.sum(0)
            second += v.sum(0) + m.T @ m
        mean = first / len(index)
        covariance = second / len(index) - torch.outer(mean, mean)
        prior = GaussianPrior(mean, (covariance + covariance.T) / 2, shape)
        advance(1)
    return prior


__all__ = ["MAX_PIXELS", "GaussianPrior", "fit_gaussian", "log_likelihood"]
