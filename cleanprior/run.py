"""One cell: a configuration becomes a record.

``data set -> operator -> measurements -> Trainer(method) -> prior -> evaluation -> record``. This
is the only place where clean images and a method's training meet: measurements are drawn from them
here, and an entitled method is handed its few (or, the oracle, all) by seed. With
``data=measurements`` there are none: a user's own measurements take the place of drawn ones.
"""

import hashlib
import json
import platform
import shutil
import time
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from . import __version__, capabilities
from .cell_costs import training_costs, use_costs
from .cells.folder import CellFiles, CellFolder
from .cells.identity import STAGES
from .cells.migration import take_over_measurements
from .cells.record import Record, training_code, write_record
from .config import Config, build
from .data.datasets import CleanData
from .data.measured import MeasuredData, write_splits
from .data.measurements import Measurements
from .defaults import exact_products, plain_tensors
from .diffusion.backbones import parameter_count
from .environment import known
from .errors import UserError
from .evaluation.evaluate import Protocol
from .evaluation.routes import alone
from .files import write_with
from .notices import tell
from .operators.base import Operator
from .operators.building import build_operator, state_hash
from .own_sampler import finished_without_prior
from .prior import Prior
from .progress import Progress
from .seeding import generator_for
from .training.checkpoint import read_tensors, write_tensors
from .training.method import Method, Way
from .training.report import TrainingReport
from .training.trainer import Trainer

LIBRARIES = ("torch", "deepinv", "azula", "normflows", "accelerate", "torchmetrics", "numpy")


@lru_cache(maxsize=2)
def load_data(config: str, identity: str) -> CleanData | MeasuredData:
    """Load a data set from its configuration as JSON; kept for the next cell of a benchmark.

    Files that changed have another ``identity`` and are read again.
    """
    data: CleanData | MeasuredData = build(json.loads(config))
    return data


class Cell:
    """The parts of a cell, built and checked; nothing is trained yet.

    Arguments:
        folder: Where it lies: measurements are kept beside it, once for all methods.

    Raises:
        UserError: A value that a part refuses.
    """

    def __init__(self, folder: CellFolder) -> None:
        exact_products()
        config = folder.config
        self.folder, self.config = folder, config
        self.data = load_data(json.dumps(config["data"]), json.dumps(folder.identity.data))
        self.notices = self.data.notices
        self.operator: Operator = build_operator(
            config["operator"], self.data.image_shape, config["data_seed"]
        )
        if isinstance(self.data, MeasuredData):
            self.notices += self.data.check(self.operator)
            # A fixed mask in a file is a fixed operator, whatever the family draws.
            self.operator = self.operator.with_law_of(self.data.train.params)
        tell(self.notices)
        self.trainer: Trainer = build(config["training"])
        self.method: Method = build(config["method"])
        self.protocol: Protocol = build(config["evaluation"])
        self.posterior = build(config["posterior"])
        self.sampler = build(config["sampler"])
        self.problem = self.trainer.problem(self.operator, config)

    def measurements(self, split: str) -> Measurements:
        """Return the measurements of a split: drawn once, stored, the same for every method."""
        if isinstance(self.data, MeasuredData):
            return self.data.split(split)
        state = state_hash(self.operator)
        take_over_measurements(self.folder, split, state)
        key = self.folder.identity.measurements(split, state)
        path = self.folder.measurements(split, key)
        x = self.data.train if split == "train" else self.data.test
        drawn = Measurements.draw(x, self.operator, self.config["data_seed"], split)
        if path.exists():
            stored, header = read_tensors(path)
            if header["hash"] != drawn.hash:
                raise UserError(
                    f"'{path}' holds other measurements than this configuration draws (the images "
                    "or the code changed); move that folder away to start afresh"
                )
            params = {k[7:]: v for k, v in stored.items() if k.startswith("params.")}
            return Measurements(stored["y"], params, stored["sigma_y"])
        write_tensors(path, drawn.tensors(), {"hash": drawn.hash})
        return drawn

    def clean_index(self) -> Tensor:
        """Return which clean training images the method is entitled to, by the data seed."""
        wanted = self.method.clean_images
        if isinstance(self.data, MeasuredData):
            return torch.arange(0)
        n = len(self.data.train)
        if wanted == "all":
            return torch.arange(n)
        if not isinstance(wanted, int) or not 0 <= wanted <= n:
            raise UserError(f"clean_images={wanted!r}; allowed: all, or a count from 0 to {n}")
        generator = generator_for(self.config["data_seed"], "clean-images")
        return torch.randperm(n, generator=generator)[:wanted]

    def about(self) -> Record:
        """Return what a record and a prior say of their origin."""
        identity = self.folder.identity.evaluation
        return {"cell": identity, **self.folder.names, "seed": self.config["seed"]}

    def refusal(self) -> str | None:
        """Return why the method cannot be trained on the problem, or None."""
        reason = capabilities.entitlement(self.config["method"], self.config["data"])
        return reason or self.method.supports(self.problem)

    def train(
        self, progress: Progress
    ) -> tuple[dict[str, torch.nn.Module], TrainingReport, Measurements]:
        """Train the method on the measurements of the training split."""
        measured = self.measurements("train")
        index = self.clean_index()
        clean = None
        if isinstance(self.data, CleanData) and len(index):
            clean = self.data.train[index].clone()
        with progress.live():
            averaged, report = self.trainer.fit(
                self.method,
                self.problem,
                measured,
                self.config["seed"],
                self.folder.path,
                clean,
                progress,
            )
        return averaged, report, measured


@plain_tensors()
def run_cell(folder: CellFolder, progress: Progress, force: bool = False) -> Record:
    """Train and evaluate one cell; a cell that is trained already is only evaluated.

    Arguments:
        folder: Where the cell lies, with its configuration.
        progress: Where to show progress.
        force: Train again even if the cell is finished.

    Returns:
        The record, also written to the cell's folder.
    """
    if force and folder.path.exists():
        shutil.rmtree(folder.path)
    cell = Cell(folder)
    record = _head(cell)
    reason = cell.refusal()
    if reason is not None:
        record["status"] = f"skipped: {reason}"
        write_record(folder, record)
        return record
    record["code"]["method"] = training_code(folder)
    record["warning"] = cell.method.warning(cell.problem)
    averaged, report, measured = cell.train(progress)
    record["measurements_sha256"] = measured.hash
    record["training"] = report.__dict__
    record["parameters"] = {k: parameter_count(n) for k, n in averaged.items()}
    if not cell.trainer.accelerator.is_main_process:
        return record
    record["costs"] = training_costs(report, cell.trainer.accelerator.num_processes)
    if report.status != "done":
        record["status"] = report.status
        write_record(folder, record)
        return record
    # What a method's code returns is asked for where no frame above it holds a clean image.
    prior = alone(partial(cell.method.prior, averaged))
    ways = alone(partial(cell.method.own_ways, averaged))
    if prior is not None:
        prior.about = cell.about() | {"measurements_sha256": measured.hash, "config": cell.config}
        prior.save(folder.files.prior)
    with progress.live():
        rows, pictures, notes = cell.protocol.evaluate(
            prior,
            {cell.config["posterior"]["name"]: cell.posterior},
            ways,
            cell.sampler,
            cell.data,
            cell.measurements("test"),
            cell.operator,
            folder.features,
            progress,
            trained=measured,
            has_gaps=cell.method.has_gaps(cell.problem),
        )
    record["rows"] = [row.as_dict() for row in rows]
    record["evaluation"] = notes
    _add_costs(cell, record, averaged, prior, ways)
    record["status"] = "done"
    write_tensors(folder.pictures, pictures, {})
    write_record(folder, record)
    return record


def _add_costs(
    cell: Cell,
    record: Record,
    averaged: dict[str, torch.nn.Module],
    prior: Prior | None,
    ways: list[Way],
) -> None:
    """Add what one restoration and one sample cost to a record and to its rows."""
    shared, *own = alone(
        partial(
            use_costs,
            averaged,
            prior,
            cell.posterior,
            cell.sampler,
            ways,
            cell.measurements("test"),
            cell.operator,
        )
    )
    costs_of_ways = iter(own)  # rows of own ways stand in the order of the ways
    for row in record["rows"]:
        row["costs"] = next(costs_of_ways) if row["is_own"] else shared
    # The record's own: the shared samplers, or the first way that does it.
    for costs in reversed([shared, *own]):
        record["costs"] |= costs


def write_measurements(config: Config, path: Path) -> tuple[int, int]:
    """Write the measurements of a problem to a file that ``data=measurements`` reads.

    Arguments:
        config: A composed configuration; its method has no part in it.
        path: ``.npz``, ``.h5`` or ``.safetensors``.

    Returns:
        How many measurements are for training and how many are held out.
    """
    cell = Cell(CellFolder(path.parent, config))
    if isinstance(cell.data, MeasuredData):
        splits = cell.data.train, cell.data.test
    else:
        seed = config["data_seed"]
        splits = (
            Measurements.draw(cell.data.train, cell.operator, seed, "train"),
            Measurements.draw(cell.data.test, cell.operator, seed, "test"),
        )
    write_with(path, lambda staging: write_splits(staging, *splits))
    return len(splits[0]), len(splits[1])


def _head(cell: Cell) -> Record:
    """Return the part of a record that is known before training."""
    config = cell.config
    index = cell.clean_index()
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            libraries[name] = "absent"
    return {
        **cell.about(),
        "data_seed": config["data_seed"],
        "config": config,
        "clean_images": len(index),
        "clean_ids_sha256": hashlib.sha256(index.numpy().tobytes()).hexdigest(),
        "image_shape": list(cell.data.image_shape),
        "train_images": len(cell.data.train),
        "data_notices": [notice.text for notice in cell.notices],
        "code": {"cleanprior": __version__, "method": cell.folder.code, "stages": dict(STAGES)},
        "operator_sha256": state_hash(cell.operator),
        "libraries": libraries,
        "device": str(cell.trainer.device),
        "precision": str(cell.trainer.autocast or torch.float32).removeprefix("torch."),
        "processes": cell.trainer.accelerator.num_processes,
        "environment": known(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "status": "failed: interrupted",
    }


def load_prior(path: Path) -> Prior:
    """Read a prior from its folder, or from the folder of the cell that holds it.

    Raises:
        UserError: There is none: nothing was saved, or the method learns no denoiser.
    """
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


__all__ = ["Cell", "load_prior", "run_cell", "write_measurements"]
