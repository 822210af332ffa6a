"""What a trained cell samples and restores with: its prior, or its method's own generator.

A :class:`~cleanprior.prior.Prior` holds a denoiser and loads without any method's code. A method
without a denoiser saves no prior. Its averaged networks are read from the cell's checkpoint, and
the method itself must be installed.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Generator, Tensor

from ..config import build, recompose
from ..diffusion.limits import at_most, check_finite
from ..errors import UserError
from ..hub import fetched
from ..operators.base import ImageShape
from ..operators.building import build_operator
from ..prior import Prior
from ..prior_files import is_shape
from ..training.averages import Averages
from ..training.checkpoint import read_tensors
from ..training.method import Method
from ..training.trainer import Trainer
from .folder import CellFiles
from .migration import settle
from .reading import load_record
from .record import Record, is_finished


def finished_without_prior(folder: Path) -> Record | None:
    """Return the record of a finished cell that holds a checkpoint and no prior, else None."""
    files = CellFiles(folder)
    settle(files)
    if files.prior.is_dir() or not files.training.checkpoint.is_file():
        return None
    for path in files.records().values():
        record = load_record(path)
        if is_finished(record):
            return record
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
    tensors, _ = read_tensors(CellFiles(folder).training.checkpoint)
    try:
        check_finite(tensors)
        with at_most(sum(v.numel() for v in tensors.values())):
            method.setup(trainer.problem(operator, config), trainer.device)
    except UserError as error:
        raise UserError(f"'{folder}' is damaged: {error}") from error
    averages = Averages(method.networks(), trainer.ema)
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
    routes = method.routes_on_cpu(averages.modules)
    return next((route.sample for route in routes if route.sample is not None), None)


def _image_shape(record: Record, folder: Path) -> ImageShape:
    """Return the shape of the images of a record that may be anybody's."""
    given = record.get("image_shape")
    if not is_shape(given):
        raise UserError(f"'{folder}' is damaged: its image_shape is {given!r:.80}")
    assert isinstance(given, list)
    return given[0], given[1], given[2]


def load_prior(path: Path, revision: str | None = None) -> Prior:
    """Read a prior from its folder, from that of the cell that holds it, or from the Hub.

    Arguments:
        path: A folder, or a name on the Hub.
        revision: Branch, tag or commit on the Hub.

    Raises:
        UserError: There is none: nothing was saved, or the method learns no denoiser.
    """
    path = fetched(path, revision)
    record = finished_without_prior(path)
    if record is not None:
        kinds = ("restoration", "generation")
        reasons = [
            row["missing"][k] for row in record["rows"] for k in kinds if k in row["missing"]
        ]
        raise UserError(
            f"'{path}' holds no denoiser to restore with: {record['method']} has none"
            + (f" ({reasons[0]})" if reasons else "")
        )
    inside = CellFiles(path).prior
    return Prior.load(inside if inside.is_dir() else path)
