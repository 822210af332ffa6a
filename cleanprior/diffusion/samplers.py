r"""Samplers of p(x): from noise to an image with a denoiser."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ..seeding import randn_like
from .denoiser import Denoise


def karras_levels(
    steps: int, sigma_min: float, sigma_max: float, rho: float
) -> Float[Tensor, " {steps}+1"]:
    r"""Return EDM's noise levels from ``sigma_max`` down to ``sigma_min``, then 0 (Eq. 5).

    Raises:
        ValueError: Fewer than 2 steps, or not 0 < sigma_min < sigma_max.
    """
    if steps < 2:
        raise ValueError(f"steps={steps}; allowed: at least 2")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}; needed: 0 < min < max")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


class Sampler(ABC):
    """Draws images from a prior, given its denoiser."""

    @abstractmethod
    def __call__(
        self, denoise: Denoise, noise: Float[Tensor, "b c h w"], generator: Generator
    ) -> Float[Tensor, "b c h w"]:
        """Turn unit white noise into images.

        Arguments:
            denoise: The denoiser.
            noise: Unit white noise; each image's result depends on its own noise only.
            generator: Source of further randomness, for samplers that need it.
        """


class Heun(Sampler):
    """EDM's deterministic second-order sampler (Algorithm 1 without churn).

    Arguments:
        steps: Number of noise levels; 2 steps - 1 evaluations of the denoiser an image.
        sigma_min: Lowest noise level, above 0.
        sigma_max: Highest noise level.
        rho: Exponent of the level spacing.
    """

    def __init__(self, steps: int, sigma_min: float, sigma_max: float, rho: float) -> None:
        self.levels = karras_levels(steps, sigma_min, sigma_max, rho).tolist()

    @torch.no_grad()
    def __call__(  # noqa: D102
        self,
        denoise: Denoise,
        noise: Float[Tensor, "b c h w"],
        generator: Generator | Sequence[Generator] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        def mean(x: Tensor, sigma: float) -> Tensor:
            level = torch.full((len(x),), sigma, device=x.device)
            return denoise(x.float(), level).double()

        # float64 state: differences of levels near sigma_max lose digits in float32.
        x = noise.double() * self.levels[0]
        for sigma, lower in zip(self.levels[:-1], self.levels[1:], strict=True):
            denoised = mean(x, sigma)
            if lower == 0:
                return denoised.float()
            slope = (x - denoised) / sigma
            euler = x + (lower - sigma) * slope
            second = (euler - mean(euler, lower)) / lower
            x = x + (lower - sigma) * 0.5 * (slope + second)
        raise AssertionError("the levels end at 0")


def ancestral_step(
    x: Tensor,
    denoised: Tensor,
    sigma: float,
    lower: float,
    eta: float,
    generator: Generator | Sequence[Generator],
) -> Tensor:
    r"""Go from noise level ``sigma`` to ``lower`` given the denoised image.

    .. math:: x' = D + \tfrac{\sqrt{\sigma'^2 - s^2}}{\sigma} (x - D) + s z, \quad
        s = \eta\,\sigma'\sqrt{1 - \sigma'^2/\sigma^2}

    ``eta`` = 1 is ancestral (DDPM) sampling, 0 is deterministic (DDIM).
    """
    if lower == 0:
        return denoised
    spread = eta * lower * (1 - (lower / sigma) ** 2) ** 0.5
    kept = (lower**2 - spread**2) ** 0.5 / sigma
    x = denoised + kept * (x - denoised)
    return x + spread * randn_like(x, generator) if spread > 0 else x
