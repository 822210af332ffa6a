"""Forward operators: deepinv physics, how their per-image parameters are drawn, and the noise."""

from .base import PROJECTIONS, Operator, Params
from .blur import GaussianBlur, MotionBlur
from .boxes import BoxInpainting
from .compressed_sensing import GaussianMeasurements
from .downsampling import Downsampling
from .likelihood import Likelihood
from .masks import RandomInpainting
from .mri import CartesianMRI
from .multicoil import MultiCoil
from .noise import Denoising

__all__ = [
    "PROJECTIONS",
    "BoxInpainting",
    "CartesianMRI",
    "Denoising",
    "Downsampling",
    "GaussianBlur",
    "GaussianMeasurements",
    "Likelihood",
    "MotionBlur",
    "MultiCoil",
    "Operator",
    "Params",
    "RandomInpainting",
]
