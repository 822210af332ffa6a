r"""Posterior samplers: one draw from :math:`p(x \mid y)` for each measurement, with any denoiser.

All are batched, per image (no norm or step size is shared inside a batch) and deterministic given
their generators.
"""

from ...operators.solve import conjugate_gradient, ridge_solution
from .base import Draw, GuidedSampler, LevelSampler, PosteriorSampler, draw_in_chunks
from .ddrm import DDRM
from .diffpir import DiffPIR
from .dps import DPS
from .library import DeepinvSampler
from .mmps import MMPS
from .pigdm import PiGDM

__all__ = [
    "DDRM",
    "DPS",
    "MMPS",
    "DeepinvSampler",
    "DiffPIR",
    "Draw",
    "GuidedSampler",
    "LevelSampler",
    "PiGDM",
    "PosteriorSampler",
    "conjugate_gradient",
    "draw_in_chunks",
    "ridge_solution",
]
