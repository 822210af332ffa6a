r"""Ambient-Tweedie: predict the noisy image from a noisier one, convert by Tweedie's formula.

Objective (Ambient-o, Eq. 2.2). For :math:`\sigma > \sigma_y`,
:math:`x_\sigma = y + \sqrt{\sigma^2 - \sigma_y^2}\,n` and
:math:`\alpha = (\sigma^2 - \sigma_y^2)/\sigma^2`,

.. math:: \mathbb E\, w(\sigma)\,\|\alpha D(x_\sigma, \sigma) + (1 - \alpha) x_\sigma - y\|^2

whose minimiser is :math:`E[x \mid x_\sigma]` at every level above :math:`\sigma_y`. Levels below it
are not trained unless ``consistency`` is on (Daras et al. 2024): correct above :math:`\sigma_y`
and a martingale below determines D everywhere; see :mod:`cleanprior.methods.consistency`, also for
its differences.

**Ambient-o** (``operator_mode=ambient_o``): any corruption is taken for noise. Images that a user
would look at (y, or A^+ y) get noise up to ``sigma_min`` once, and are used above ``sigma_min``
only, where the corruption drowns in noise; the operator is not modelled. The warning ``ambient-o``
stands beside the row.

Differences from the papers and the authors' code, each with its option:

- noise levels are drawn from the log-normal law cut off at :math:`\sigma_y`
  (``sigma_draw=clamp``: lower draws are moved to :math:`\sigma_y`, where they teach nothing: 37 %
  of them at 0.2);
- EDM's weight, with which gradients stay bounded (``weight=ambient_o``: divided by
  :math:`\alpha^2`, unbounded variance next to :math:`\sigma_y`);
- no augmentation, or flips only, which keep white noise white (``augment=after_noise``: scale,
  rotation and anisotropic scale of the noisy image with its level unchanged);
- noise may differ between images; a clean image has EDM's loss.

Without an option: choosing Ambient-o's ``sigma_min`` by a classifier of clean against corrupted
images, which needs a clean set; and Ambient Dataloops, of which too little is published.

Cost: consistency evaluates D at x_s and steps + 1 times for each child; it is counted.

References:
    Consistent Diffusion Meets Tweedie (Daras et al., 2024), arXiv:2404.10177
    How much is a noisy image worth? (Daras et al., 2024), arXiv:2411.02780
    Ambient Diffusion Omni (Daras et al., 2025), arXiv:2506.10038
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.config.checks import check_choice, check_positive
from cleanprior.data import Batch, TrainingSet
from cleanprior.diffusion.denoiser import Denoiser, draw_sigma, edm_weight, per_image
from cleanprior.diffusion.posterior import Draw
from cleanprior.diffusion.samplers import LevelledSampler
from cleanprior.seeding import generator_for, randn_like
from cleanprior.training import (
    DenoiserMethod,
    Loss,
    OneStep,
    Problem,
    Round,
    Route,
    Session,
    Warning,
)

from ..consistency import Consistency
from .augmentation import AUGMENTATIONS, augment

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


@dataclass(kw_only=True)
class AmbientTweedie(DenoiserMethod):
    """Denoising above the noise of the data, with consistency below it as an option.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        sigma_draw: ``truncate`` or ``clamp``.
        weight: ``edm`` or ``ambient_o``.
        augment: ``none``, ``flip`` or ``after_noise``.
        augment_probability: Of each of the warps of ``after_noise``, in [0, 1].
        operator_mode: ``refuse`` operators other than the identity, or ``ambient_o``.
        sigma_min: Noise level up to which Ambient-o adds noise, units of x, above 0.
        consistency: The consistency loss.
        sampler: Sampler whose levels the truncated sampler takes as far as sigma_y.

    Raises:
        ValueError: A value outside its range, or weights that divide by 0.
    """

    sigma_draw: str
    weight: str
    augment: str
    augment_probability: float
    operator_mode: str
    sigma_min: float
    consistency: Consistency
    sampler: LevelledSampler

    def __post_init__(self) -> None:
        check_choice("sigma_draw", self.sigma_draw, ("truncate", "clamp"))
        check_choice("weight", self.weight, ("edm", "ambient_o"))
        check_choice("augment", self.augment, AUGMENTATIONS)
        check_choice("operator_mode", self.operator_mode, ("refuse", "ambient_o"))
        if not 0 <= self.augment_probability <= 1:
            raise ValueError(f"augment_probability={self.augment_probability}; allowed: [0, 1]")
        check_positive("sigma_min", self.sigma_min)
        if (self.sigma_draw, self.weight) == ("clamp", "ambient_o"):
            raise ValueError(
                "sigma_draw=clamp draws sigma_y itself, where weight=ambient_o divides by 0; set "
                "sigma_draw=truncate or weight=edm"
            )

    @override
    def warnings(self, problem: Problem) -> list[Warning]:
        found = super().warnings(problem)
        if self.operator_mode == "ambient_o":
            text = "the operator is not modelled; added noise hides its corruption"
            found.append(Warning("ambient-o", text))
        return found

    @property
    def stop(self) -> float:
        """The least level that the data train, units of x."""
        noise = self.problem.sigma_y
        return max(noise, self.sigma_min) if self.operator_mode == "ambient_o" else noise

    def noisy_images(self, batch: Batch) -> Batch:
        """Return the batch as noisy images; with Ambient-o the same noise each time."""
        if self.operator_mode != "ambient_o":
            return batch
        y = self.problem.operator.lift(batch.y, batch.params)
        level = batch.sigma_y.clamp_min(self.sigma_min)
        spread = (level**2 - batch.sigma_y**2).clamp_min(0).sqrt()
        generators = [
            generator_for(self.problem.seed, "ambient_o", image=int(i)) for i in batch.index
        ]
        return replace(batch, y=y + per_image(spread) * randn_like(y, generators), sigma_y=level)

    def rounds(self, budget: int) -> Sequence[Round]:
        """Plan training without consistency and, where it is on, fine-tuning with it."""
        if self.consistency.weight == 0:
            return [Round("train", budget)]
        late = max(1, round(budget * self.consistency.finetune))
        plan = [Round("train", budget - late), Round("consistency", late)]
        return [r for r in plan if r.steps > 0]

    @override
    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        self._session, self._is_consistent = session, round.name == "consistency"
        return session.measurements

    # -- loss ----------------------------------------------------------------------------------

    def _draw_sigma(self, sigma_y: Tensor, generator: Generator) -> Tensor:
        if self.sigma_draw == "clamp":
            return torch.maximum(draw_sigma(len(sigma_y), generator, sigma_y.device), sigma_y)
        return draw_sigma_above(sigma_y, generator)

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        batch = self.noisy_images(batch)
        images = augment(batch.y, self.augment, self.augment_probability, generator)
        batch = replace(batch, y=images)
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
        residual = residual * self.consistency.level_weight(high, self.denoiser.sigma_data)
        return (residual * (sigma_y > 0)).mean()

    # -- result --------------------------------------------------------------------------------

    def routes(self, averaged: Mapping[str, nn.Module]) -> Sequence[Route]:
        r"""One-step restoration, and sampling that stops at sigma_y with the denoised mean.

        Gaussian images of covariance C are sampled with :math:`C (C + \sigma_y^2 I)^{-1} C`.
        """
        denoiser = averaged["denoiser"]
        assert isinstance(denoiser, Denoiser)
        stop = self.stop
        sampler = copy.copy(self.sampler)
        if stop > 0:
            above = [s for s in self.sampler.levels if s > stop * (1 + MARGIN)]
            sampler.levels = [*above, stop, 0.0]

        one_step = OneStep(denoiser)

        def restore(batch: Batch, generators: list[Generator]) -> Draw:
            return one_step(self.noisy_images(batch), generators)

        def sample(n: int, generator: Generator) -> Tensor:
            device = next(denoiser.parameters()).device
            noise = torch.randn((n, *self.problem.image_shape), generator=generator)
            return sampler(denoiser, noise.to(device)).cpu()

        return [Route("one step", "truncated", restore, sample, kind="point")]
