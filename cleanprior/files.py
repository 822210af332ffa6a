"""Paths as people give them, and atomic small files: whole or absent. No torch."""

import os
from collections.abc import Callable
from pathlib import Path

from .errors import UserError


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
            if os.access(place, os.W_OK | os.X_OK):
                return folder
            raise UserError(f"{option} {folder}: '{place}' may not be written by you")
        if place.exists() or place.is_symlink():
            raise UserError(f"{option} {folder}: '{place}' is not a folder; name another")
    return folder


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        UserError: The disk refuses the write; the file that stood there is intact.
    """
    write_with(path, lambda staging: staging.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; see :func:`write_bytes`."""
    # A file name that is no UTF-8 is written as its bytes.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically by what ``write`` does to a path with the same ending.

    Raises:
        UserError: The disk refuses the write; the file that stood there is intact.
    """
    staging = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(staging)
        os.replace(staging, path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error}; earlier results are intact") from error
    finally:
        staging.unlink(missing_ok=True)
