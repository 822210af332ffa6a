r"""Consistency: D is a martingale along its own reverse process.

.. math:: c\,w\,\|\mathbb E[D(x_{s'}, s') \mid x_s] - D(x_s, s)\|^2, \quad s' < s

with :math:`x_{s'}` from the reverse process driven by D. Together with a D that is right above
:math:`\sigma_y` it determines D below.

Differences from ambient-laws, each with its option:

- the squared mean over children is estimated by the product of two groups (``estimator=mean``:
  biased by their variance over their number, which punishes a reverse process that is random);
- the two levels are independent draws (``pairing=shared``: both are one draw of EDM's law, the
  upper one moved up to :math:`\sigma_y`; a draw above it gives a residual of exactly 0, so that
  consistency acts only from :math:`\sigma_y` itself downwards);
- residuals are not weighted (``weighting=edm``: EDM's weight at s);
- no gradient goes through the reverse process (``gradient=true``: it does, as in their script).

References:
    Consistent Diffusion Meets Tweedie (Daras et al., 2024), arXiv:2404.10177
    How much is a noisy image worth? (Daras et al., 2024), arXiv:2411.02780
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from cleanprior.config.checks import check_choice, check_positive
from cleanprior.diffusion.denoiser import Denoise, draw_sigma, edm_weight, per_image
from cleanprior.seeding import randn_like


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
        pairing: ``independent`` levels or one ``shared`` draw.
        weighting: ``none``, or ``edm``: EDM's weight at the upper level.
        gradient: Let gradients through the reverse process.
        start: Largest starting level of independent pairs, in units of sigma_y, above 1.
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
    pairing: str
    weighting: str
    gradient: bool
    start: float
    sigma_min: float

    def __post_init__(self) -> None:
        check_choice("consistency.estimator", self.estimator, ("product", "mean"))
        check_choice("consistency.pairing", self.pairing, ("independent", "shared"))
        check_choice("consistency.weighting", self.weighting, ("none", "edm"))
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
        check_positive("consistency.sigma_min", self.sigma_min)

    def levels(
        self, sigma_y: Float[Tensor, " b"], generator: Generator
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Draw s and s'.

        Independent: s log-uniformly in [sigma_y, start sigma_y], s' log-uniformly in [min, s].
        Shared: both are one draw of EDM's law, s raised to sigma_y and s' to min.
        """
        if self.pairing == "shared":
            one = draw_sigma(len(sigma_y), generator, sigma_y.device).clamp_min(self.sigma_min)
            return torch.maximum(one, sigma_y), one
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
        with torch.set_grad_enabled(self.gradient and torch.is_grad_enabled()):
            children = reverse_process(denoiser, parents, start, end, self.steps, generator)
        means = denoiser(children, end).reshape(len(x), 2, k // 2, *x.shape[1:]).mean(2)
        gap = means - denoiser(x, high)[:, None]
        product = gap.mean(1) ** 2 if self.estimator == "mean" else gap[:, 0] * gap[:, 1]
        return product.flatten(1).mean(1)

    def level_weight(
        self, high: Float[Tensor, " b"], sigma_data: float
    ) -> Float[Tensor, " b"] | float:
        """Return what each residual is multiplied by."""
        return edm_weight(high, sigma_data).flatten() if self.weighting == "edm" else 1.0

    def evaluations(self, images: int) -> float:
        """Return how often D is evaluated for this many images."""
        return float(images * (1 + self.children * (self.steps + 1)))
