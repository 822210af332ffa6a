r"""Where FlowDiff's flow starts: a Gaussian prior, its posterior, and draws of the flow from it.

=========  ==========================================  =========================================
start      Gaussian prior                              the flow maps
=========  ==========================================  =========================================
dense      full covariance, exact EM                   white noise by the root of V(y)
conv       :math:`d_0 I + U U^\top`, Monte-Carlo EM    exact draws of the Gaussian posterior
=========  ==========================================  =========================================

Either way the untrained flow *is* the Gaussian posterior, so no step warms it up. For the
convolutional flow a diagonal base, m plus s times white noise, would spare the draws; measured on
8x8 digits with half of the pixels (one seed, 256 test images; PSNR of one draw and of the mean of
8, spread over error of that mean):

=====================================================  ======  ======  ======
start                                                  sample  mean 8   ratio
=====================================================  ======  ======  ======
exact draws, no step                                    15.83   17.69    0.91
diagonal base, no step                                  14.47   17.34    1.44
300 steps of maximum likelihood on exact draws          16.11   17.82    0.90
300 steps of the bound with the Gaussian log-prior      16.71   17.93    0.70
=====================================================  ======  ======  ======

The exact draws are the posterior for nothing; maximum likelihood comes close to it; the bound
narrows the draws before the prior has said anything, whatever its PSNR.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.data import Batch, Measurements
from cleanprior.diffusion.denoiser import per_image
from cleanprior.gaussian.dense import fit_gaussian
from cleanprior.gaussian.low_rank import LowRankGaussian, fit_low_rank
from cleanprior.operators import Likelihood, Operator
from cleanprior.operators.levels import is_white
from cleanprior.seeding import randn_like
from cleanprior.training import Session

from .bound import Ends, Quadratic
from .conv_flow import ConvBase, ConvFlow
from .dense_flow import Base, PosteriorFlow, gaussian_base

#: What is computed once for every measurement is kept when it holds at most this many numbers
#: (256 MB).
CACHE_NUMBERS = 2**26
#: Sign vectors for the diagonal of A^T A; one is exact for masks and the identity.
PROBES = 8
#: Relative residual of the iterative solves; on 8x8 digits it moves x by 5e-4 (root mean square).
TOLERANCE = 1e-3

Source = Generator | Sequence[Generator]


@dataclass(eq=False)
class Start(ABC):
    """The Gaussian stage of one run.

    Arguments:
        operator: The forward operator, where the flow lives.
        sigma_floor: Noise level of the likelihood where sigma_y is 0, units of x.
        sigma_min: Least noise level of the bound; its square is the least eigenvalue of the fit.
        sigma_max: Largest noise level of the bound.

    Attributes:
        ends: The bound's closed-form terms, from :meth:`prepare` on.
        quadratic: The Gaussian prior's negative log-density up to a constant, likewise.
    """

    operator: Operator
    sigma_floor: float
    sigma_min: float
    sigma_max: float
    ends: Ends = field(init=False)
    quadratic: Callable[[Tensor], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        # Closed forms run on the CPU, the likelihood where the flow is.
        self.cpu_operator: Operator = self.operator.to("cpu")
        self.is_ready = False

    @abstractmethod
    def fit(self, session: Session, iterations: int) -> dict[str, Tensor]:
        """Fit the Gaussian prior; return what the flow's ``set_gaussian`` takes."""

    @abstractmethod
    def prepare(self, flow: nn.Module, measurements: Measurements) -> None:
        """Compute what follows from the Gaussian prior; anew in every process."""

    @abstractmethod
    def base(self, flow: nn.Module, batch: Batch, is_training: bool) -> Base | ConvBase:
        """Return what the flow is told about some measurements.

        Arguments:
            flow: The flow, trained or averaged.
            batch: Measurements, on the device.
            is_training: Whether the measurements are those of :meth:`prepare`.
        """

    @abstractmethod
    def draw(
        self, flow: nn.Module, base: Base | ConvBase, batch: Batch, generator: Source
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """Draw one image of the flow for each measurement.

        Arguments:
            flow: The flow, trained or averaged.
            base: What :meth:`base` returned for the batch.
            batch: Measurements, on the device.
            generator: One generator, or one for each image.

        Returns:
            x, and the log-determinant of the flow up to a constant of each measurement.
        """


class DenseStart(Start):
    """A full covariance: exact roots of the posterior covariance, for small images."""

    _cache: Base | None = None

    @override
    def fit(self, session: Session, iterations: int) -> dict[str, Tensor]:
        with session.progress.task("Gaussian fit", iterations) as task:
            prior = fit_gaussian(
                session.measurements,
                self.cpu_operator,
                self.sigma_floor,
                iterations,
                session.generator("gaussian"),
                advance=task.advance,
            )
        values, vectors = torch.linalg.eigh(prior.covariance)
        # The bound sees the prior blurred by sigma_min; narrower directions only make the start
        # stiff.
        covariance = (vectors * values.clamp_min(self.sigma_min**2)) @ vectors.T
        return {"mean": prior.mean, "covariance": covariance}

    @override
    def prepare(self, flow: nn.Module, measurements: Measurements) -> None:
        assert isinstance(flow, PosteriorFlow)
        if self.is_ready:
            return
        prior = flow.gaussian
        self.ends = Ends(prior, self.sigma_min, self.sigma_max)
        self.quadratic = Quadratic(prior.mean, torch.linalg.inv(prior.covariance))
        roots = len(measurements) if measurements.params else 1
        if roots * flow.size**2 <= CACHE_NUMBERS:
            parts = torch.arange(len(measurements)).split(256)
            bases = [self._base(flow, measurements.batch(i)) for i in parts]
            self._cache = Base.concatenate(bases).to(self.operator.device)
        self.is_ready = True

    def _base(self, flow: PosteriorFlow, batch: Batch) -> Base:
        likelihood = Likelihood.of(self.cpu_operator, batch.to("cpu"))
        base = gaussian_base(flow.gaussian, likelihood.with_floor(self.sigma_floor))
        return base.to(self.operator.device)

    @override
    def base(self, flow: nn.Module, batch: Batch, is_training: bool) -> Base:
        assert isinstance(flow, PosteriorFlow)
        if is_training and self._cache is not None:
            return self._cache.take(batch.index)
        return self._base(flow, batch)

    @override
    def draw(
        self, flow: nn.Module, base: Base | ConvBase, batch: Batch, generator: Source
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        x, log_det = flow(randn_like(base.mean, generator), base)
        return x, log_det


def feature_channels(operator: Operator) -> int:
    """Return the channels of :attr:`ConvBase.features`: A^T y, mean, scale, A, noise level."""
    return 3 * operator.image_shape[0] + operator.description_channels + 1


@dataclass(eq=False)
class ConvStart(Start):
    """A covariance of low rank: exact draws of the posterior by conjugate gradient, at any size.

    Arguments:
        rank: Rank of the covariance.
        others: See :class:`Start`.
    """

    rank: int
    _cache: ConvBase | None = field(default=None, init=False)

    @override
    def fit(self, session: Session, iterations: int) -> dict[str, Tensor]:
        with session.progress.task("Gaussian fit", iterations) as task:
            prior = fit_low_rank(
                session.measurements,
                self.cpu_operator,
                self.sigma_floor,
                iterations,
                self.rank,
                session.generator("gaussian"),
                advance=task.advance,
            )
        factor = torch.zeros(len(prior.mean), self.rank, dtype=torch.float64)
        factor[:, : prior.factor.shape[1]] = prior.factor
        isotropic = max(prior.isotropic, self.sigma_min**2)  # as in the dense fit
        return {"mean": prior.mean, "factor": factor, "isotropic": torch.tensor(isotropic).double()}

    @override
    def prepare(self, flow: nn.Module, measurements: Measurements) -> None:
        assert isinstance(flow, ConvFlow)
        if self.is_ready:
            return
        prior = flow.gaussian
        self.ends = Ends(prior, self.sigma_min, self.sigma_max)
        self.quadratic = prior.quadratic
        numbers = len(measurements) * (flow.features + 2) * math.prod(flow.image_shape[1:])
        if numbers <= CACHE_NUMBERS:
            parts = torch.arange(len(measurements)).split(256)
            bases = [
                self._base(prior, measurements.batch(i).to(self.operator.device)) for i in parts
            ]
            self._cache = ConvBase.concatenate(bases)
        self.is_ready = True

    def _likelihood(self, batch: Batch) -> Likelihood:
        return Likelihood.of(self.operator, batch).with_floor(self.sigma_floor)

    def _base(self, prior: LowRankGaussian, batch: Batch) -> ConvBase:
        """Compute the posterior mean and what else the flow is told."""
        n, likelihood = len(batch), self._likelihood(batch)
        sigma, centre = likelihood.level, prior.mean.expand(n, -1)
        mean = prior.condition(centre, torch.zeros_like(batch.y), likelihood, tolerance=TOLERANCE)
        # 1 / s^2 = 1 / diag C + diag A^T A / sigma_y^2: exact for a diagonal prior and a mask. The
        # diagonal of A^T A comes from signs z, E[z * A^T A z], the same for every image.
        # Of a map it is that of A^T S^-1 A.
        weights, power = torch.ones(()).to(sigma), per_image(sigma) ** 2
        if not is_white(likelihood.sigma_y):
            weights, power = likelihood.sigma_y**-2, torch.ones_like(power)
        signs = torch.randint(2, (PROBES, *prior.image_shape), generator=Generator().manual_seed(0))
        diagonal = torch.zeros_like(mean)
        for sign in (2.0 * signs - 1).to(mean):
            z = sign.expand_as(mean)
            diagonal += z * likelihood.A_adjoint(weights * likelihood.A(z)) / PROBES
        variance = prior.isotropic + (prior.factor**2).sum(1)
        precision = diagonal.clamp_min(0) / power
        spread = (1 / variance.to(mean).reshape(prior.image_shape) + precision).rsqrt()
        features = [likelihood.A_adjoint(batch.y), mean, spread]
        description = self.operator.describe(batch.params, n)
        if description is not None:
            features.append(description.to(mean))
        features.append(per_image(sigma.log()).expand_as(mean[:, :1]))
        return ConvBase(mean, spread, torch.cat(features, 1))

    @override
    def base(self, flow: nn.Module, batch: Batch, is_training: bool) -> ConvBase:
        assert isinstance(flow, ConvFlow)
        if is_training and self._cache is not None:
            return self._cache.take(batch.index)
        return self._base(flow.gaussian, batch)

    @override
    def draw(
        self, flow: nn.Module, base: Base | ConvBase, batch: Batch, generator: Source
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        assert isinstance(flow, ConvFlow)
        prior = flow.gaussian
        white = randn_like(base.mean, generator).flatten(1)
        along = randn_like(base.mean.new_empty(len(batch), self.rank), generator)
        noise = randn_like(batch.y, generator)
        x_0 = prior.mean + prior.isotropic**0.5 * white + along.double() @ prior.factor.T
        given = prior.condition(x_0, noise, self._likelihood(batch), tolerance=TOLERANCE)
        x, log_det = flow(given, base)
        return x, log_det
