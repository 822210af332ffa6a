"""Zarr folders of anybody: what their metadata name is checked before zarr reads them.

A codec is code that is chosen by the file: ``pickle`` calls whatever the file says. Those of
:data:`CODECS` only turn bytes into bytes.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..outside import read_json

#: Codecs of zarr 2 by their ``id`` and of zarr 3 by their ``name``.
CODECS = frozenset(
    {
        *("adler32", "astype", "bitround", "blosc", "bytes", "bz2", "crc32", "crc32c", "delta"),
        *("fixedscaleoffset", "fletcher32", "gzip", "jenkins_lookup3", "lz4", "lzma", "packbits"),
        *("quantize", "sharding_indexed", "shuffle", "transpose", "zlib", "zstd"),
    }
)
_METADATA = (".zarray", ".zgroup", ".zmetadata", "zarr.json")
_ATTRIBUTES = ("attributes", ".zattrs")
_HOLD_CODECS = ("codecs", "compressor", "filters", "index_codecs")


def check_zarr(root: Path) -> int:
    """Check a folder before zarr opens it.

    Returns:
        The bytes of all its files.

    Raises:
        UserError: A codec that is not known, objects, a link that leaves the folder, a named pipe
            or a device.
    """
    total = 0
    for entry in _entries(root):
        if entry.is_symlink() and not _is_inside(root, entry.path):
            raise UserError(f"'{root}' holds a link that leaves it: '{entry.name}'")
        if not entry.is_file():
            raise UserError(f"'{root}' holds '{entry.name}', which is no file")
        total += entry.stat().st_size
        if entry.name in _METADATA:
            try:
                _check(root, read_json(Path(entry.path)))
            except RecursionError as error:
                raise UserError(f"'{entry.path}' is nested too deep") from error
    return total


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a folder that is no folder; a link to a folder is one of them."""
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(entry.path)
            else:
                yield entry


def _is_inside(root: Path, path: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _check(root: Path, node: Any) -> None:
    """Check the codecs and types of metadata, at any depth."""
    if isinstance(node, list):
        for child in node:
            _check(root, child)
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        if key in _ATTRIBUTES or str(key).endswith("/.zattrs"):
            continue
        if key in _HOLD_CODECS:
            for codec in value if isinstance(value, list) else [value]:
                _check_codec(root, codec)
        if key == "storage_transformers" and value:
            raise UserError(f"'{root}' is stored by a transformer, which is not read")
        if key == "dtype" and isinstance(value, str) and value.lstrip("|<>=")[:1] == "O":
            raise UserError(f"'{root}' holds objects, which are no numbers")
        _check(root, value)


def _check_codec(root: Path, codec: Any) -> None:
    name = codec.get("id", codec.get("name")) if isinstance(codec, Mapping) else codec
    if name is None:
        return
    if not isinstance(name, str) or name.removeprefix("numcodecs.") not in CODECS:
        raise UserError(
            f"'{root}' is stored by the codec {str(name)[:40]!r}, which is not read; allowed: "
            + ", ".join(sorted(CODECS))
        )


__all__ = ["CODECS", "check_zarr"]
