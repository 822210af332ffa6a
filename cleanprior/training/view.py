"""What a denoiser is shown of images, for whoever asks it what its method taught it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _itself(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class View:
    """How a denoiser looks at a number of images; the default looks at all of each.

    Attributes:
        show: From noisy images, (n, c, h, w), to the input of the network, of the same shape.
        see: A linear map from images to what the input shows of them, (n, ...). Where a method
            hides pixels, a map that keeps the others.
        seen: 1 where an entry of ``see`` is shown and 0 where it only fills the array, in the shape
            of ``see``; None where all are.
        condition: What the network is told beside its input, or None.
    """

    show: Callable[[Tensor], Tensor] = _itself
    see: Callable[[Tensor], Tensor] = _itself
    seen: Tensor | None = None
    condition: Tensor | None = None


__all__ = ["View"]
