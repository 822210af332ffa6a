r"""EM whose posterior is a conditional diffusion network: no gradient of A, no Gaussian noise."""

from .method import DiffEM

__all__ = ["DiffEM"]
