r"""Naive: denoising score matching on observed pixels, without further corruption.

Objective: :math:`\mathbb E\, w(\sigma)\|a \odot (D(u + \sigma n, \sigma) - u)\|^2 / \sum a`, where
u is the lifted measurement (hidden pixels 0) and a its mask of observed pixels (MissDiff, Eq. 5).
With no mask this is denoising score matching on the measurements as if they were clean.

Minimiser: :math:`D_i = E[x_i \mid u + \sigma n, a_i = 1]`, a mixture over the masks of the other
pixels; sampling then uses inputs with nothing missing. It is what one gets by ignoring the
corruption, and the anchor that every method has to beat.

References:
    MissDiff: Training Diffusion Models on Tabular Data with Missing Values (Ouyang et al., 2023),
    arXiv:2307.00467
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from typing_extensions import override

from cleanprior.data import Batch
from cleanprior.diffusion.denoiser import draw_sigma, edm_weight, per_image
from cleanprior.operators.like import measured_like
from cleanprior.training import DenoiserMethod, Loss


@dataclass(kw_only=True)
class Naive(DenoiserMethod):
    """Fit what was measured, scored on observed pixels."""

    gaps = "mask"

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        operator = self.problem.operator
        u = operator.lift(batch.y, batch.params)
        seen = torch.ones_like(u)
        if operator.is_image(batch.y):
            seen = operator.observed(batch.y, batch.params)
        sigma = draw_sigma(len(u), generator, u.device)
        noise = torch.randn(u.shape, generator=generator).to(u.device)
        error = (self.denoiser(u + per_image(sigma) * noise, sigma) - u) ** 2
        weight = edm_weight(sigma, self.denoiser.sigma_data)
        return Loss((weight * seen * error).sum() / seen.sum().clamp_min(1))

    @override
    def fitted(self, x: Tensor, like: Batch, generator: Generator) -> Tensor:
        """Return images as they are measured: what this prior is of."""
        operator = self.problem.operator
        y = measured_like(operator, x, like.params, like.sigma_y, generator)
        return operator.lift(y, like.params)
