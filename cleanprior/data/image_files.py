"""Clean images from picture files: a folder, a zip archive, AFHQ's folders."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import BadZipFile, ZipFile
from zlib import error as ZlibError

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError, unknown
from ..fingerprint import IMAGE_SUFFIXES
from .datasets import CleanData, held_out, position
from .pixels import check_options, from_picture

#: Name of a picture below its root, with ``/`` -> how to open it.
Pictures = Mapping[str, Callable[[], IO[bytes]]]
#: Folders whose images a data set ships as not to be trained on.
TEST_FOLDERS = ("test", "val", "valid", "validation")


def image_folder(
    path: str | None,
    resolution: int,
    channels: int,
    test_share: float,
    limit: int | None = None,
    labels: bool = False,
) -> CleanData:
    """Load every image below a folder: centre-cropped to a square, resized, in [-1, 1].

    Where all images lie in the folders ``train`` and ``test`` (or ``val``, ``valid``,
    ``validation``), these are the splits. Otherwise a hash of each file's relative path holds some
    out. Images come in the order of that hash: the first hundred are of all classes.

    Arguments:
        path: The folder, searched with its sub-folders.
        resolution: Side of the images in pixels, after an antialiased resize.
        channels: 1 for grey, 3 for RGB.
        test_share: Share of images held out, where the folder ships no test split.
        limit: Load that many training images, or None for all.
        labels: Whether the folder that a file lies in is its class.

    Raises:
        UserError: No such folder, no image in it, or an image that cannot be read (named).
    """
    check_options(resolution, channels, test_share, limit)
    if path is None:
        raise UserError("data=folder needs data.path=FOLDER with the images")
    root = Path(path)
    return _load(
        root.name,
        f"{root}/",
        _pictures_below(root),
        resolution,
        channels,
        test_share,
        limit,
        labels,
    )


def image_zip(
    path: str | None,
    resolution: int,
    channels: int,
    test_share: float,
    limit: int | None,
    labels: bool,
) -> CleanData:
    """Load every image of a zip archive; nothing is unpacked on disk.

    Arguments:
        path: The archive; sub-folders are searched.
        resolution: Side of the images in pixels, after an antialiased resize.
        channels: 1 for grey, 3 for RGB.
        test_share: Share of images held out, where the archive ships no ``test`` folder.
        limit: Load that many training images, or None for all.
        labels: Whether the folder that a file lies in is its class.

    Raises:
        UserError: No such archive, no image in it, or an image that cannot be read (named).
    """
    check_options(resolution, channels, test_share, limit)
    if path is None:
        raise UserError("data=zip needs data.path=FILE.zip with the images")
    root = Path(path)
    if not root.is_file():
        raise UserError(f"'{root}' is not a file; set data.path to a zip archive of images")
    try:
        with ZipFile(root) as archive:
            entries = [e for e in archive.infolist() if not e.filename.startswith("__MACOSX/")]
            if any(e.flag_bits & 1 for e in entries):
                raise UserError(f"'{root}' is encrypted; give an archive without a password")
            names = [e.filename for e in entries if _is_picture(e.filename)]
            pictures = {n: _opener(archive, n) for n in names}
            return _load(
                root.stem,
                f"{root}:",
                pictures,
                resolution,
                channels,
                test_share,
                limit,
                labels,
            )
    # zipfile raises NotImplementedError for a compression that it does not know.
    except (BadZipFile, NotImplementedError) as error:
        raise UserError(f"'{root}' is damaged or not a readable zip archive: {error}") from error


def afhq(
    path: str | None, animal: str | None, resolution: int, channels: int, limit: int | None
) -> CleanData:
    """Load Animal Faces-HQ from its folders ``train/ANIMAL`` and ``val/ANIMAL`` (or ``test``).

    Arguments:
        path: The folder that holds ``train`` and ``val``.
        animal: ``cat``, ``dog`` or ``wild``, or None for all three, labelled.
        resolution: Side of the images in pixels; the originals have 512.
        channels: 1 for grey, 3 for RGB.
        limit: Load that many training images, or None for all.

    Raises:
        UserError: No such folder, another layout, an unknown animal, or a broken image.

    References:
        StarGAN v2 (Choi et al., 2020), section 4, arXiv:1912.01865
    """
    check_options(resolution, channels, 0.5, limit)
    if path is None:
        raise UserError("data=afhq needs data.path=FOLDER with AFHQ's folders train and val")
    root = Path(path)
    pictures = _pictures_below(root)
    if _shipped_split(list(pictures)) is None:
        raise UserError(f"'{root}' holds not just 'train' and 'val' (or 'test') as AFHQ does")
    animals = sorted({PurePosixPath(n).parent.name for n in pictures})
    if animal is not None:
        if animal not in animals:
            raise unknown("animal", animal, animals)
        pictures = {n: o for n, o in pictures.items() if PurePosixPath(n).parent.name == animal}
    name = "afhq" if animal is None else f"afhq-{animal}"
    return _load(name, f"{root}/", pictures, resolution, channels, 0.5, limit, animal is None)


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _pictures_below(root: Path) -> Pictures:
    if not root.is_dir():
        raise UserError(f"'{root}' is not a folder; set data.path to the folder of your images")
    files = (p for p in root.rglob("*") if _is_picture(p.name))
    return {p.relative_to(root).as_posix(): _file_opener(p) for p in files}


def _file_opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _opener(archive: ZipFile, name: str) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(name)


def _shipped_split(names: Sequence[str]) -> Tensor | None:
    """Return which pictures lie in a test folder, or None where the data ship no split."""
    parts = [PurePosixPath(n).parts[:-1] for n in names]
    shared = 0
    while all(len(p) > shared for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    tops = [p[shared].lower() if len(p) > shared else "" for p in parts]
    if "train" not in tops or not set(tops) - {"train"} or set(tops) - {"train", *TEST_FOLDERS}:
        return None
    return torch.tensor([t in TEST_FOLDERS for t in tops])


def _load(
    name: str,
    place: str,
    pictures: Pictures,
    resolution: int,
    channels: int,
    test_share: float,
    limit: int | None,
    labels: bool,
) -> CleanData:
    """Split by name, then read the pictures of each split in the order of their hash."""
    if len(pictures) < 2:
        raise UserError(
            f"'{place[:-1]}' holds {len(pictures)} images; needed: at least 2, with one of the "
            "endings " + ", ".join(IMAGE_SUFFIXES)
        )
    names = sorted(pictures, key=lambda n: (position(n), n))
    is_test = _shipped_split(names)
    if is_test is None:
        is_test = held_out(names, test_share)
    train = [n for n, t in zip(names, is_test.tolist(), strict=True) if not t][:limit]
    test = [n for n, t in zip(names, is_test.tolist(), strict=True) if t]
    classes = _classes(names, place) if labels else {}

    def read(chosen: Sequence[str]) -> Tensor:
        x = torch.empty(len(chosen), channels, resolution, resolution)
        for i, picture in enumerate(chosen):
            x[i] = _read(pictures[picture], place + picture, resolution, channels)
        return x

    def labelled(chosen: Iterable[str]) -> Tensor | None:
        if not labels:
            return None
        return torch.tensor([classes[PurePosixPath(n).parent.name] for n in chosen])

    return CleanData(name, read(train), read(test), labelled(train), labelled(test))


def _classes(names: Sequence[str], place: str) -> dict[str, int]:
    """Return a number for each folder that pictures lie in."""
    folders = sorted({PurePosixPath(n).parent.name for n in names})
    if len(folders) < 2 or set(folders) & {"", "train", *TEST_FOLDERS}:
        raise UserError(
            f"labels=true takes each image's folder as its class, and '{place[:-1]}' has not one "
            "folder for each of several classes; set data.labels=false"
        )
    return {folder: i for i, folder in enumerate(folders)}


def _read(opener: Callable[[], IO[bytes]], name: str, resolution: int, channels: int) -> Tensor:
    try:
        with opener() as file, Image.open(file) as image:
            return from_picture(image, resolution, channels, name)
    except (UnidentifiedImageError, OSError, SyntaxError, BadZipFile, ZlibError) as error:
        raise UserError(f"'{name}' is not a readable image; remove it or mend it") from error
