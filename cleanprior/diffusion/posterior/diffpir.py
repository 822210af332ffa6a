"""DiffPIR: a proximal step on the measurements between denoising steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from typing_extensions import override

from ...config.checks import check_iterations, check_positive, check_share
from ...operators.base import Operator, likelihood_sigma
from ...operators.likelihood import Likelihood
from ...operators.solve import ridge_solution
from ...seeding import randn_like
from ..denoiser import Denoise
from .base import LevelSampler, level_of


@dataclass(eq=False)
class DiffPIR(LevelSampler):
    r"""Plug-and-play restoration: the denoised image is pulled towards the measurements.

    .. math:: \hat x = \arg\min_x \|y - A x\|^2 / \sigma_y^2 + \lambda \|x - D\|^2 / \sigma^2,
        \qquad x' = \hat x + \sigma' \big(\sqrt{1-\zeta}\,(x - \hat x)/\sigma + \sqrt\zeta\,z\big)

    No derivative of the denoiser is needed: the cheapest step of all samplers here.

    Differences from the authors' code: variance-exploding levels; the start is white noise and not
    the measurement; the last step is pulled too.

    Arguments:
        guidance_weight: :math:`\lambda`, weight of the prior, above 0; 1 to 10 is usual.
        zeta: Share of fresh noise in each step, in [0, 1].
        sigma_floor: Replaces sigma_y in the likelihood where it is 0; y is not altered.
        iterations: Conjugate-gradient iterations at most, for operators without decomposition.
        tolerance: Relative residual at which an image's solve stops.
        steps, sigma_min, sigma_max, rho: see :class:`LevelSampler`.

    Raises:
        ValueError: ``guidance_weight`` not above 0, ``zeta`` outside [0, 1], ``iterations`` below
            1; when called, noise-free measurements without a floor.

    References:
        Denoising Diffusion Models for Plug-and-Play Image Restoration (Zhu et al., 2023),
        Algorithm 1, arXiv:2305.08995
    """

    takes_maps: ClassVar[bool] = True

    guidance_weight: float
    zeta: float
    sigma_floor: float
    iterations: int
    tolerance: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("guidance_weight", self.guidance_weight)
        check_share("zeta", self.zeta, "0 (deterministic) to 1 (all noise fresh)")
        check_iterations(self.iterations)

    @override
    def backwards_per_step(self, operator: Operator) -> int:
        return 0

    def pull(self, denoised: Tensor, sigma: float, likelihood: Likelihood) -> Tensor:
        """Return the minimiser of the misfit plus the distance to ``denoised``."""
        sigma_y = likelihood_sigma(likelihood.sigma_y, self.sigma_floor)
        if (sigma_y <= 0).any():
            raise ValueError(
                "diffpir needs noise: sigma_y is 0 and sigma_floor is 0; "
                "set posterior.sigma_floor above 0"
            )
        ridge = self.guidance_weight * sigma_y**2 / sigma**2
        residual = likelihood.residual(denoised)
        shift = ridge_solution(likelihood, residual, ridge, self.iterations, self.tolerance)
        return denoised + shift.to(denoised.dtype)

    @torch.no_grad()
    @override
    def step(
        self,
        denoise: Denoise,
        x: Float[Tensor, "b c h w"],
        sigma: float,
        lower: float,
        likelihood: Likelihood,
        generator: Generator | Sequence[Generator],
    ) -> Float[Tensor, "b c h w"]:
        mean = self.pull(denoise(x, level_of(x, sigma)), sigma, likelihood)
        if lower == 0:
            return mean
        x = mean + (1 - self.zeta) ** 0.5 * lower / sigma * (x - mean)
        return x + self.zeta**0.5 * lower * randn_like(x, generator) if self.zeta > 0 else x
