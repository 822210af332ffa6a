"""Cells that version 0.1.0 named: taken over under their names of today. No torch.

That version had its number in every identity, so that a release trained everything again. Delete
this module, and the calls of it, when nobody has such a folder any more.
"""

from collections.abc import Iterable
from pathlib import Path

from ..config.registry import module_hash
from ..errors import UserError
from ..files import write_text
from ..notices import Notice, tell
from ..outside import read_json
from .code import method_code
from .folder import CellFiles, CellFolder
from .identity import digest
from .reading import encode

VERSION = "0.1.0"
#: Code of version 0.1.0, as its records name it, and later code that trains the same weights: the
#: averaged networks of every method after 640 images have the same sha256.
EQUAL = {
    "58cfa05ee1d58c21": "8e1a35755248d433",  # ambient
    "e4b9ca520fec758c": "e407422bf3bcc940",  # ambient_gan
    "2f89fe76db7cf148": "30df8c486cf0860c",  # ambient_tweedie
    "b7028ba881a2a260": "3e9041dac20711ef",  # denoise_then_train
    "43c8ca0f75f13dc3": "07a3faaf18729f34",  # em
    "afe241f0868d0a14": "235e32c1f4666132",  # flowdiff
    "d9ef2037ad3576ed": "29cffe23ef729f02",  # gsure
    "4197c4230624f5c4": "72f7dd682a285a25",  # masked_loss
    "2ea82aeae7a2c45e": "0e0d6c8ec5737703",  # naive
    "c143f4c8bce12639": "a5e752836c0fd233",  # observations
    "7f3fd922330f4009": "5d735f5fe3fb296b",  # oracle
    "8cca9806d9a5aa83": "1dab4c9161d03108",  # sure_score
}


def take_over(cells: Iterable[CellFolder]) -> int:
    """Rename what an earlier version left of cells, and say how many they were.

    A cell that has a place of today keeps it. Each step is one rename or one atomic write, and what
    an interruption leaves undone is done by the next call. Where nothing is to be done that costs
    two hashes and a few looks at the disk a cell.

    Returns:
        How many cells have been found under their earlier names.

    Raises:
        UserError: A folder that cannot be renamed.
    """
    count = 0
    for cell in cells:
        if cell.cells.is_dir():
            count += _take_over(cell)
    if count:
        what = "1 cell" if count == 1 else f"{count} cells"
        tell([Notice(f"took over {what} of an earlier version; nothing is trained again")])
    return count


def take_over_measurements(cell: CellFolder, split: str, operator_state: str) -> None:
    """Rename the measurements of a split that an earlier version drew."""
    identity = cell.identity
    now = cell.measurements(split, identity.measurements(split, operator_state))
    if not now.exists():
        named = digest([VERSION, identity.measured(operator_state), split])
        _rename(cell.measurements(split, named), now)


def _take_over(cell: CellFolder) -> bool:
    """Rename a cell's folder, its pictures, its record; return whether there was any of them."""
    training = digest([VERSION, cell.identity.parts(is_training=True)])
    evaluation = digest([VERSION, cell.identity.parts()])
    name = cell.name_of(training)
    found = _rename(cell.cells / name, cell.path)
    settle(cell.files)
    record = cell.files.record(evaluation)
    if record.is_file():
        _rename(cell.pictures_of(name, evaluation), cell.pictures)
        if not cell.record.exists():
            _rewrite(cell, record)
        record.unlink(missing_ok=True)
        found = True
    return found


def settle(files: CellFiles) -> None:
    """Put what belongs to a training into its own folder, where it once lay beside the records."""
    training = files.training
    places = (training.checkpoint, training.rounds, training.snapshots, training.code)
    for now in places:
        _rename(files.folder / now.name, now)


def _rewrite(cell: CellFolder, old: Path) -> None:
    """Write a record under its name of today; its code's hash too where the code is the same."""
    try:
        record = read_json(old)
        record["cell"] = cell.identity.evaluation
        code = record.get("code") or {}
        method = cell.config["method"]["_target_"].rpartition(".")[0]
        before = str(code.get("method_sha256"))
        if before in EQUAL:
            code["method"] = EQUAL[before]
        elif before == module_hash(method):  # a stranger's, unchanged
            code["method"] = method_code(cell.config)
        trained = str(code.get("method") or code.get("method_sha256") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return  # damaged: as if it were not there
    if trained and not cell.files.training.code.exists():
        write_text(cell.files.training.code, trained)
    write_text(cell.record, encode(record))


def _rename(before: Path, now: Path) -> bool:
    """Rename a file or a folder; return False where it is not there, or the new name is taken."""
    if now.exists() or not before.exists():
        return False
    try:
        now.parent.mkdir(parents=True, exist_ok=True)
        before.rename(now)
    except FileNotFoundError:
        return False  # another process has just done it
    except OSError as error:
        raise UserError(f"cannot rename '{before}' to '{now}': {error.strerror}") from error
    return True
