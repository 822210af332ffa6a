"""Gaussian images of two correlated pixels, and denoisers whose every value is known."""

import torch
from torch import nn

from cleanprior.diffusion.denoiser import Denoiser

SIGMA = 0.5
SHAPE = (1, 1, 2)
C = torch.tensor([[1.0, 0.6], [0.6, 0.8]]).double()
EYE = torch.eye(2, dtype=torch.float64)


def wiener(sigma):
    return C @ torch.linalg.inv(C + sigma**2 * EYE)


class Linear(Denoiser):
    """One matrix, whatever the noise level."""

    def __init__(self):
        super().__init__(nn.Identity(), 0.5)
        self.matrix = nn.Parameter(torch.zeros(2, 2))

    def forward(self, x, sigma, condition=None):
        return (x.flatten(1) @ self.matrix.T).reshape(x.shape)


class Exact(Denoiser):
    """The conditional mean of the Gaussian, scaled by ``factor``."""

    def __init__(self, factor=1.0):
        super().__init__(nn.Identity(), 0.5)
        self.anchor = nn.Parameter(torch.ones(1))
        self.factor = factor
        self.values, self.vectors = torch.linalg.eigh(C)

    def forward(self, x, sigma, condition=None):
        z = x.flatten(1).double() @ self.vectors
        z = z * self.values / (self.values + sigma.double()[:, None] ** 2)
        return (self.factor * z @ self.vectors.T).reshape(x.shape).to(x.dtype) * self.anchor
