r"""The E-step's sampler: a walk with a network that was told y, one evaluation a level."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from cleanprior.diffusion.denoiser import Denoise
from cleanprior.diffusion.posterior import GuidedSampler
from cleanprior.diffusion.posterior.base import level_of
from cleanprior.operators import Likelihood, Operator


@dataclass(eq=False)
class ConditionalWalk(GuidedSampler):
    r"""Draws from p(x|y) with :math:`E[x \mid x_t, y]` itself: no solve, no derivative of A.

    Arguments:
        steps, sigma_min, sigma_max, rho, eta, walk, sigma_data: see :class:`GuidedSampler`.
    """

    takes_maps: ClassVar[bool] = True

    @override
    def backwards_per_step(self, operator: Operator) -> int:
        return 0

    @override
    @torch.no_grad()
    def guide(
        self, denoise: Denoise, x: Tensor, sigma: float, likelihood: Likelihood
    ) -> tuple[Tensor, Tensor | None]:
        return denoise(x, level_of(x, sigma)), None


__all__ = ["ConditionalWalk"]
