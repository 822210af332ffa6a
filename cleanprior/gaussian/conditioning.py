r"""Draws of a Gaussian of low rank given measurements: solves with :math:`C = d_0 I + U U^\top`.

==================  ===========================================================================
operator            the solve of :func:`conditioned`
==================  ===========================================================================
masks, identity     closed, by Woodbury's identity
more numbers in y   conjugate gradient on images, :math:`C^{-1} + A^\top \Sigma^{-1} A`, with
than in x (coils)   :math:`C^{-1} + a I` as its preconditioner, a the mean of the second term
any other           conjugate gradient on measurements, :math:`A C A^\top + \Sigma`
==================  ===========================================================================

References:
    Pathwise Conditioning of Gaussian Processes (Wilson et al., 2021), section 3.2 (Matheron's
    rule), arXiv:2011.04026
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ..operators.levels import is_white
from ..operators.likelihood import Likelihood
from ..operators.solve import conjugate_gradient

# Up to this many numbers, products of all pairs of axes are formed once for a batch of masks (8x8
# at rank 64); beyond it each image takes those of its own rows.
SMALL_PRODUCTS = 2**18
# On images a residual is measured through the preconditioner, which is milder: on 8-coil scans of
# 32x32 the same relative residual left ten times the error in x (3e-3 against 3e-4 at 1e-3).
MILDER = 0.1


@dataclass(frozen=True)
class LowRank:
    r"""A covariance :math:`C = d_0 I + U U^\top` with its eigenvectors.

    Arguments:
        isotropic: :math:`d_0`, above 0.
        factor: U, (d, r), float64.
    """

    isotropic: float
    factor: Float[Tensor, "d r"]

    @cached_property
    def axes(self) -> tuple[Float[Tensor, "d r"], Float[Tensor, " r"]]:
        """Return U W with orthogonal columns, and their squared lengths L (U^T U = W L W^T)."""
        values, vectors = torch.linalg.eigh(self.factor.T @ self.factor)
        return self.factor @ vectors, values.clamp_min(0)

    def times(self, v: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Return C v."""
        return self.isotropic * v + (v @ self.factor) @ self.factor.T

    def inverse_times(
        self, v: Float[Tensor, "b d"], more: Float[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b d"]:
        r"""Return :math:`C^{-1} v`, or :math:`(C^{-1} + a I)^{-1} v` with a, ``more``."""
        axes, lengths = self.axes
        along = v @ axes
        if more is None:
            return (v - (along / (self.isotropic + lengths)) @ axes.T) / self.isotropic
        a = more[:, None]
        rest = 1 + a * self.isotropic
        return (self.isotropic * v + (along / (rest + a * lengths)) @ axes.T) / rest


def conditioned(
    covariance: LowRank,
    x_0: Float[Tensor, "b d"],
    noise: Float[Tensor, "b ..."],
    likelihood: Likelihood,
    iterations: int,
    tolerance: float,
) -> Float[Tensor, "b c h w"]:
    r"""Turn draws from the prior into draws from the posterior (Matheron's rule).

    .. math:: x = x_0 + C A^\top (A C A^\top + \Sigma)^{-1} (y - A x_0 - \Sigma^{1/2} z)

    Arguments:
        covariance: C.
        x_0: Flattened images, float64.
        noise: z, shape of y.
        likelihood: The measurements, float32; noise levels above 0.
        iterations: Conjugate-gradient iterations at most.
        tolerance: Relative residual at which an image's solve stops.
    """
    n, shape = len(likelihood), likelihood.operator.image_shape
    seen = likelihood.observed
    column = likelihood.column(likelihood.sigma_y.double())

    def forward(v: Tensor) -> Tensor:
        return likelihood.A(v.float().reshape(n, *shape)).double() * seen

    def lift(v: Tensor) -> Tensor:
        """Apply C A^T."""
        back = likelihood.A_adjoint((v * seen).float())
        return covariance.times(back.flatten(1).double())

    def gram(v: Tensor) -> tuple[Tensor, Tensor]:
        """Return (A C A^T + Sigma) v and C A^T v."""
        lifted = lift(v)
        return column**2 * v + forward(lifted), lifted

    residual = (likelihood.y.double() - column * noise) * seen - forward(x_0)
    if likelihood.operator.capabilities & {"mask", "identity"}:
        shift = lift(_solve_seen(covariance, residual, likelihood))
    elif residual[0].numel() > x_0.shape[1]:
        lifted = likelihood.A_adjoint((residual / column**2).float()).flatten(1).double()
        shift = _solve_images(covariance, lifted, likelihood, iterations, tolerance)
    else:
        shift = conjugate_gradient(gram, residual, iterations, tolerance)
    return (x_0 + shift).float().reshape(n, *shape)


def _solve_images(
    covariance: LowRank, b: Tensor, likelihood: Likelihood, iterations: int, tolerance: float
) -> Tensor:
    r"""Solve :math:`(C^{-1} + A^\top \Sigma^{-1} A) v = b` for each image, (b, d)."""
    shape = likelihood.operator.image_shape
    inform = likelihood.information()

    def informed(v: Tensor) -> Tensor:
        return inform(v.float().reshape(-1, *shape)).flatten(1).double()

    # The mean eigenvalue from one vector of signs, E[z^T H z] = tr H; any a > 0 gives the solution.
    signs = torch.randint(2, b.shape[1:], generator=Generator().manual_seed(0)).to(b) * 2 - 1
    mean = (informed(signs.expand_as(b)) * signs).mean(1).clamp_min(0)

    def apply(v: Tensor) -> tuple[Tensor, Tensor]:
        return covariance.inverse_times(v) + informed(v), v

    def near(r: Tensor) -> Tensor:
        return covariance.inverse_times(r, mean)

    return conjugate_gradient(apply, b, iterations, MILDER * tolerance, precondition=near)


def _solve_seen(covariance: LowRank, residual: Tensor, likelihood: Likelihood) -> Tensor:
    """Solve (C + Sigma) v = r on the seen entries of each image; r is 0 on the others."""
    seen, sigma_y = likelihood.observed, likelihood.sigma_y
    axes, lengths = covariance.axes
    if not is_white(sigma_y):
        return _solve_weighted(covariance, residual, seen, sigma_y)
    rest = covariance.isotropic + sigma_y.double() ** 2
    d, r = axes.shape
    if not likelihood.params:  # all images have seen the same
        gram = torch.diag_embed(lengths)[None]
    elif d * r**2 <= SMALL_PRODUCTS:
        products = (axes[:, :, None] * axes[:, None, :]).flatten(1)
        gram = (seen.flatten(1).double() @ products).reshape(len(seen), r, r)
    else:
        gram = torch.stack([a.T @ a for a in (axes[i] for i in seen.flatten(1).bool())])
    gram = gram + torch.diag_embed(rest[:, None].expand(-1, r))
    flat = residual.flatten(1)
    explained = torch.linalg.solve(gram, (flat @ axes)[:, :, None])[:, :, 0] @ axes.T
    v = (flat - explained * seen.flatten(1)) / rest[:, None]
    return v.reshape(residual.shape)


def _solve_weighted(covariance: LowRank, residual: Tensor, seen: Tensor, sigma_y: Tensor) -> Tensor:
    """Solve it where s is a map: Woodbury with the weights w = seen / (d0 + s^2)."""
    weight = (seen / (covariance.isotropic + sigma_y.double() ** 2)).flatten(1)
    u, (d, r) = covariance.factor, covariance.factor.shape
    if d * r**2 <= SMALL_PRODUCTS:
        products = (u[:, :, None] * u[:, None, :]).flatten(1)
        gram = (weight @ products).reshape(len(weight), r, r)
    else:
        gram = torch.stack([u.T @ (u * w[:, None]) for w in weight])
    gram = gram + torch.eye(r, dtype=u.dtype, device=u.device)
    weighted = weight * residual.flatten(1)
    inner = torch.linalg.solve(gram, (weighted @ u)[:, :, None])[:, :, 0]
    return (weighted - weight * (inner @ u.T)).reshape(residual.shape)


__all__ = ["LowRank", "conditioned"]
