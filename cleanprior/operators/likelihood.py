r"""The Likelihood of a batch, :math:`p(y \mid x) = N(y;\, A x,\, \mathrm{diag}\, \sigma_y^2)`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..mapped import rows
from .base import Operator, Params, likelihood_sigma, take
from .levels import column, is_white, root_mean_square


@runtime_checkable
class Measured(Protocol):
    """Anything that holds measurements: a batch, or all of them."""

    @property
    def y(self) -> Tensor:
        """Measurements, (b, ...)."""
        ...

    @property
    def params(self) -> Params:
        """Operator parameters of these images."""
        ...

    @property
    def sigma_y(self) -> Tensor:
        """Noise levels in units of x: (b,), or a map (:mod:`.levels`)."""
        ...


@dataclass(frozen=True)
class Likelihood:
    """What the measurements of a batch say of its images.

    Attributes:
        operator: The forward operator, on the device of the tensors; it has ``local_noise`` where
            ``sigma_y`` is a map.
        y: Measurements, (b, ...).
        params: Operator parameters of these images.
        sigma_y: Noise levels in units of x: one an image, (b,), or one an entry of y, a map of its
            axes (:mod:`.levels`).
    """

    operator: Operator
    y: Tensor
    params: Params
    sigma_y: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "operator", self.operator.with_levels_of(self.sigma_y))

    @classmethod
    def of(cls, operator: Operator, measured: Measured) -> "Likelihood":
        """Return the likelihood of measurements under an operator on their device."""
        return cls(operator, measured.y, measured.params, measured.sigma_y)

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> "Likelihood":
        """Return a copy on ``device``, operator included; this one stays where it is."""
        params = {k: v.to(device) for k, v in self.params.items()}
        operator = self.operator.to(device)
        return Likelihood(operator, self.y.to(device), params, self.sigma_y.to(device))

    def take(self, index: Tensor | slice) -> "Likelihood":
        """Select some measurements."""
        params = take(self.params, index)
        return Likelihood(self.operator, rows(self.y, index), params, rows(self.sigma_y, index))

    def with_floor(self, floor: float) -> "Likelihood":
        """Return the likelihood with noise of level ``floor`` where there is none.

        Known noise is never replaced, and y is not altered.
        """
        return replace(self, sigma_y=likelihood_sigma(self.sigma_y, floor))

    @property
    def is_shared(self) -> bool:
        """Whether all images have one operator and one noise level."""
        return not self.params and bool((self.sigma_y == self.sigma_y[:1]).all())

    @property
    def observed(self) -> Float[Tensor, "b ..."]:
        """1 where an entry of y was measured, and 0 where it only fills the array."""
        return self.operator.observed(self.y, self.params)

    def A(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        """Apply the forward operator, without noise. Differentiable in ``x``."""
        return self.operator.A(x, self.params)

    def A_adjoint(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        """Apply the adjoint operator."""
        return self.operator.A_adjoint(y, self.params)

    def information(self) -> Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b c h w"]]:
        r"""Return the map :math:`x \mapsto A^\top \Sigma^{-1} A x` of these images, in float32.

        The curvature of :math:`-\log p(y \mid x)`. Noise levels must be above 0.
        """
        if is_white(self.sigma_y):
            apply = self.operator.normal(self.params)
            weight = self.sigma_y.reshape(-1, 1, 1, 1) ** -2
            return lambda x: weight * apply(x)
        weights = self.column(self.sigma_y) ** -2 * self.observed
        return lambda x: self.A_adjoint(weights * self.A(x))

    def residual(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        """Return y - A x on measured entries, 0 elsewhere."""
        return (self.y - self.A(x)) * self.observed

    def column(self, values: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Shape one number an image so that it multiplies measurements; a map does so already."""
        return column(values, self.y)

    @property
    def level(self) -> Float[Tensor, " b"]:
        """One noise level an image: the root mean square over what was measured."""
        return root_mean_square(self.sigma_y, self.observed)


__all__ = ["Likelihood", "Measured"]
