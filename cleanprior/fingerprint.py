"""The content of a user's files as a hash: a moved folder is the same data set. No torch."""

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePath

from .errors import UserError

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".jp2", ".pgm", ".ppm", ".pbm", ".pnm"),
)
#: Bytes from which a file must be stored, and not a hole, to be read whole.
HOLES = 1 << 40
#: Folders that an operating system adds.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
Listing = tuple[tuple[str, int, int], ...]


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
    Every byte is read, once in a process (about a second for a gigabyte); names, sizes and times of
    change decide whether to read again.

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
    return _digest(str(root), tuple((name, s.st_size, s.st_mtime_ns) for name, s in status))


@lru_cache(maxsize=16)
def _digest(root: str, listing: Listing) -> str:
    digest = hashlib.sha256()
    for name, size, _ in listing:
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
