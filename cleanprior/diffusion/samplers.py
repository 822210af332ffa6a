r"""Samplers of p(x): from noise to an image with a denoiser; the steps that walks are made of."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor
from typing_extensions import override

from ..config.checks import check_positive
from ..seeding import randn_like
from .denoiser import Denoise


def noise_levels(
    steps: int, sigma_min: float, sigma_max: float, rho: float | None
) -> Float[Tensor, " {steps}+1"]:
    r"""Return noise levels from ``sigma_max`` down to ``sigma_min``, then 0.

    Arguments:
        steps: Number of levels above 0.
        sigma_min: Lowest of them.
        sigma_max: Highest of them.
        rho: EDM's exponent (Karras et al., 2022, Eq. 5); null for equal ratios, which is its limit
            for large exponents.

    Raises:
        ValueError: Fewer than 2 steps, not 0 < sigma_min < sigma_max, or ``rho`` not above 0.
    """
    if steps < 2:
        raise ValueError(f"steps={steps}; allowed: at least 2")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}; needed: 0 < min < max")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    if rho is None:
        levels = sigma_max * (sigma_min / sigma_max) ** ramp
    else:
        check_positive("rho", rho)
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        levels = (high + ramp * (low - high)) ** rho
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])


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


class LevelledSampler(Sampler):
    """A deterministic walk down noise levels, with a float64 state.

    Arguments:
        steps: Number of noise levels.
        sigma_min: Lowest noise level, above 0.
        sigma_max: Highest noise level.
        rho: Exponent of the level spacing; null for equal ratios.

    Attributes:
        levels: The levels, the last of them 0.
    """

    def __init__(self, steps: int, sigma_min: float, sigma_max: float, rho: float | None) -> None:
        self.levels = noise_levels(steps, sigma_min, sigma_max, rho).tolist()

    @torch.no_grad()
    @override
    def __call__(
        self,
        denoise: Denoise,
        noise: Float[Tensor, "b c h w"],
        generator: Generator | Sequence[Generator] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        def mean(x: Tensor, sigma: float) -> Tensor:
            level = torch.full((len(x),), sigma, device=x.device)
            return denoise(x.float(), level).double()

        # float64: differences of levels near sigma_max lose digits in float32.
        return self.walk(mean, noise.double() * self.levels[0]).float()

    @abstractmethod
    def walk(
        self, mean: Callable[[Tensor, float], Tensor], x: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Go from the state at the highest level to an image.

        Arguments:
            mean: ``mean(x, sigma)`` is the denoised image.
            x: State at the highest level.
        """


class Heun(LevelledSampler):
    """EDM's deterministic second-order sampler (Algorithm 1 without churn).

    2 steps - 1 evaluations of the denoiser an image; ``steps, sigma_min, sigma_max, rho`` as in
    :class:`LevelledSampler`. At EDM's own 18 levels from 80 to 0.002 samples of a Gaussian prior
    have 1.12 times its variance; from 10 to 0.01, 1.03 times.
    """

    @override
    def walk(
        self, mean: Callable[[Tensor, float], Tensor], x: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        for sigma, lower in zip(self.levels[:-1], self.levels[1:], strict=True):
            denoised = mean(x, sigma)
            if lower == 0:
                return denoised
            slope = (x - denoised) / sigma
            euler = x + (lower - sigma) * slope
            second = (euler - mean(euler, lower)) / lower
            x = x + (lower - sigma) * 0.5 * (slope + second)
        raise AssertionError("the levels end at 0")


class Multistep(LevelledSampler):
    r"""Exponential second-order multistep sampler: one evaluation of the denoiser a level.

    The deterministic step of :func:`exponential_step` (:math:`\eta = 0`), exact for Gaussian data
    of standard deviation ``sigma_data``, with EDM's network output extrapolated from the level
    before in :math:`\theta = \arctan(\sigma / \sigma_d)`.

    Arguments:
        steps: Number of noise levels, and of evaluations.
        sigma_min: Lowest noise level, above 0.
        sigma_max: Highest noise level.
        rho: Exponent of the level spacing; null for equal ratios.
        sigma_data: Standard deviation of images, above 0.

    References:
        Fast Sampling of Diffusion Models with Exponential Integrator (Zhang and Chen, 2023),
        arXiv:2204.13902; DPM-Solver++ (Lu et al., 2022), section 4, arXiv:2211.01095
    """

    def __init__(
        self,
        steps: int,
        sigma_min: float,
        sigma_max: float,
        rho: float | None,
        sigma_data: float,
    ) -> None:
        super().__init__(steps, sigma_min, sigma_max, rho)
        check_positive("sigma_data", sigma_data)
        self.sigma_data = sigma_data

    @override
    def walk(
        self, mean: Callable[[Tensor, float], Tensor], x: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        d = self.sigma_data
        before: tuple[Tensor, float] | None = None
        for sigma, lower in zip(self.levels[:-1], self.levels[1:], strict=True):
            denoised = mean(x, sigma)
            if lower == 0:
                return denoised
            total, after = sigma**2 + d**2, lower**2 + d**2
            output = (denoised - d**2 / total * x) * total**0.5 / (sigma * d)
            turn = math.atan(sigma / d) - math.atan(lower / d)
            held = output
            if before is not None:
                held = output + 0.5 * turn / before[1] * (output - before[0])
            x = (after / total) ** 0.5 * x + after**0.5 * turn * held
            before = output, turn
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


def exponential_step(
    x: Tensor,
    denoised: Tensor,
    sigma: float,
    lower: float,
    eta: float,
    sigma_data: float,
    generator: Generator | Sequence[Generator],
) -> Tensor:
    r"""Go from noise level ``sigma`` to ``lower``, exactly for Gaussian data of std ``sigma_data``.

    With :math:`T = \sigma^2 + \sigma_d^2` EDM's denoiser is :math:`D = \sigma_d^2 x / T +
    \sigma \sigma_d F / \sqrt T`. Holding F through the step leaves a linear equation, whose
    solution is, with :math:`\tan\theta = \sigma / \sigma_d` and
    :math:`\kappa = (1 + \eta^2) / 2`,

    .. math:: x' = (T'/T)^\kappa x + 2 \kappa\, \sigma_d^{1 - 2\kappa} T'^\kappa F
        \int_{\theta'}^{\theta} \cos^{\eta^2}\!\vartheta\, d\vartheta
        + \sqrt{T' (1 - (T'/T)^{\eta^2})}\, z

    An ancestral step takes the image for known once D is known, so that few steps lose variance:
    24 of them keep 0.6 of it. Here 12 keep 0.97 to 1.04 of any variance from 0.0025 to 1.

    Arguments:
        x: State at ``sigma``, (b, c, h, w).
        denoised: D, or a posterior mean in its place.
        sigma: Noise level of ``x``.
        lower: Next noise level; at 0 the result is ``denoised``.
        eta: 1 for the reverse diffusion, 0 for the probability flow.
        sigma_data: :math:`\sigma_d`, standard deviation of images in [-1, 1].
        generator: One for the batch, or one an image; not used with ``eta`` = 0.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        Eqs. 6-7 and Table 1, arXiv:2206.00364; SEEDS: Exponential SDE Solvers (Gonzalez et al.,
        2023), arXiv:2305.14267, for the same idea with D or the noise held
    """
    if lower == 0:
        return denoised
    total, after = sigma**2 + sigma_data**2, lower**2 + sigma_data**2
    held = (denoised - sigma_data**2 / total * x) * total**0.5 / (sigma * sigma_data)
    kappa = (1 + eta**2) / 2
    angle, end = math.atan(sigma / sigma_data), math.atan(lower / sigma_data)
    gain = 2 * kappa * sigma_data ** (1 - 2 * kappa) * after**kappa * _arc(end, angle, eta**2)
    x = (after / total) ** kappa * x + gain * held
    spread = (after * (1 - (after / total) ** (eta**2))) ** 0.5
    return x + spread * randn_like(x, generator) if spread > 0 else x


def _arc(low: float, high: float, power: float) -> float:
    r"""Return :math:`\int \cos^p`, in closed form where there is one."""
    if power in (0, 1):
        return high - low if power == 0 else math.sin(high) - math.sin(low)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    middle, half = (high + low) / 2, (high - low) / 2
    return float(half * (weights * np.cos(middle + half * nodes) ** power).sum())
