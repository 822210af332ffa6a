"""Atomic small files: whole or absent. No torch."""

import os
from pathlib import Path

from .errors import UserError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        UserError: The disk refuses the write; the file that stood there is intact.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(content)
        os.replace(staging, path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error}; earlier results are intact") from error
    finally:
        if staging.exists():
            staging.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; see :func:`write_bytes`."""
    write_bytes(path, text.encode())
