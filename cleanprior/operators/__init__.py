"""Forward operators: deepinv physics, how their per-image parameters are drawn, and the noise."""

from .base import Operator, Params
from .blur import GaussianBlur
from .masks import RandomInpainting
from .noise import Denoising

__all__ = ["Denoising", "GaussianBlur", "Operator", "Params", "RandomInpainting"]
