"""One cell on a machine that somebody's engine has chosen, e.g. a node of a cluster. No torch."""

import os
import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..cells.record import is_finished, read_record, write_failure
from ..errors import StageFailed, UserError
from ..stopping import Stopped
from .drive import Todo, run_cell
from .fresh import new_workers
from .lease import Busy, held
from .workers import Event, Runner, TimedOut

#: Seconds until a cell that another process works on is looked at again.
WAIT = 2.0
#: Seconds that a cell waits after its processes were told to end and this one was not. A cluster
#: ends all processes of a job that it stops; it is at most so long between the first and the last.
PATIENCE = 120.0


@dataclass(frozen=True)
class Task:
    """What a machine is given.

    Attributes:
        cell: The cell; its folder lies where all machines see it.
        threads: Threads of its processes.
        timeout: Seconds for it, or None.
        retries: How often it is tried again after a failure, from its last checkpoint.
        place: The folder that relative paths begin in.
    """

    cell: Todo
    threads: int = 1
    timeout: float | None = None
    retries: int = 0
    place: Path = field(default_factory=Path.cwd)


def hand_over(cell: Todo) -> Todo:
    """Return a cell as any machine may begin it, any number of times.

    What is trained again is removed here, once: a machine that is lost and replaced goes on.
    """
    if not cell.is_forced:
        return replace(cell, out=cell.out.absolute())
    folder = cell.folder
    try:
        with held(folder.lock()):
            shutil.rmtree(folder.path, ignore_errors=True)
    except Busy:
        pass  # somebody trains it again at this moment
    return Todo(cell.label, cell.out.absolute(), cell.config)


class Node:
    """Works on one cell in processes of this machine, one a stage.

    Arguments:
        task: The cell.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._workers: Runner = new_workers()
        self._status: str | None = None
        self._error: BaseException | None = None

    def work(self) -> str:
        """Work on the cell until it is finished or has failed.

        The calling thread hears signals all the while.

        Returns:
            The status of its record.

        Raises:
            Stopped: :meth:`end` was called.
        """
        if self._task.place.is_dir():
            os.chdir(self._task.place)
        thread = threading.Thread(target=self._guarded, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)
        finally:
            self.end()
        if self._error is not None:
            raise self._error
        assert self._status is not None
        return self._status

    def end(self) -> None:
        """Have the state of the cell written, and its processes ended."""
        self._workers.end()

    def _guarded(self) -> None:
        try:
            self._status = self._work()
        except BaseException as error:  # raised again where the cell was asked for
            self._error = error

    def _work(self) -> str:
        task, tried = self._task, 0
        while True:
            folder = task.cell.folder  # now: a user's files may have changed meanwhile
            record = read_record(folder)
            if record is not None and is_finished(record):
                return str(record["status"])
            try:
                run_cell(self._workers, folder, task.threads, (), _unshown, timeout=task.timeout)
                record = read_record(folder)
                return "done" if record is None else str(record["status"])
            except Busy:
                time.sleep(WAIT)
            except Stopped:
                self._wait()
            except (UserError, StageFailed) as error:
                status = str(write_failure(folder, error)["status"])
                if tried >= task.retries or isinstance(error, UserError | TimedOut):
                    return status
                tried += 1

    def _wait(self) -> None:
        """Wait for the end of this process, too, or go on where none comes.

        Raises:
            Stopped: :meth:`end` was called.
        """
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self._workers.is_ending:
                raise Stopped
            time.sleep(0.2)


def _unshown(_: Event) -> None:
    """Take an event that nobody is there to see; how far a cell is stands in its folder."""
