r"""Expectation-maximisation with a diffusion prior: restore every measurement, refit, repeat."""

from .method import EM

__all__ = ["EM"]
