"""Records as they are read: whole, of the right types, of this cell, or not at all. No torch.

A record may be damaged, a stranger's, of a newer version or another cell's. It is then told in one
line and treated as if it were not there: the cell is evaluated, or trained, again.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..hashed import Damaged
from ..notices import Notice, tell
from ..outside import read_json

Record = dict[str, Any]
#: Of what this version writes; records without a number are of 1.
FORMAT = 1
#: The key of a record's own hash.
HASH = "sha256"
_NUMBER: tuple[type, ...] = (int, float, type(None))
_COUNTED = ("steps", "seconds", "memory_mb", "costs")
_MAPPINGS = ("config", "training", "parameters", "evaluation", "code", "costs")
_TEXTS = ("status", "method", "operator", "data", "cell", "measurements_sha256", "device", "time")
#: What a row of every finished cell has.
_ROW: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("metrics", "missing", "seconds"), (dict,)),
    **dict.fromkeys(("evaluations", "backwards"), _NUMBER),
    "way": (str,),
    "is_own": (bool,),
}
_FURTHER: dict[str, tuple[type, ...]] = dict.fromkeys(
    ("curves", "costs", "per_image", "marked"), (dict, type(None))
)


def content_hash(record: Mapping[str, Any]) -> str:
    """Return the sha256 of a record without its own hash."""
    kept = {k: v for k, v in record.items() if k != HASH}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def sealed(values: Mapping[str, Any]) -> str:
    """Return values as JSON with their hash."""
    return json.dumps({**values, HASH: content_hash(values)}, indent=1)


def read_sealed(path: Path) -> Record:
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
        return {k: v for k, v in record.items() if k not in (HASH, "format")}
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


def _rows_fault(record: Record) -> str | None:
    """Return what is wrong with the rows of a finished cell, and what they are shown with."""
    rows = record.get("rows") or []
    if not isinstance(rows, list):
        return f"is damaged: its rows are {_short(rows)}"
    if not rows or record["status"] != "done":
        return None
    for key in ("training", "parameters", "operator", "data"):
        if record.get(key) is None:
            return f"is damaged: it lacks {key}"
    training = record["training"]
    for key in _COUNTED:
        if not _counts(training.get(key, {})):
            return f"is damaged: its training.{key} is {_short(training[key])}"
    if not _counts(record["parameters"]):
        return f"is damaged: its parameters are {_short(record['parameters'])}"
    if not isinstance(training.get("history", []), list):
        return f"is damaged: its training.history is {_short(training['history'])}"
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            return f"is damaged: its row {number} is {_short(row)}"
        for key, kinds in (_ROW | {k: v for k, v in _FURTHER.items() if k in row}).items():
            if not isinstance(row.get(key), kinds):
                return f"is damaged: {key} of its row {number} is {_short(row.get(key))}"
        if not _counts(row["metrics"]) or not _counts(row["seconds"]):
            return f"is damaged: its row {number} holds what is no number"
        if not all(isinstance(reason, str) for reason in row["missing"].values()):
            return f"is damaged: its row {number} has a reason that is no text"
    return None


def _counts(node: Any) -> bool:
    """Whether a value holds numbers by name."""
    if not isinstance(node, dict):
        return False
    return all(isinstance(v, _NUMBER) and not isinstance(v, bool) for v in node.values())


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
