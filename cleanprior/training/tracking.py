"""A training's run in a tracker of experiments, which is accelerate's own: one run a training.

Everything is written below the training's folder, and nothing leaves the machine unless the
environment says so: WandB is offline unless ``WANDB_MODE`` is set, MLflow writes to a file unless
``MLFLOW_TRACKING_URI`` is.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..cells.folder import TrainingFiles
from ..environment import hidden_from_accelerate
from ..files import write_text
from ..notices import Notice, tell
from ..outside import read_json
from .report import TrainingReport

#: What ``training.tracker`` may be.
TRACKERS = ("none", "tensorboard", "wandb", "mlflow")
#: How all runs are called together: WandB's project, MLflow's experiment, TensorBoard's folder.
PROJECT = "cleanprior"


def check_installed(name: str) -> None:
    """Refuse a tracker that is not there.

    Raises:
        ValueError: Its package is not installed.
    """
    if name != "none" and find_spec(name) is None:
        raise ValueError(
            f"tracker={name} is not installed; run: pip install 'cleanprior[{name}]', "
            "or set training.tracker=none"
        )


class Tracking:
    """Logs one training to a tracker; without one, or in a process that is not the first, nothing.

    Arguments:
        name: One of :data:`TRACKERS`.
        accelerator: That of the training.
        files: Of the training's folder; None logs nothing.
        title: How a person knows the run.
    """

    def __init__(
        self, name: str, accelerator: Accelerator, files: TrainingFiles | None, title: str = ""
    ) -> None:
        is_on = name != "none" and files is not None and accelerator.is_main_process
        self.files = files if is_on else None
        self.name, self._title = name, title
        self._is_cpu = accelerator.device.type == "cpu"
        self._logger: Accelerator | None = None
        self._before = (0, 0.0)

    @contextmanager
    def running(self, step: int | None = None) -> Iterator["Tracking"]:
        """Open the training's run inside the block: a new one, or the one that is there.

        Arguments:
            step: The step from which on training logs (again); None where it does not.
        """
        if self.files is None:
            yield self
            return
        try:
            self._open(self.files.tracked.absolute(), step)
        except Exception as error:
            self._give_up(error)
        try:
            yield self
        finally:
            # Not end_training(): the processes of this training are not done with each other.
            trackers = () if self._logger is None else self._logger.trackers
            try:
                for tracker in trackers:
                    tracker.finish()
            except Exception as error:
                self._give_up(error)
            self._logger = None

    def _open(self, folder: Path, step: int | None) -> None:
        """Open the run; see :meth:`running`."""
        folder.mkdir(parents=True, exist_ok=True)
        with hidden_from_accelerate():
            logger = Accelerator(cpu=self._is_cpu, log_with=self.name, project_dir=str(folder))
        logger.init_trackers(PROJECT, init_kwargs={self.name: self._arguments(folder, step)})
        self._logger = logger
        self._remember()

    def _give_up(self, error: Exception) -> None:
        """Log no more, and say why: a server or a disk that fails ends no training."""
        self._logger = None
        why = " ".join(f"{type(error).__name__}: {error}".split())
        text = f"{self.name} failed, and nothing more is logged; the training goes on ({why})"
        tell([Notice(text, is_warning=True)])

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Log numbers by name; what is none is left out.

        Arguments:
            values: Numbers, or lists of them of which the last counts, or such values by name.
            step: Optimiser steps of the budgeted network so far.
        """
        if self._logger is not None and (kept := dict(_numbers(values))):
            try:
                self._logger.log(kept, step=step)
            except Exception as error:
                self._give_up(error)

    def log_steps(
        self, losses: Mapping[str, float], rate: float, number: int, report: TrainingReport, k: int
    ) -> None:
        """Log a moment of a training.

        Arguments:
            losses: The loss and its parts.
            rate: The learning rate.
            number: Of the round, from 0.
            report: What was spent so far.
            k: Steps so far, over all rounds.
        """
        if self._logger is None:
            return
        images, seconds = self._before
        self._before = report.images, report.seconds.get("training", 0.0)
        more = {"learning_rate": rate, "round": number}
        if self._before[1] > seconds:
            more["images_per_second"] = (self._before[0] - images) / (self._before[1] - seconds)
        self.log({**losses, **more}, k)

    def begin(self, report: TrainingReport) -> None:
        """Count images a second from here on: what an earlier process did is no part of it."""
        self._before = report.images, report.seconds.get("training", 0.0)

    def _arguments(self, folder: Path, step: int | None) -> dict[str, Any]:
        """Return what the tracker's class is given beside the project's name."""
        known = self._known()
        if self.name == "wandb":
            mode = os.environ.get("WANDB_MODE", "offline")
            named = {"name": self._title} if self._title else {}
            resumed = {"id": known, "resume": "allow"} if known else {}
            return {"dir": str(folder), "mode": mode, **named, **resumed}
        if self.name == "mlflow":
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            if "MLFLOW_TRACKING_URI" not in os.environ:
                import mlflow

                mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
            kept = {"run_id": known} if known else {"run_name": self._title or None}
            return {"logging_dir": (folder / "artifacts").as_uri(), **kept}
        # What was logged after the state that training goes on from is logged again.
        return {} if step is None else {"purge_step": step}

    def _known(self) -> str | None:
        """Return which run the tracker gave the training before, or None."""
        assert self.files is not None
        try:
            found = read_json(self.files.tracked_run)[self.name]
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return found if isinstance(found, str) else None

    def _remember(self) -> None:
        """Keep which run the tracker has given the training."""
        assert self.files is not None and self._logger is not None
        run = self._logger.get_tracker(self.name, unwrap=True)
        found = run.info.run_id if self.name == "mlflow" else getattr(run, "id", None)
        if isinstance(found, str):
            write_text(self.files.tracked_run, json.dumps({self.name: found}))


def _numbers(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers among values, by names that every tracker takes."""
    for key, value in values.items():
        name = above + re.sub(r"[^\w\-. /]", "", str(key))
        last = value[-1] if isinstance(value, list) and value else value
        if isinstance(last, Mapping):
            yield from _numbers(last, f"{name}/")
        elif isinstance(last, Real):
            yield name, float(last)
