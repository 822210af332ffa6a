"""A denoiser in deepinv's convention, of images in any range: deepinv's own is [0, 1]."""

import math
from collections.abc import Sequence
from typing import Any

import deepinv
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError


class RangedDenoiser(deepinv.models.Denoiser):  # type: ignore[misc]
    r"""A denoiser of images in [-1, 1] as one of images in [low, high], noise in the same units.

    .. math:: D'(x, \sigma) = \mathrm{low} + \tfrac{r}{2} (D(\tfrac{2}{r} (x - \mathrm{low}) - 1,
        \tfrac{2}{r} \sigma) + 1), \quad r = \mathrm{high} - \mathrm{low}

    Arguments:
        denoise: The denoiser, called with an image and one noise level for each.
        low: Value of black.
        high: Value of white.

    Raises:
        UserError: Numbers that are no range.
    """

    def __init__(self, denoise: nn.Module, low: float, high: float) -> None:
        super().__init__()
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"range=({low}, {high}); needed: two numbers, the lower one first")
        self.denoise = denoise
        self.low, self.half = float(low), (high - low) / 2

    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, "..."] | float, *_: Any, **__: Any
    ) -> Float[Tensor, "b c h w"]:
        """Denoise images of noise level ``sigma``; at level 0 they are returned."""
        inner = self.denoise((x - self.low) / self.half - 1, torch.as_tensor(sigma) / self.half)
        return (inner + 1) * self.half + self.low


def ranged(denoise: nn.Module, given: Sequence[float]) -> RangedDenoiser:
    """Return a denoiser of images in a range of two numbers.

    Raises:
        UserError: It is none.
    """
    is_pair = isinstance(given, Sequence) and len(given) == 2
    if not is_pair or not all(isinstance(v, int | float) for v in given):
        raise UserError(f"range={given!r}; needed: two numbers, e.g. (0, 1)")
    return RangedDenoiser(denoise, *given)
