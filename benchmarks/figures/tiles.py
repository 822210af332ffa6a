"""Images as pixels of a picture: what is shown of their channels, and at which size. No torch.

Small images are enlarged by a whole factor, each pixel a square; images up to :data:`SIDE` keep
their size; larger ones are reduced by a whole factor, each pixel the mean of a square. So nothing
is interpolated and nothing aliases.
"""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cleanprior.rendering import phases

Images = NDArray[np.float32]
Pixels = NDArray[np.uint8]

#: Hidden pixels are drawn in this colour: 0 is mid-grey in [-1, 1] and would look like content.
HIDDEN = np.array([0.62, 0.76, 0.92], np.float32)
#: Longer side in pixels that small images are enlarged to, at most.
ENLARGED = 96
#: Longer side that is shown as it is, at most.
SIDE = 160


@dataclass(frozen=True)
class View:
    """How all images of a problem are turned into colours, so that rows can be compared.

    Attributes:
        channels: Channels of an image.
        peak: Magnitude that is drawn white, where an image is complex.
    """

    channels: int
    peak: float = 1.0

    @classmethod
    def of(cls, images: Images) -> "View":
        """Choose the view by some of the images: the truth, or what else there is."""
        channels = images.shape[1]
        if channels != 2 or not images.size:
            return cls(channels)
        magnitude = np.linalg.norm(np.nan_to_num(images), axis=1)
        return cls(channels, max(float(np.quantile(magnitude, 0.999)), 1e-6))

    @property
    def said(self) -> str:
        """What is shown, in words; empty where an image is shown as it is."""
        if self.channels == 2:
            return f"magnitude of two channels, white at {self.peak:.2g}"
        return (
            f"channels 1 to 3 of {self.channels} as red, green, blue" if self.channels > 3 else ""
        )

    def colours(self, images: Images, seen: Images | None = None) -> NDArray[np.float32]:
        """Return images (n, c, h, w) in [-1, 1] as colours (n, h, w, 3) in [0, 1].

        Arguments:
            images: Clipped to their range; what is not a number is drawn black.
            seen: 1 where an entry was measured; what is hidden in some channel has a colour of its
                own.
        """
        x: NDArray[Any] = np.nan_to_num(images, nan=-1.0)
        if self.channels == 2:
            x = np.linalg.norm(x, axis=1, keepdims=True) / self.peak
        else:
            x = (x + 1) / 2
        x = np.clip(np.repeat(x, 3, axis=1) if x.shape[1] == 1 else x[:, :3], 0, 1)
        x = x.transpose(0, 2, 3, 1)
        if seen is not None and seen.shape[-2:] == images.shape[-2:]:
            kept = seen.min(axis=1)[..., None]
            x = kept * x + (1 - kept) * HIDDEN
        return np.asarray(x, np.float32)

    def phases(self, images: Images) -> NDArray[np.float32]:
        """Return the phase of complex images (n, 2, h, w) as colours (n, h, w, 3) in [0, 1]."""
        return phases(images, self.peak)


def reduction(height: int, width: int) -> int:
    """Return the whole factor by which images of this size are reduced; 1 keeps them."""
    return max(1, -(-max(height, width) // SIDE))


def enlargement(height: int, width: int) -> int:
    """Return the whole factor by which images of this size are enlarged; 1 keeps them."""
    return max(1, ENLARGED // max(height, width))


def reduced(colours: NDArray[np.float32]) -> Pixels:
    """Return colours (n, h, w, 3) as pixels, large images as means of squares."""
    _, height, width, _ = colours.shape
    factor = reduction(height, width)
    if factor > 1:  # the last squares of a side that the factor does not divide repeat its edge
        pad = [(0, 0), (0, -height % factor), (0, -width % factor), (0, 0)]
        colours = np.pad(colours, pad, mode="edge")
        n, height, width, _ = colours.shape
        squares = (n, height // factor, factor, width // factor, factor, 3)
        colours = colours.reshape(squares).mean(axis=(2, 4))
    return np.asarray((colours * 255).round(), np.uint8)


def enlarged(pixels: Pixels, factor: int) -> Pixels:
    """Return pixels (n, h, w, 3), each as a square of this side."""
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)


def side_by_side(pixels: Pixels, gap: int, ground: int = 255) -> Pixels:
    """Return images as one picture (h, w', 3) with a gap between them."""
    between = np.full((pixels.shape[1], gap, 3), ground, np.uint8)
    parts = [part for image in pixels for part in (image, between)]
    return np.concatenate(parts[:-1], axis=1)


def under_each_other(rows: list[Pixels], gap: int) -> Pixels:
    """Return rows of images as one picture (h', w', 3) with gaps between them."""
    lines = [side_by_side(pixels, gap) for pixels in rows]
    between = np.full((gap, lines[0].shape[1], 3), 255, np.uint8)
    parts = [part for line in lines for part in (line, between)]
    return np.concatenate(parts[:-1])


def uri(pixels: Pixels) -> str:
    """Return a picture as an address: lossless where it is small, else JPEG of high quality."""
    is_small = max(pixels.shape[0], pixels.shape[1] // 8) <= 64
    kind, options = ("png", {"optimize": True}) if is_small else ("jpeg", {"quality": 90})
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
