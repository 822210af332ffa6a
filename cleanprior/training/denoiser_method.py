"""What methods that learn one denoiser share: of such a method only the loss is left to write."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..diffusion.denoiser import Denoiser
from ..prior import Prior
from .method import Method


@dataclass(kw_only=True)
class DenoiserMethod(Method):
    """A method whose result is ``self.denoiser``, on the backbone that all methods share.

    A subclass writes :meth:`Method.loss`. What it adds to the networks or to their making, it adds
    by overriding :meth:`Method.build` or :meth:`Method.networks`.
    """

    @property
    def condition_channels(self) -> int:
        """Channels that the denoiser is told beside the image, e.g. a mask; 0 for none."""
        return 0

    def build(self) -> None:
        """Make the denoiser with fresh weights."""
        self.denoiser: Denoiser = self.problem.denoiser(self.condition_channels)

    def networks(self) -> Mapping[str, nn.Module]:
        """Return the denoiser."""
        return {"denoiser": self.denoiser}

    def prior(self, averaged: Mapping[str, nn.Module]) -> Prior | None:
        """Return the averaged denoiser as a prior."""
        return self.make_prior(averaged["denoiser"])
