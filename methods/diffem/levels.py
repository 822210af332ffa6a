r"""Noise levels of the M-step, and random changes of images that it may train on."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from cleanprior.diffusion.denoiser import draw_sigma

LEVELS = ("edm", "beta")
AUGMENTS = ("none", "flip", "color")
#: Ends of the authors' levels: 1e-3 and 1e2 on [-2, 2].
LOWEST, HIGHEST = 5e-4, 50.0
#: The authors' jitter: hue as a share of a turn, saturation as a factor.
HUE, SATURATION = 0.01, (0.95, 1.05)
#: Luma and two axes of colour (YIQ, FCC NTSC standard), of red, green and blue.
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def draw_levels(
    law: str, n: int, generator: Generator, device: torch.device
) -> Float[Tensor, " n"]:
    r"""Draw noise levels of training, units of x.

    Arguments:
        law: ``edm``: :math:`\log\sigma \sim N(-1.2, 1.2^2)`; ``beta``: the authors', log-uniform
            in :math:`t \sim \mathrm{Beta}(3, 3)` over [5e-4, 50], whose centre is 0.16.
        n: How many.
        generator: Source of randomness, on the CPU.
        device: Where they are needed.
    """
    if law == "edm":
        return draw_sigma(n, generator, device)
    # The third of five uniform numbers has the law Beta(3, 3).
    t = torch.rand((n, 5), generator=generator).median(1).values
    return (LOWEST * (HIGHEST / LOWEST) ** t).to(device)


def flipped(x: Float[Tensor, "b c h w"], generator: Generator) -> Float[Tensor, "b c h w"]:
    """Mirror half of the images, drawn at random, left to right."""
    chosen = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(chosen.to(x.device)[:, None, None, None], x.flip(3), x)


def colour_changes(n: int, generator: Generator) -> Float[Tensor, "n 3 3"]:
    """Draw a rotation of the hue and a factor of the saturation for each image, as a matrix.

    It is linear in red, green and blue and leaves grey as it is, so that a pixel of 0 stays 0.
    """
    u = torch.rand((2, n), generator=generator)
    turn = 2 * math.pi * HUE * (2 * u[0] - 1)
    factor = SATURATION[0] + (SATURATION[1] - SATURATION[0]) * u[1]
    inner = torch.zeros(n, 3, 3)
    inner[:, 0, 0] = 1
    inner[:, 1, 1] = inner[:, 2, 2] = factor * turn.cos()
    inner[:, 2, 1] = factor * turn.sin()
    inner[:, 1, 2] = -inner[:, 2, 1]
    basis = torch.tensor(YIQ)
    return torch.linalg.inv(basis) @ inner @ basis


def recoloured(
    x: Float[Tensor, "b 3 h w"], change: Float[Tensor, "b 3 3"]
) -> Float[Tensor, "b 3 h w"]:
    """Apply a change of colour to each image."""
    return torch.einsum("bij,bjhw->bihw", change.to(x), x)


__all__ = ["AUGMENTS", "LEVELS", "colour_changes", "draw_levels", "flipped", "recoloured"]
