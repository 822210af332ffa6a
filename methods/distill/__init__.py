r"""Restoration score distillation: a one-step generator of what a denoiser was taught."""

from .method import Distill

__all__ = ["Distill"]
