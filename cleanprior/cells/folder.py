"""Every path below a folder of runs. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..config import Config
from ..errors import UserError
from .code import method_code
from .fields import NamesOf
from .identity import Identity


@dataclass(frozen=True)
class TrainingFiles:
    """What lies in the folder of a training: the job that it was given, and what it has computed.

    The process that trains knows no other folder.

    Attributes:
        folder: The folder.
    """

    folder: Path

    @property
    def job(self) -> Path:
        """The configuration of the training, without a data set."""
        return self.folder / "job.json"

    @property
    def measurements(self) -> Path:
        """The measurements that the method learns from."""
        return self.folder / "measurements.safetensors"

    @property
    def clean(self) -> Path:
        """The clean images that the method is entitled to; none for most methods."""
        return self.folder / "clean.safetensors"

    @property
    def start(self) -> Path:
        """The folder of the prior that the training begins from; none for most."""
        return self.folder / "start"

    @property
    def first_stage(self) -> Path:
        """The finished training of another method that this one begins with; none for most."""
        return self.folder / "first_stage.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The state of the training, to go on from; of a finished one, its averaged networks."""
        return self.folder / "checkpoint.safetensors"

    @property
    def rounds(self) -> Path:
        """The folder of what E-steps have computed."""
        return self.folder / "round"

    @property
    def snapshots(self) -> Path:
        """The folder of averaged weights that were kept while the training went on."""
        return self.folder / "snapshots"

    @property
    def code(self) -> Path:
        """The hash of the method's code when the training began."""
        return self.folder / "code.txt"

    @property
    def tracked(self) -> Path:
        """The folder of what a tracker of experiments keeps of the training."""
        return self.folder / "tracker"

    @property
    def tracked_run(self) -> Path:
        """Which of the tracker's runs is the training's."""
        return self.tracked / "run.json"

    @property
    def outcome(self) -> Path:
        """How the training ended and what it spent: its part of the record."""
        return self.folder / "outcome.json"


@dataclass(frozen=True)
class CellFiles:
    """What lies in a cell's own folder.

    Attributes:
        folder: The cell's folder.
    """

    folder: Path

    @property
    def training(self) -> TrainingFiles:
        """What belongs to the training alone, in a folder of its own."""
        return TrainingFiles(self.folder / "training")

    @property
    def snapshot_table(self) -> Path:
        """What the snapshots' samples are worth, as CSV."""
        return self.folder / "snapshots.csv"

    @property
    def snapshot_plot(self) -> Path:
        """The same as a picture."""
        return self.folder / "snapshots.png"

    @property
    def prior(self) -> Path:
        """The folder of the prior; a method without a denoiser leaves none."""
        return self.folder / "prior"

    @property
    def error(self) -> Path:
        """The traceback of the last failure."""
        return self.folder / "error.txt"

    @property
    def log(self) -> Path:
        """What the processes of the cell wrote on their output and error streams."""
        return self.folder / "log.txt"

    @property
    def beat(self) -> Path:
        """Which process works on the cell, and at which step it was a moment ago."""
        return self.folder / "running.json"

    def record(self, evaluation: str) -> Path:
        """Return the record of one way to evaluate the cell, by its identity."""
        return self.folder / f"record-{evaluation}.json"

    def records(self) -> dict[str, Path]:
        """Return the records that are there, by the identity of their evaluation."""
        found = sorted(self.folder.glob("record-*.json"))
        return {path.stem.removeprefix("record-"): path for path in found}


@dataclass(frozen=True)
class CellFolder:
    """A cell's place below a folder of runs; every path is computed from two hashes, each once.

    Build one where a cell's turn comes, not before: a user's files are read for the hashes, and
    what changes in them afterwards is another cell.

    Attributes:
        out: Folder of all runs.
        config: The cell's composed configuration.
    """

    out: Path
    config: Config

    @cached_property
    def identity(self) -> Identity:
        """What tells the cell from others."""
        return Identity(self.config)

    @cached_property
    def code(self) -> str:
        """The hash of the installed code of the cell's method."""
        return method_code(self.config)

    @property
    def names(self) -> NamesOf:
        """The names of the cell's method, operator and data set."""
        method, operator, data = (self.config[k]["name"] for k in ("method", "operator", "data"))
        return {"method": method, "operator": operator, "data": data}

    @property
    def name(self) -> str:
        """The name of the cell's folder; it holds the hash of what defines its training."""
        return self.name_of(self.identity.training)

    def name_of(self, training: str) -> str:
        """Return the name of the cell's folder if its training had this identity."""
        names = self.names
        parts = (names["data"], names["operator"], names["method"], str(self.config["seed"]))
        return "-".join([*parts, training])

    @property
    def path(self) -> Path:
        """The cell's own folder: one for each training."""
        return self.cells / self.name

    @property
    def files(self) -> CellFiles:
        """What lies in the cell's own folder."""
        return CellFiles(self.path)

    @property
    def record(self) -> Path:
        """The record: one for each way in which the cell was evaluated."""
        return self.files.record(self.identity.evaluation)

    @property
    def pictures(self) -> Path:
        """The pictures that belong to the record."""
        return self.pictures_of(self.name, self.identity.evaluation)

    def pictures_of(self, name: str, evaluation: str) -> Path:
        """Return the pictures of a cell's folder of this name, in one evaluation.

        They show held-out clean images beside the restorations, so they lie outside of the cell's
        folder, which a method's code may read.
        """
        return self.out / "pictures" / f"{name}-{evaluation}.safetensors"

    @property
    def cells(self) -> Path:
        """The folder of all cells' folders."""
        return self.out / "cells"

    @property
    def features(self) -> Path:
        """The folder of classifiers and statistics that all cells of a data set share."""
        return self.out / "features"

    def engine(self, name: str) -> Path:
        """Return the folder of what an engine that runs cells elsewhere writes of its jobs."""
        return self.out / "launchers" / name

    def lock(self, name: str | None = None) -> Path:
        """Return the lock of whoever works on the cell, or on what has the given name.

        Its folder is made.

        Raises:
            UserError: The disk refuses it.
        """
        folder = self.out / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make '{folder}': {error.strerror}") from error
        return folder / f"{name or self.name}.lock"

    def measurements(self, split: str, identity: str) -> Path:
        """Return the measurements of a split, shared by all methods, by their identity."""
        return self.out / "measurements" / f"{split}-{identity}.safetensors"


def cells_below(out: Path) -> Iterator[CellFiles]:
    """Yield the folders of all cells below a folder of runs."""
    yield from (CellFiles(folder) for folder in sorted((out / "cells").glob("*/")))
