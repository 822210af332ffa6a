r"""A denoiser on images larger than those it was trained on: overlapping windows, as one denoiser.

.. math:: D(x_\sigma) = \frac{\sum_k w_k \, D(x_\sigma^{(k)}, \sigma)}{\sum_k w_k}

The windows are averaged in every evaluation, not the restorations at the end: each step of a
posterior sampler sees one image, so that a draw has no seams and keeps its spread where windows
overlap. What is further apart than a window is drawn as if it were independent.

References:
    MultiDiffusion (Bar-Tal et al., 2023), section 3, arXiv:2302.08113, whose average this is, with
    weights that fall towards a window's border.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..operators.base import ImageShape
from .denoiser import Denoise

#: Windows that are denoised at a time.
BATCH = 64


class Windows:
    """Denoises images of any larger size by windows of a denoiser's own size.

    Arguments:
        denoise: The denoiser.
        own: Shape of its images, (channels, height, width).
        shape: Shape of the images that are asked for.
        overlap: Share of a window that the next one covers, in [0, 1).

    Raises:
        UserError: Other channels, or an image smaller than a window.
    """

    def __init__(
        self, denoise: Denoise, own: ImageShape, shape: ImageShape, overlap: float = 0.5
    ) -> None:
        if own[0] != shape[0] or own[1] > shape[1] or own[2] > shape[2]:
            raise UserError(f"the measurements are of images {shape}; the prior makes {own}")
        self.denoise, self.own = denoise, own
        rows, columns = (
            starts(whole, part, overlap) for whole, part in zip(shape[1:], own[1:], strict=True)
        )
        self.corners = [(r, c) for r in rows for c in columns]
        self.weight = torch.outer(*(_bump(n) for n in own[1:]))

    def __call__(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Return E[x | x_sigma] as the weighted mean of all windows."""
        height, width = self.own[1:]
        weight = self.weight.to(x)
        total, weights = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
        places = [(i, r, c) for i in range(len(x)) for r, c in self.corners]
        has_graph = torch.is_grad_enabled() and x.requires_grad and len(places) > BATCH
        for first in range(0, len(places), BATCH):
            some = places[first : first + BATCH]
            parts = torch.stack([x[i, :, r : r + height, c : c + width] for i, r, c in some])
            levels = sigma[[i for i, _, _ in some]]
            if has_graph:  # the activations of all windows would not fit
                means = checkpoint(self.denoise, parts, levels, use_reentrant=False)
            else:
                means = self.denoise(parts, levels)
            for (i, r, c), mean in zip(some, means, strict=True):
                total[i, :, r : r + height, c : c + width] += weight * mean
        for r, c in self.corners:
            weights[..., r : r + height, c : c + width] += weight
        return total / weights


def starts(whole: int, part: int, overlap: float) -> list[int]:
    """Return where windows begin along an axis: evenly, and the last one ends where it ends."""
    step = max(1, round(part * (1 - overlap)))
    count = -(-(whole - part) // step) + 1
    return [round(i * (whole - part) / max(count - 1, 1)) for i in range(count)]


def _bump(n: int) -> Float[Tensor, " n"]:
    """Return weights that are highest in the middle and above 0 at the border."""
    return torch.hann_window(n + 2, periodic=False)[1:-1].clamp_min(1e-3)
