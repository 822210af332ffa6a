"""Measurements that the framework keeps: written once, read again as they were, or not at all."""

import json
from pathlib import Path

from safetensors import SafetensorError

from ..hashed import OF, Damaged
from ..mapped import map_tensors
from ..outside import check_regular
from ..training.checkpoint import write_tensors
from .measurements import Measurements


class DamagedMeasurements(Damaged):
    """A file of measurements that is not what was written."""


def write_measurements(path: Path, measured: Measurements) -> None:
    """Write measurements with the hash of their content, atomically.

    Raises:
        UserError: The disk refuses the write.
    """
    meta = {"hash": measured.hash, OF: path.stem}
    write_tensors(path, measured.tensors(), meta, is_hashed=False)


def read_measurements(path: Path, owner: str | None = None) -> Measurements:
    """Read what :func:`write_measurements` wrote; the content must have its hash.

    The tensors stay in the file (:mod:`cleanprior.mapped`): whatever their number, what is in
    memory is a block of the pass that hashes them, and later a batch.

    Arguments:
        path: The file.
        owner: The name that it was written under, where it must be that one.

    Raises:
        DamagedMeasurements: It has not, or it cannot be read.
    """
    try:
        check_regular(path)
        held, metadata = map_tensors(path)
        meta = json.loads(metadata.get("json", "{}"))
        written = meta["hash"]
        params = {k[7:]: v for k, v in held.items() if k.startswith("params.")}
        found = Measurements(held["y"], params, held["sigma_y"])
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise DamagedMeasurements(f"'{path}' is damaged: {error}") from error
    if owner is not None and meta.get(OF, owner) != owner:
        raise DamagedMeasurements(f"'{path}' belongs to something else")
    if found.hash != written:
        raise DamagedMeasurements(f"'{path}' is damaged: its content has another hash")
    return found
