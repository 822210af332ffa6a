"""Images as pictures: what a file or a grid shows of one, two, three or more channels. No torch."""

import io

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]


def rgb(images: Images) -> Images:
    """Return images (n, c, h, w) in [-1, 1] as colours (n, h, w, 3) in [0, 1].

    One channel is grey. Two are the real and imaginary part of a complex image: its magnitude,
    1 at the largest of all. Of more than three the first three are red, green and blue. What is not
    a number is black.
    """
    x = np.nan_to_num(images.astype(np.float32), nan=-1, posinf=1, neginf=-1)
    if x.shape[1] == 2:
        x = np.linalg.norm(x, axis=1, keepdims=True)
        x = x / max(float(x.max(initial=0)), 1e-9)
    else:
        x = np.clip((x + 1) / 2, 0, 1)
    x = np.repeat(x[:, :1], 3, axis=1) if x.shape[1] < 3 else x[:, :3]
    return x.transpose(0, 2, 3, 1)


def phases(images: Images, peak: float | None = None) -> Images:
    r"""Return the phase of complex images (n, 2, h, w) as colours (n, h, w, 3) in [0, 1].

    The hue is the phase, red at 0, green at :math:`2\pi/3`, cyan at :math:`\pm\pi`; where there is
    no signal there is no phase, so the brightness is the square root of the magnitude.

    Arguments:
        images: Real and imaginary part; what is not a number is black.
        peak: Magnitude of full brightness; None for the largest.
    """
    x = np.nan_to_num(images.astype(np.float32), nan=0, posinf=0, neginf=0)
    magnitude = np.linalg.norm(x, axis=1)
    top = float(magnitude.max(initial=0)) if peak is None else peak
    brightness = np.sqrt(np.clip(magnitude / max(top, 1e-9), 0, 1))
    turns = np.arctan2(x[:, 1], x[:, 0]) / (2 * np.pi)
    # A full colour circle at one brightness: each channel is a tent over a third of the turn.
    distance = np.abs((turns[..., None] - np.array([0, 1, 2]) / 3 + 0.5) % 1 - 0.5)
    hue = np.clip(2 - 6 * distance, 0, 1)
    return np.asarray(brightness[..., None] * hue, np.float32)


def grid(images: Images, columns: int = 8, side: int = 64, gap: int = 2) -> bytes:
    """Return images (n, c, h, w) in [-1, 1] as one picture, PNG; of complex ones, phases below.

    Arguments:
        images: At least one.
        columns: Images in a row, at most.
        side: Smaller images are enlarged, whole pixels each, to about that many pixels.
        gap: White pixels between them.
    """
    from PIL import Image

    sheets = [_sheet(rgb(images), columns, side, gap)]
    if images.shape[1] == 2:
        sheets.append(_sheet(phases(images), columns, side, gap)[gap:])
    buffer = io.BytesIO()
    pixels = (np.concatenate(sheets) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def _sheet(x: Images, columns: int, side: int, gap: int) -> Images:
    """Return colours (n, h, w, 3) as one picture (h', w', 3), rows of so many images."""
    zoom = max(1, side // max(x.shape[1:3]))
    x = x.repeat(zoom, 1).repeat(zoom, 2)
    n, height, width, _ = x.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    sheet = np.ones((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), np.float32)
    for i, image in enumerate(x):
        top = gap + (i // columns) * (height + gap)
        left = gap + (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet
