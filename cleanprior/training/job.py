"""A training described by one folder: whoever has that folder can train, and sees nothing else.

The folder holds the configuration without its data set, the measurements, and the clean images
that the method is entitled to. No truth, no loader of it and no path to it is in the process that
trains: only :mod:`cleanprior.cells.run` puts the folder together and judges what comes out of it.
"""

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .. import __version__
from ..cells.code import method_code
from ..cells.costs import training_costs
from ..cells.folder import TrainingFiles
from ..cells.identity import STAGES, training_identity
from ..cells.reading import read_sealed, sealed
from ..cells.record import Record, training_code
from ..config import Config, build, recompose
from ..data.instrument_noise import with_noise
from ..data.measurement_files import read_measurements, write_measurements
from ..data.measurements import Measurements
from ..defaults import exact_products, plain_tensors
from ..diffusion.backbones import parameter_count
from ..environment import known
from ..errors import UserError
from ..files import write_text
from ..hashed import Damaged
from ..notices import Notice, tell
from ..operators.base import ImageShape
from ..operators.building import build_operator
from ..progress import Progress
from ..starts import SCHEDULER, Start, read_start
from .checkpoint import read_tensors, write_tensors
from .method import Method
from .trainer import Trainer

LIBRARIES = ("torch", "deepinv", "azula", "normflows", "accelerate", "torchmetrics", "numpy")
#: Stands for the data set in the configuration of a job.
NO_DATA = {"name": "measurements"}


@dataclass(frozen=True)
class Job:
    """What a training is given.

    Attributes:
        config: The cell's configuration without its data set.
        image_shape: (channels, height, width).
        has_law: Whether the operator is as the measurements show it
            (:meth:`cleanprior.operators.base.Operator.with_law_of`).
        measurements: What the method learns from.
        clean: The clean images that it is entitled to, or None.
    """

    config: Config
    image_shape: ImageShape
    has_law: bool
    measurements: Measurements
    clean: Tensor | None

    def write(
        self, files: TrainingFiles, stored: Path | None = None, first: Path | None = None
    ) -> None:
        """Write the job into its folder.

        Arguments:
            files: Of the folder.
            stored: A file of the same measurements, which is linked instead of copied.
            first: The checkpoint of a finished first stage, or None.

        Raises:
            UserError: The disk refuses a write.
        """
        files.measurements.unlink(missing_ok=True)
        if stored is None or not _linked(stored, files.measurements):
            write_measurements(files.measurements, self.measurements)
        files.first_stage.unlink(missing_ok=True)
        if first is not None:
            _linked(first, files.first_stage)  # where it cannot be, it is trained again
        if self.clean is not None:
            write_tensors(files.clean, {"x": self.clean}, {})
        given = self.config["training"].get("start")
        if given is not None:
            _copy_start(read_start(given), files.start)
        described = {
            "config": {**{k: v for k, v in self.config.items() if k != "truth"}, "data": NO_DATA},
            "image_shape": list(self.image_shape),
            "has_law": self.has_law,
            "clean_images": 0 if self.clean is None else len(self.clean),
        }
        write_text(files.job, sealed(described))

    @classmethod
    def read(cls, files: TrainingFiles) -> "Job":
        """Read a job from its folder.

        Raises:
            UserError: It is not whole.
        """
        try:
            described = read_sealed(files.job)
            channels, height, width = (int(v) for v in described["image_shape"])
            count, has_law = int(described["clean_images"]), bool(described["has_law"])
            remembered = described["config"]
        except Damaged:
            raise
        except (ValueError, LookupError, TypeError) as error:
            raise Damaged(f"'{files.job}' is damaged: {error}") from error
        clean = read_tensors(files.clean)[0]["x"] if count else None
        config = recompose(remembered, str(files.job))
        if config["training"].get("start") is not None:
            # The copy, whose content and so whose identity is the same.
            config["training"]["start"] = str(files.start)
        measured = read_measurements(files.measurements)
        return cls(config, (channels, height, width), has_law, measured, clean)

    @plain_tensors()
    def train(self, files: TrainingFiles, progress: Progress) -> Record:
        """Train the method, or go on from the folder's checkpoint.

        Returns:
            The training's part of a record, which is also written to the folder. What the job was
            given is removed once the training has ended.
        """
        exact_products()
        config = self.config
        operator = build_operator(config["operator"], self.image_shape, config["data_seed"])
        operator = with_noise(config, operator)
        if self.has_law:
            operator = operator.with_law_of(self.measurements.params)
        operator = operator.with_levels_of(self.measurements.sigma_y)
        trainer: Trainer = build(config["training"])
        method: Method = build(config["method"])
        problem = trainer.problem(operator, config)
        outcome = _surroundings(trainer)
        code = training_code(files, method_code(config))
        outcome["code"] = {"cleanprior": __version__, "method": code, "stages": dict(STAGES)}
        with progress.live():
            averaged, report = trainer.fit(
                method,
                problem,
                self.measurements,
                config["seed"],
                files.folder,
                self.clean,
                progress,
                training_identity(config),
            )
        outcome |= {
            "status": report.status,
            "measurements_sha256": self.measurements.hash,
            "training": report.__dict__,
            "parameters": {k: parameter_count(n) for k, n in averaged.items()},
            "costs": training_costs(report),
        }
        if trainer.accelerator.is_main_process:
            write_text(files.outcome, sealed(outcome))
            for given in (files.clean, files.measurements, files.first_stage):
                given.unlink(missing_ok=True)
            shutil.rmtree(files.start, ignore_errors=True)
        return cast(Record, outcome)


def read_outcome(files: TrainingFiles) -> Record | None:
    """Return how a training ended, or None where it has not, or nobody can tell."""
    if not files.outcome.exists():
        return None
    try:
        found = read_sealed(files.outcome)
        if found["status"] != "diverged" and not isinstance(found["measurements_sha256"], str):
            raise TypeError("measurements_sha256")
        return cast(Record, found)
    except (Damaged, LookupError, TypeError) as error:
        told = error if isinstance(error, Damaged) else f"'{files.outcome}' is damaged: {error}"
        tell([Notice(f"{told}; the training is taken up again", is_warning=True)])
        return None


def _surroundings(trainer: Trainer) -> dict[str, Any]:
    """Return where a training takes place."""
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            libraries[name] = "absent"
    return {
        "libraries": libraries,
        "device": str(trainer.device),
        "precision": str(trainer.autocast or torch.float32).removeprefix("torch."),
        "processes": trainer.accelerator.num_processes,
        "environment": known(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
    }


def _copy_start(start: Start, to: Path) -> None:
    """Copy what a training begins from into its folder; the process that trains sees no other.

    Raises:
        UserError: The disk refuses it.
    """
    shutil.rmtree(to, ignore_errors=True)
    network = start.files[0].parent
    for file in start.files:
        # A scheduler stands beside the network's folder, not in it.
        is_beside = file.parent != network
        kept = to / SCHEDULER if is_beside else to / file.name
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, kept)
        except OSError as error:
            raise UserError(f"cannot write '{kept}': {error.strerror or error}") from error


def _linked(source: Path, target: Path) -> bool:
    """Make a second name of a file; return False where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        try:
            shutil.copyfile(source, target)
        except OSError:
            return False
    return True
