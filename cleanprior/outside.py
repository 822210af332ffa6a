"""Files that may be anybody's, read as plain data within limits: nothing is called. No torch.

A named pipe or a device has no end, a file of a few hundred bytes can stand for a billion values,
and a list can be nested deeper than Python can follow: each is refused in one sentence.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

#: Bytes of a card or a configuration; those of this project have a few thousand.
CARD = 1 << 20
#: Bytes of a record; one of 10,000 restored images has about a million.
RECORD = 256 << 20
#: Values that a card may stand for, each alias counted with all that it repeats.
VALUES = 100_000
#: Lists within lists.
DEPTH = 100


class Unreadable(UserError):
    """Something that is no file on a disk, or cannot be read."""


def check_regular(path: Path) -> None:
    """Refuse what is no file on a disk.

    Raises:
        Unreadable: Nothing is there, or a folder, a named pipe, a device, a socket.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise Unreadable(f"'{path}' cannot be read: {_why(error)}") from error
    if not stat.S_ISREG(mode):
        raise Unreadable(f"'{path}' is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, not a file")


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes.

    Raises:
        UserError: It cannot be read, is no regular file or is larger.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {_why(error)}") from error
    if len(content) > limit:
        raise UserError(f"'{path}' has more than {limit:,} bytes, which no such file has")
    return content


def read_text(path: Path, limit: int) -> str:
    """Read a text in UTF-8; see :func:`read_bytes`."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is no text in UTF-8: {error}") from error


def read_yaml(path: Path, limit: int = CARD) -> Any:
    """Read a YAML file as plain values.

    Raises:
        UserError: It cannot be read, is no YAML, or stands for more than :data:`VALUES` values.
    """
    try:
        return parse_yaml(read_text(path, limit))
    except TooMuch as error:
        raise UserError(f"'{path}' {error}") from error
    except ValueError as error:
        raise UserError(f"'{path}' is not YAML: {error}") from error


class TooMuch(ValueError):
    """A text that is nested too deep, or stands for too many values."""


def parse_yaml(text: str, is_plain: bool = False) -> Any:
    """Return what a text in YAML stands for, within limits; nothing is called.

    Arguments:
        text: Anybody's.
        is_plain: Every scalar stays the text that it is.

    Raises:
        TooMuch: It is nested deeper than :data:`DEPTH`, holds itself, or stands for more than
            :data:`VALUES` values.
        ValueError: It is no YAML.
    """
    # libyaml, which reads files faster, refuses {a:1} without a blank; a person writes it.
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader = yaml.BaseLoader(text) if is_plain else fast(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}, 0) > VALUES:
            raise TooMuch(f"stands for more than {VALUES:,} values")
        return loader.construct_document(node)
    except TooMuch:
        raise
    except RecursionError as error:
        raise TooMuch("is nested too deep") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        told = " ".join(str(error).split()).replace('in "<unicode string>", ', "")
        raise ValueError(told) from error
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int | None], depth: int) -> int:
    """Return how many values a node stands for, repetitions by aliases counted."""
    if depth > DEPTH:
        raise RecursionError
    found = known.get(id(node), 0)
    if found is None:
        raise RecursionError  # it holds itself
    if found:
        return found
    known[id(node)] = None
    total = 1
    if isinstance(node, yaml.MappingNode):
        total += sum(_size(k, known, depth + 1) + _size(v, known, depth + 1) for k, v in node.value)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_size(child, known, depth + 1) for child in node.value)
    known[id(node)] = total
    return total


def read_json(path: Path, limit: int = RECORD) -> Any:
    """Read a JSON file as plain values.

    Raises:
        UserError: It cannot be read, is no JSON, or is nested too deep.
    """
    text = read_text(path, limit)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"'{path}' is nested too deep") from error
    except ValueError as error:
        raise UserError(f"'{path}' is not JSON: {error}") from error


__all__ = [
    "CARD",
    "RECORD",
    "Unreadable",
    "check_regular",
    "read_bytes",
    "read_json",
    "read_text",
    "read_yaml",
]
