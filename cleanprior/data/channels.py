r"""Channels beyond noise that is added: saturation, erased places, JPEG; of a signal s.

The signal and its units are those of :mod:`.noises`. What they do to it is no Gaussian noise, and
for two of them no entry of y tells its own variance; a method that only measures images again
(``noise.as=none``) takes them as they are.

=========  ================================  ====================================================
kind       what is recorded                  ``estimated``, the variance that y tells
=========  ================================  ====================================================
clipping   s + sigma n, kept in [low, high]  sigma^2; of a clipped entry the mean square error of
                                             a signal that is uniform in [0, 1]
erasing    the image's fill on a share p     p (1/12 + (1/2 - r)^2), the mean over places and fills
jpeg       s after encoding and decoding     the square of what it does to r moved by three pixels
=========  ================================  ====================================================

JPEG changes what it has already compressed by next to nothing, and what lies otherwise on its grid
of 8 x 8 about as much as the original: moved by 3 pixels, the root mean square is 0.80 to 1.03 of
the true one (digits at 8x8, photographs at 32x32 and 64x64, quality 10 to 90), unmoved 0 to 0.34.

References:
    Enhancement of JPEG-Compressed Images by Re-application of JPEG (Nosratinia, 2001),
    doi:10.1023/A:1011245710330
"""

import math

import torch
from deepinv.physics import noise as library
from torch import Generator, Tensor
from torchvision.io import decode_jpeg, encode_jpeg
from typing_extensions import override

from ..config.checks import check_choice, check_positive
from .noises import Noise

#: Values of the signal that a flat law is summed over.
GRID = 20_001
#: Pixels by which JPEG's own error is measured aside of its grid.
SHIFT = 3


class Clipping(Noise):
    """Gaussian read noise, and then saturation.

    Arguments:
        sigma: Standard deviation of the read noise as a signal, above 0.
        low: What lies below is recorded as ``low``, as a signal.
        high: What lies above is recorded as ``high``; above ``low``.
    """

    needs_light = False

    def __init__(self, sigma: float, low: float, high: float) -> None:
        check_positive("sigma", sigma)
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"low={low}, high={high}; allowed: low below high")
        self.sigma, self.low, self.high = float(sigma), float(low), float(high)

    @override
    def draw(self, signal: Tensor, generator: Generator) -> Tensor:
        noisy: Tensor = library.GaussianNoise(self.sigma, rng=generator)(signal)
        return noisy.clamp(self.low, self.high)

    @override
    def variance(self, signal: Tensor) -> Tensor:
        s = signal.double()
        a, b = (self.low - s) / self.sigma, (self.high - s) / self.sigma
        below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
        within = 1 - below - above + a * _normal(a) - b * _normal(b)
        square = self.sigma**2 * (within + a**2 * below + b**2 * above)
        return square.to(signal.dtype)

    @override
    def estimated(self, recorded: Tensor) -> Tensor:
        found = torch.full_like(recorded, self.sigma**2)
        found = torch.where(recorded <= self.low, self._beyond(self.low, 1), found)
        return torch.where(recorded >= self.high, self._beyond(self.high, -1), found)

    def _beyond(self, end: float, side: int) -> float:
        """Return the mean square of (s - end) given that s was clipped there, s uniform."""
        s = torch.linspace(0, 1, GRID, dtype=torch.float64)
        weight = torch.special.log_ndtr(side * (end - s) / self.sigma).softmax(0)
        return max(float((weight * (s - end) ** 2).sum()), self.sigma**2 / 10)


class Erasing(Noise):
    """Pixels, or a rectangle, replaced by one value an image, which nobody is told.

    The value is uniform in [0, 1] of the signal, for all channels of the image; what was erased is
    told by no mask.

    Arguments:
        p: Share of the pixels that is erased, above 0 and below 1.
        shape: ``pixels``, each by itself; ``rectangle``, one an image, between half and twice as
            high as wide, its area p of the image up to rounding.
    """

    needs_light = False
    SHAPES = ("pixels", "rectangle")

    def __init__(self, p: float, shape: str) -> None:
        if not 0 < p < 1:
            raise ValueError(f"p={p}; allowed: above 0 and below 1")
        check_choice("shape", shape, self.SHAPES)
        self.p, self.shape = float(p), shape

    @override
    def draw(self, signal: Tensor, generator: Generator) -> Tensor:
        n, _, height, width = signal.shape
        fill = torch.rand(n, 1, 1, 1, generator=generator)
        if self.shape == "pixels":
            erased = torch.rand(n, 1, height, width, generator=generator) < self.p
        else:
            erased = self._rectangles(n, height, width, generator)
        return torch.where(erased, fill.to(signal.dtype), signal)

    def _rectangles(self, n: int, height: int, width: int, generator: Generator) -> Tensor:
        """Return a rectangle in each of n images, (n, 1, height, width)."""
        ratio, down, right = torch.rand(3, n, 1, generator=generator)
        area = self.p * height * width
        tall = (area * 2 ** (2 * ratio - 1)).sqrt().round()
        tall = tall.clamp(max(1, math.ceil(area / width)), height)
        wide = (area / tall).round().clamp(1, width)
        top = (down * (height - tall + 1)).floor()
        left = (right * (width - wide + 1)).floor()
        rows, columns = torch.arange(height), torch.arange(width)
        in_rows = (rows >= top) & (rows < top + tall)
        in_columns = (columns >= left) & (columns < left + wide)
        return (in_rows[:, :, None] & in_columns[:, None])[:, None]

    @override
    def variance(self, signal: Tensor) -> Tensor:
        return self.p * (1 / 12 + (signal - 0.5) ** 2)

    @override
    def estimated(self, recorded: Tensor) -> Tensor:
        return self.variance(recorded)

    @override
    def unbiased(self, recorded: Tensor) -> Tensor:
        # Of a fill the variance is p / 6 on average, and p of what is recorded is fill.
        return (self.variance(recorded) - self.p * self.p / 6) / (1 - self.p)


class Jpeg(Noise):
    """Encoding by JPEG, of 8 bits a value, and decoding. It has no randomness.

    Arguments:
        quality: libjpeg's, a whole number from 1 to 100. Of three channels those of colour are
            halved in both directions, libjpeg's default.
    """

    needs_light = False

    def __init__(self, quality: int) -> None:
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
            raise ValueError(f"quality={quality}; allowed: a whole number from 1 to 100")
        self.quality = quality

    @override
    def draw(self, signal: Tensor, generator: Generator) -> Tensor:
        return self.compressed(signal)

    def compressed(self, signal: Tensor) -> Tensor:
        """Return a signal (b, c, h, w) in [0, 1], else clipped, after encoding and decoding."""
        values = (255 * signal.detach().clamp(0, 1)).round().to(torch.uint8)
        decoded = decode_jpeg(encode_jpeg(list(values), quality=self.quality))
        return torch.stack(decoded).to(signal.dtype) / 255

    @override
    def variance(self, signal: Tensor) -> Tensor:
        return (self.compressed(signal) - signal) ** 2

    @override
    def estimated(self, recorded: Tensor) -> Tensor:
        moved = recorded.roll((SHIFT, SHIFT), (-2, -1))
        return self.variance(moved).roll((-SHIFT, -SHIFT), (-2, -1))


def _normal(z: Tensor) -> Tensor:
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


__all__ = ["Clipping", "Erasing", "Jpeg"]
