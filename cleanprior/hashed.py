"""Files of tensors that know the hash of their content and what they belong to. No torch.

A disk, a copy or a hand may change a byte, and a file may be put in the place of another. Neither
is used: who reads such a file computes again what it held, and says so.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from .errors import UserError
from .outside import check_regular

#: What a file belongs to: the identity of a training, of a cell, of a problem.
OF = "of"
#: Name, type, shape and bytes of a tensor.
Part = tuple[str, str, tuple[int, ...], Any]


class Damaged(UserError):
    """A file that is not what was written, or is that of something else."""


def content_hash(parts: Iterable[Part], text: str) -> str:
    """Return the sha256 of tensors and of the text beside them.

    Arguments:
        parts: The tensors, in any order.
        text: The header.
    """
    digest = hashlib.sha256(text.encode())
    for name, kind, shape, content in sorted(parts, key=lambda part: part[0]):
        digest.update(f"\0{name}\0{kind}\0{tuple(shape)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def header_of(parts: Iterable[Part], meta: Mapping[str, Any]) -> dict[str, str]:
    """Return the header of a file: its JSON, and the hash of all."""
    text = json.dumps(meta)
    return {"json": text, "sha256": content_hash(parts, text)}


def check_header(path: Path, metadata: Mapping[str, str], parts: Iterable[Part]) -> dict[str, Any]:
    """Return the JSON of a file's header, where its content has the hash that it was written with.

    Files of version 0.1.0 have no hash and are taken as they are.

    Raises:
        Damaged: It has another hash, or its header is no JSON of keys.
    """
    text = metadata.get("json", "{}")
    if "sha256" in metadata and metadata["sha256"] != content_hash(parts, text):
        raise Damaged(f"'{path}' is damaged: its content has another hash")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"'{path}' is damaged: its header is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Damaged(f"'{path}' is damaged: its header has no keys")
    return found


def check_owner(path: Path, meta: Mapping[str, Any], owner: str) -> None:
    """Check that a file belongs to what it is read for; files of version 0.1.0 do not say it.

    Raises:
        Damaged: It belongs to something else.
    """
    if meta.get(OF, owner) != owner:
        raise Damaged(f"'{path}' belongs to something else")


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a file of tensors as numpy arrays, and its header.

    Raises:
        Damaged: It is not there, cannot be read, or has another hash.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except UserError as error:
        raise Damaged(str(error)) from error
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise Damaged(f"'{path}' is damaged: {error}") from error
    parts = [(k, v.dtype.name, v.shape, np.ascontiguousarray(v).data) for k, v in arrays.items()]
    return arrays, check_header(path, metadata, parts)
