r"""Noise levels: one an image, or one an entry of y (a diagonal noise covariance).

``sigma_y`` is (b,), white noise, or a *map*: of y's axes, each of y's length or of 1. (b, c, 1, 1)
is a level for each channel. Correlated noise of coils is no diagonal: ``data=kspace`` prewhitens it
before anything here sees it.
"""

from jaxtyping import Float
from torch import Tensor

from ..errors import UserError


def is_white(sigma_y: Float[Tensor, "b ..."]) -> bool:
    """Whether all entries of an image have one noise level."""
    return sigma_y.dim() == 1


def column(values: Float[Tensor, "b ..."], y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Shape one number an image so that it multiplies y; a map does so already."""
    return values.reshape(-1, *(1,) * (y.dim() - 1)) if values.dim() == 1 else values


def flat(sigma_y: Float[Tensor, "b ..."], y: Float[Tensor, "b ..."]) -> Float[Tensor, "b k"]:
    """Return levels beside ``y.flatten(1)``: (b, 1), or (b, m) of a map."""
    return sigma_y[:, None] if is_white(sigma_y) else sigma_y.expand(y.shape).flatten(1)


def root_mean_square(
    sigma_y: Float[Tensor, "b ..."], observed: Float[Tensor, "b ..."]
) -> Float[Tensor, " b"]:
    """Return one level an image of the same noise power.

    Arguments:
        sigma_y: (b,), which is returned as it is, or a map.
        observed: 1 where an entry of y was measured, 0 where it only fills the array.
    """
    if is_white(sigma_y):
        return sigma_y
    power = (sigma_y**2 * observed).flatten(1).sum(1)
    return (power / observed.flatten(1).sum(1).clamp_min(1)).sqrt()


def check_levels(sigma_y: Tensor, y: Tensor) -> None:
    """Check the shape of noise levels.

    Raises:
        UserError: Neither one for each image nor one for each entry of y.
    """
    n = len(y)
    if sigma_y.shape == (n,):
        return
    is_map = sigma_y.dim() == y.dim() > 1 and len(sigma_y) == n
    if not (is_map and all(a in (1, b) for a, b in zip(sigma_y.shape, y.shape, strict=True))):
        one = (n, y.shape[1], *(1,) * (y.dim() - 2)) if y.dim() > 2 else ()
        more = f", {tuple(y.shape)}" + (f" or {one}" if one else "")
        raise UserError(f"sigma_y has shape {tuple(sigma_y.shape)}; needed: ({n},){more}")


def same_axes(sigma_y: Tensor, y: Tensor) -> Tensor:
    """Return levels as a map of y's shape, whatever they are."""
    return column(sigma_y, y).expand(y.shape)


__all__ = [
    "check_levels",
    "column",
    "flat",
    "is_white",
    "root_mean_square",
    "same_axes",
]
