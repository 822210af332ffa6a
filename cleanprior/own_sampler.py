"""Samples of a trained cell whose method has no denoiser, such as a generator.

A :class:`~cleanprior.prior.Prior` holds a denoiser and loads without any method's code. A method
without a denoiser saves no prior. Its averaged networks are read from the cell's checkpoint, and
the method itself must be installed.
"""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Generator, Tensor

from .cells.folder import CellFiles
from .cells.migration import settle
from .cells.record import Record, is_finished
from .config import build, recompose
from .errors import UserError
from .operators.base import ImageShape
from .operators.building import build_operator
from .training.averages import Averages
from .training.checkpoint import read_tensors
from .training.method import Method
from .training.trainer import Trainer


def finished_without_prior(folder: Path) -> Record | None:
    """Return the record of a finished cell that holds a checkpoint and no prior, else None."""
    files = CellFiles(folder)
    settle(files)
    if files.prior.is_dir() or not files.training.checkpoint.is_file():
        return None
    for path in files.records().values():
        try:
            record: Record = json.loads(path.read_text(encoding="utf-8"))
            if is_finished(record):
                return record
        except (OSError, ValueError, TypeError, KeyError):
            continue  # damaged: as if it were not there
    return None


def load_own_sampler(folder: Path) -> Callable[[int, Generator], Tensor] | None:
    """Return how a finished cell without a prior samples: ``(n, generator) -> x``.

    Arguments:
        folder: The cell's folder.

    Returns:
        The method's own way to sample, with averaged weights; None where the folder is no such
        cell.

    Raises:
        UserError: The checkpoint is damaged, or is not that of the method's networks.
    """
    record = finished_without_prior(folder)
    if record is None:
        return None
    config = recompose(record.get("config"), str(folder))
    operator = build_operator(config["operator"], _image_shape(record, folder), config["data_seed"])
    trainer: Trainer = build(config["training"])
    method: Method = build(config["method"])
    method.setup(trainer.problem(operator, config), trainer.device)
    averages = Averages(method.networks(), trainer.ema)
    tensors, _ = read_tensors(CellFiles(folder).training.checkpoint)
    for name, model in averages.models.items():
        prefix = f"average.{name}."
        own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            model.load_state_dict(own)
        except RuntimeError as error:
            raise UserError(
                f"'{folder}' holds other networks than {config['method']['name']} builds now; "
                f"train it again: {str(error).splitlines()[0]}"
            ) from error
    ways = [way.sample for way in method.own_ways(averages.modules) if way.sample is not None]
    return ways[0] if ways else None


def _image_shape(record: Record, folder: Path) -> ImageShape:
    """Return the shape of the images of a record that may be anybody's."""
    given = record.get("image_shape")
    if not isinstance(given, list) or [type(v) for v in given] != [int] * 3 or min(given) < 1:
        raise UserError(f"'{folder}' is damaged: its image_shape is {given!r}")
    return given[0], given[1], given[2]
