r"""Ambient-Tweedie: predict the noisy image from a noisier one, convert by Tweedie's formula.

Objective (Ambient-o, Eq. 2.2). For :math:`\sigma > \sigma_y`,
:math:`x_\sigma = y + \sqrt{\sigma^2 - \sigma_y^2}\,n` and
:math:`\alpha = (\sigma^2 - \sigma_y^2)/\sigma^2`,

.. math:: \mathbb E\, w(\sigma)\,\|\alpha D(x_\sigma, \sigma) + (1 - \alpha) x_\sigma - y\|^2

whose minimiser is :math:`E[x \mid x_\sigma]` at every level above :math:`\sigma_y`. Levels below it
are not trained unless ``consistency`` is on (Daras et al. 2024):

.. math:: c\,\|\mathbb E[D(x_{s'}, s') \mid x_s] - D(x_s, s)\|^2, \quad s' < s

with :math:`x_{s'}` from the reverse process driven by D. Correct above :math:`\sigma_y` and a
martingale below determines D everywhere.

Differences from the papers and the authors' code, each with its option:

- noise levels are drawn from the log-normal law cut off at :math:`\sigma_y`
  (``sigma_draw=clamp``: lower draws are moved to :math:`\sigma_y`, where they teach nothing: 37 %
  of them at 0.2);
- EDM's weight, with which gradients stay bounded (``weight=ambient_o``: divided by
  :math:`\alpha^2`, unbounded variance next to :math:`\sigma_y`);
- the squared mean over children is estimated by the product of two groups
  (``consistency.estimator=mean``: biased by their variance over their number, which punishes a
  reverse process that is random);
- the two levels of consistency are independent draws, and no gradient goes through the reverse
  process (the authors share one draw);
- noise may differ between images; a clean image has EDM's loss.

Cost: consistency evaluates D at x_s and steps + 1 times for each child; it is counted.

References:
    Consistent Diffusion Meets Tweedie (Daras et al., 2024), arXiv:2404.10177
    How much is a noisy image worth? (Daras et al., 2024), arXiv:2411.02780
    Ambient Diffusion Omni (Daras et al., 2025), arXiv:2506.10038
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from cleanprior.data import Batch, TrainingSet
from cleanprior.diffusion.denoiser import Denoise, Denoiser, draw_sigma, edm_weight, per_image
from cleanprior.diffusion.samplers import Heun
from cleanprior.prior import Prior
from cleanprior.seeding import randn_like
from cleanprior.training import Loss, Method, Round, Session, Way

from .sure_score import OneStep, one_of

#: Draws begin this far above sigma_y, relatively: at sigma_y itself alpha is 0.
MARGIN = 1e-3


def draw_sigma_above(
    low: Float[Tensor, " b"], generator: Generator, mean: float = -1.2, std: float = 1.2
) -> Float[Tensor, " b"]:
    r"""Draw noise levels from EDM's log-normal law, truncated to (low (1 + margin), inf).

    Arguments:
        low: Noise level of each image, at least 0; 0 does not truncate.
        generator: Source of randomness.
        mean: Mean of log sigma.
        std: Standard deviation of log sigma.
    """
    start = ((low.double() * (1 + MARGIN)).log() - mean) / std
    # By the upper tail, which keeps its digits where almost nothing of the law is left.
    tail = torch.special.ndtr(-start)
    uniform = torch.rand(len(low), generator=generator, dtype=torch.float64).to(low.device)
    place = -torch.special.ndtri((tail * uniform).clamp(1e-300, 1 - 1e-12))
    return (mean + std * place).exp().to(low.dtype)


def tweedie_loss(
    denoiser: Denoiser,
    y: Float[Tensor, "b c h w"],
    sigma_y: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
    noise: Float[Tensor, "b c h w"],
) -> Float[Tensor, " b"]:
    r"""Return :math:`\|\alpha D + (1-\alpha) x_\sigma - y\|^2` of each image, a mean over pixels.

    Formed as :math:`\alpha (D - y) + (1 - \alpha)(x_\sigma - y)`, and :math:`1 - \alpha` is never a
    difference: at large sigma it is a small correction to a large number.

    Arguments:
        denoiser: D.
        y: Noisy images.
        sigma_y: Their noise levels; 0 for a clean image.
        sigma: Levels to predict from, at least ``sigma_y``.
        noise: Unit white noise.
    """
    further = per_image((sigma**2 - sigma_y**2).clamp_min(0).sqrt()) * noise
    rest = per_image((sigma_y / sigma) ** 2)
    residual = (1 - rest) * (denoiser(y + further, sigma) - y) + rest * further
    return (residual**2).flatten(1).mean(1)


def reverse_process(
    denoise: Denoise,
    x: Float[Tensor, "b c h w"],
    start: Float[Tensor, " b"],
    end: Float[Tensor, " b"],
    steps: int,
    generator: Generator,
) -> Float[Tensor, "b c h w"]:
    r"""Run the reverse diffusion from one noise level to a lower one (Euler, geometric levels).

    .. math:: x' = x + 2 (\sigma' - \sigma)(x - D)/\sigma + \sqrt{2\sigma(\sigma - \sigma')}\, z

    Arguments:
        denoise: D.
        x: Images at level ``start``.
        start: Noise level of each image.
        end: Level to reach, at most ``start``, above 0.
        steps: Euler steps.
        generator: Source of z.
    """
    ratio = (end / start) ** (1 / steps)
    sigma = start
    for _ in range(steps):
        lower = sigma * ratio
        drift = per_image(2 * (lower - sigma) / sigma) * (x - denoise(x, sigma))
        spread = (2 * sigma * (sigma - lower)).clamp_min(0).sqrt()
        x = x + drift + per_image(spread) * randn_like(x, generator)
        sigma = lower
    return x


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """D as a martingale along its own reverse process, for levels below sigma_y.

    Arguments:
        weight: Its coefficient c; 0 leaves it out.
        finetune: Share of the budget, at the end, in which it is on, in (0, 1].
        share: Share of a batch that it is computed on, in (0, 1].
        children: Draws of the reverse process for an image: even, 2 or more.
        steps: Euler steps of each.
        estimator: ``product`` of two groups' means (unbiased) or squared ``mean``.
        start: Largest starting level, in units of sigma_y, above 1.
        sigma_min: Lowest level, above 0.

    Raises:
        ValueError: A value outside its range.
    """

    weight: float
    finetune: float
    share: float
    children: int
    steps: int
    estimator: str
    start: float
    sigma_min: float

    def __post_init__(self) -> None:
        one_of("consistency.estimator", self.estimator, ("product", "mean"))
        if self.weight < 0:
            raise ValueError(f"consistency.weight={self.weight}; allowed: 0 (off) or above")
        for key in ("finetune", "share"):
            if not 0 < getattr(self, key) <= 1:
                raise ValueError(f"consistency.{key}={getattr(self, key)}; allowed: (0, 1]")
        if self.children < 2 or self.children % 2:
            raise ValueError(
                f"consistency.children={self.children}; allowed: 2, 4, ... (two groups of equal "
                "size)"
            )
        if self.steps < 1:
            raise ValueError(f"consistency.steps={self.steps}; allowed: 1 or more")
        if not self.start > 1:
            raise ValueError(f"consistency.start={self.start}; allowed: above 1 (times sigma_y)")
        if not self.sigma_min > 0:
            raise ValueError(f"consistency.sigma_min={self.sigma_min}; allowed: above 0")

    def levels(
        self, sigma_y: Float[Tensor, " b"], generator: Generator
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Draw s log-uniformly in [sigma_y, start sigma_y] and s' log-uniformly in [min, s]."""
        u = torch.rand((2, len(sigma_y)), generator=generator).to(sigma_y.device)
        high = sigma_y.clamp_min(2 * self.sigma_min) * self.start ** u[0]
        return high, self.sigma_min * (high / self.sigma_min) ** u[1]

    def residual(
        self,
        denoiser: Denoise,
        x: Float[Tensor, "b c h w"],
        high: Float[Tensor, " b"],
        low: Float[Tensor, " b"],
        generator: Generator,
    ) -> Float[Tensor, " b"]:
        """Return an estimate of the squared residual of each image, a mean over pixels.

        Arguments:
            denoiser: D, live weights, also in the reverse process.
            x: Images at level ``high``.
            high: s.
            low: s', at most ``high``.
            generator: Source of the children's noise.
        """
        k = self.children
        parents, start, end = (v.repeat_interleave(k, 0) for v in (x, high, low))
        with torch.no_grad():
            children = reverse_process(denoiser, parents, start, end, self.steps, generator)
        means = denoiser(children, end).reshape(len(x), 2, k // 2, *x.shape[1:]).mean(2)
        gap = means - denoiser(x, high)[:, None]
        product = gap.mean(1) ** 2 if self.estimator == "mean" else gap[:, 0] * gap[:, 1]
        return product.flatten(1).mean(1)

    def evaluations(self, images: int) -> float:
        """Return how often D is evaluated for this many images."""
        return float(images * (1 + self.children * (self.steps + 1)))


@dataclass(kw_only=True)
class AmbientTweedie(Method):
    """Denoising above the noise of the data, with consistency below it as an option.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        sigma_draw: ``truncate`` or ``clamp``.
        weight: ``edm`` or ``ambient_o``.
        consistency: The consistency loss.
        sampler: Sampler whose levels the truncated sampler takes as far as sigma_y.

    Raises:
        ValueError: A value outside its range, or weights that divide by 0.
    """

    needs: Sequence[str] = ("IDENTITY", "GAUSS")
    sigma_draw: str
    weight: str
    consistency: Consistency
    sampler: Heun

    def __post_init__(self) -> None:
        one_of("sigma_draw", self.sigma_draw, ("truncate", "clamp"))
        one_of("weight", self.weight, ("edm", "ambient_o"))
        if (self.sigma_draw, self.weight) == ("clamp", "ambient_o"):
            raise ValueError(
                "sigma_draw=clamp draws sigma_y itself, where weight=ambient_o divides by 0; set "
                "sigma_draw=truncate or weight=edm"
            )

    def build(self) -> None:  # noqa: D102
        self.denoiser = self.problem.denoiser()

    def networks(self) -> Mapping[str, nn.Module]:  # noqa: D102
        return {"denoiser": self.denoiser}

    def rounds(self, budget: int) -> Sequence[Round]:
        """Plan training without consistency and, where it is on, fine-tuning with it."""
        if self.consistency.weight == 0:
            return [Round("train", budget)]
        late = max(1, round(budget * self.consistency.finetune))
        plan = [Round("train", budget - late), Round("consistency", late)]
        return [r for r in plan if r.steps > 0]

    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:  # noqa: D102
        self._session, self._is_consistent = session, round.name == "consistency"
        return session.measurements

    # -- loss ----------------------------------------------------------------------------------

    def _draw_sigma(self, sigma_y: Tensor, generator: Generator) -> Tensor:
        if self.sigma_draw == "clamp":
            return torch.maximum(draw_sigma(len(sigma_y), generator, sigma_y.device), sigma_y)
        return draw_sigma_above(sigma_y, generator)

    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:  # noqa: D102
        sigma = self._draw_sigma(batch.sigma_y, generator)
        noise = randn_like(batch.y, generator)
        weight = edm_weight(sigma, self.denoiser.sigma_data).flatten()
        if self.weight == "ambient_o":
            weight = weight / (1 - (batch.sigma_y / sigma) ** 2) ** 2
        error = tweedie_loss(self.denoiser, batch.y, batch.sigma_y, sigma, noise)
        total = (weight * error).mean()
        if not self._is_consistent:
            return Loss(total)
        residual = self._consistency_term(batch, generator)
        parts = {"tweedie": total.detach(), "consistency": residual.detach()}
        return Loss(total + self.consistency.weight * residual, parts)

    def _consistency_term(self, batch: Batch, generator: Generator) -> Tensor:
        """Return the mean residual over the first images of a batch; clean ones have none."""
        n = max(1, math.ceil(self.consistency.share * len(batch)))
        y, sigma_y = batch.y[:n], batch.sigma_y[:n]
        high, low = self.consistency.levels(sigma_y, generator)
        spread = (high**2 - sigma_y**2).clamp_min(0).sqrt()
        x = y + per_image(spread) * randn_like(y, generator)
        residual = self.consistency.residual(self.denoiser, x, high, low, generator)
        self._session.count("evaluations", self.consistency.evaluations(n))
        return (residual * (sigma_y > 0)).mean()

    # -- result --------------------------------------------------------------------------------

    def prior(self, averaged: Mapping[str, nn.Module]) -> Prior | None:  # noqa: D102
        return self.make_prior(averaged["denoiser"])

    def ways(self, averaged: Mapping[str, nn.Module]) -> Sequence[Way]:
        r"""One-step restoration, and sampling that stops at sigma_y with the denoised mean.

        Gaussian images of covariance C are sampled with :math:`C (C + \sigma_y^2 I)^{-1} C`.
        """
        denoiser = averaged["denoiser"]
        assert isinstance(denoiser, Denoiser)
        stop = self.problem.sigma_y
        sampler = copy.copy(self.sampler)
        if stop > 0:
            above = [s for s in self.sampler.levels if s > stop * (1 + MARGIN)]
            sampler.levels = [*above, stop, 0.0]

        def sample(n: int, generator: Generator) -> Tensor:
            device = next(denoiser.parameters()).device
            noise = torch.randn((n, *self.problem.image_shape), generator=generator)
            return sampler(denoiser, noise.to(device)).cpu()

        return [Way("one step; samples: truncated", OneStep(denoiser), sample)]
