"""Measurements of a user's file that are too many for memory: where each split is kept.

A split that lies in a file (:mod:`cleanprior.mapped`) is written as the framework's own
measurements are, with the hash of its content. Below a folder of runs it stays there, known by the
content of the user's files and by what is said of them: whoever needs it next reads no other file.
Without such a folder it is gone with the process.
"""

import tempfile
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from ..files import write_with
from ..hashed import OF, Damaged, check_owner, header_of, read_arrays
from ..mapped import is_in_file, scratch_folder, scratch_in
from ..notices import Notice, tell
from ..operators.base import take
from .measured import MeasuredData
from .measurement_files import read_measurements, write_measurements
from .measurements import Measurements

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Shelf:
    """Where the splits of one data set are kept.

    Attributes:
        folder: The folder.
        key: What the data set is known by, for the names of files.
    """

    folder: Path
    key: str

    def split(self, name: str) -> Path:
        """Return the file of a split."""
        return self.folder / f"{name}-{self.key}.safetensors"

    @property
    def described(self) -> Path:
        """The file of all that is not measurements."""
        return self.split("data")


_shelf: ContextVar[Shelf | None] = ContextVar("_shelf", default=None)


def load_from(shelf: Shelf, build: Callable[[], Any], is_kept: bool = True) -> Any:
    """Return a data set from its shelf, or build it; one that is large is kept there.

    Arguments:
        shelf: Its shelf.
        build: Reads the user's files.
        is_kept: Whether anything is written on the shelf.
    """
    if shelf.described.exists():
        try:
            return _read(shelf)
        except Damaged as error:
            tell([Notice(f"{error}; the user's file is read again", is_warning=True)])
    if not is_kept:
        return build()
    token = _shelf.set(shelf)
    try:
        with scratch_in(shelf.folder):
            data = build()
    finally:
        _shelf.reset(token)
    if isinstance(data, MeasuredData) and all(shelf.split(n).exists() for n in SPLITS):
        _describe(shelf, data)
    return data


def splits(
    train: tuple[Measurements, Tensor | None], test: tuple[Measurements, Tensor | None]
) -> tuple[Measurements, Measurements]:
    """Return both splits; where what they are made of lies in a file, so do they.

    Arguments:
        train: Measurements, and the positions of those to train on; None for all.
        test: The same of those that are held out.

    Raises:
        UserError: The disk refuses a write.
    """
    tensors = [v for measured, _ in (train, test) for v in measured.tensors().values()]
    if not any(map(is_in_file, tensors)):
        return _taken(*train), _taken(*test)
    shelf = _shelf.get()
    if shelf is not None:
        return _written(shelf.split("train"), *train), _written(shelf.split("test"), *test)
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        # What is mapped can be read when its name is gone.
        found = [
            m if index is None else _written(Path(folder) / f"{name}.safetensors", m, index)
            for name, (m, index) in zip(SPLITS, (train, test), strict=True)
        ]
    return found[0], found[1]


def _taken(measured: Measurements, index: Tensor | None) -> Measurements:
    if index is None:
        return measured
    level = measured.sigma_y[index].clone()
    return Measurements(measured.y[index], take(measured.params, index), level)


def _written(path: Path, measured: Measurements, index: Tensor | None) -> Measurements:
    write_measurements(path, measured, index)
    return read_measurements(path, path.stem)


def _describe(shelf: Shelf, data: MeasuredData) -> None:
    meta = {
        OF: shelf.key,
        "name": data.name,
        "image_shape": list(data.image_shape),
        "notices": [[n.text, n.is_warning] for n in data.notices],
        "per_pixel": data.per_pixel,
        "law": None if data.law is None else dict(data.law),
        "hashes": [data.split(name).hash for name in SPLITS],
    }
    scales = {k: v.numpy() for k, v in data.scales.items()} or {"none": np.zeros(0, np.float32)}
    parts = [(k, v.dtype.name, v.shape, np.ascontiguousarray(v).data) for k, v in scales.items()]
    header = header_of(parts, meta)
    write_with(shelf.described, lambda staging: save_file(scales, staging, metadata=header))


def _read(shelf: Shelf) -> MeasuredData:
    """Read a data set from its shelf.

    Raises:
        Damaged: A file of it is damaged or missing.
    """
    arrays, meta = read_arrays(shelf.described)
    check_owner(shelf.described, meta, shelf.key)
    found = [read_measurements(shelf.split(n), shelf.split(n).stem) for n in SPLITS]
    if [s.hash for s in found] != meta["hashes"]:
        raise Damaged(f"'{shelf.described}' belongs to other measurements")
    scales = {k: torch.from_numpy(v) for k, v in arrays.items() if k != "none"}
    channels, height, width = meta["image_shape"]
    notices = tuple(Notice(text, is_warning) for text, is_warning in meta["notices"])
    return MeasuredData(
        meta["name"],
        found[0],
        found[1],
        (channels, height, width),
        notices,
        meta["per_pixel"],
        scales,
        meta["law"],
    )


__all__ = ["SPLITS", "Shelf", "load_from", "splits"]
