"""MMPS: guidance by Tweedie's covariance."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from azula.linalg.solve import gmres
from torch import Tensor
from typing_extensions import override

from ...config.checks import check_choice, check_iterations
from ...operators.base import PROJECTIONS, Operator, likelihood_sigma
from ...operators.levels import is_white
from ...operators.likelihood import Likelihood
from ...operators.solve import conjugate_gradient
from ..denoiser import Denoise
from .base import GuidedSampler, with_graph


@dataclass(eq=False)
class MMPS(GuidedSampler):
    r"""Moment-matching posterior sampling: a Gaussian p(x|x_t) with Tweedie's covariance.

    .. math:: \hat x = D + \sigma^2 J^\top A^\top
        \big(\mathrm{diag}\,\sigma_y^2 + A\,\sigma^2 J^\top A^\top\big)^{-1} (y - A D), \quad
        J = \partial D/\partial x

    Exact when x is Gaussian and the solve converges. The solve is conjugate gradient, one
    vector-Jacobian product an iteration, each image on its own, and guarded against divergence (J
    of a trained network is only nearly symmetric).

    Arguments:
        iterations: Conjugate-gradient iterations at most, or ``auto``: 2 where :math:`A A^\top` is
            a projection (masks, MRI lines, A = I), where two suffice for a Gaussian, and 4
            elsewhere: under a blur the covariance of draws is then within 6 %, with 2 within 16 %;
            one more where noise levels differ between entries of y (masks, levels of 0.05 to 1: 7 %
            with 3, 14 % with 2).
            More follow the Jacobian of a trained network where it is no covariance, and widen
            draws.
        tolerance: Relative residual at which an image's solve stops.
        growth: An image's solve stops when its residual exceeds this multiple of its start;
            infinity for a map known to be symmetric, whose residual may rise before it falls.
        sigma_floor: Replaces sigma_y in the likelihood where it is 0; y is not altered.
        solver: ``cg``, or ``gmres`` (azula's, whose default is one iteration): needs no symmetry,
            runs all iterations, without tolerance and guard.
        steps, sigma_min, sigma_max, rho, eta: see :class:`GuidedSampler`.

    References:
        Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al.,
        2024), section 4, arXiv:2405.13712
    """

    takes_maps: ClassVar[bool] = True

    iterations: int | str
    tolerance: float
    growth: float
    sigma_floor: float
    solver: str = "cg"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("solver", self.solver, ("cg", "gmres"))
        if self.iterations != "auto":
            if not isinstance(self.iterations, int):
                raise ValueError(f"iterations={self.iterations!r}; allowed: auto, or 1 or more")
            check_iterations(self.iterations)

    def solve_iterations(self, operator: Operator) -> int:
        """Return the iterations of a solve under an operator."""
        if isinstance(self.iterations, int):
            return self.iterations
        more = "local_noise" in operator.capabilities
        return (2 if PROJECTIONS & operator.capabilities else 4) + more

    @override
    def backwards_per_step(self, operator: Operator) -> int:
        return self.solve_iterations(operator) + (self.solver == "gmres")

    @override
    def guide(
        self, denoise: Denoise, x: Tensor, sigma: float, likelihood: Likelihood
    ) -> tuple[Tensor, Tensor | None]:
        sigma_y = likelihood_sigma(likelihood.sigma_y, self.sigma_floor)
        if (sigma_y <= 0).any():
            raise ValueError("sigma_y is 0 and sigma_floor is 0; set posterior.sigma_floor above 0")
        variance = sigma_y.double() ** 2
        with torch.enable_grad():
            x, denoised = with_graph(denoise, x, sigma)
            predicted = likelihood.A(denoised)
        seen = likelihood.observed

        def pull_back(v: Tensor) -> Tensor:
            """Apply sigma^2 J^T A^T."""
            weighted = (v * seen).to(predicted.dtype)
            return sigma**2 * torch.autograd.grad(predicted, x, weighted, retain_graph=True)[0]

        def covariance(v: Tensor) -> tuple[Tensor, Tensor]:
            """Return (sigma_y^2 + A sigma^2 J^T A^T) v and sigma^2 J^T A^T v."""
            column = likelihood.column(variance)
            pulled = pull_back(v)
            return column * v + (likelihood.A(pulled) * seen).double(), pulled

        residual = ((likelihood.y - predicted.detach()) * seen).double()
        solved, scaled = covariance, pull_back
        if not is_white(sigma_y):
            # Else a solve takes as many iterations as there are levels. Jacobi's scaling, with the
            # spread of images at this level for the diagonal of the Jacobian.
            left = sigma**2 * self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
            root = (variance + left).rsqrt()

            def solved(v: Tensor) -> tuple[Tensor, Tensor]:
                """Return the scaled covariance of v, and sigma^2 J^T A^T of the scaled v."""
                image, pulled = covariance(root * v)
                return root * image, pulled

            def scaled(v: Tensor) -> Tensor:
                return pull_back(root * v)

            residual = root * residual
        if self.solver == "gmres":
            flat = gmres(
                lambda v: solved(v.reshape(residual.shape))[0].flatten(1),
                residual.flatten(1),
                iterations=self.solve_iterations(likelihood.operator),
            )
            return denoised.detach() + scaled(flat.reshape(residual.shape)), None
        shift = conjugate_gradient(
            solved,
            residual,
            self.solve_iterations(likelihood.operator),
            self.tolerance,
            self.growth,
        )
        return denoised.detach() + shift, None
