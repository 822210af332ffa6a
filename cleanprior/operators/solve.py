"""Linear solves of posterior samplers, each image on its own."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .levels import is_white
from .likelihood import Likelihood
from .spectral import Spectrum


def conjugate_gradient(
    apply: Callable[[Tensor], tuple[Tensor, Tensor]],
    b: Tensor,
    iterations: int,
    tolerance: float,
    growth: float = float("inf"),
    precondition: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""Solve :math:`M v = b` for each image on its own, in float64, and return :math:`P v`.

    Where M is built on a map P (:math:`M = A P + \rho I`), each iteration has computed P of its
    direction, and P of the solution is their sum: no further call of an expensive P.

    An image stops when its curvature is not positive or its residual exceeds ``growth`` times its
    start: the Jacobian of a trained network is only nearly symmetric.

    Arguments:
        apply: Returns M v and P v of a batch; M nearly symmetric positive definite on each image.
        b: Right-hand sides, (b, ...), float64.
        iterations: Iterations at most.
        tolerance: Relative residual at which an image stops.
        growth: Largest residual, in multiples of its start, at which an image goes on.
        precondition: Applies :math:`K^{-1}`, K symmetric positive definite and close to M.
            Residuals are then measured as :math:`(r^\top K^{-1} r)^{1/2}`.
    """

    def near(r: Tensor) -> Tensor:
        return r if precondition is None else precondition(r)

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).flatten(1).sum(1).reshape(-1, *(1,) * (u.dim() - 1))

    solution: Tensor | None = None
    r, direction = b, near(b)
    squared = first = dot(r, direction)
    goal = tolerance**2 * squared
    active = squared > goal
    for _ in range(iterations):
        if solution is not None and not active.any():
            break
        image, mapped = apply(direction)
        if solution is None:
            solution = torch.zeros_like(mapped)
        curvature = dot(direction, image)
        active = active & (curvature > 0)
        step = torch.where(active, squared / torch.where(active, curvature, 1.0), 0.0)
        lower = r - step * image
        steepest = near(lower)
        new = dot(lower, steepest)
        active = active & (new < growth**2 * first)
        columns = (-1, *(1,) * (mapped.dim() - 1))
        share = torch.where(active, step, 0.0).reshape(columns).to(mapped.dtype)
        solution = solution + share * mapped
        r = torch.where(active, lower, r)
        turned = steepest + new / squared.clamp_min(1e-300) * direction
        direction = torch.where(active, turned, direction)
        squared = torch.where(active, new, squared)
        active = active & (squared > goal)
    assert solution is not None, "at least one iteration"
    return solution


def ridge_solution(
    likelihood: Likelihood,
    residual: Float[Tensor, "b ..."],
    ridge: Float[Tensor, "b ..."],
    iterations: int,
    tolerance: float,
) -> Float[Tensor, "b c h w"]:
    r"""Return :math:`A^\top (A A^\top + \mathrm{diag}\, \rho)^{-1} r`, what explains a residual.

    By the singular value decomposition where the operator has one and one :math:`\rho` is that of
    an image; entry by entry under masks; by conjugate gradient otherwise.
    With :math:`\rho = 0` it is :math:`A^+ r`.

    Arguments:
        likelihood: The measurements that are explained.
        residual: r, 0 where nothing was measured.
        ridge: :math:`\rho` of each image or of each entry of y, at least 0.
        iterations: Conjugate-gradient iterations at most.
        tolerance: Relative residual at which an image's solve stops.
    """
    spectrum = None
    if is_white(ridge):
        spectrum = Spectrum.of(likelihood.operator, likelihood.params, likelihood.y)
    elif likelihood.operator.capabilities & {"mask", "identity"}:
        return likelihood.A_adjoint(residual / (1 + ridge).to(residual.dtype))
    if spectrum is not None:
        s = spectrum.singular
        gain = torch.where(spectrum.kept, s / (s**2 + spectrum.column(ridge)), 0.0)
        return spectrum.to_image(gain * spectrum.of_measurement(residual))
    seen = likelihood.observed

    def gram(v: Tensor) -> tuple[Tensor, Tensor]:
        """Return (A A^T + rho) v and A^T v."""
        lifted = likelihood.A_adjoint((v * seen).to(residual.dtype))
        column = likelihood.column(ridge.double())
        return column * v + (likelihood.A(lifted) * seen).double(), lifted

    return conjugate_gradient(gram, residual.double(), iterations, tolerance)
