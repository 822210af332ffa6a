"""What an engine's jobs become: a line in the terminal, and a row of the table. No torch."""

import importlib.util
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cleanprior import stopping
from cleanprior.cells.record import read_record, write_failure
from cleanprior.config.checks import check_positive
from cleanprior.errors import StageFailed, UserError
from cleanprior.jobs.drive import Todo, check
from cleanprior.jobs.fresh import new_workers
from cleanprior.progress import Progress


def need(library: str) -> None:
    """Raise a helpful error where a library is not installed.

    Raises:
        UserError: It is not: the extra that installs it.
    """
    extra = {"submitit": "slurm"}.get(library, library)
    if importlib.util.find_spec(library) is None:
        raise UserError(
            f"the launcher '{extra}' needs {library}: pip install 'cleanprior[{extra}]'"
        )


_LEAST = {"gpus": 0, "requeues": 0, "retries": 0, "cpus": 1, "time": 1, "max_parallel": 1}
_ABOVE = ("memory", "timeout")


def check_keys(launcher: object) -> None:
    """Raise a :class:`ValueError` where a key that launchers share is outside of its range."""
    for name, least in _LEAST.items():
        if getattr(launcher, name, least) < least:
            raise ValueError(f"{name}={getattr(launcher, name)}; allowed: at least {least}")
    for name in _ABOVE:
        value = getattr(launcher, name, None)
        if value is not None:
            check_positive(name, value)


class Following:
    """Tells of the cells of an engine as they end.

    Arguments:
        todo: All cells.
        progress: Where it is told.
        is_stopping: Whether the first failure ends the benchmark.
    """

    def __init__(self, todo: Sequence[Todo], progress: Progress, is_stopping: bool) -> None:
        self._progress, self._is_stopping = progress, is_stopping
        self._total, self._ended = len(todo), 0
        self.is_over = False

    def ended(self, cell: Todo, status: str) -> None:
        """Tell that a cell has a record."""
        self._ended += 1
        self._progress.ended(cell)
        is_error = status.startswith("failed")
        self._progress.say(f"[{self._ended}/{self._total}] {cell.label}: {status}", is_error)
        if is_error:
            self._progress.say(f"  ({cell.folder.files.error})", is_error)
            self.is_over = self.is_over or self._is_stopping

    def lost(self, cell: Todo, reason: str) -> None:
        """Tell that an engine has lost a cell; unless it left a record, that is its row's status.

        Arguments:
            cell: The cell.
            reason: What the engine says, in a sentence.
        """
        record = read_record(cell.folder)
        if record is None or record["status"] != "done":
            record = write_failure(cell.folder, StageFailed(reason))
        self.ended(cell, str(record["status"]))


@contextmanager
def following(todo: Sequence[Todo], progress: Progress, is_stopping: bool) -> Iterator[Following]:
    """Check the cells, and hear Ctrl-C and SIGTERM inside the block.

    Raises:
        UserError: A value that a part refuses. Cells that are to have a GPU are not checked: this
            machine may have none. Or a cell that several processes are to train.
        Stopped: The process was asked to end.
    """
    if any(cell.processes > 1 for cell in todo):
        raise UserError(
            "--devices-per-cell is for --launcher local: a job of a cluster trains its cell in one "
            "process"
        )
    workers = new_workers()
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, stopping.raise_at_once)
    try:
        check(workers, [c for c in todo if c.config["training"]["device"] != "cuda"], progress)
        workers.end()
        yield Following(todo, progress, is_stopping)
    except KeyboardInterrupt:
        progress.say("stopping: what is under way is cancelled, and writes its state first")
        raise
    finally:
        workers.end()
        if before is not None:
            signal.signal(signal.SIGTERM, before)
