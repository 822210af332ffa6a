"""Restoration of noisy images by one evaluation of the denoiser."""

from dataclasses import dataclass

import torch
from torch import Generator

from ..data.measurements import Batch
from ..diffusion.denoiser import SIGMA_MIN, Denoiser
from ..diffusion.posterior import Draw


@dataclass(frozen=True)
class OneStep:
    r"""Restores by :math:`D(y, \sigma_y) \approx E[x \mid y]`, one evaluation an image."""

    denoiser: Denoiser

    @torch.no_grad()
    def __call__(self, batch: Batch, generators: list[Generator]) -> Draw:
        """Return the estimate of each image."""
        return Draw(self.denoiser(batch.y, batch.sigma_y.clamp_min(SIGMA_MIN)), 1)
