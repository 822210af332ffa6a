r"""GSURE-Diffusion: a generalised SURE in the spectral basis, the hidden part filled by noise.

Objective (VE form, :math:`\alpha = 1`), with :math:`A = U S V^\top`, one V for all images,
:math:`P = S^+ S`, :math:`\bar y = S^+ U^\top y` of noise :math:`\tau_i = \sigma_y / s_i`:

.. math:: \bar x_t = \bar y + \sqrt{\sigma^2 - \tau^2 P}\,\varepsilon
    \;\Rightarrow\; \bar x_t \mid \bar x, P \sim N(P \bar x, \sigma^2 I), \qquad
    J = \mathbb E\, w(\sigma) \Big[ \|W P (D - \bar y)\|^2
    + 2 \sum_i P_{ii} W_{ii}^2 \tau_i^2\, \partial D_i / \partial \bar x_{t,i} \Big]

It equals :math:`\mathbb E\, w \|W P (D - \bar x)\|^2` up to a constant; :math:`W = E[P]^{-1/2}`.
Levels below :math:`\tau` of a measured coordinate cannot be trained: :math:`\sigma \ge \sigma_y /
s_{min}`. The network sees neither P nor a mask.

Minimiser: :math:`D_i = E[\bar x_i \mid \bar x_t, P_{ii} = 1]`, an average over the masks of the
other coordinates. Samples are drawn with nothing missing, an input that the network hardly saw when
much is missing and noise is low: warning ``shift``.

Differences from the authors' code, each with its option:

- the divergence has the weight of the unbiased loss; theirs is :math:`2 (1 - \bar\alpha) \Lambda`,
  :math:`\Lambda = 10^{-4}`, whatever the noise (``div_weight=official``);
- coordinates are weighted by :math:`1/E[P]`, estimated once over the training parameters; theirs by
  1 (``w=ones``);
- the probe of the divergence is Rademacher (``probe=gaussian``);
- EDM's noise levels and weight :math:`w(\sigma)` (``schedule=official``: the levels of 1,000 linear
  VP steps from :math:`\beta = \sigma_y^2` to 0.02, equally likely, and :math:`w = 1`, the loss of
  their x-prediction). EDM preconditioning with both.

References:
    GSURE-Based Diffusion Model Training with Corrupted Data (Kawar et al., 2024), arXiv:2305.13128
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.config.capabilities import WARNINGS
from cleanprior.data import Batch, TrainingSet
from cleanprior.diffusion.denoiser import Denoise, Denoiser, edm_weight
from cleanprior.diffusion.samplers import LevelledSampler
from cleanprior.operators import Operator
from cleanprior.operators.spectral import Spectrum
from cleanprior.seeding import bernoulli, generator_for
from cleanprior.training import DenoiserMethod, Loss, Problem, Round, Route, Session, Warning

#: The authors' weight of the divergence, in every configuration they publish.
OFFICIAL_WEIGHT = 1e-4
#: Images whose parameters are drawn to find the least singular value of a random operator.
PROBED = 64


@dataclass(frozen=True)
class GSURE:
    r"""The loss of one batch, one number an image.

    Arguments:
        spectrum: The batch's decomposition.
        y: Measurements, (b, ...).
        sigma_y: Their noise levels, (b,).
        weight: :math:`W^2`, one number a spectral coordinate.
        probe: ``rademacher`` or ``gaussian``.
        div_weight: ``unbiased`` or ``official``.
    """

    spectrum: Spectrum
    y: Tensor
    sigma_y: Tensor
    weight: Tensor
    probe: str
    div_weight: str

    @property
    def variance(self) -> Tensor:
        r"""Noise variance of :math:`\bar y`, :math:`\tau^2 P`: 0 where nothing is measured."""
        s = self.spectrum
        level = s.column(self.sigma_y) / s.singular.clamp_min(1e-30)
        return torch.where(s.kept, level**2, 0.0)

    def noised(self, sigma: Tensor, generator: Generator) -> Tensor:
        r"""Draw :math:`V \bar x_t`, whose noise is white of level ``sigma`` in every coordinate."""
        s = self.spectrum
        left = s.column(sigma) ** 2 - self.variance
        assert left.min() > -1e-6 * float(sigma.max()) ** 2, "sigma is below sigma_y / s"
        y_bar = s.pseudo_inverse(self.y)
        like = s.to_image(y_bar)
        # White noise is drawn on pixels: in a half spectrum it has not unit variance.
        noise = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
        return s.to_image(y_bar + left.clamp_min(0).sqrt() * s.to_spectrum(noise))

    def __call__(
        self, denoise: Denoise, sigma: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the data term and the divergence term of each image, sums over coordinates."""
        s = self.spectrum
        x_t = self.noised(sigma, generator)
        needs_divergence = bool((self.sigma_y > 0).any())
        if needs_divergence:
            x_t = x_t.requires_grad_()
        denoised = denoise(x_t, sigma)
        root = s.kept * self.weight.sqrt()
        # A norm of images: a half spectrum would count most coordinates once instead of twice.
        error = s.to_image(root * (s.to_spectrum(denoised) - s.pseudo_inverse(self.y)))
        data = error.square().flatten(1).sum(1)
        if not needs_divergence:
            return data, torch.zeros_like(data)
        v = self._draw_probe(x_t, generator)
        v = s.to_image(s.kept * s.to_spectrum(v))
        weighted = s.to_image(self._divergence_weight(sigma) * s.to_spectrum(v))
        (pulled,) = torch.autograd.grad(denoised, x_t, weighted, create_graph=True)
        return data, 2 * (pulled * v).flatten(1).sum(1)

    def _draw_probe(self, x: Tensor, generator: Generator) -> Tensor:
        if self.probe == "gaussian":
            return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return (2 * bernoulli(x.shape, 0.5, generator) - 1).to(x)

    def _divergence_weight(self, sigma: Tensor) -> Tensor:
        if self.div_weight == "unbiased":
            return self.weight * self.variance
        # (1 - alpha-bar) d/dx_VP in VE: alpha-bar = 1 / (1 + sigma^2), x_VP = sqrt(alpha-bar) x_VE.
        official = OFFICIAL_WEIGHT * sigma**2 / (1 + sigma**2).sqrt()
        return self.spectrum.kept * self.weight * self.spectrum.column(official)


def draw_sigma_above(
    floor: Tensor, generator: Generator, mean: float = -1.2, std: float = 1.2
) -> Tensor:
    r"""Draw EDM's training levels, :math:`\log\sigma \sim N(-1.2, 1.2^2)`, above a floor each.

    Arguments:
        floor: Least level of each image, (b,), at least 0.
        generator: Source of randomness.
        mean: Mean of log sigma.
        std: Standard deviation of log sigma.
    """
    uniform = torch.rand(len(floor), generator=generator, dtype=torch.float64).to(floor.device)
    # The upper tail, where the normal distribution function keeps its digits.
    above = torch.special.ndtr(-(floor.double().log() - mean) / std)
    level = (mean - std * torch.special.ndtri((1 - uniform) * above)).exp()
    return level.to(floor.dtype).maximum(floor)


def official_levels(sigma_y: float) -> Tensor:
    r"""Return the VE levels of the authors' VP schedule, ascending, (1000,), float64.

    .. math:: \sigma_k = \sqrt{(1 - \bar\alpha_k) / \bar\alpha_k}, \quad
        \bar\alpha_k = \prod_{j \le k} (1 - \beta_j)

    with linear :math:`\beta` from :math:`\sigma_y^2`, so that the first level is just above
    :math:`\sigma_y`, to 0.02. Without noise it starts where DDPM's does, at 1e-4.
    """
    start = sigma_y**2 if sigma_y > 0 else 1e-4
    beta = torch.linspace(start, 0.02, 1000, dtype=torch.float64)
    kept = (1 - beta).cumprod(0)
    return ((1 - kept) / kept).sqrt()


def draw_official(floor: Tensor, sigma_y: float, generator: Generator) -> Tensor:
    """Draw one of the authors' levels for each image, all that are not below its floor alike.

    Arguments:
        floor: Least level of each image, (b,); it is the level where all are below it.
        sigma_y: See :func:`official_levels`.
        generator: Source of randomness.
    """
    levels = official_levels(sigma_y).to(floor.device)
    first = torch.searchsorted(levels, floor.double())
    uniform = torch.rand(len(floor), generator=generator, dtype=torch.float64).to(floor.device)
    place = first + ((len(levels) - first) * uniform).long()
    return levels[place.clamp_max(len(levels) - 1)].to(floor.dtype).maximum(floor)


def singular_values(operator: Operator) -> Tensor | None:
    """Return the singular values of some draws of the operator, (n, ...), or None without SVD."""
    n = PROBED if "random" in operator.capabilities else 1
    params = {
        k: v.to(operator.device) for k, v in operator.draw(n, generator_for(0, "gsure")).items()
    }
    spectrum = Spectrum.of(operator, params, torch.zeros(n, device=operator.device))
    return None if spectrum is None else spectrum.singular


@dataclass(kw_only=True)
class GSUREDiffusion(DenoiserMethod):
    """GSURE-Diffusion for random masks, Fourier masks and the identity, with or without noise.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        w: ``coverage`` (1/E[P] for each coordinate) or ``ones``.
        div_weight: ``unbiased`` or ``official``.
        probe: ``rademacher`` or ``gaussian``.
        schedule: ``edm`` or ``official``.
        min_singular: Least singular value that may be kept, as a share of the largest; levels below
            sigma_y over it could not be trained.
        sampler: Sampler of the row that stops at the least trained level.
    """

    w: str
    div_weight: str
    probe: str
    schedule: str
    min_singular: float
    sampler: LevelledSampler
    coverage: Tensor | None = field(default=None, init=False, repr=False)
    floor: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        allowed = {
            "w": ("coverage", "ones"),
            "div_weight": ("unbiased", "official"),
            "probe": ("rademacher", "gaussian"),
            "schedule": ("edm", "official"),
        }
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                given = getattr(self, name)
                raise ValueError(f"{name}={given!r}; allowed: {', '.join(choices)}")
        if not 0 < self.min_singular <= 1:
            raise ValueError(f"min_singular={self.min_singular}; allowed: above 0, at most 1")

    @property
    @override
    def name(self) -> str:
        return "gsure"

    def supports(self, problem: Problem) -> str | None:
        """Return None, or the reason; where the decomposition is at hand, with its numbers."""
        operator = problem.operator
        reason = super().supports(problem)
        values = singular_values(operator)
        if values is None:
            return reason or (
                f"{self.name} needs a cheap SVD with one V for all images (deepinv "
                f"DecomposablePhysics); {problem.operator_name} has none"
            )
        kept = values > self.min_singular * values.max()
        lost, n = int((values <= 1e-5).sum()), values[0].numel()
        if "random" not in operator.capabilities and lost:
            return (
                f"{self.name} needs every coordinate to be observed in some image; {lost} of {n} "
                f"coordinates are never observed by {problem.operator_name}"
            )
        if not bool((kept | (values <= 1e-5)).all()):
            least = float(values[values > 1e-5].min())
            return (
                f"{self.name} needs sigma >= sigma_y / s for every singular value s it keeps; "
                f"{problem.operator_name} has s_min={least:.2g} "
                f"(needs at least {self.min_singular * float(values.max()):.2g})"
            )
        return reason

    def warnings(self, problem: Problem) -> list[Warning]:
        """Return the warnings; ``shift`` where coordinates are missing in training alone.

        Only an operator that hides nothing (the identity) is free of it.
        """
        found = super().warnings(problem)
        if "identity" not in problem.operator.capabilities:
            found.append(Warning("shift", WARNINGS["shift"]))
        return found

    @override
    def build(self) -> None:
        self.denoiser = self.problem.denoiser()
        values = singular_values(self.problem.operator)
        assert values is not None
        self.floor = self.problem.sigma_y / float(values[values > 1e-5].min())

    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        """Estimate E[P] over the parameters of all training measurements."""
        total: Tensor | None = None
        for part in torch.arange(len(session.measurements)).split(256):
            batch = session.measurements.batch(part).to(session.device)
            kept = self._spectrum(batch).kept.double().sum(0)
            total = kept if total is None else total + kept
        assert total is not None
        self.coverage = (total / len(session.measurements)).float()
        return session.measurements

    def _spectrum(self, batch: Batch) -> Spectrum:
        spectrum = Spectrum.of(self.problem.operator, batch.params, batch.y)
        assert spectrum is not None, "supports() lets only decomposable operators through"
        return spectrum

    def weight(self) -> Tensor:
        """Return W^2; a coordinate that no training image shows never enters the loss."""
        assert self.coverage is not None, "begin_round() comes first"
        if self.w == "ones":
            return torch.ones_like(self.coverage)
        return 1 / self.coverage.clamp_min(1e-6)

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        spectrum = self._spectrum(batch)
        gsure = GSURE(spectrum, batch.y, batch.sigma_y, self.weight(), self.probe, self.div_weight)
        tau = gsure.variance.flatten(1).amax(1).sqrt()
        floor = tau.clamp_min(self.floor)
        if self.schedule == "official":
            sigma = draw_official(floor, self.problem.sigma_y, generator)
            weight = torch.ones_like(sigma)
        else:
            sigma = draw_sigma_above(floor, generator)
            weight = edm_weight(sigma, self.denoiser.sigma_data).flatten()
        data, divergence = gsure(self.denoiser, sigma, generator)
        weight = weight / math.prod(self.problem.image_shape)
        parts = {"data": (weight * data).mean(), "divergence": (weight * divergence).mean()}
        return Loss(parts["data"] + parts["divergence"], {k: v.detach() for k, v in parts.items()})

    def routes(self, averaged: Mapping[str, nn.Module]) -> Sequence[Route]:
        """With noise, sampling that stops at the least trained level and denoises once."""
        if self.floor <= min(self.sampler.levels[:-1]):
            return []
        denoiser = averaged["denoiser"]
        assert isinstance(denoiser, Denoiser)
        stopped = copy.copy(self.sampler)
        above = [level for level in self.sampler.levels if level > self.floor]
        stopped.levels = [*above, self.floor, 0.0]

        def sample(n: int, generator: Generator) -> Tensor:
            device = next(denoiser.parameters()).device
            noise = torch.randn((n, *self.problem.image_shape), generator=generator)
            return stopped(denoiser, noise.to(device), generator).cpu()

        return [Route(samples_by="stopped at the least trained level", sample=sample)]
