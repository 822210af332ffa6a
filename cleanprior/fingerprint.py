"""The content of a user's files as a hash: a moved folder is the same data set. No torch."""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from .errors import UserError

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".jp2", ".pgm", ".ppm", ".pbm", ".pnm"),
)
#: Bytes from which a file must be stored, and not a hole, to be read whole.
HOLES = 1 << 40
#: Folders that an operating system adds.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
#: Digests that a process remembers, and the files of a folder whose digest it tells another.
KEPT, MOST = 16, 1000
#: Nanoseconds in which nobody wrote to a file whose digest is told another process.
QUIET = 2_000_000_000
#: Of each file its name, size, time of change in ns, inode.
Listing = tuple[tuple[str, int, int, int], ...]
Known = tuple[str, Listing, str]

_digests: dict[tuple[str, Listing], tuple[str, bool]] = {}


def is_picture(name: str) -> bool:
    """Whether a file's ending is that of a picture."""
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def is_hidden(part: str) -> bool:
    """Whether a file or folder is none of the user's: ``.ipynb_checkpoints``, ``._a.png``."""
    return part.startswith(".") or part in SYSTEM_FOLDERS


def files_below(root: Path) -> Iterator[tuple[Path, bool]]:
    """Yield each file below a folder and whether it is hidden; links are followed, loops are not.

    Raises:
        UserError: A folder that cannot be read.
    """
    yield from _walk(root, False, frozenset({os.path.realpath(root)}))


def _walk(folder: Path, hidden: bool, above: frozenset[str]) -> Iterator[tuple[Path, bool]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"'{folder}' cannot be read: {error.strerror}") from error
    for entry in entries:
        path, below = folder / entry.name, hidden or is_hidden(entry.name)
        if not entry.is_dir():
            yield path, below
        elif (place := os.path.realpath(path)) not in above:
            yield from _walk(path, below, above | {place})


def fingerprint(path: str | Path, is_every: bool = False) -> str | None:
    """Return the sha256 of a file, or of the names and contents of a folder's files.

    Of a folder that holds images only the images count: a note beside them changes no data set.
    Every byte is read, once in a process (about a second for a gigabyte); names, sizes, times of
    change and inodes decide whether to read again. The processes of a cell are told by the one that
    starts them (:func:`known`, :func:`learn`).

    Arguments:
        path: A file or a folder.
        is_every: Of a folder count every file that is not hidden, whatever it is.

    Returns:
        16 hexadecimal digits, or None where nothing is there.

    Raises:
        UserError: A file that cannot be read.
    """
    root = Path(path)
    if root.is_file():
        files = [root]
    elif root.is_dir():
        every = [(p, hidden) for p, hidden in files_below(root) if p.is_file()]
        shown = [p for p, hidden in every if not hidden]
        is_zarr = root.suffix.lower() == ".zarr"
        files = shown if is_every and not is_zarr else [p for p in shown if is_picture(p.name)]
        files = sorted(files or [p for p, _ in every])  # zarr keeps its types in hidden files
    else:
        return None
    status = [(str(p), p.stat()) for p in files]
    for name, s in status:
        if s.st_size > HOLES and getattr(s, "st_blocks", s.st_size) * 512 * 1000 < s.st_size:
            raise UserError(f"'{name}' claims {s.st_size:,} bytes and stores hardly any")
    listing = tuple((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in status)
    key = str(root), listing
    if key not in _digests:
        is_quiet = all(time.time_ns() - s.st_mtime_ns > QUIET for _, s in status)
        found = _digest(*key)
        while len(_digests) >= KEPT:
            _digests.pop(next(iter(_digests)))
        _digests[key] = found, is_quiet
    return _digests[key][0]


def known() -> list[Known]:
    """Return what this process has read, for a process that is to read the same.

    Files that were written a moment before they were read are not among it: what is written in the
    same moment afterwards has the same time. Nor are folders of very many files.
    """
    return [
        (root, listing, digest)
        for (root, listing), (digest, is_quiet) in _digests.items()
        if is_quiet and len(listing) <= MOST
    ]


def learn(found: Iterable[Sequence[Any]]) -> None:
    """Take what another process has read, as :func:`known` or its JSON.

    It is used for files that still have the names, sizes, times and inodes that they had.
    """
    for root, listing, digest in found:
        key = str(root), tuple((str(n), int(s), int(t), int(i)) for n, s, t, i in listing)
        _digests.setdefault(key, (str(digest), True))


def _digest(root: str, listing: Listing) -> str:
    digest = hashlib.sha256()
    for name, size, *_ in listing:
        # A single file is its content, whatever it is called.
        inside = "" if name == root else Path(name).relative_to(root).as_posix()
        digest.update(f"{inside}\0{size}\0".encode(errors="surrogateescape"))
        try:
            with open(name, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"'{name}' cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()[:16]
