r"""Ambient-Tweedie: predict the noisy image from a noisier one, convert by Tweedie's formula."""

from .method import AmbientTweedie

__all__ = ["AmbientTweedie"]
