"""What methods that learn one denoiser share: of such a method only the loss is left to write."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor, nn

from ..data.measurements import Batch
from ..diffusion.denoiser import Denoiser
from ..prior import Prior
from .method import Method
from .view import View


@dataclass(kw_only=True)
class DenoiserMethod(Method):
    """A method whose result is ``self.denoiser``, on the backbone that all methods share.

    A subclass writes :meth:`Method.loss`. What it adds to the networks or to their making, it adds
    by overriding :meth:`Method.build` or :meth:`Method.networks`.

    A second stage trains another network by the same loss on measurements of its own images, and
    asks the denoiser what it was taught (:meth:`view`, :meth:`fitted`).
    """

    #: Whether the loss of the last round fits the images of a batch, and reads no measurement.
    fits_images: ClassVar[bool] = False

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

    def view(self, n: int, generator: Generator) -> View:
        """Draw how the denoiser looks at ``n`` images when it is asked what it was taught."""
        return View()

    def fitted(self, x: Tensor, like: Batch, generator: Generator) -> Tensor:
        """Return the images that the denoiser learns the law of where clean ones are ``x``.

        They are ``x`` for a method that learns p(x). Differentiable in ``x``.

        Arguments:
            x: Images, (b, c, h, w).
            like: How they would be measured.
            generator: The only source of randomness.
        """
        return x
