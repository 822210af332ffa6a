r"""Masked loss: the network is told the mask, and nothing is corrupted further.

Objective: :math:`\mathbb E\, w(\sigma)\|a \odot (D(u + \sigma n, \sigma, a) - u)\|^2 / \sum a`, u
the measurement with hidden pixels 0 and a its mask of observed ones: Ambient Diffusion at delta = 0
with noise on every pixel, the baseline "no further corruption" of its Fig. 3. The minimiser is
:math:`E[x_i \mid a x + \sigma n, a]` for pixels that a shows. The loss skips hidden pixels, so the
network learns nothing about a pixel from the images that hide it. The harm grows with the share of
hidden pixels.

Difference from that baseline: hidden pixels carry noise and EDM's preconditioning. Unlike
:class:`cleanprior.methods.naive.Naive` (MissDiff), the network sees the mask, which is concatenated
at unit scale. The prior asks it with every pixel seen.

References:
    Ambient Diffusion: Learning Clean Distributions from Corrupted Data (Daras et al., 2023),
    arXiv:2305.19256
"""

from dataclasses import dataclass

import torch
from torch import Generator
from typing_extensions import override

from cleanprior.data import Batch
from cleanprior.diffusion.denoiser import draw_sigma, edm_weight, per_image
from cleanprior.training import DenoiserMethod, Loss


@dataclass(kw_only=True)
class MaskedLoss(DenoiserMethod):
    """Fit observed pixels with a denoiser that is told which they are."""

    gaps = "mask"

    @property
    def condition_channels(self) -> int:
        """The mask."""
        return self.problem.operator.description_channels

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        operator, y = self.problem.operator, batch.y
        seen = operator.observed(y, batch.params)
        mask = operator.describe(batch.params, len(batch))
        sigma = draw_sigma(len(y), generator, y.device)
        noise = torch.randn(y.shape, generator=generator).to(y.device)
        error = (self.denoiser(y + per_image(sigma) * noise, sigma, mask) - y) ** 2
        weight = edm_weight(sigma, self.denoiser.sigma_data)
        return Loss((weight * seen * error).sum() / seen.sum().clamp_min(1))
