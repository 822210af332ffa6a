r"""A Gaussian prior of low rank: :math:`N(\mu, d_0 I + U U^\top)`, at any image size.

Starting point of EM methods on images for which a dense covariance is too large or too slow. Draws
from the posterior are exact for any linear operator and need only A and its adjoint (pathwise
conditioning); the fit is Monte-Carlo EM: draw an image for each measurement, refit by probabilistic
PCA.

Differences from the authors of the initial fit: they draw with the diffusion sampler of
moment-matching under the analytic denoiser (256 steps, converged solves); the pathwise draw has the
same law, without steps. Their first covariance is I; ours is 0.3 I, as in the dense fit.

References:
    Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024),
    section 4.2 (Gaussian initial fit), arXiv:2405.13712
    Mixtures of Probabilistic Principal Component Analyzers (Tipping and Bishop, 1999), Eq. 3.12
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ..data.measurements import Measurements
from ..operators.base import ImageShape, Operator
from ..operators.likelihood import Likelihood
from ..seeding import scoped_rng
from .conditioning import LowRank, conditioned
from .dense import MAX_PIXELS

# Largest images for which a dense covariance of each image is cheap.
AUTO_PIXELS = 128
# Up to this many numbers on the smaller side a symmetric eigenvalue problem is solved in full (8 s
# at 2,048); beyond it only the leading part of the spectrum is computed.
DENSE_SIDE = 2048
# Smallest isotropic variance of a fit: images that lie in a plane still have an inverse covariance.
SMALLEST = 1e-10


@dataclass(frozen=True)
class LowRankGaussian:
    r""":math:`x \sim N(\mu, C)` over flattened images, :math:`C = d_0 I + U U^\top`.

    Everything costs O(d r) an image. azula's ``DPLRCovariance`` is the general form; it computes an
    eigenvalue problem in each product with the inverse and divides by zero for a column of zeros,
    so the decomposition is kept here instead.

    Arguments:
        mean: :math:`\mu`, (d,), float64.
        factor: U, (d, r), float64; r may be 0.
        isotropic: :math:`d_0`, above 0.
        image_shape: Shape of one image.

    Raises:
        ValueError: ``isotropic`` not above 0, or shapes that do not fit.
    """

    mean: Float[Tensor, " d"]
    factor: Float[Tensor, "d r"]
    isotropic: float
    image_shape: ImageShape

    def __post_init__(self) -> None:
        if not 0 < self.isotropic < math.inf:
            raise ValueError(f"isotropic={self.isotropic}; allowed: a variance above 0")
        if len(self.mean) != math.prod(self.image_shape):
            raise ValueError(
                f"mean holds {len(self.mean)} numbers; image_shape={self.image_shape} needs "
                f"{math.prod(self.image_shape)}"
            )

    @cached_property
    def _spread(self) -> LowRank:
        return LowRank(self.isotropic, self.factor)

    @property
    def _axes(self) -> tuple[Float[Tensor, "d r"], Float[Tensor, " r"]]:
        return self._spread.axes

    def to(self, target: torch.device | torch.dtype) -> "LowRankGaussian":
        """Return the prior on a device, or in another precision."""
        mean, factor = self.mean.to(target), self.factor.to(target)
        return LowRankGaussian(mean, factor, self.isotropic, self.image_shape)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """The dense covariance, for tests on small images."""
        identity = torch.eye(len(self.mean), dtype=self.mean.dtype, device=self.mean.device)
        return self.isotropic * identity + self.factor @ self.factor.T

    def __call__(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        r"""Return :math:`E[x|x_\sigma] = \mu + C (C + \sigma^2 I)^{-1} (x_\sigma - \mu)`."""
        axes, lengths = self._axes
        noise = sigma.to(self.mean)[:, None] ** 2
        centred = x.flatten(1).to(self.mean.dtype) - self.mean
        # Beside the isotropic shrinkage, each axis keeps more: (d0 + L) / (d0 + L + s^2) of it.
        more = noise / ((self.isotropic + lengths + noise) * (self.isotropic + noise))
        shrunk = centred * (self.isotropic / (self.isotropic + noise))
        shrunk = shrunk + ((centred @ axes) * more) @ axes.T
        return (self.mean + shrunk).to(x.dtype).reshape(x.shape)

    def quadratic(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        r"""Return :math:`\tfrac12 (x-\mu)^\top C^{-1} (x-\mu)`, differentiable in x.

        By Woodbury's identity, in the precision of the prior; the result has that of x.
        """
        axes, lengths = self._axes
        centred = x.flatten(1).to(self.mean.dtype) - self.mean
        explained = ((centred @ axes) ** 2 / (self.isotropic + lengths)).sum(1)
        return ((centred.square().sum(1) - explained) / (2 * self.isotropic)).to(x.dtype)

    def log_prob(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """Return the log-density in nats, differentiable in x."""
        _, lengths = self._axes
        d = len(self.mean)
        log_det = d * math.log(self.isotropic) + (lengths / self.isotropic).log1p().sum()
        return (-self.quadratic(x) - 0.5 * (log_det + d * math.log(2 * math.pi))).to(x.dtype)

    def sample(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        """Draw flattened images from the prior, in its own precision."""
        d, r = self.factor.shape
        dtype = self.mean.dtype
        white = torch.randn((n, d), generator=generator, dtype=dtype)
        along = torch.randn((n, r), generator=generator, dtype=dtype)
        return self.mean + math.sqrt(self.isotropic) * white + along @ self.factor.T

    def draw(
        self,
        likelihood: Likelihood,
        generator: Generator,
        iterations: int = 500,
        tolerance: float = 1e-5,
    ) -> Float[Tensor, "b c h w"]:
        r"""Draw one image from p(x|y) for each measurement, by pathwise conditioning.

        That is :meth:`condition` of a draw from the prior and white noise.

        Arguments:
            likelihood: The measurements, float32 and on the CPU; noise levels above 0.
            generator: Source of randomness.
            iterations: Conjugate-gradient iterations at most.
            tolerance: Relative residual at which an image's solve stops.

        Raises:
            ValueError: A noise level of 0.
        """
        y = likelihood.y
        if (likelihood.sigma_y <= 0).any():
            raise ValueError("sigma_y is 0; a posterior draw needs noise: set sigma_floor above 0")
        x_0 = self.sample(len(y), generator)
        noise = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        return self.condition(x_0, noise, likelihood, iterations, tolerance)

    def condition(
        self,
        x_0: Float[Tensor, "b d"],
        noise: Float[Tensor, "b ..."],
        likelihood: Likelihood,
        iterations: int = 500,
        tolerance: float = 1e-5,
    ) -> Float[Tensor, "b c h w"]:
        r"""Turn draws from the prior into draws from the posterior (Matheron's rule).

        .. math:: x = x_0 + C A^\top (A C A^\top + \mathrm{diag}\, s^2)^{-1} (y - A x_0 - s z)

        With :math:`x_0 \sim N(\mu, C)` and :math:`z \sim N(0, I)` the law of x is p(x|y); with
        :math:`x_0 = \mu` and z = 0, x is its mean. Only observed entries of y take part. For masks
        and the identity the solve is closed (Woodbury). For other operators it is conjugate
        gradient in float64, each image on its own (:mod:`.conditioning`); A itself runs in float32,
        which limits the residual to about 1e-6.

        Arguments:
            x_0: Flattened images, in the prior's precision; it and all else on one device.
            noise: z, shape of y.
            likelihood: The measurements, float32; noise levels above 0.
            iterations: Conjugate-gradient iterations at most.
            tolerance: Relative residual at which an image's solve stops.
        """
        return conditioned(self._spread, x_0, noise, likelihood, iterations, tolerance)


def _leading(x: Float[Tensor, "n d"], rank: int) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvalues and eigenvectors of x^T x / n."""
    n, d = x.shape
    if min(n, d) > DENSE_SIDE:
        # Randomised subspace iteration; its random start is fixed, so equal data give equal fits.
        with scoped_rng(0):
            _, singular, vectors = torch.svd_lowrank(x.float(), q=rank + 16, niter=4)
        return singular[:rank].double() ** 2 / n, vectors[:, :rank].double()
    if d <= n:
        values, vectors = torch.linalg.eigh(x.T @ x / n)
        return values[-rank:].flip(0), vectors[:, -rank:].flip(1)
    values, vectors = torch.linalg.eigh(x @ x.T / n)
    vectors = x.T @ vectors[:, -rank:].flip(1)
    return values[-rank:].flip(0), vectors / vectors.norm(dim=0).clamp_min(1e-300)


def ppca(x: Float[Tensor, "n c h w"], rank: int) -> LowRankGaussian:
    r"""Fit :math:`N(\mu, d_0 I + U U^\top)` to images by probabilistic PCA (maximum likelihood).

    With eigenpairs :math:`(L_j, q_j)` of the sample covariance,

    .. math:: d_0 = \frac{\mathrm{tr}\,C - \sum_{j \le r} L_j}{d - r}, \qquad
        u_j = q_j \sqrt{\max(L_j - d_0, 0)}

    With fewer samples than numbers in an image the Gram matrix is diagonalised instead.

    Arguments:
        x: Images.
        rank: r, at least 0; at most d - 1 and n - 1 are used.

    Raises:
        ValueError: Fewer than two images, or a negative rank.
    """
    if len(x) < 2 or rank < 0:
        raise ValueError(f"{len(x)} images, rank={rank}; needed: 2 images or more, rank >= 0")
    image_shape = (x.shape[1], x.shape[2], x.shape[3])
    flat = x.flatten(1).double()
    mean = flat.mean(0)
    centred = flat - mean
    n, d = centred.shape
    rank = min(rank, d - 1, n - 1)
    trace = centred.square().sum() / n
    if rank:
        values, vectors = _leading(centred, rank)
    else:
        values, vectors = flat.new_zeros(0), flat.new_zeros(d, 0)
    isotropic = max(SMALLEST, float(trace - values.sum()) / (d - rank))
    factor = vectors * (values - isotropic).clamp_min(0).sqrt()
    return LowRankGaussian(mean, factor, isotropic, image_shape)


def fit_low_rank(
    data: Measurements,
    operator: Operator,
    sigma_floor: float,
    iterations: int,
    rank: int,
    generator: Generator,
    limit: int = 16384,
    advance: Callable[[int], None] = lambda n: None,
) -> LowRankGaussian:
    r"""Fit :math:`N(\mu, d_0 I + U U^\top)` to measurements by Monte-Carlo EM.

    E: one exact posterior draw of each image. M: :func:`ppca` of the draws.

    With one fixed operator EM leaves a direction that nobody sees as it began
    (:func:`cleanprior.gaussian.dense.broad_start`), so there the first E-step takes posterior
    means: what measurements explain. PSNR of draws on blurred Fashion-MNIST at 16x16, after 16
    iterations: 18.3 dB without, 21.5 dB with; on pure noise of 0.5 17.2 and 17.4.

    Arguments:
        data: The measurements.
        operator: Their operator, on the CPU.
        sigma_floor: Noise level of the likelihood where sigma_y is 0; y is not altered.
        iterations: EM iterations (the paper: 16).
        rank: r (the paper: 64).
        generator: Draws, and chooses a subset when there are more than ``limit`` measurements.
        limit: Measurements used at most.
        advance: Told 1 after each iteration.
    """
    shape = operator.image_shape
    d = math.prod(shape)
    index = torch.arange(len(data))
    if len(data) > limit:
        index = torch.randperm(len(data), generator=generator)[:limit]
    prior = LowRankGaussian(
        torch.zeros(d, dtype=torch.float64), torch.zeros(d, 0, dtype=torch.float64), 0.3, shape
    )
    chunk = max(1, 2**17 // d)  # 1 MB for each of a dozen float64 arrays: what a cache holds
    likelihood = Likelihood.of(operator, data).with_floor(sigma_floor)
    for number in range(iterations):
        draws = []
        for part in index.split(chunk):
            some = likelihood.take(part)
            if number == 0 and likelihood.is_shared:
                x_0 = prior.mean.expand(len(some), d)
                draws.append(prior.condition(x_0, torch.zeros_like(some.y), some))
            else:
                draws.append(prior.draw(some, generator))
        prior = ppca(torch.cat(draws), rank)
        advance(1)
    return prior


def cheaper_fit(data: Measurements, operator: Operator) -> str:
    """Choose between the dense fit of :mod:`.gaussian` and the low-rank fit, by measured seconds.

    On one thread of a CPU, fit and one draw of each image, masks with p = 0.6: 1,437 digits of 8x8
    about 4 s dense and 3 s low-rank; 4,096 images of 16x16 about 176 s dense (148 s of them for the
    root of each covariance) and 17 s low-rank. With one operator and one noise level the dense fit
    shares one covariance: 0.06 s at 8x8, 1 s at 16x16. It is exact EM, so it stays where it is
    cheap.

    Returns:
        ``dense`` up to :data:`AUTO_PIXELS` numbers an image, and up to :data:`MAX_PIXELS` where all
        images share operator and noise level; ``low_rank`` otherwise.
    """
    d = math.prod(operator.image_shape)
    is_shared = Likelihood.of(operator, data).is_shared
    limit = MAX_PIXELS if is_shared else AUTO_PIXELS
    return "dense" if d <= limit else "low_rank"


__all__ = ["AUTO_PIXELS", "LowRankGaussian", "cheaper_fit", "fit_low_rank", "ppca"]
