"""PiGDM: guidance by an isotropic covariance of p(x|x_t)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from ...config.checks import check_iterations
from ...operators.base import Operator
from ...operators.likelihood import Likelihood
from ...operators.solve import ridge_solution
from ..denoiser import Denoise
from .base import GuidedSampler, with_graph


@dataclass(eq=False)
class PiGDM(GuidedSampler):
    r"""Pseudo-inverse guided diffusion: p(x|x_t) is a Gaussian of covariance :math:`r^2 I`.

    .. math:: \hat x = D + \sigma^2 J^\top A^\top (r^2 A A^\top + \sigma_y^2 I)^{-1} (y - A D),
        \quad r^2 = \frac{\sigma^2 \sigma_d^2}{\sigma^2 + \sigma_d^2}, \quad
        J = \partial D / \partial x

    Exact for a Gaussian prior of covariance :math:`\sigma_d^2 I`. Noise-free measurements need no
    floor: the inverse becomes a pseudo-inverse. One vector-Jacobian product a step.

    Differences from the paper: its :math:`r^2` is that of unit-variance data
    (``sigma_data=1``); the guidance enters the mean with the weight of Bayes' rule,
    :math:`\sigma^2`, and not :math:`r^2`, which near the end is the same.

    Arguments:
        sigma_data: :math:`\sigma_d`, standard deviation of the images, above 0; also of the walk.
        iterations: Conjugate-gradient iterations at most, for operators without decomposition.
        tolerance: Relative residual at which an image's solve stops.
        steps, sigma_min, sigma_max, rho, eta: see :class:`GuidedSampler`.

    Raises:
        ValueError: ``sigma_data`` not above 0, or ``iterations`` below 1.

    References:
        Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., ICLR 2023), Eq. 7
    """

    takes_maps: ClassVar[bool] = True

    sigma_data: float = field()  # no default here
    iterations: int
    tolerance: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_iterations(self.iterations)

    @override
    def backwards_per_step(self, operator: Operator) -> int:
        return 1

    @override
    def guide(
        self, denoise: Denoise, x: Tensor, sigma: float, likelihood: Likelihood
    ) -> tuple[Tensor, Tensor | None]:
        variance = sigma**2 * self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        with torch.enable_grad():
            x, denoised = with_graph(denoise, x, sigma)
            residual = likelihood.residual(denoised.detach())
            ridge = likelihood.sigma_y**2 / variance
            shift = ridge_solution(likelihood, residual, ridge, self.iterations, self.tolerance)
            (pulled,) = torch.autograd.grad(denoised, x, shift.to(denoised.dtype))
        return denoised.detach() + sigma**2 / variance * pulled, None
