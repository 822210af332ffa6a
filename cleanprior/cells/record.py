"""Records: one JSON file a cell, written whole or not at all. No torch."""

import math
import traceback
from typing import Any

from ..errors import StageFailed, UserError
from ..files import write_text
from ..outside import CARD, read_text
from .code import latest
from .fields import RowOf
from .folder import CellFolder, TrainingFiles
from .reading import Record, encode, load_record
from .status import Status

__all__ = [
    "Record",
    "has_other_code",
    "is_finished",
    "read_record",
    "training_code",
    "write_failure",
    "write_record",
]


def write_record(cell: CellFolder, record: Record) -> None:
    """Write a record atomically, as strict JSON: a number that is not finite becomes null.

    A metric that is no finite number is left out and stands under ``missing`` with that reason.

    Raises:
        UserError: The disk refuses the write; an earlier record is intact.
    """
    rows = [_with_reasons(row) for row in record.get("rows", [])]
    written = _strict({**record, "rows": rows} if rows else record)
    write_text(cell.record, encode(written))


def _with_reasons(row: RowOf) -> RowOf:
    """Return a row in which each metric without a finite value has its reason."""
    metrics = row.get("metrics", {})
    kept = {k: v for k, v in metrics.items() if not isinstance(v, float) or math.isfinite(v)}
    lost = metrics.keys() - kept.keys()
    missing = dict.fromkeys(sorted(lost), "the value is no finite number") | row.get("missing", {})
    images = {k: v for k, v in row.get("per_image", {}).items() if k not in lost}
    return {**row, "metrics": kept, "missing": missing, "per_image": images}


def _strict(node: Any) -> Any:
    """Return plain values with None in the place of NaN and infinity, which are no JSON."""
    if isinstance(node, dict):
        return {k: _strict(v) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        return [_strict(v) for v in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def write_failure(cell: CellFolder, error: Exception) -> Record:
    """Record that a cell failed, and its traceback in ``error.txt`` beside.

    To be called while the exception is handled. A traceback that the process of the cell has
    written stays.
    """
    if not isinstance(error, StageFailed):
        write_text(cell.files.error, traceback.format_exc())
    # A refusal is a sentence of its own; another error says little without its type.
    reason = (
        str(error)
        if isinstance(error, UserError | StageFailed)
        else f"{type(error).__name__}: {error}"
    )
    names = cell.names
    record: Record = {
        "method": names["method"],
        "operator": names["operator"],
        "data": names["data"],
        "seed": cell.config["seed"],
        "config": cell.config,
        "status": Status("failed", reason).to_json(),
    }
    write_record(cell, record)
    return record


def read_record(cell: CellFolder) -> Record | None:
    """Return the record of a cell, or None where there is none that can be read."""
    return load_record(cell.record, cell.identity.evaluation)


def training_code(files: TrainingFiles, installed: str) -> str:
    """Return the hash of the code that a training began with, and note it at its beginning.

    What is evaluated again, or goes on, was not trained by what is installed now.

    Arguments:
        files: Of the training.
        installed: The hash of the method's installed code.
    """
    if files.checkpoint.is_file():
        try:
            return read_text(files.code, CARD)
        except UserError:
            pass  # nobody knows
    write_text(files.code, installed)
    return installed


def has_other_code(cell: CellFolder, record: Record) -> bool:
    """Whether a method was trained by other code than is installed."""
    code = record.get("code") or {}
    return bool(code) and latest(str(code.get("method"))) != cell.code


def is_finished(record: Record | None) -> bool:
    """Whether the record counts as a result: only ``done`` does."""
    return record is not None and Status.of(record).is_done
