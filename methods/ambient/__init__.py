r"""Ambient Diffusion: corrupt the measurements further, score on everything that was seen."""

from .method import Ambient

__all__ = ["Ambient"]
