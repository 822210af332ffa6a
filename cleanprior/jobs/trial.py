"""What a cell will take, by a few steps of it."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cells.folder import CellFolder
from ..cells.run import Cell
from ..config import build
from ..data.datasets import CleanData
from ..data.measurements import Measurements
from ..defaults import plain_tensors
from ..prior import Prior
from ..progress import Progress
from ..training.report import TrainingReport
from ..training.trainer import Trainer

#: Steps of the trial, and measurements that it is done on: one chunk of an E-step.
STEPS = 20
MEASUREMENTS = 64
#: Seconds of E-steps from which they are done on twice as many, to tell what each costs.
LONG = 1.0
#: Images that are restored and drawn.
IMAGES = 16


@plain_tensors()
def trial(folder: CellFolder, progress: Progress) -> dict[str, Any]:
    """Train a cell for a few steps on a few measurements, and say what all of it will take.

    Nothing is written below the folder of runs. What grows with the measurements (E-steps) is
    scaled to all of them, what grows with the budget to all steps. Seconds are those of CPU, which
    nothing else on the machine disturbs.

    Arguments:
        folder: Where the cell would lie.
        progress: Where to show progress.

    Returns:
        ``refused`` with the reason, or ``seconds``, ``memory_mb`` and ``disk_mb``.
    """
    cell = Cell(folder)
    reason = cell.refusal()
    if reason is not None:
        return {"refused": reason}
    everything = len(cell.data.train)
    few = min(MEASUREMENTS, everything)
    report, prior, disk = _train(cell, few, progress)
    steps = max(1, cell.method.spent(report.steps))
    seconds = report.cpu_seconds.get("training", 0.0) * cell.trainer.steps / steps
    spent = report.cpu_seconds.get("E-step", 0.0)
    if spent > LONG and everything > 2 * few:
        # What a round costs whatever it is done on, and what each measurement adds.
        more, _, _ = _train(Cell(folder), 2 * few, progress)
        each = max(more.cpu_seconds.get("E-step", 0.0) - spent, 0.0) / few
        spent += each * (everything - few)
    seconds += spent
    if prior is not None:
        seconds += _use(cell, prior)
    return {"seconds": seconds, "memory_mb": report.memory_mb.get("cpu"), "disk_mb": disk / 2**20}


def _train(cell: Cell, n: int, progress: Progress) -> tuple[TrainingReport, Prior | None, float]:
    """Train for a few steps on n measurements; return what that took, the prior, and bytes.

    The bytes are those of a checkpoint and of all measurements.
    """
    measured = _measured(cell, n)
    clean = None
    if isinstance(cell.data, CleanData) and len(wanted := cell.clean_index()):
        whole = len(wanted) == len(cell.data.train)
        clean = cell.data.train[:n] if whole else cell.data.train[wanted]
    training = cell.config["training"]
    short = {"budget": STEPS * training["batch"], "processes": 1, "snapshots": 0, "tracker": "none"}
    trainer: Trainer = build({**training, **short})
    with tempfile.TemporaryDirectory() as name:
        averaged, report = trainer.fit(
            cell.method,
            cell.problem,
            measured,
            cell.config["seed"],
            Path(name),
            clean,
            progress,
        )
        disk: float = sum(f.stat().st_size for f in Path(name).rglob("*.safetensors"))
    held = sum(v.nbytes for v in measured.tensors().values())
    disk += held * len(cell.data.train) / n
    return report, cell.method.prior(averaged), disk


def _measured(cell: Cell, n: int) -> Measurements:
    """Return the first n measurements; nothing is stored."""
    if isinstance(cell.data, CleanData):
        x = cell.data.train[:n]
        return Measurements.draw(x, cell.operator, cell.config["data_seed"], "train")
    return cell.data.train[:n]


def _use(cell: Cell, prior: Prior) -> float:
    """Return the seconds of all restorations and samples of an evaluation."""
    protocol, k = cell.protocol, min(IMAGES, len(cell.data.train))
    restorations = min(protocol.test_images, len(cell.data.test)) * protocol.draws
    samples = protocol.samples * len(protocol.sampling_seeds)
    some = _measured(cell, k)
    return (
        _seconds(lambda: prior.restore(some, cell.operator, cell.posterior, 0)) / k * restorations
        + _seconds(lambda: prior.sample(k, cell.sampler, 0)) / k * samples
    )


def _seconds(use: Callable[[], Any]) -> float:
    begin = time.process_time()
    use()
    return time.process_time() - begin
