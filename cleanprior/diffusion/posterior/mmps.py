"""MMPS: guidance by Tweedie's covariance."""

from dataclasses import dataclass

import torch
from azula.linalg.solve import gmres
from torch import Tensor

from ...checks import check_choice, check_iterations
from ...operators.base import likelihood_sigma
from ..denoiser import Denoise
from .base import GuidedSampler, LinearProblem, with_graph
from .solve import conjugate_gradient


@dataclass(eq=False)
class MMPS(GuidedSampler):
    r"""Moment-matching posterior sampling: a Gaussian p(x|x_t) with Tweedie's covariance.

    .. math:: \hat x = D + \sigma^2 J^\top A^\top
        \big(\sigma_y^2 I + A\,\sigma^2 J^\top A^\top\big)^{-1} (y - A D), \quad
        J = \partial D/\partial x

    Exact when x is Gaussian and the solve converges. The solve is conjugate gradient, one
    vector-Jacobian product an iteration, each image on its own, and guarded against divergence (J
    of a trained network is only nearly symmetric).

    Arguments:
        iterations: Conjugate-gradient iterations at most.
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

    iterations: int
    tolerance: float
    growth: float
    sigma_floor: float
    solver: str = "cg"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("solver", self.solver, ("cg", "gmres"))
        check_iterations(self.iterations)

    @property
    def backwards_per_step(self) -> int:  # noqa: D102
        return self.iterations + 1

    def guide(  # noqa: D102
        self, denoise: Denoise, x: Tensor, sigma: float, problem: LinearProblem
    ) -> tuple[Tensor, Tensor | None]:
        sigma_y = likelihood_sigma(problem.sigma_y, self.sigma_floor)
        if (sigma_y <= 0).any():
            raise ValueError("sigma_y is 0 and sigma_floor is 0; set posterior.sigma_floor above 0")
        variance = sigma_y.double() ** 2
        with torch.enable_grad():
            x, denoised = with_graph(denoise, x, sigma)
            predicted = problem.A(denoised)
        seen = problem.operator.observed(problem.y, problem.params)

        def pull_back(v: Tensor) -> Tensor:
            """Apply sigma^2 J^T A^T."""
            weighted = (v * seen).to(predicted.dtype)
            return sigma**2 * torch.autograd.grad(predicted, x, weighted, retain_graph=True)[0]

        def covariance(v: Tensor) -> Tensor:
            column = variance.reshape(-1, *(1,) * (v.dim() - 1))
            return column * v + (problem.A(pull_back(v)) * seen).double()

        residual = ((problem.y - predicted.detach()) * seen).double()
        if self.solver == "gmres":
            flat = gmres(
                lambda v: covariance(v.reshape(residual.shape)).flatten(1),
                residual.flatten(1),
                iterations=self.iterations,
            )
            return denoised.detach() + pull_back(flat.reshape(residual.shape)), None
        solution = conjugate_gradient(
            covariance, residual, self.iterations, self.tolerance, self.growth
        )
        return denoised.detach() + pull_back(solution), None
