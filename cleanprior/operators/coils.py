"""Coil sensitivities for simulations: smooth complex maps whose squares sum to 1 everywhere."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

KINDS = ("birdcage", "smooth")
#: Distance of the coils from the centre, in half fields of view: least and largest.
RADIUS = (1.1, 1.6)
#: Width of a smooth map, in half fields of view: least and largest.
WIDTH = (0.5, 1.0)
#: Images whose maps are drawn at a time.
CHUNK = 64


def draw_maps(
    kind: str, n: int, coils: int, height: int, width: int, generator: Generator
) -> Float[Tensor, "n 2 k h w"]:
    r"""Draw the maps of ``n`` images, :math:`\sum_c |S_c|^2 = 1` at every pixel.

    ``birdcage``: coils on a ring around the image, turned, shifted and with a phase each at random.
    The magnitude falls as one over the distance, the phase turns with the direction to the coil.
    ``smooth``: bells at random places in a ring, with a random quadratic phase each.

    Arguments:
        kind: One of :data:`KINDS`.
        n: How many images.
        coils: Coils of each.
        height: Rows.
        width: Columns.
        generator: Source of randomness.

    Returns:
        Real and imaginary parts.
    """
    rows = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    columns = torch.linspace(-1, 1, width).expand(height, width)
    found = torch.empty(n, 2, coils, height, width)
    for first in range(0, n, CHUNK):
        count = min(CHUNK, n - first)
        drawn = torch.rand((6, count, coils, 1, 1), generator=generator)
        turned = torch.rand((count, 1, 1, 1), generator=generator)
        angle = 2 * math.pi * (torch.arange(coils)[:, None, None] / coils + turned)
        angle = angle + (drawn[0] - 0.5) * 2 * math.pi / (4 * coils)
        constant = 2 * math.pi * drawn[1]
        if kind == "birdcage":
            radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * drawn[2]
            down, right = rows - radius * angle.sin(), columns - radius * angle.cos()
            magnitude = (down**2 + right**2).rsqrt()
            phase = torch.atan2(down, right) + constant
        else:
            radius, spread = 0.5 + 0.7 * drawn[2], WIDTH[0] + (WIDTH[1] - WIDTH[0]) * drawn[3]
            down, right = rows - radius * angle.sin(), columns - radius * angle.cos()
            # A floor, so that every pixel is seen by some coil.
            magnitude = (-(down**2 + right**2) / (2 * spread**2)).exp() + 0.02
            slopes = 2 * math.pi * (drawn[4:] - 0.5)
            phase = constant + slopes[0] * rows + slopes[1] * columns + slopes[0] * rows * columns
        magnitude = magnitude / magnitude.square().sum(1, keepdim=True).sqrt()
        found[first : first + count, 0] = magnitude * phase.cos()
        found[first : first + count, 1] = magnitude * phase.sin()
    return found


__all__ = ["KINDS", "draw_maps"]
