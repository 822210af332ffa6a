"""Paths as people give them, and atomic small files: whole or absent. No torch."""

import errno
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from .errors import UserError

_PART = ".part-"
_LEFT = re.compile(rf"\.\w+-\d+-[0-9a-f]{{12}}{re.escape(_PART)}(.+)", re.DOTALL)
#: Seconds after which nobody writes to a temporary file any more.
OLD = 86_400


class RefusedWrite(UserError):
    """A disk that takes no file: full, read-only, or somebody else's."""


def given_path(text: str | Path) -> Path:
    """Return a path as it was given, whatever characters it holds; ``~`` is the home folder.

    Raises:
        UserError: An empty text, or one with a NUL, which no file system has.
    """
    given = os.fspath(text)
    if not given or "\0" in given:
        raise UserError(f"{given!r} is not a path")
    return Path(os.path.expanduser(given))


def check_folder(option: str, folder: Path) -> Path:
    """Return a folder to write into.

    Raises:
        UserError: A file has that name, or that of one of its parents, or it may not be written.
    """
    for place in (folder, *folder.parents):
        if place.is_dir():
            if not os.access(place, os.W_OK | os.X_OK):
                raise UserError(f"{option} {folder}: '{place}' may not be written by you")
            try:  # /proc says that it may, and a full disk as well
                os.rmdir(tempfile.mkdtemp(prefix=".cleanprior-", dir=place))
            except OSError as error:
                text = (
                    f"{option} {folder}: nothing can be written into '{place}' ({error.strerror})"
                )
                raise UserError(text) from error
            return folder
        if place.exists() or place.is_symlink():
            raise UserError(f"{option} {folder}: '{place}' is not a folder; name another")
    return folder


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        RefusedWrite: The disk refuses the write; the file that stood there is intact.
    """
    write_with(path, lambda staging: staging.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; see :func:`write_bytes`."""
    # A file name that is no UTF-8 is written as its bytes.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically by what ``write`` does to a path with the same ending.

    The bytes are on the disk before the file has its name, and the name before this returns. What
    a killed process left half written in the folder is removed once it is old.

    Raises:
        RefusedWrite: The disk refuses the write; the file that stood there is intact.
    """
    staging = staging_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        write(staging)
        flush(staging)
        os.replace(staging, path)
        flush(path.parent)
    except OSError as error:
        raise RefusedWrite(refused(path, error)) from error
    finally:
        with suppress(OSError):
            staging.unlink(missing_ok=True)


def refused(path: Path, error: Exception) -> str:
    """Return the sentence that says that a disk has refused a write."""
    why = getattr(error, "strerror", None) or error
    return f"cannot write '{path}': {why}; earlier results are intact"


def staging_path(path: Path) -> Path:
    """Return a name that no other process has, beside a file or folder that is to be written.

    Two machines, or two containers with the same process numbers, may share a folder.
    """
    mark = f"{_host()}-{os.getpid()}-{secrets.token_hex(6)}"
    return path.with_name(f".{mark}{_PART}{path.name[-100:]}")


@cache
def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())[:24] or "host"


def flush(path: Path) -> None:
    """Have the system put a file's bytes, or a folder's names, on the disk.

    A file system that has no such thing for folders is taken as it is.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except (IsADirectoryError, PermissionError):  # Windows opens no folder
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def replace_folder(staging: Path, folder: Path) -> None:
    """Put ``staging`` in the place of ``folder``; an old folder is removed only afterwards.

    Raises:
        OSError: The disk refuses; the old folder is in its place.
    """
    for path in sorted(staging.iterdir()):
        flush(path)
    old = staging_path(folder)
    has_old = folder.exists()
    if has_old:
        os.replace(folder, old)
    try:
        os.replace(staging, folder)
    except OSError:
        if has_old:
            os.replace(old, folder)
        raise
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


@cache
def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in a folder, once in a process.

    Only names of :func:`staging_path` are removed, after a day in which nobody wrote to them; of a
    folder only where the one that it was written for is there.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            found = _LEFT.fullmatch(entry.name)
            if found is None or time.time() - entry.stat(follow_symlinks=False).st_mtime < OLD:
                continue
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry)
            elif (folder / found[1]).exists():
                shutil.rmtree(entry, ignore_errors=True)
