"""Measurements that the framework keeps: written once, read again as they were, or not at all."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..defaults import plain_tensors
from ..files import write_with
from ..hashed import OF, Damaged
from ..mapped import BLOCK, DTYPE_NAMES, blocks, bytes_of, map_tensors, rows
from ..operators.base import Operator
from ..operators.truth import Truth
from ..outside import check_regular
from .measurements import Content, Measurements, simulated


class DamagedMeasurements(Damaged):
    """A file of measurements that is not what was written."""


def write_measurements(path: Path, measured: Measurements, index: Tensor | None = None) -> None:
    """Write measurements with the hash of their content, atomically and block by block.

    Arguments:
        path: The file.
        measured: The measurements.
        index: Positions of those that are written, or None for all.

    Raises:
        UserError: The disk refuses the write.
    """

    def parts(value: Tensor) -> Iterator[Tensor]:
        if index is None:
            yield from blocks(value)
            return
        count = max(1, BLOCK * len(value) // max(1, value.nbytes))
        for chosen in index.split(count):
            yield rows(value, chosen)

    def write(file: IO[bytes]) -> None:
        tensors = measured.tensors()
        if index is not None:
            tensors = {k: v[:1].expand(len(index), *v.shape[1:]) for k, v in tensors.items()}
        places = _write_head(file, tensors, measured.hash, path.stem)
        content = Content()
        for name, value in sorted(measured.tensors().items()):
            file.seek(places[name])
            content.begin(name, tensors[name])
            for part in parts(value):
                file.write(bytes_of(part.contiguous()) if index is None else content.add(part))
        if index is not None:
            file.seek(0)
            _write_head(file, tensors, content.hash, path.stem)

    _write(path, write)


@plain_tensors()
def draw_measurements(
    path: Path,
    x: Tensor,
    operator: Operator,
    data_seed: int,
    split: str,
    truth: Truth | None = None,
) -> Measurements:
    """Draw measurements (:meth:`Measurements.draw`) into a file, and return them as they lie there.

    Where the operator measures in parts, y is never in memory as a whole.

    Arguments:
        path: The file.
        x: Clean images, (n, c, h, w) in [-1, 1].
        operator: Its parameter law and noise are used.
        data_seed: The data seed.
        split: ``"train"`` or ``"test"``.
        truth: What really measures, where the operator is only believed to.

    Raises:
        UserError: The disk refuses the write, or a value that is no number.
    """
    if operator.noise is not None:  # its levels are told by all of y
        drawn = Measurements.draw(x, operator, data_seed, split, truth)
        write_measurements(path, drawn)
        return drawn
    params, parts = simulated(x, operator, data_seed, split, truth)
    sigma_y = torch.full((len(x),), operator.sigma)
    first = next(parts)
    if len(first) == len(x):
        drawn = Measurements(first, params, sigma_y)
        write_measurements(path, drawn)
        return drawn

    def write(file: IO[bytes]) -> None:
        y = first.new_empty(1, *first.shape[1:]).expand(len(x), *first.shape[1:])
        tensors = {f"params.{k}": v for k, v in params.items()} | {"sigma_y": sigma_y, "y": y}
        places = _write_head(file, tensors, "0" * 64, path.stem)
        content = Content()
        for name in sorted(tensors):
            content.begin(name, tensors[name])
            file.seek(places[name])
            for part in chain([first], parts) if name == "y" else blocks(tensors[name]):
                file.write(content.add(part))
        file.seek(0)
        _write_head(file, tensors, content.hash, path.stem)

    _write(path, write)
    return read_measurements(path, path.stem)


def _write(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file atomically by what ``write`` does to it."""

    def staged(staging: Path) -> None:
        with staging.open("wb") as file:
            write(file)

    write_with(path, staged)


def _write_head(
    file: IO[bytes], tensors: Mapping[str, Tensor], content: str, owner: str
) -> dict[str, int]:
    """Write the header of a safetensors file; return where each tensor begins.

    Wide numbers come first, so that each is aligned.
    """
    described: dict[str, object] = {
        "__metadata__": {"json": json.dumps({"hash": content, OF: owner})}
    }
    begins = {}
    end = 0
    for name in sorted(tensors, key=lambda k: (-tensors[k].element_size(), k)):
        value, begin = tensors[name], end
        end += math.prod(value.shape) * value.element_size()
        described[name] = {
            "dtype": DTYPE_NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
        begins[name] = begin
    head = json.dumps(described, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    file.write(len(head).to_bytes(8, "little") + head)
    return {name: 8 + len(head) + begin for name, begin in begins.items()}


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
