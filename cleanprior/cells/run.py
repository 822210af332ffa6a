"""One cell: a configuration becomes a record.

``data set -> operator -> measurements -> Trainer(method) -> prior -> evaluation -> record``, in
three stages. :func:`prepare` is where clean images and a method's training meet: measurements are
drawn from them, and an entitled method is handed its few (or, the oracle, all) by seed. What it
leaves is a job, and :func:`train` knows nothing else. :func:`evaluate` judges the outcome. With
``data=measurements`` there are no clean images: a user's own measurements take the place of drawn
ones.
"""

import hashlib
import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock
from torch import Tensor

from .. import __version__
from ..config import Config, build, capabilities, compose
from ..data import instrument_noise
from ..data.datasets import CleanData
from ..data.measured import MeasuredData, write_splits
from ..data.measurement_files import DamagedMeasurements, draw_measurements, read_measurements
from ..data.measurements import Measurements
from ..defaults import exact_products, plain_tensors
from ..errors import UserError
from ..evaluation.protocol import Protocol
from ..evaluation.routes import alone, routes_of, shared_route
from ..files import write_with
from ..hashed import OF
from ..model_card import measured as measured_of
from ..notices import Notice, tell
from ..operators.base import ImageShape, Operator
from ..operators.building import build_operator, state_hash, true_measuring
from ..prior_files import describe
from ..progress import Progress
from ..seeding import generator_for
from ..training.checkpoint import write_tensors
from ..training.job import Job, read_outcome
from ..training.method import Method
from ..training.ranks import Ranks
from ..training.start import begun_from, start_fault
from ..training.trainer import Trainer
from ..training.warning import codes, start_warnings
from .costs import add_use_costs, spent
from .first_stage import finished_first_stage
from .folder import CellFolder, TrainingFiles
from .identity import STAGES, training_identity
from .loading import data_of, load_data, shelf_of
from .migration import take_over_measurements
from .record import Record, read_record, write_record
from .status import Status


class Cell:
    """The parts of a cell, built and checked; nothing is trained yet.

    Arguments:
        folder: Where it lies: measurements are kept beside it, once for all methods.
        is_kept: Whether large ones of a user's file are, too (:func:`.loading.data_of`).

    Raises:
        UserError: A value that a part refuses.
    """

    def __init__(self, folder: CellFolder, is_kept: bool = False) -> None:
        exact_products()
        config = folder.config
        self.folder, self.config = folder, config
        self.data = data_of(folder, is_kept)
        self.notices = self.data.notices
        self.operator: Operator = build_operator(
            config["operator"], self.data.image_shape, config["data_seed"]
        )
        self._state = state_hash(self.operator)
        self.operator = instrument_noise.with_noise(config, self.operator)
        self.truth = true_measuring(config, self.operator)
        if isinstance(self.data, MeasuredData):
            instrument_noise.refuse(config)
            self.notices += self.data.check(self.operator)
            # A fixed mask in a file is a fixed operator, whatever the family draws.
            self.operator = self.operator.with_law_of(self.data.train.params)
            self.operator = self.operator.with_levels_of(self.data.train.sigma_y)
        elif self.operator.noise is not None and self.operator.sigma == 0:
            taught = instrument_noise.told(config, self.operator, self.measurements("train"))
            self.config, self.operator = taught
        tell(self.notices)
        self.trainer: Trainer = build(config["training"])
        self.method: Method = build(config["method"])
        self.protocol: Protocol = build(config["evaluation"])
        self.posterior = build(config["posterior"])
        self.posterior.check_noise("local_noise" not in self.operator.capabilities)
        self.sampler = build(config["sampler"])
        self.problem = self.trainer.problem(self.operator, self.config)
        self.start = begun_from(self.trainer.start)

    def measurements(self, split: str) -> Measurements:
        """Return the measurements of a split: drawn once, stored, the same for every method."""
        if isinstance(self.data, MeasuredData):
            return self.data.split(split)
        path = self.stored(split)
        assert path is not None
        with FileLock(self.folder.lock(path.stem)):
            if path.exists():
                try:
                    return read_measurements(path, path.stem)
                except DamagedMeasurements as error:
                    tell([Notice(f"{error}; they are drawn again", is_warning=True)])
            x = self.data.train if split == "train" else self.data.test
            seed = self.config["data_seed"]
            return draw_measurements(path, x, self.operator, seed, split, self.truth)

    def stored(self, split: str) -> Path | None:
        """Return where the measurements of a split are stored for all methods; None for nowhere."""
        if isinstance(self.data, MeasuredData):
            shelf = shelf_of(self.folder)
            return shelf.split(split) if shelf.described.exists() else None
        state = self._state
        take_over_measurements(self.folder, split, state)
        return self.folder.measurements(split, self.folder.identity.measurements(split, state))

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

    def job(self) -> Job:
        """Return what the training is given: measurements, and what the method is entitled to."""
        index = self.clean_index()
        clean = None
        if isinstance(self.data, CleanData) and len(index):
            clean = instrument_noise.learned(self.operator, self.data.train[index].clone())
        has_law = isinstance(self.data, MeasuredData)
        measured = self.measurements("train")
        return Job(self.config, self.operator.image_shape, has_law, measured, clean)

    def about(self) -> dict[str, Any]:
        """Return what a record and a prior say of their origin."""
        identity = self.folder.identity.evaluation
        return {"cell": identity, **self.folder.names, "seed": self.config["seed"]}

    def refusal(self) -> str | None:
        """Return why the method cannot be trained on the problem, or None."""
        found = capabilities.refused(self.config)
        wanted, n = self.method.clean_images, len(self.data.train)
        if found is None and isinstance(wanted, int) and wanted > n:
            return f"is to start from {wanted} clean images, and there are {n}"
        reason = found.reason if found else self.method.supports(self.problem)
        if reason is not None or self.trainer.start is None:
            return reason
        return start_fault(self.trainer.start, self.method, self.problem)


def run_cell(folder: CellFolder, progress: Progress, force: bool = False) -> Record:
    """Train and evaluate one cell in this process; what is trained already is only evaluated.

    A benchmark gives each of the three stages a process of its own, so that the one that trains has
    never held what it is not entitled to.

    Arguments:
        folder: Where the cell lies, with its configuration.
        progress: Where to show progress.
        force: Train again even if the cell is finished.

    Returns:
        The record, also written to the cell's folder.
    """
    while True:
        state, _ = prepare(folder, force)
        if state == "ready":
            train(folder.files.training, progress)
        if state == "refused" or evaluate(folder, progress):
            record = read_record(folder)
            assert record is not None
            return record
        force = False


def run_together(folder: CellFolder, progress: Progress, force: bool = False) -> Record:
    """Train one cell in all processes that a launcher has started, e.g. ``torchrun``.

    The first process prepares and evaluates while the others wait; E-steps and batches are shared.

    Arguments:
        folder: Where the cell lies; the same file system for all processes.
        progress: Where the first process shows progress.
        force: Train again even if the cell is finished.

    Returns:
        The record, the same in all processes.
    """
    trainer: Trainer = build(folder.config["training"])
    ranks = Ranks.of(trainer.accelerator)
    shown = progress if ranks.is_first else Progress()
    for _ in range(3):
        state = ranks.told(prepare(folder, force)[0] if ranks.is_first else "")
        force = False
        if state == "ready":
            train(folder.files.training, shown)
        is_done = state == "refused" or (ranks.is_first and evaluate(folder, shown))
        if ranks.told(str(is_done)) == str(True):
            record = read_record(folder)
            assert record is not None
            return record
    raise UserError(f"'{folder.path}': its training is damaged each time that it is evaluated")


@plain_tensors()
def prepare(folder: CellFolder, force: bool = False) -> tuple[str, ImageShape]:
    """Draw the measurements of a cell, unless they are there, and write its training's job.

    Arguments:
        folder: Where the cell lies, with its configuration.
        force: Remove what an earlier training left.

    Returns:
        ``ready`` to be trained, ``trained`` already, or ``refused``: then the record says why. And
        the shape of an image.
    """
    if force and folder.path.exists():
        shutil.rmtree(folder.path)
    cell = Cell(folder, is_kept=True)
    shape = cell.operator.image_shape
    reason = cell.refusal()
    if reason is not None:
        write_record(folder, _head(cell) | {"status": Status("skipped", reason).to_json()})
        return "refused", shape
    files = folder.files.training
    if read_outcome(files) is not None:
        return "trained", shape
    job = cell.job()
    job = cell.job()
    first = finished_first_stage(folder, cell.method, job.measurements.hash)
    job.write(files, cell.stored("train"), first)
    return "ready", shape


def train(files: TrainingFiles, progress: Progress) -> Record:
    """Train the job of a folder; nothing but the folder is known here."""
    return Job.read(files).train(files, progress)


@plain_tensors()
def evaluate(folder: CellFolder, progress: Progress) -> bool:
    """Judge what a training left, and write the cell's record.

    Returns:
        Whether there was something to judge; if not, the cell is to be prepared again.
    """
    files = folder.files.training
    outcome = read_outcome(files)
    if outcome is None:
        return False
    cell = Cell(folder, is_kept=True)
    record = _head(cell)
    # What trains no network begins from nothing.
    begun = cell.start if outcome.get("parameters") else None
    if begun is not None:
        record["start"] = begun
    warnings = [*cell.method.warnings(cell.problem), *start_warnings(begun)]
    record["warning"] = codes(warnings)
    record["warned"] = {warning.code: warning.sentence for warning in warnings}
    record |= outcome
    if outcome["status"] != "done":
        write_record(folder, record)
        return True
    measured = cell.measurements("train")
    averaged = None
    if outcome["measurements_sha256"] == measured.hash:
        averaged = cell.trainer.trained(
            cell.method,
            cell.problem,
            measured,
            cell.config["seed"],
            files.folder,
            training_identity(cell.config),
        )
    if averaged is None:
        text = f"'{files.folder}' holds no finished training on these measurements; trained again"
        tell([Notice(text, is_warning=True)])
        shutil.rmtree(files.folder)
        return False
    # What a method's code returns is asked for where no frame above it holds a clean image.
    prior = alone(partial(cell.method.prior, averaged))
    own = alone(partial(cell.method.routes_on_cpu, averaged))
    shared = None
    if prior is not None:
        prior.about = cell.about() | {
            **({} if begun is None else {"start": begun}),
            "measurements_sha256": measured.hash,
            "clean_images": len(cell.clean_index()),
            "costs": spent(outcome["training"], outcome["costs"]),
            "config": cell.config,
        }
        prior.save(folder.files.prior)
        name = cell.config["posterior"]["name"]
        shared = shared_route(name, prior, cell.posterior, cell.operator, cell.sampler)
    with progress.live():
        rows, pictures, notes = cell.protocol.evaluate(
            routes_of(shared, own, cell.method.has_gaps(cell.problem)),
            cell.data,
            cell.measurements("test"),
            cell.operator,
            folder.features,
            progress,
            trained=measured,
        )
    record["rows"] = [row.to_json() for row in rows]
    record["evaluation"] = notes
    if prior is not None:
        prior.about["metrics"] = measured_of(record["rows"])
        describe(folder.files.prior, prior.about, __version__)
    cell.trainer.log_metrics(files, record["rows"])
    add_use_costs(record, averaged, shared, own, cell.measurements("test"))
    write_tensors(folder.pictures, pictures, {OF: folder.identity.evaluation})
    write_record(folder, record)
    return True


def write_measurements(config: Config, path: Path) -> tuple[int, int]:
    """Write the measurements of a problem to a file that ``data=measurements`` reads.

    Arguments:
        config: A composed configuration; its method has no part in it.
        path: ``.npz``, ``.h5`` or ``.safetensors``.

    Returns:
        How many measurements are for training and how many are held out.
    """
    folder = CellFolder(path.parent, config)
    found = load_data(json.dumps(config["data"]), json.dumps(folder.identity.data))
    law = found.law if isinstance(found, MeasuredData) else None
    if law is not None and config["operator"]["name"] != law["name"]:
        # The reader of a scanner's files knows the operator.
        values = {k: v for k, v in law.items() if k != "name"}
        own = compose([f"operator={law['name']}"], {"operator": values})["operator"]
        folder = CellFolder(path.parent, {**config, "operator": own})
    cell = Cell(folder)
    scales = None
    if isinstance(cell.data, MeasuredData):
        splits = cell.data.train, cell.data.test
        scales = cell.data.scales
    else:
        instrument_noise.check_written(cell.operator)
        seed = config["data_seed"]
        splits = (
            Measurements.draw(cell.data.train, cell.operator, seed, "train", cell.truth),
            Measurements.draw(cell.data.test, cell.operator, seed, "test", cell.truth),
        )
    train, test = splits
    held = None if test.hash == train.hash else test  # of too few none is held out
    write_with(path, lambda staging: write_splits(staging, train, held, scales))
    return len(train), 0 if held is None else len(test)


def _head(cell: Cell) -> Record:
    """Return the part of a record that has nothing to do with training."""
    config = cell.config
    index = cell.clean_index()
    head: Record = {
        "data_seed": config["data_seed"],
        "config": cell.folder.config,
        "clean_images": len(index),
        "clean_ids_sha256": hashlib.sha256(index.numpy().tobytes()).hexdigest(),
        "image_shape": list(cell.data.image_shape),
        "train_images": len(cell.data.train),
        "data_notices": [notice.text for notice in cell.notices],
        "code": {"cleanprior": __version__, "method": cell.folder.code, "stages": dict(STAGES)},
        "operator_sha256": state_hash(cell.operator),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "status": Status("failed", "interrupted").to_json(),
    }
    return cast(Record, {**cell.about(), **head})


__all__ = [
    "Cell",
    "evaluate",
    "prepare",
    "run_cell",
    "run_together",
    "train",
    "write_measurements",
]
