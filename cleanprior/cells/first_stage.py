"""The finished row that a second stage begins with, where it lies in the same folder of runs."""

from pathlib import Path

from ..config import nested
from ..notices import Notice, tell
from ..training.job import read_outcome
from ..training.method import Method
from .code import latest
from .folder import CellFolder
from .identity import STAGES


def finished_first_stage(folder: CellFolder, method: Method, measured: str) -> Path | None:
    """Return the checkpoint of the finished training that a cell begins with, and tell of it.

    It is that of the row of its first stage: the same problem, training and seed, the same
    measurements, trained by the code that is installed. Where there is none the cell trains it
    anew, to the same weights.

    Arguments:
        folder: Of the cell.
        method: Its method.
        measured: Hash of its measurements.
    """
    first = nested.first_stage(folder.config["method"])
    if first is None or method.first_stage() is None:
        return None
    row = CellFolder(folder.out, {**folder.config, "method": first})
    files = row.files.training
    outcome = read_outcome(files) if files.outcome.exists() else None
    if outcome is None or outcome["status"] != "done" or not files.checkpoint.is_file():
        return None
    code = outcome.get("code") or {}
    is_same = (
        outcome["measurements_sha256"] == measured
        and latest(str(code.get("method"))) == row.code
        and (code.get("stages") or {}).get("train") == STAGES["train"]
    )
    if not is_same:
        return None
    name = folder.config["method"]["name"]
    tell([Notice(f"{name} begins with the finished training of {first['name']}: '{row.path}'")])
    return files.checkpoint


__all__ = ["finished_first_stage"]
