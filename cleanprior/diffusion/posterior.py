r"""Posterior samplers: one draw from :math:`p(x \mid y)` for each measurement, with any denoiser.

All are batched, per image (no norm or step size is shared inside a batch) and deterministic given
their generators.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ..operators.base import Operator, Params, likelihood_sigma
from ..seeding import randn_like
from .denoiser import Denoise, per_image
from .samplers import ancestral_step, karras_levels


@dataclass(frozen=True)
class Draw:
    """One posterior draw for each measurement.

    Attributes:
        x: Restorations, (b, c, h, w).
        evaluations: Forward passes of the denoiser for one image (NFE).
        backwards: Vector-Jacobian products of the denoiser for one image.
    """

    x: Tensor
    evaluations: int
    backwards: int


def _norms(r: Tensor) -> Tensor:
    """Euclidean norm of each row, kept as a column for broadcasting."""
    return r.flatten(1).norm(dim=1)


class PosteriorSampler(ABC):
    """Draws from p(x|y) along decreasing noise levels.

    Arguments:
        steps: Number of noise levels.
        sigma_min: Lowest noise level, above 0.
        sigma_max: Highest noise level.
        rho: Exponent of the level spacing (EDM, Eq. 5).
        eta: 1 for ancestral (DDPM) steps, 0 for deterministic (DDIM) ones.
    """

    def __init__(
        self, steps: int, sigma_min: float, sigma_max: float, rho: float, eta: float
    ) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta}; allowed: 0 (deterministic) to 1 (ancestral)")
        self.levels = karras_levels(steps, sigma_min, sigma_max, rho).tolist()
        self.eta = eta

    @abstractmethod
    def guide(
        self,
        denoise: Denoise,
        x: Float[Tensor, "b c h w"],
        sigma: float,
        problem: "LinearProblem",
    ) -> tuple[Tensor, Tensor | None]:
        """Return the posterior mean given x at this level, and a correction applied after the step.

        The correction is None for samplers that change only the mean.
        """

    @property
    @abstractmethod
    def backwards_per_step(self) -> int:
        """Vector-Jacobian products of the denoiser in one step."""

    def __call__(
        self,
        denoise: Denoise,
        y: Float[Tensor, "b ..."],
        params: Params,
        sigma_y: Float[Tensor, " b"],
        operator: Operator,
        generator: Generator | Sequence[Generator],
    ) -> Draw:
        """Draw one image from p(x|y) for each measurement.

        Arguments:
            denoise: The prior's denoiser.
            y: Measurements.
            params: Their operator parameters.
            sigma_y: Their noise levels.
            operator: The forward operator.
            generator: One for the batch, or one an image: then results do not depend on batching.
        """
        problem = LinearProblem(operator, y, params, sigma_y)
        x = self.levels[0] * randn_like(y.new_empty(len(y), *operator.image_shape), generator)
        for sigma, lower in zip(self.levels[:-1], self.levels[1:], strict=True):
            mean, correction = self.guide(denoise, x, sigma, problem)
            x = ancestral_step(x, mean, sigma, lower, self.eta, generator)
            if correction is not None:
                x = x + correction
        steps = len(self.levels) - 1
        return Draw(x, steps, steps * self.backwards_per_step)


@dataclass(frozen=True)
class LinearProblem:
    """The likelihood of a batch: operator, measurements, parameters and noise levels."""

    operator: Operator
    y: Tensor
    params: Params
    sigma_y: Tensor

    def A(self, x: Tensor) -> Tensor:
        """Apply the forward operator of this batch."""
        return self.operator.A(x, self.params)

    def residual(self, x: Tensor) -> Tensor:
        """Return y - A x on measured entries, 0 elsewhere."""
        return (self.y - self.A(x)) * self.operator.observed(self.y, self.params)


def _with_graph(denoise: Denoise, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Evaluate the denoiser with a graph from its input."""
    x = x.detach().requires_grad_()
    return x, denoise(x, torch.full((len(x),), sigma, device=x.device))


class DPS(PosteriorSampler):
    r"""Diffusion posterior sampling: subtract the gradient of each image's residual norm.

    .. math:: x' \leftarrow x' - \zeta \nabla_x \|y_i - A D(x_i)\|_2

    Arguments:
        scale: :math:`\zeta`, one number or one an image. The best value grows as ``steps`` falls.
        cap: Never step further than the residual exceeds its expected norm,
            :math:`\min(\zeta, \|r_i\| - \sqrt{m}\,\sigma_y)`. The published form has no cap; with
            tens of steps instead of 1,000 it then overshoots to a residual of about :math:`\zeta`
            (8x8 digits, 50 steps: 16.7 dB at the best scale, 17.3 dB with the cap). For ``norm``.
        guidance: ``norm`` (default), ``squared`` (:math:`\|r\|^2 / 2\sigma_y^2`, needs noise) or
            ``batch`` (one norm over the batch, as in the authors' code; depends on batch size).
        steps, sigma_min, sigma_max, rho, eta: see :class:`PosteriorSampler`.

    References:
        Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023),
        Algorithm 1, arXiv:2209.14687
    """

    def __init__(
        self,
        steps: int,
        sigma_min: float,
        sigma_max: float,
        rho: float,
        eta: float,
        scale: float,
        cap: bool,
        guidance: str,
    ) -> None:
        super().__init__(steps, sigma_min, sigma_max, rho, eta)
        if guidance not in ("norm", "squared", "batch"):
            raise ValueError(f"guidance={guidance!r}; allowed: norm, squared, batch")
        self.scale = scale
        self.cap = cap
        self.guidance = guidance

    @property
    def backwards_per_step(self) -> int:  # noqa: D102
        return 1

    def gradient(
        self, denoise: Denoise, x: Tensor, sigma: float, problem: LinearProblem
    ) -> tuple[Tensor, Tensor]:
        """Return D(x) and the gradient of the chosen misfit with respect to x."""
        with torch.enable_grad():
            x, denoised = _with_graph(denoise, x, sigma)
            residual = problem.residual(denoised)
            if self.guidance == "batch":
                misfit = residual.norm()
            elif self.guidance == "squared":
                squared = residual.flatten(1).square().sum(1)
                misfit = (squared / (2 * problem.sigma_y**2)).sum()
            else:
                misfit = _norms(residual).sum()
            (gradient,) = torch.autograd.grad(misfit, x)
        return denoised.detach(), gradient

    def guide(  # noqa: D102
        self, denoise: Denoise, x: Tensor, sigma: float, problem: LinearProblem
    ) -> tuple[Tensor, Tensor | None]:
        if self.guidance == "squared" and (problem.sigma_y <= 0).any():
            raise ValueError("guidance=squared divides by sigma_y^2; sigma_y is 0 here: use norm")
        denoised, gradient = self.gradient(denoise, x, sigma, problem)
        if not self.cap or self.guidance != "norm":
            return denoised, -self.scale * gradient
        entries = problem.operator.observed(problem.y, problem.params).flatten(1).sum(1)
        excess = _norms(problem.residual(denoised)) - entries.sqrt() * problem.sigma_y
        return denoised, -per_image(excess.clamp(0, self.scale)) * gradient


class MMPS(PosteriorSampler):
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
        steps, sigma_min, sigma_max, rho, eta: see :class:`PosteriorSampler`.

    References:
        Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al.,
        2024), section 4, arXiv:2405.13712
    """

    def __init__(
        self,
        steps: int,
        sigma_min: float,
        sigma_max: float,
        rho: float,
        eta: float,
        iterations: int,
        tolerance: float,
        growth: float,
        sigma_floor: float,
    ) -> None:
        super().__init__(steps, sigma_min, sigma_max, rho, eta)
        if iterations < 1:
            raise ValueError(f"iterations={iterations}; allowed: at least 1")
        self.iterations = iterations
        self.tolerance = tolerance
        self.growth = growth
        self.sigma_floor = sigma_floor

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
            x, denoised = _with_graph(denoise, x, sigma)
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
        solution = conjugate_gradient(
            covariance, residual, self.iterations, self.tolerance, self.growth
        )
        return denoised.detach() + pull_back(solution), None


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int,
    tolerance: float,
    growth: float = float("inf"),
) -> Tensor:
    """Solve ``apply(v) = b`` for each image on its own, in float64.

    An image stops when its curvature is not positive or its residual exceeds ``growth`` times its
    start: the Jacobian of a trained network is only nearly symmetric.

    Arguments:
        apply: A linear map of a batch, nearly symmetric positive definite on each image.
        b: Right-hand sides, (b, ...), float64.
        iterations: Iterations at most.
        tolerance: Relative residual at which an image stops.
        growth: Largest residual, in multiples of its start, at which an image goes on.
    """

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).flatten(1).sum(1).reshape(-1, *(1,) * (u.dim() - 1))

    v = torch.zeros_like(b)
    r, direction = b, b
    squared = first = dot(r, r)
    goal = tolerance**2 * squared
    active = squared > goal
    for _ in range(iterations):
        if not active.any():
            break
        image = apply(direction)
        curvature = dot(direction, image)
        active = active & (curvature > 0)
        step = torch.where(active, squared / torch.where(active, curvature, 1.0), 0.0)
        lower = r - step * image
        new = dot(lower, lower)
        active = active & (new < growth**2 * first)
        v = torch.where(active, v + step * direction, v)
        r = torch.where(active, lower, r)
        direction = torch.where(active, r + new / squared.clamp_min(1e-300) * direction, direction)
        squared = torch.where(active, new, squared)
        active = active & (squared > goal)
    return v


def draw_in_chunks(
    sampler: PosteriorSampler,
    denoise: Denoise,
    y: Tensor,
    params: Params,
    sigma_y: Tensor,
    operator: Operator,
    generators: Sequence[Generator],
    chunk: int,
    advance: Callable[[int], None] = lambda n: None,
) -> Draw:
    """Run a posterior sampler over many measurements; ``advance(n)`` is told after each chunk."""
    draws = []
    for start in range(0, len(y), chunk):
        part = slice(start, start + chunk)
        draws.append(
            sampler(
                denoise,
                y[part],
                {k: v[part] for k, v in params.items()},
                sigma_y[part],
                operator,
                generators[part],
            )
        )
        advance(len(y[part]))
    return Draw(torch.cat([d.x for d in draws]), draws[0].evaluations, draws[0].backwards)


__all__ = [
    "DPS",
    "MMPS",
    "Draw",
    "LinearProblem",
    "PosteriorSampler",
    "conjugate_gradient",
    "draw_in_chunks",
]
