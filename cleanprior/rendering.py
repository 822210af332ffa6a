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


def grid(images: Images, columns: int = 8, side: int = 64, gap: int = 2) -> bytes:
    """Return images (n, c, h, w) in [-1, 1] as one picture, PNG.

    Arguments:
        images: At least one.
        columns: Images in a row, at most.
        side: Smaller images are enlarged, whole pixels each, to about that many pixels.
        gap: White pixels between them.
    """
    from PIL import Image

    x = rgb(images)
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
    buffer = io.BytesIO()
    Image.fromarray((sheet * 255).round().astype(np.uint8)).save(buffer, format="png")
    return buffer.getvalue()
