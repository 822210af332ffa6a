r"""The diffusion bound on log p(x): its noise levels, its integrand, its closed-form ends.

.. math:: -b_\theta(x) = \mathbb E_{\sigma, n}\Big[
        \frac{1}{p(\log\sigma)} \frac{\|x - D_\theta(x + \sigma n, \sigma)\|^2}{\sigma^2}\Big]
        + \mathrm{KL}(q(x_T|x)\,\|\,p_T) + \frac d2 \log(2\pi e\,\sigma_{\min}^2)

p is the density that :math:`\log\sigma` is drawn from on a range of length R: 1/R for stratified
levels. Importance sampling changes p and leaves the mean as it is.

References:
    Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021), section 5.2
    (importance sampling of the likelihood weighting), arXiv:2101.09258
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), section 3.3
    (density from a running second moment), arXiv:2102.09672
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from cleanprior.config.checks import check_choice
from cleanprior.diffusion.denoiser import Denoise, per_image
from cleanprior.gaussian.dense import GaussianPrior
from cleanprior.gaussian.low_rank import LowRankGaussian

LEVELS = ("stratified", "importance")
#: Bins of the importance density, share of it that stays uniform (no weight exceeds 10), and
#: memory of the running moment: with 64 images a batch each bin is hit in nearly every step.
BINS, UNIFORM, MEMORY = 16, 0.1, 0.98


def stratified_sigma(
    n: int, low: float, high: float, generator: Generator, device: torch.device
) -> Float[Tensor, " n"]:
    """Draw n noise levels, log-uniform on [low, high], one from each n-th part of the range."""
    place = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return (low * (place * math.log(high / low)).exp()).to(device)


class NoiseLevels(nn.Module):
    r"""Draws the bound's noise levels with the weights that keep its mean.

    ``importance`` keeps a running second moment of the integrand in bins of :math:`\log\sigma` and
    draws from :math:`p \propto \sqrt{\mathrm{moment}}`, mixed with the uniform density, one level
    from each n-th part of p. A draw never depends on the moment of its own batch, so that the
    weighted mean is unbiased.

    Arguments:
        kind: ``stratified`` (all weights 1) or ``importance``.
        low: Least noise level, above 0.
        high: Largest noise level.

    Attributes:
        moment: Running second moment of each bin; a buffer, so that checkpoints hold it.

    Raises:
        ValueError: Another kind, or levels out of order.
    """

    moment: Tensor

    def __init__(self, kind: str, low: float, high: float) -> None:
        super().__init__()
        check_choice("levels", kind, LEVELS)
        if not 0 < low < high:
            raise ValueError(f"noise levels from {low} to {high}; needed: 0 < low < high")
        self.kind, self.low, self.high = kind, low, high
        self.register_buffer("moment", torch.ones(BINS, dtype=torch.float64))

    @property
    def log_range(self) -> float:
        """R, the length of the range of log sigma."""
        return math.log(self.high / self.low)

    def _probability(self) -> Float[Tensor, " bins"]:
        root = self.moment.double().cpu().sqrt()
        return (1 - UNIFORM) * root / root.sum() + UNIFORM / BINS

    def draw(
        self, n: int, generator: Generator, device: torch.device
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return n noise levels and their weights, uniform density over density drawn from."""
        if self.kind == "stratified":
            sigma = stratified_sigma(n, self.low, self.high, generator, device)
            return sigma, torch.ones_like(sigma)
        p = self._probability()
        place = (torch.arange(n) + torch.rand(n, generator=generator)).double() / n
        upper = p.cumsum(0)
        bin = torch.searchsorted(upper, place).clamp_max(BINS - 1)
        inside = ((place - upper[bin]) / p[bin] + 1).clamp(0, 1)
        sigma = self.low * ((bin + inside) / BINS * self.log_range).exp()
        return sigma.float().to(device), (1 / (BINS * p[bin])).float().to(device)

    @torch.no_grad()
    def update(self, sigma: Float[Tensor, " n"], term: Float[Tensor, " n"]) -> None:
        """Include the integrand at some levels, without weights, in the running moment."""
        if self.kind == "stratified":
            return
        bin = ((sigma / self.low).log() / self.log_range * BINS).long().clamp(0, BINS - 1)
        square = term.to(self.moment) ** 2
        hits = torch.zeros_like(self.moment).index_add_(0, bin, torch.ones_like(square))
        total = torch.zeros_like(self.moment).index_add_(0, bin, square)
        moment = MEMORY * self.moment + (1 - MEMORY) * total / hits.clamp_min(1)
        self.moment.copy_(torch.where(hits > 0, moment, self.moment))


def diffusion_term(
    denoise: Denoise,
    x: Float[Tensor, "b c h w"],
    sigma: Float[Tensor, " b"],
    noise: Float[Tensor, "b c h w"],
    log_range: float,
) -> Float[Tensor, " b"]:
    r"""Return one draw of the bound's integral, :math:`R\,\|x - D(x + \sigma n)\|^2/\sigma^2`."""
    error = (x - denoise(x + per_image(sigma) * noise, sigma)).flatten(1)
    return log_range * (error**2).sum(1) / sigma**2


class Ends:
    r"""The closed-form terms of the bound: the last noise level's law and the decoder.

    .. math:: \mathrm{KL}\big(N(x, \sigma_{\max}^2 I)\,\|\,N(\mu, C + \sigma_{\max}^2 I)\big)
        + \tfrac d2 \log(2\pi e\,\sigma_{\min}^2)

    Together with :func:`diffusion_term` and the exact denoiser of :math:`N(\mu, C)` they add up to
    :math:`\tfrac12 (x-\mu)^\top (C + \sigma_{\min}^2 I)^{-1} (x-\mu)` and a constant, at any
    sigma_max.

    Arguments:
        prior: :math:`N(\mu, C)`, dense or of low rank, on the device of the images.
        sigma_min: Least noise level, above 0.
        sigma_max: Largest noise level.
    """

    def __init__(
        self, prior: GaussianPrior | LowRankGaussian, sigma_min: float, sigma_max: float
    ) -> None:
        d = len(prior.mean)
        if isinstance(prior, LowRankGaussian):
            total = prior.isotropic + sigma_max**2
            self.quadratic = LowRankGaussian(
                prior.mean, prior.factor, total, prior.image_shape
            ).quadratic
            along = torch.linalg.eigvalsh(prior.factor.T @ prior.factor).clamp_min(0)
            values = torch.cat([total + along, along.new_full((d - len(along),), total)])
        else:
            covariance = prior.covariance + sigma_max**2 * torch.eye(d).to(prior.covariance)
            self.quadratic = Quadratic(prior.mean, torch.linalg.inv(covariance))
            values = torch.linalg.eigvalsh(covariance)
        self.constant = float(
            0.5 * ((sigma_max**2 / values).sum() - d)
            + 0.5 * (values.log().sum() - 2 * d * math.log(sigma_max))
            + 0.5 * d * math.log(2 * math.pi * math.e * sigma_min**2)
        )

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """Return the terms of each image, in nats."""
        return self.constant + self.quadratic(x)


@dataclass(frozen=True)
class Quadratic:
    r""":math:`\tfrac12 (x-\mu)^\top P (x-\mu)` of each image, for a dense precision P."""

    mean: Float[Tensor, " d"]
    precision: Float[Tensor, "d d"]

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """Return the value of each image, in the precision of x."""
        r = x.flatten(1) - self.mean.to(x)
        return 0.5 * ((r @ self.precision.to(x)) * r).sum(1)
