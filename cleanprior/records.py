"""Records: one JSON file a cell, written whole or not at all. No torch."""

import json
from pathlib import Path
from typing import Any

from .config import Config, identity
from .files import write_text

Record = dict[str, Any]


def cell_folder(out: Path, config: Config) -> Path:
    """Return the folder of a cell; its name holds the hash of what defines the cell."""
    parts = (config["data"]["name"], config["operator"]["name"], config["method"]["name"])
    return out / "cells" / f"{'-'.join(parts)}-{config['seed']}-{identity(config)}"


def write_record(folder: Path, record: Record) -> None:
    """Write ``record.json`` atomically.

    Raises:
        UserError: The disk refuses the write; an earlier record is intact.
    """
    write_text(folder / "record.json", json.dumps(record, indent=1))


def read_record(folder: Path) -> Record | None:
    """Return the record of a cell, or None where there is none that can be read."""
    try:
        record: Record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if "status" in record else None


def is_finished(record: Record | None) -> bool:
    """Whether the record counts as a result: only ``done`` does."""
    return record is not None and record["status"] == "done"
