"""Pictures as Pillow opens them to images in [-1, 1], in float from the first step."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from ..errors import UserError
from ..notices import Notice
from .contents import check_range, judge_span, ranges_for, to_unit

#: Weights of red, green and blue in grey, ITU-R 601 (as Pillow's mode L).
GREY = (0.299, 0.587, 0.114)
#: Bytes of a picture's file that are read at once.
LARGEST = 1 << 31
EIGHT_BITS = {"L", "LA", "RGB", "RGBA"}
#: Modes that Pillow turns into RGB or LA without a loss that matters.
_TO_EIGHT_BITS = {
    **{"La": "LA", "RGBa": "RGBA", "RGBX": "RGB"},
    **{"CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB"},
}


class PictureReader:
    """Turns pictures into images of one size, and remembers what it saw of them.

    Arguments:
        resolution: Side in pixels: the central square, resized by area (or bicubic, where it is
            smaller).
        channels: 1 for grey, 3 for RGB.
        limits: The pixel values that become -1 and 1; None for the range of 1, 8 or 16 bits.

    Raises:
        UserError: ``limits`` that are no range.
    """

    def __init__(self, resolution: int, channels: int, limits: Sequence[float] | None) -> None:
        self.resolution, self.channels = resolution, channels
        self.limits = check_range(limits)
        self._spans: dict[tuple[float, float], tuple[float, float]] = {}
        self._see_through = 0

    def __call__(self, image: Image.Image, name: str | PurePath) -> Float[Tensor, "c h w"]:
        """Return a picture as a viewer shows it: turned by its EXIF, on white where transparent.

        Raises:
            UserError: Pixels without a range of their own, values outside the declared range, NaN,
                or colours that are not read.
        """
        values, (low, high) = self._values(image, name)
        side = min(values.shape[:2])
        top, left = ((n - side) // 2 for n in values.shape[:2])
        values = values[top : top + side, left : left + side]
        self._look(values, low, high, name)
        if self.channels == 1 and values.shape[2] == 3:
            values = values @ np.array(GREY, np.float32)[:, None]
        if side != self.resolution:
            filter = Image.Resampling.BOX if side >= self.resolution else Image.Resampling.BICUBIC
            size = (self.resolution, self.resolution)
            bands = [Image.fromarray(np.ascontiguousarray(b)) for b in values.transpose(2, 0, 1)]
            values = np.stack([np.asarray(b.resize(size, filter)) for b in bands], 2)
        x = to_unit(values, low, high).permute(2, 0, 1)
        return x.expand(self.channels, -1, -1).contiguous()

    def notices(self, place: str) -> tuple[Notice, ...]:
        """Return what should be told of all pictures read.

        Raises:
            UserError: They are (almost) a constant.
        """
        found: list[Notice] = []
        for limits, span in sorted(self._spans.items()):
            found += judge_span(place, span, limits, self.limits is not None)
        if len(self._spans) > 1:
            kinds = " and ".join(f"[0, {high:g}]" for _, high in sorted(self._spans))
            text = f"{place}: pictures of different depths, each scaled by its own range: {kinds}"
            found.append(Notice(f"{text}; data.range=[LOW,HIGH] is one range for all", True))
        if self._see_through:
            text = f"{place}: {self._see_through} pictures are transparent in places, white there"
            found.append(Notice(text))
        return tuple(found)

    def _look(self, values: NDArray[Any], low: float, high: float, name: str | PurePath) -> None:
        if not np.isfinite(values).all():
            raise UserError(f"'{name}' holds NaN or infinity; remove it or mend it")
        least, most = float(values.min()), float(values.max())
        slack = 1e-5 * (high - low)
        if least < low - slack or most > high + slack:
            raise UserError(
                f"'{name}' holds values from {least:.10g} to {most:.10g}; "
                f"data.range=[{low:g},{high:g}] does not cover them"
            )
        before = self._spans.get((low, high), (least, most))
        self._spans[low, high] = min(before[0], least), max(before[1], most)

    def _values(
        self, image: Image.Image, name: str | PurePath
    ) -> tuple[NDArray[Any], tuple[float, float]]:
        """Return the pixels, (h, w, 1 or 3) in float32, and which values become -1 and 1."""
        depth = 255.0
        pixels: NDArray[Any]
        if image.mode in ("L", "LA", "RGB", "RGBA") and is_cut(image):
            pixels, depth = sixteen_bits(image, name), 65535.0
        else:
            image = ImageOps.exif_transpose(image)
            pixels = np.asarray(image)
            if image.mode == "1":
                depth = 1.0
            elif image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
                depth = 65535.0
            elif image.mode in ("I", "F"):
                if self.limits is None:
                    raise UserError(f"'{name}' has 32-bit pixels of unknown range{_seen(pixels)}")
            else:
                pixels = np.asarray(_eight_bits(image, name))
        limits = self.limits or (0.0, depth)
        pixels = pixels.astype(np.float32).reshape(*pixels.shape[:2], -1)
        if pixels.shape[2] in (2, 4):
            share = pixels[:, :, -1:] / depth
            self._see_through += bool((share < 1).any())
            pixels = share * pixels[:, :, :-1] + (1 - share) * limits[1]
        return pixels, limits


def _seen(pixels: NDArray[Any]) -> str:
    finite = pixels[np.isfinite(pixels)]
    if finite.size == 0:
        return ", and none is a number"
    least, most = float(finite.min()), float(finite.max())
    return (
        f" (here {least:.10g} to {most:.10g}); set data.range=[LOW,HIGH] to the values that shall "
        f"become -1 and 1, e.g. {ranges_for(least, most)}"
    )


def _eight_bits(image: Image.Image, name: str | PurePath) -> Image.Image:
    """Return a picture of 8 bits as grey or RGB, with its alpha where it has one."""
    if "transparency" in image.info or image.mode == "PA":
        return image.convert("RGBA")
    if image.mode == "P":
        return image.convert("RGB")
    image = image.convert(_TO_EIGHT_BITS.get(image.mode, image.mode))
    if image.mode not in EIGHT_BITS:
        raise UserError(f"'{name}' has colours of mode {image.mode}, not read; save it as RGB")
    return image


def is_cut(image: Image.Image) -> bool:
    """Whether Pillow cuts the picture's 16 bits a channel to 8."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def sixteen_bits(image: Image.Image, name: str | PurePath) -> NDArray[Any]:
    """Read a PNG of several 16-bit channels by torchvision."""
    file = getattr(image, "fp", None)
    if image.format != "PNG" or file is None:
        raise UserError(
            f"'{name}' has 16 bits a channel in several channels, which is read from PNG alone; "
            "save it as PNG, or all as an array (data=arrays)"
        )
    file.seek(0)
    content = torch.frombuffer(bytearray(file.read(LARGEST)), dtype=torch.uint8)
    x = decode_image(content, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    return x.permute(1, 2, 0).to(torch.int32).numpy()
