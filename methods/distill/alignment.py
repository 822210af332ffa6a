r"""The generator's objective: the score identity estimate of a Fisher divergence.

For laws of images of the teacher and of the generator, blurred by noise of level sigma, the
divergence is the mean of :math:`\|f_\phi - f_\psi\|^2` over noisy images of the generator, with
:math:`f_\phi, f_\psi` the denoisers of both laws. With :math:`f_\psi = E[x | x_\sigma]`,

.. math:: E[c \cdot (f_\phi - x)] = E\,\|c\|^2, \qquad c = f_\phi - f_\psi

so that the estimate :math:`c\cdot[(f_\phi - x) - \alpha c]` has the mean
:math:`(1-\alpha)\,E\|c\|^2`: below 0 for alpha above 1. Its value tells nothing of convergence.

References:
    Score identity Distillation (Zhou et al., 2024), arXiv:2404.04057
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from cleanprior.diffusion.denoiser import Denoise, per_image
from cleanprior.training import View

#: Least mean error of the teacher that weights divide by, units of x.
FLOOR = 1e-5


@dataclass(frozen=True)
class Levels:
    r"""Noise levels at which the two laws are compared.

    .. math:: \sigma = \big(\sigma_{max}^{1/\rho}
        + (1-u)(\sigma_{min}^{1/\rho} - \sigma_{max}^{1/\rho})\big)^\rho,\quad u \sim U(0, u_{max})

    Arguments:
        low: :math:`\sigma_{min}`, units of x, above 0.
        high: :math:`\sigma_{max}`, above ``low``.
        rho: Bends the levels to low ones, above 0.
        share: :math:`u_{max}`, the share of the levels that is drawn from, the lowest, in (0, 1].

    Raises:
        ValueError: A value outside its range.
    """

    low: float
    high: float
    rho: float
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"sigma_min={self.low}, sigma_max={self.high}; needed: 0 < min < max")
        if not self.rho > 0:
            raise ValueError(f"rho={self.rho}; allowed: above 0")
        if not 0 < self.share <= 1:
            raise ValueError(f"time_max={self.share}; allowed: above 0 and at most 1")

    def _place(self, sigma: float) -> float:
        """Return u of a level."""
        low, high = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        return (sigma ** (1 / self.rho) - low) / (high - low)

    def draw(self, n: int, generator: Generator, above: float = 0.0) -> Float[Tensor, " n"]:
        """Draw levels, on the CPU.

        Arguments:
            n: How many.
            generator: Source of randomness.
            above: No level lies below this, units of x.
        """
        low, high = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        first = min(max(self._place(above), 0.0), self.share) if above > self.low else 0.0
        u = first + (self.share - first) * torch.rand(n, generator=generator)
        return (high + (1 - u) * (low - high)) ** self.rho


@dataclass(frozen=True)
class Alignment:
    r"""What two denoisers say of the same noisy images, in what their input shows of them.

    Attributes:
        teacher: The teacher's, less the image: :math:`f_\phi - x`, (b, ...).
        difference: :math:`c = f_\phi - f_\psi`, (b, ...).
        seen: 1 where an entry is shown, (b, ...).
    """

    teacher: Tensor
    difference: Tensor
    seen: Tensor

    @classmethod
    def of(
        cls,
        teacher: Denoise,
        fake: Denoise,
        x: Float[Tensor, "b c h w"],
        sigma: Float[Tensor, " b"],
        noise: Float[Tensor, "b c h w"],
        view: View,
    ) -> "Alignment":
        """Ask both denoisers. Differentiable in ``x``, through both networks.

        Arguments:
            teacher: Called as ``teacher(input, sigma)``, or with a condition where the view has
                one.
            fake: The same.
            x: Images of the generator.
            sigma: Noise level of each.
            noise: Unit white noise.
            view: How both look at images.
        """
        shown = view.show(x + per_image(sigma) * noise)
        told = () if view.condition is None else (view.condition,)
        f, g = (network(shown, sigma, *told) for network in (teacher, fake))
        seen = torch.ones_like(view.see(x)) if view.seen is None else view.seen
        return cls(seen * view.see(f - x), seen * view.see(f - g), seen)

    def terms(self, alpha: float) -> Float[Tensor, " b"]:
        r"""Return :math:`c\cdot[(f_\phi - x) - \alpha c]`, a mean over each image's entries."""
        return self._mean(self.difference * (self.teacher - alpha * self.difference))

    def weights(self) -> Float[Tensor, " b"]:
        r"""Return :math:`1 / \overline{|x - f_\phi|}` of each image, without gradient."""
        return 1 / self._mean(self.teacher.detach().abs()).clamp_min(FLOOR)

    def gap(self) -> Float[Tensor, ""]:
        r"""Return :math:`\overline{|c|}` over all, without gradient: large where the fake lags."""
        return self._mean(self.difference.detach().abs()).mean()

    def _mean(self, values: Tensor) -> Float[Tensor, " b"]:
        return values.flatten(1).sum(1) / self.seen.expand_as(values).flatten(1).sum(1).clamp_min(1)


__all__ = ["FLOOR", "Alignment", "Levels"]
