"""Clean data sets with a torchvision class: MNIST, Fashion-MNIST, CIFAR-10, CelebA."""

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.datasets
from torch import Tensor

from ..errors import UserError
from ..outside import check_regular
from .claims import check_claim
from .datasets import CleanData
from .image_files import image_folder
from .pictures import PictureReader
from .pixels import check_options, fit

EIGHT_BITS = (0, 255)
_IDX_PARTS = ("images-idx3-ubyte", "labels-idx1-ubyte")


def mnist(
    path: str | None, resolution: int, channels: int, limit: int | None, download: bool
) -> CleanData:
    """Load MNIST from torchvision's layout (``path/MNIST/raw/*-ubyte[.gz]``).

    Arguments:
        path: Folder that holds (or shall receive) ``MNIST/raw``; None means ``data``.
        resolution: 28, or 32 by padding, or 16 or 8 by average pooling after it.
        channels: 1, or 3 for equal red, green and blue.
        limit: Keep that many training images (the first ones), or None for all 60,000.
        download: Download the files when the folder does not hold them.

    Raises:
        UserError: The files are neither there nor downloadable, or an option is not offered.

    References:
        Y. LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """
    return _idx("mnist", "MNIST", "MNIST", path, resolution, channels, limit, download)


def fashion_mnist(
    path: str | None, resolution: int, limit: int | None, download: bool, channels: int = 1
) -> CleanData:
    """Load Fashion-MNIST from torchvision's layout (``path/FashionMNIST/raw/*-ubyte[.gz]``).

    Arguments:
        path: Folder that holds (or shall receive) ``FashionMNIST/raw``; None means ``data``.
        resolution: 28, or 32 by padding, or 16 or 8 by average pooling after it.
        limit: Keep that many training images (the first ones), or None for all 60,000.
        download: Download the files when the folder does not hold them.
        channels: 1, or 3 for equal red, green and blue.

    Raises:
        UserError: The files are neither there nor downloadable, or an option is not offered.

    References:
        Fashion-MNIST (Xiao et al., 2017), arXiv:1708.07747
    """
    return _idx(
        "fashion_mnist",
        "Fashion-MNIST",
        "FashionMNIST",
        path,
        resolution,
        channels,
        limit,
        download,
    )


def _idx(
    name: str,
    title: str,
    folder: str,
    path: str | None,
    resolution: int,
    channels: int,
    limit: int | None,
    download: bool,
) -> CleanData:
    """Load a data set of four idx files; the folder is called as torchvision's class."""
    if resolution not in (8, 16, 28, 32):
        raise UserError(f"resolution={resolution} is not offered; allowed: 8, 16, 28, 32")
    check_options(resolution, channels, 0.5, limit)
    root = Path(path or "data")
    raw = root / folder / "raw"
    parts = [f"{split}-{part}" for split in ("train", "t10k") for part in _IDX_PARTS]
    files = [raw / part if (raw / part).is_file() else raw / f"{part}.gz" for part in parts]
    if not all(f.is_file() for f in files):
        try:
            _class(folder)(str(root), download=download)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{title} is not in '{raw}' and {_failed(download)}; set data.path to the folder "
                f"that holds {folder}/raw with its four idx files"
            ) from error
        files = [raw / part for part in parts]
    train, train_labels, test, test_labels = map(_read_idx, files)

    def prepare(images: Tensor) -> Tensor:
        x = images[:, None].float().div(127.5).sub(1)
        if resolution != 28:
            x = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), value=-1.0), 32 // resolution)
        return fit(x, None, channels)

    kept = slice(None, limit)
    return CleanData(
        name,
        prepare(train[kept]),
        prepare(test),
        train_labels[kept].long(),
        test_labels.long(),
    )


def _class(name: str) -> Any:
    """Return a class of torchvision that looks for no pickled files of its first versions."""
    return type(name, (getattr(torchvision.datasets, name),), {"_check_legacy_exist": _no})


def _no(_: Any) -> bool:
    return False


def _failed(download: bool) -> str:
    return "the download failed" if download else "download is false"


def _read_idx(path: Path) -> Tensor:
    """Read a file of unsigned bytes in the IDX format, plain or gzipped.

    Raises:
        UserError: It is damaged, or holds more or less than its header says.
    """
    try:
        check_regular(path)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            dimensions = file.read(4)[3]
            shape = np.frombuffer(file.read(4 * dimensions), ">u4", dimensions).astype(int)
            count = math.prod(map(int, shape))
            check_claim(path, "its images", count, path.stat().st_size)
            # One byte more than the header promises: a bomb is not expanded.
            values = np.frombuffer(file.read(count + 1), np.uint8)
        return torch.from_numpy(values.reshape(shape).copy())
    except UserError:
        raise
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise UserError(f"'{path}' is damaged; remove it and fetch it again: {error}") from error


def cifar10(
    path: str | None, resolution: int, channels: int, limit: int | None, download: bool
) -> CleanData:
    """Load CIFAR-10 by torchvision's class (``path/cifar-10-batches-py``), with its own splits.

    Arguments:
        path: Folder that holds (or shall receive) it; None means ``data``.
        resolution: Side in pixels; the originals have 32.
        channels: 3, or 1 for grey.
        limit: Keep that many training images (the first ones), or None for all 50,000.
        download: Download the files when the folder does not hold them.

    Raises:
        UserError: The files are neither there nor downloadable, or an option is not offered.

    References:
        A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    check_options(resolution, channels, 0.5, limit)
    root = Path(path or "data")
    try:
        splits = [
            torchvision.datasets.CIFAR10(str(root), train=is_train, download=download)
            for is_train in (True, False)
        ]
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"CIFAR-10 is not in '{root}' and {_failed(download)}; set data.path to the folder "
            "that holds cifar-10-batches-py"
        ) from error
    images, labels = [], []
    for split, kept in zip(splits, (limit, None), strict=True):
        pixels = torch.from_numpy(split.data[:kept]).permute(0, 3, 1, 2)
        chunks = [fit(p.float() / 127.5 - 1, resolution, channels) for p in pixels.split(1024)]
        images.append(torch.cat(chunks))
        labels.append(torch.tensor(split.targets[:kept]))
    return CleanData("cifar10", images[0], images[1], labels[0], labels[1])


def celeba(
    path: str | None,
    resolution: int,
    channels: int,
    test_share: float,
    limit: int | None,
    download: bool,
) -> CleanData:
    """Load CelebA from torchvision's layout, or CelebA or CelebA-HQ from a folder of images.

    With ``path/celeba`` (or ``download``) torchvision's class reads it: training and test images
    are those of the published partition, its validation images are left out. Any other folder is
    read as :func:`cleanprior.data.image_folder` does.

    Arguments:
        path: The folder; None means ``data``.
        resolution: Side in pixels of the central square after resizing.
        channels: 3, or 1 for grey.
        test_share: Share of images held out of a plain folder.
        limit: Load that many training images, or None for all.
        download: Download it when the folder does not hold it (torchvision needs gdown).

    Raises:
        UserError: The images are neither there nor downloadable, or one cannot be read.

    References:
        Deep Learning Face Attributes in the Wild (Liu et al., 2015), arXiv:1411.7766;
        CelebA-HQ: Karras et al., 2018, appendix C, arXiv:1710.10196
    """
    check_options(resolution, channels, test_share, limit)
    root = Path(path or "data")
    if not download and not (root / "celeba").is_dir():
        if path is None:
            raise UserError(
                "CelebA is not in 'data' and download is false; set data.path to a folder of its "
                "images, or to the one that holds torchvision's folder celeba"
            )
        folder = image_folder(path, resolution, channels, test_share, limit, range=EIGHT_BITS)
        return replace(folder, name="celeba")

    def split(name: str) -> Any:
        return torchvision.datasets.CelebA(str(root), name, [], download=download)

    try:
        train, test = split("train"), split("test")
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(
            f"CelebA is not complete in '{root / 'celeba'}' and {_failed(download)}: {error}; set "
            "data.path to a plain folder of its images to read these without the partition"
        ) from error
    reader = PictureReader(resolution, channels, EIGHT_BITS)
    images = [
        _read_pictures(train, range(min(limit or len(train), len(train))), reader),
        _read_pictures(test, range(len(test)), reader),
    ]
    return CleanData("celeba", images[0], images[1])


def _read_pictures(split: Any, numbers: Sequence[int], reader: PictureReader) -> Tensor:
    x = torch.empty(len(numbers), reader.channels, reader.resolution, reader.resolution)
    for i in numbers:
        try:
            picture = split[i][0]
        except OSError as error:
            raise UserError(f"CelebA's image {i} is not readable: {error}") from error
        x[i] = reader(picture, f"CelebA image {i}")
    return x
