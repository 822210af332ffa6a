"""Clean images: what measurements are simulated from and what evaluation compares with.

No method ever receives a :class:`CleanData`.
"""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_IDX_PARTS = ("images-idx3-ubyte", "labels-idx1-ubyte")


@dataclass(frozen=True)
class CleanData:
    """Clean images in [-1, 1], float32, (n, channel, height, width), in two disjoint splits.

    Attributes:
        name: Name of the data set, for tables.
        train: Images whose measurements the methods train on.
        test: Held-out images; nothing is ever trained on them.
        train_labels: Class of each training image, or None.
        test_labels: Class of each test image, or None.
    """

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None

    def __post_init__(self) -> None:
        for split, images in (("training", self.train), ("test", self.test)):
            if len(images) == 0:
                raise UserError(f"{self.name}: the {split} split holds no image")
            if not torch.isfinite(images).all():
                bad = (~torch.isfinite(images.flatten(1)).all(1)).nonzero()[0].item()
                raise UserError(
                    f"{self.name}: image {bad} of the {split} split holds NaN or infinity; "
                    "remove it or mend it"
                )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (channels, height, width)."""
        return tuple(self.train.shape[1:])  # type: ignore[return-value]


def _held_out(keys: list[str], share: float) -> Tensor:
    """Choose the test split by a hash of each key: stable when images are added or reordered."""
    position = [int(hashlib.sha256(k.encode()).hexdigest()[:8], 16) / 2**32 for k in keys]
    return torch.tensor(position) < share


def digits() -> CleanData:
    """Load the 1,797 real 8x8 handwritten digits that scikit-learn's wheel ships.

    1,437 training and 360 test images (every fifth image is held out).

    References:
        E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.from_numpy(loaded.images).float().div(8).sub(1)[:, None]
    labels = torch.from_numpy(loaded.target).long()
    held_out = torch.arange(len(images)) % 5 == 4
    # 1,797 / 5 leaves 359; the last image makes the test split 360, as in the feasibility study.
    held_out[-1] = True
    return CleanData(
        "digits", images[~held_out], images[held_out], labels[~held_out], labels[held_out]
    )


def fashion_mnist(
    path: str | None, resolution: int, limit: int | None, download: bool
) -> CleanData:
    """Load Fashion-MNIST from torchvision's layout (``path/FashionMNIST/raw/*-ubyte[.gz]``).

    Arguments:
        path: Folder that holds (or shall receive) ``FashionMNIST/raw``; None means ``data``.
        resolution: 28, or a divisor reached by average pooling after padding to 32: 16 or 8.
        limit: Keep that many training images (the first ones), or None for all 60,000.
        download: Download the files when the folder does not hold them.

    Raises:
        UserError: The files are neither there nor downloadable, or the resolution is not offered.
    """
    if resolution not in (8, 16, 28, 32):
        raise UserError(f"resolution={resolution} is not offered; allowed: 8, 16, 28, 32")
    root = Path(path or "data")
    raw = root / "FashionMNIST" / "raw"
    parts = [f"{split}-{part}" for split in ("train", "t10k") for part in _IDX_PARTS]
    files = [raw / name if (raw / name).is_file() else raw / f"{name}.gz" for name in parts]
    if not all(f.is_file() for f in files):
        from torchvision.datasets import FashionMNIST

        try:
            FashionMNIST(str(root), download=download)
        except (RuntimeError, OSError) as error:
            reason = "the download failed" if download else "download is false"
            raise UserError(
                f"Fashion-MNIST is not in '{raw}' and {reason}; set data.path to the folder that "
                "holds FashionMNIST/raw with its four idx files"
            ) from error
        files = [raw / name for name in parts]
    train, train_labels, test, test_labels = map(_read_idx, files)

    def prepare(images: Tensor) -> Tensor:
        x = images[:, None].float().div(127.5).sub(1)
        if resolution == 28:
            return x
        x = F.pad(x, (2, 2, 2, 2), value=-1.0)
        return F.avg_pool2d(x, 32 // resolution)

    kept = slice(None, limit)
    return CleanData(
        "fashion_mnist",
        prepare(train[kept]),
        prepare(test),
        train_labels[kept].long(),
        test_labels.long(),
    )


def _read_idx(path: Path) -> Tensor:
    """Read a file of unsigned bytes in the IDX format, plain or gzipped."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        dimensions = content[3]
        shape = np.frombuffer(content, ">u4", dimensions, 4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
        return torch.from_numpy(values.reshape(shape.astype(int)).copy())
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise UserError(f"'{path}' is damaged; remove it and fetch it again: {error}") from error


def image_folder(path: str | None, resolution: int, channels: int, test_share: float) -> CleanData:
    """Load every image below a folder: centre-cropped to a square, resized, in [-1, 1].

    Arguments:
        path: The folder, searched with its sub-folders.
        resolution: Side of the images in pixels, after an antialiased resize.
        channels: 1 for grey, 3 for RGB.
        test_share: Share of images held out, chosen by a hash of each file's relative path.

    Raises:
        UserError: No such folder, no image in it, or an image that cannot be read (named).
    """
    if channels not in (1, 3):
        raise UserError(f"channels={channels} is not offered; allowed: 1 (grey) or 3 (RGB)")
    if not 0 < test_share < 1:
        raise UserError(f"test_share={test_share} is not a share; allowed: between 0 and 1")
    if resolution < 1:
        raise UserError(f"resolution={resolution} is no image; allowed: at least 1 pixel")
    if path is None:
        raise UserError("data=folder needs data.path=FOLDER with the images")
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"'{root}' is not a folder; set data.path to the folder of your images")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if len(files) < 2:
        raise UserError(
            f"'{root}' holds {len(files)} images; needed: at least 2, with one of the endings "
            + ", ".join(IMAGE_SUFFIXES)
        )
    images = []
    for file in files:
        try:
            with Image.open(file) as opened:
                image = _to_eight_bits(opened, file).convert("L" if channels == 1 else "RGB")
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UserError(f"'{file}' is not a readable image; remove it or mend it") from error
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize(
            (resolution, resolution), Image.Resampling.BOX if side >= resolution else None
        )
        array = np.asarray(image, dtype=np.float32).reshape(resolution, resolution, channels)
        images.append(torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1))
    stacked = torch.stack(images)
    held_out = _held_out([str(f.relative_to(root)) for f in files], test_share)
    if held_out.all() or not held_out.any():
        held_out = torch.arange(len(files)) == 0
    return CleanData(root.name, stacked[~held_out], stacked[held_out])


def _to_eight_bits(image: Image.Image, file: Path) -> Image.Image:
    """Scale 16-bit grey to 8 bits (Pillow's own conversion cuts it off at 255)."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(f"'{file}' has 32-bit pixels of unknown range; save it with 8 or 16 bits")
    return image
