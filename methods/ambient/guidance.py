r"""Reconstruction guidance of Ambient Diffusion (Eq. 3.4): denoisers behind several A-tilde agree.

.. math:: x' = \gamma x + (1 - \gamma) D_1 - w \nabla_x \mathrm{mean}_{m>1}\|D_1 - D_m\|^2,
    \quad \gamma = \sigma' / \sigma

The sign of the coefficients is corrected. Differences from the authors' code, each with its option:

- the penalty is a mean over masks and pixels, so that w depends on neither (``norm=official``: half
  the sum over both);
- the step may go to the mean of all :math:`D_m` instead of :math:`D_1` (``is_averaged``, ours);
- one evaluation a level and mask (Euler) as in the equation; the code takes Heun's second one.

References:
    Ambient Diffusion: Learning Clean Distributions from Corrupted Data (Daras et al., 2023),
    arXiv:2305.19256
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cleanprior.diffusion.denoiser import Denoise

NORMS = ("mean", "official")


@dataclass(frozen=True)
class Guidance:
    """How the denoisers behind M operators A-tilde are combined.

    Arguments:
        weight: w, at least 0; at 0 no gradient is taken.
        norm: ``mean`` or ``official``.
        is_averaged: Step towards the mean of all D_m instead of D_1.
    """

    weight: float
    norm: str = "mean"
    is_averaged: bool = False

    def combine(self, denoised: Sequence[Tensor]) -> Tensor:
        """Return the image that the step goes to: D_1, or the mean of all."""
        return torch.stack(list(denoised)).mean(0) if self.is_averaged else denoised[0]

    def penalty(self, denoised: Sequence[Tensor]) -> Tensor:
        """Return the disagreement of each image with its first mask."""
        first, *others = denoised
        gaps = torch.stack([(first - o).square().flatten(1) for o in others])
        return 0.5 * gaps.sum((0, 2)) if self.norm == "official" else gaps.mean((0, 2))

    def disagreement(
        self, through: Sequence[Denoise], x: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the image that the step goes to and the gradient of the penalty by x.

        Each image has its own penalty: the batch size does not change its gradient, nor, with
        ``mean`` and equal masks, does M.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = [denoise(x, sigma) for denoise in through]
            (gradient,) = torch.autograd.grad(self.penalty(denoised).sum(), x)
        return self.combine(denoised).detach(), gradient

    @torch.no_grad()
    def __call__(
        self, through: Sequence[Denoise], noise: Tensor, levels: Sequence[float]
    ) -> Tensor:
        """Sample by Eq. 3.4.

        Arguments:
            through: The denoiser behind each of M operators A-tilde; one has nothing to agree with.
            noise: Unit white noise.
            levels: Decreasing noise levels, the last 0; there the result is the denoised image.
        """
        used = through if self.is_averaged else through[:1]
        x = noise.double() * levels[0]
        for sigma, lower in zip(levels[:-1], levels[1:], strict=True):
            level = torch.full((len(x),), sigma, device=x.device)
            if lower == 0:
                return self.combine([denoise(x.float(), level) for denoise in used])
            if len(through) == 1 or self.weight == 0:
                denoised = self.combine([denoise(x.float(), level) for denoise in used])
                x = denoised + lower / sigma * (x - denoised)
            else:
                denoised, gradient = self.disagreement(through, x.float(), level)
                x = denoised + lower / sigma * (x - denoised) - self.weight * gradient
        raise AssertionError("the levels end at 0")
