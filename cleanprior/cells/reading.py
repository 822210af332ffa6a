"""Records as they are read: whole, of the right types, of this cell, or not at all. No torch.

A record may be damaged, a stranger's, of a newer version or another cell's. It is then told in one
line and treated as if it were not there: the cell is evaluated, or trained, again.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from ..errors import UserError
from ..hashed import Damaged
from ..notices import Notice, tell
from ..outside import read_json
from .fields import Record

#: Of what this version writes; records without a number are of 1.
FORMAT = 1
#: The key of a record's own hash.
HASH = "sha256"
_MAPPINGS = ("config", "training", "parameters", "evaluation", "code", "costs", "start")
_TEXTS = ("status", "method", "operator", "data", "cell", "measurements_sha256", "device", "time")
Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    is_count = isinstance(value, int | float) and not isinstance(value, bool)
    return is_count and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _each(check: Check, *needed: str) -> Check:
    """Return whether a value holds, by name, what passes a check."""

    def checked(value: Any) -> bool:
        is_whole = isinstance(value, dict) and set(needed) <= value.keys()
        return is_whole and all(map(check, value.values()))

    return checked


def _all(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


_number_or_none = _or_none(_is_number)
_keys = _each(lambda value: True)


def _costs(value: Any) -> bool:
    if value is None or not isinstance(value, dict):
        return value is None
    kept = [v for k, v in value.items() if k not in ("uncounted", "passes", "pass_flops")]
    return all(map(_number_or_none, kept))


def _curves(value: Any) -> bool:
    """Whether a row has lists by name, those of a number a sampling seed among them."""
    is_right = _each(lambda found: isinstance(found, list | dict))
    seeds = {k: v for k, v in value.items() if k.endswith("_by_seed")} if is_right(value) else {}
    return is_right(value) and all(map(_all(_number_or_none), seeds.values()))


def _start(value: Any) -> bool:
    """Whether a record says what its training began from as this version writes it."""
    if not isinstance(value, dict):
        return value is None
    is_told = isinstance(value.get("said"), str) and isinstance(value.get("is_clean"), bool)
    return is_told and isinstance(value.get("hash"), str) and _each(_is_number)(value.get("costs"))


#: Keys that a record may lack, and may not leave empty.
_WHERE_GIVEN = ("energy_j", "curves")
#: What the tables show of a finished cell, and what it is made of.
_RECORD: dict[str, Check] = {
    **dict.fromkeys(("clean_images", "train_images"), _number_or_none),
    "parameters": _each(_is_number),
    "costs": _costs,
    "start": _start,
    "warned": _or_none(_each(_is_text)),
    "warning": _or_none(_is_text),
    "data_notices": _or_none(_all(_is_text)),
}
_TRAINING: dict[str, Check] = {
    **dict.fromkeys(("seconds", "costs"), _each(_is_number)),
    "memory_mb": _each(_number_or_none, "cpu", "gpu"),
    "images": _is_number,
    "steps": _or_none(_each(_is_number)),
    "energy_j": _each(_number_or_none),
    "history": _or_none(_all(_keys)),
    "log": _or_none(_keys),
}
_ROW: dict[str, Check] = {
    "way": _is_text,
    "is_own": lambda value: isinstance(value, bool),
    "metrics": _each(_is_number),
    "seconds": _each(_is_number),
    "missing": _each(_is_text),
    "evaluations": _is_number,
    "backwards": _is_number,
    "per_image": _each(_all(_number_or_none)),
    "curves": _curves,
    "costs": _costs,
    "marks": _or_none(_all(_is_text)),
    "marked": _or_none(_each(_is_text)),
    **dict.fromkeys(("draws", "samples"), _number_or_none),
}


def content_hash(record: Mapping[str, Any]) -> str:
    """Return the sha256 of a record without its own hash."""
    kept = {k: v for k, v in record.items() if k != HASH}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def sealed(values: Mapping[str, Any]) -> str:
    """Return values as JSON with their hash."""
    return json.dumps({**values, HASH: content_hash(values)}, indent=1)


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what :func:`sealed` wrote; files of version 0.1.0 have no hash and are read.

    Raises:
        Damaged: It is not there, holds no keys, or has another hash.
    """
    try:
        found = read_json(path)
    except UserError as error:
        raise Damaged(str(error)) from error
    if not isinstance(found, dict):
        raise Damaged(f"'{path}' is damaged: it holds no keys")
    if HASH in found and found.pop(HASH) != content_hash(found):
        raise Damaged(f"'{path}' is damaged: its content has another hash")
    return found


def encode(record: Mapping[str, Any]) -> str:
    """Return a record as its file holds it, with its format and its hash."""
    whole = {**record, "format": FORMAT}
    return json.dumps({**whole, HASH: content_hash(whole)}, indent=1, allow_nan=False)


def load_record(path: Path, cell: str | None = None) -> Record | None:
    """Read a record, or tell why it is treated as if it were not there.

    Arguments:
        path: The file.
        cell: Identity of the cell's evaluation, where it is known.
    """
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except UserError as error:
        reason: str | None = str(error).removeprefix(f"'{path}' ")
    else:
        reason = fault(record, cell)
    if reason is None:
        kept = {k: v for k, v in record.items() if k not in (HASH, "format")}
        return cast(Record, kept)
    tell([Notice(f"'{path}' {reason}; it is treated as if it were not there", is_warning=True)])
    return None


def fault(record: Any, cell: str | None = None) -> str | None:
    """Return why something is no record of a cell, or None."""
    if not isinstance(record, dict) or not isinstance(record.get("status"), str):
        return "is no record"
    version = record.get("format", 1)
    if version != FORMAT or isinstance(version, bool):
        return f"has format {str(version)[:20]}; this version reads {FORMAT}"
    if HASH in record and record[HASH] != content_hash(record):
        return "is damaged: its content has another hash"
    if cell is not None and record.get("cell") not in (None, cell):
        return "is the record of another cell"
    for keys, kind in ((_MAPPINGS, dict), (_TEXTS, str)):
        for key in keys:
            if record.get(key) is not None and not isinstance(record[key], kind):
                return f"is damaged: its {key} is {_short(record[key])}"
    return _rows_fault(record)


def _rows_fault(record: Mapping[str, Any]) -> str | None:
    """Return what is wrong with what the tables show of a finished cell."""
    if record["status"] != "done":
        return None
    rows = record.get("rows")
    if not isinstance(rows, list):
        return f"is damaged: its rows are {_short(rows)}"
    if not rows:
        return None
    for key in ("training", "parameters", "operator", "data"):
        if record.get(key) is None:
            return f"is damaged: it lacks {key}"
    places: list[tuple[str, Mapping[str, Any], Mapping[str, Check]]] = [
        ("", record, _RECORD),
        ("training.", record["training"], _TRAINING),
    ]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            return f"is damaged: its row {number} is {_short(row)}"
        places.append((f"row {number}.", row, _ROW))
    for path, values, checks in places:
        for key, is_right in checks.items():
            if key in _WHERE_GIVEN and key not in values:
                continue
            if not is_right(values.get(key)):
                return f"is damaged: its {path}{key} is {_short(values.get(key))}"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:36]} ..."


__all__ = [
    "FORMAT",
    "Record",
    "content_hash",
    "encode",
    "fault",
    "load_record",
    "read_sealed",
    "sealed",
]
