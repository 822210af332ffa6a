"""Clean images from picture files: a folder, a zip archive, AFHQ's folders."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import BadZipFile, ZipFile

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError, unknown
from ..fingerprint import IMAGE_SUFFIXES, files_below, is_hidden, is_picture
from ..notices import Notice
from ..outside import Unreadable, check_regular
from .datasets import CleanData, copies
from .pictures import PictureReader
from .pixels import check_options
from .splits import held_out, position, role, shipped_split, told

#: Name of a picture below its root, with ``/`` -> how to open it.
Pictures = Mapping[str, Callable[[], IO[bytes]]]
#: Endings of files that may hold several frames.
_STACKS = (".tif", ".tiff", ".gif", ".webp")
#: Files of an archive that are listed.
MOST = 5_000_000
#: Unreadable pictures that are listed at once; a folder of other files should not take hours.
_FAILURES = 20


def image_folder(
    path: str | None,
    resolution: int,
    channels: int,
    test_share: float,
    limit: int | None = None,
    labels: bool = False,
    range: Sequence[float] | None = None,
) -> CleanData:
    """Load every image below a folder: centre-cropped to a square, resized, in [-1, 1].

    Where folders are called as splits usually are (``train`` and ``test``, ``Training`` and
    ``Testing``, ``cat/train`` and ``cat/val``), these are the splits, and pictures beside them are
    left out. Otherwise a hash of each file's relative path holds some out, at least two. Images
    come in the order of that hash: the first hundred are of all classes. Links are followed; hidden
    files and folders are left out. Each frame of a TIFF stack is an image, all in one split.

    Arguments:
        path: The folder, searched with its sub-folders.
        resolution: Side of the images in pixels, after an antialiased resize.
        channels: 1 for grey, 3 for RGB.
        test_share: Share of images held out, where the folder ships no test split.
        limit: Load that many training images, or None for all.
        labels: Whether the folder that a file lies in is its class.
        range: The two pixel values that become -1 and 1, or None for those of 1, 8 or 16 bits.

    Raises:
        UserError: No such folder, no image in it, or images that cannot be read (named), or
            (almost) a constant.
    """
    if path is None:
        raise UserError("data=folder needs data.path=FOLDER with the images")
    root = Path(path)
    wanted = _Wanted(resolution, channels, range, test_share, limit, labels)
    pictures, notices = _pictures_below(root)
    return _load(root.resolve().name, f"{root}/", pictures, wanted, notices)


def image_zip(
    path: str | None,
    resolution: int,
    channels: int,
    test_share: float,
    limit: int | None,
    labels: bool,
    range: Sequence[float] | None = None,
) -> CleanData:
    """Load every image of a zip archive as :func:`image_folder` does; nothing is unpacked on disk.

    Arguments:
        path: The archive; sub-folders are searched.
        resolution: Side of the images in pixels, after an antialiased resize.
        channels: 1 for grey, 3 for RGB.
        test_share: Share of images held out, where the archive ships no test split.
        limit: Load that many training images, or None for all.
        labels: Whether the folder that a file lies in is its class.
        range: The two pixel values that become -1 and 1, or None for those of 1, 8 or 16 bits.

    Raises:
        UserError: No such archive, no image in it, or images that cannot be read (named), or
            (almost) a constant.
    """
    if path is None:
        raise UserError("data=zip needs data.path=FILE.zip with the images")
    wanted = _Wanted(resolution, channels, range, test_share, limit, labels)
    root = Path(path)
    if not root.is_file():
        raise UserError(f"'{root}' is not a file; set data.path to a zip archive of images")
    try:
        with ZipFile(root) as archive:
            entries = [e for e in archive.infolist() if not e.is_dir()]
            if len(entries) > MOST:
                raise UserError(f"'{root}' holds more than {MOST:,} files")
            if any(e.flag_bits & 1 for e in entries):
                raise UserError(f"'{root}' is encrypted; give an archive without a password")
            # Some programs write the separator of Windows.
            found = {e.filename.replace("\\", "/"): e.filename for e in entries}
            shown = [n for n in found if not any(map(is_hidden, PurePosixPath(n).parts))]
            pictures = {n: _opener(archive, found[n]) for n in shown if is_picture(n)}
            notices = _left_out(f"{root}", [n for n in found if n not in shown], shown)
            return _load(root.stem, f"{root}:", pictures, wanted, notices)
    # zipfile raises NotImplementedError for a compression that it does not know.
    except (BadZipFile, NotImplementedError) as error:
        raise UserError(f"'{root}' is damaged or not a readable zip archive: {error}") from error
    except OSError as error:
        raise UserError(f"'{root}' cannot be read: {error.strerror or error}") from error


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
    if path is None:
        raise UserError("data=afhq needs data.path=FOLDER with AFHQ's folders train and val")
    root = Path(path)
    pictures, notices = _pictures_below(root)
    split = shipped_split(list(pictures))
    if split is None or split.others:
        raise UserError(
            f"'{root}' must hold 'train' and 'val' (or 'test') and nothing else, as AFHQ"
        )
    animals = sorted({PurePosixPath(n).parent.name for n in pictures})
    if animal is not None:
        if animal not in animals:
            raise unknown("animal", animal, animals)
        pictures = {n: o for n, o in pictures.items() if PurePosixPath(n).parent.name == animal}
    name = "afhq" if animal is None else f"afhq-{animal}"
    wanted = _Wanted(resolution, channels, (0, 255), 0.5, limit, animal is None)
    return _load(name, f"{root}/", pictures, wanted, notices)


@dataclass(frozen=True)
class _Wanted:
    """What a loader of pictures was told."""

    resolution: int
    channels: int
    range: Sequence[float] | None
    test_share: float
    limit: int | None
    labels: bool
    reader: PictureReader = field(init=False)

    def __post_init__(self) -> None:
        check_options(self.resolution, self.channels, self.test_share, self.limit)
        reader = PictureReader(self.resolution, self.channels, self.range)
        object.__setattr__(self, "reader", reader)


def _pictures_below(root: Path) -> tuple[Pictures, tuple[Notice, ...]]:
    if not root.is_dir():
        raise UserError(f"'{root}' is not a folder; set data.path to the folder of your images")
    found = [(p.relative_to(root).as_posix(), hidden) for p, hidden in files_below(root)]
    shown = [name for name, hidden in found if not hidden]
    notices = _left_out(f"{root}", [name for name, hidden in found if hidden], shown)
    return {n: _file_opener(root / n) for n in shown if is_picture(n)}, notices


def _left_out(place: str, hidden: Sequence[str], shown: Sequence[str]) -> tuple[Notice, ...]:
    """Tell of pictures that are hidden and of files that are perhaps pictures."""
    notices = []
    if n := sum(map(is_picture, hidden)):
        notices.append(Notice(f"{place}: {n} hidden pictures (.name, __MACOSX) are left out"))
    endings = Counter(PurePosixPath(n).suffix.lower() for n in shown if not is_picture(n))
    known = sum(map(is_picture, shown))
    others = {e: n for e, n in endings.items() if e and n >= max(2, known // 10)}
    if known and others:
        listed = ", ".join(f"{n} {e}" for e, n in sorted(others.items()))
        notices.append(Notice(f"{place}: other files are left out: {listed}"))
    return tuple(notices)


def _file_opener(path: Path) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        check_regular(path)  # a named pipe would be waited for
        return path.open("rb")

    return opened


def _opener(archive: ZipFile, name: str) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(name)


def _load(
    name: str, place: str, pictures: Pictures, wanted: _Wanted, notices: tuple[Notice, ...]
) -> CleanData:
    """Split by name, then read the pictures of each split in the order of their hash."""
    if len(pictures) == 0:
        raise UserError(
            f"'{place[:-1]}' holds 0 images; needed: at least 3, with one of the endings "
            f"{', '.join(IMAGE_SUFFIXES)} (arrays, FITS, NIfTI, DICOM: data=arrays)"
        )
    names = sorted(pictures, key=lambda n: (position(n), n))
    frames = [(n, i) for n in names for i in range(_frames(n, pictures[n]))]
    shipped = shipped_split(names)
    level = None
    if shipped is not None:
        level, in_train, in_test = shipped.level, set(shipped.train), set(shipped.test)
        train = [f for f in frames if f[0] in in_train]
        test = [f for f in frames if f[0] in in_test]
        folders = shipped.folders(shipped.train), shipped.folders(shipped.test)
        how = f"the split that they come with ({folders[0]} and {folders[1]})"
        if shipped.others:
            text = f"{place[:-1]}: {len(shipped.others)} pictures beside these folders are left out"
            notices += (Notice(f"{text}, e.g. {shipped.others[0]}", True),)
    else:
        # Frames of one stack are alike: they stay together, unless there is one stack alone.
        keys = [n if len(names) > 1 else f"{n}#{i}" for n, i in frames]
        is_test = held_out(keys, wanted.test_share).tolist()
        train = [f for f, t in zip(frames, is_test, strict=True) if not t]
        test = [f for f, t in zip(frames, is_test, strict=True) if t]
        how = "by a hash of each name (no folders train and test)"
    train = train[: wanted.limit]
    kept = names if shipped is None else [*shipped.train, *shipped.test]
    classes = _classes(kept, place, level) if wanted.labels else {}
    images = _read(pictures, [*train, *test], place, wanted.reader)
    x, truth = images[: len(train)], images[len(train) :]
    if stacks := {n for n, i in frames if i > 0}:
        text = f"{place[:-1]}: {len(stacks)} files hold several frames; each frame is an image"
        notices += (Notice(f"{text} ({sum(n in stacks for n, _ in frames)})"),)
    shown = place[:-1]
    notices += wanted.reader.notices(shown) + copies(shown, x, truth)
    notices = (Notice(f"{shown}: {told(len(x), len(truth), how)}"), *notices)

    def labelled(chosen: Sequence[tuple[str, int]]) -> Tensor | None:
        if not wanted.labels:
            return None
        return torch.tensor([classes[_class(n, level)] for n, _ in chosen])

    return CleanData(name, x, truth, labelled(train), labelled(test), notices)


def _class(name: str, level: int | None) -> str:
    """Return the folder that tells the class: the last one that tells no split."""
    folders = PurePosixPath(name).parts[:-1]
    kept = [f for i, f in enumerate(folders) if i != level]
    return kept[-1] if kept else ""


def _classes(names: Sequence[str], place: str, level: int | None) -> dict[str, int]:
    """Return a number for each folder that pictures lie in."""
    folders = sorted({_class(n, level) for n in names})
    if len(folders) < 2 or "" in folders or any(map(role, folders)):
        raise UserError(
            f"labels=true takes each image's folder as its class, and '{place[:-1]}' has not one "
            "folder for each of several classes; set data.labels=false"
        )
    return {folder: i for i, folder in enumerate(folders)}


def _frames_in(image: Image.Image) -> int:
    """Return how many pictures a file holds; the second one of an MPO (a phone's JPEG) is none."""
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def _frames(name: str, opener: Callable[[], IO[bytes]]) -> int:
    """Return how many frames a file holds, 1 where it cannot be read: reading tells why."""
    if PurePosixPath(name).suffix.lower() not in _STACKS:
        return 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with opener() as file, Image.open(file) as image:
                return _frames_in(image)
        except Exception:  # the boundary of a decoder, see _read
            return 1


def _read(
    pictures: Pictures, frames: Sequence[tuple[str, int]], place: str, reader: PictureReader
) -> Tensor:
    """Read frames in their order.

    Raises:
        UserError: Files that are no readable pictures: all that are met, up to twenty.
    """
    x = torch.empty(len(frames), reader.channels, reader.resolution, reader.resolution)
    failures: dict[str, Exception] = {}
    for name, group in groupby(enumerate(frames), key=lambda item: item[1][0]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders warn of odd metadata
            try:
                with pictures[name]() as file, Image.open(file) as image:
                    if PurePosixPath(name).suffix.lower() not in _STACKS and _frames_in(image) > 1:
                        raise ValueError(f"it is animated, {_frames_in(image)} frames")
                    size = image.size
                    for i, (_, frame) in group:
                        if frame:
                            image.seek(frame)
                        if image.size != size:
                            raise ValueError("its pages have different sizes")
                        x[i] = reader(image, place + name)
            except Unreadable as error:
                failures[place + name] = error
            except UserError:
                raise
            except Exception as error:  # a decoder may raise anything on a damaged file
                failures[place + name] = error
        if len(failures) == _FAILURES:
            break
    if failures:
        first, *others = failures
        also = f"; nor are {len(others)} others: {', '.join(others)}" if others else ""
        raise UserError(
            f"'{first}' is not a readable image; remove it or mend it "
            f"({_reason(failures[first])}){also}"
        ) from failures[first]
    return x


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture"
    text = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
    return text.splitlines()[0] if text else type(error).__name__
