r"""AmbientGAN: a critic compares measurements with simulated measurements of generated images."""

from .method import AmbientGAN

__all__ = ["AmbientGAN"]
