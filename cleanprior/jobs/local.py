"""Cells side by side on this machine. No torch."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from .. import stopping
from ..cells.record import is_finished, read_record, write_failure
from ..environment import processes
from ..errors import StageFailed, UserError
from ..progress import Progress
from .drive import Shown, Todo, check, run_cell
from .fresh import new_workers
from .lease import Beat, Busy
from .machine import cores, gpus, room
from .ranks import in_processes
from .workers import TimedOut

#: Takes the place of ``jobs=auto`` where it is set.
VARIABLE = "CLEANPRIOR_JOBS"
#: Seconds until a cell that another process works on is looked at again.
WAIT = 2.0
#: Processes that may train a cell together on any machine without GPUs: one core can try two.
LEAST = 2


@dataclass(frozen=True)
class Local:
    """Processes of this machine.

    Arguments:
        jobs: Cells at a time, each in a process of its own; 0 runs all in this process, one after
            the other, for a debugger: then training is not kept apart from clean images. ``auto``
            takes as many as there are cores, memory and cells for; with GPUs, one for each. Where
            several processes train a cell together it takes as many cores, or GPUs.
        devices: CUDA devices by number, one a process that trains; ``auto`` takes all that this
            process sees.
        timeout: Seconds for a cell, after which it is a failed row; None for no limit.
        retries: How often a cell that failed is tried again, from its last checkpoint.
        is_stopping: Whether the first failure ends the benchmark.

    Raises:
        ValueError: A value outside its range.
    """

    jobs: int | str = "auto"
    devices: Sequence[int] | str = "auto"
    timeout: float | None = None
    retries: int = 0
    is_stopping: bool = False

    def __post_init__(self) -> None:
        if self.jobs != "auto" and not (isinstance(self.jobs, int) and self.jobs >= 0):
            raise UserError(f"jobs={self.jobs}; allowed: auto, or a count from 0")
        if self.devices != "auto" and not _are_devices(self.devices):
            raise UserError(f"devices={self.devices}; allowed: auto, or numbers from 0")
        if self.timeout is not None and not self.timeout > 0:
            raise UserError(f"timeout={self.timeout}; allowed: seconds above 0")
        if self.retries < 0:
            raise UserError(f"retries={self.retries}; allowed: a count from 0")

    def run(self, todo: Sequence[Todo], progress: Progress) -> None:
        """Train and evaluate cells; what one of them raises is the status of its row.

        Raises:
            UserError: A value that a part refuses, or fewer GPUs than a cell is to have: told
                before the first cell is trained.
            Stopped: The process was asked to end; checkpoints are written.
        """
        if processes() > 1:
            raise UserError(
                "a benchmark starts processes of its own, and a launcher has started "
                f"{processes()} of it; start one, or give each a share: --part 1/{processes()}"
            )
        count = self.count(todo)
        if count == 0:
            _run_here(todo, progress, self.is_stopping)
            return
        groups = self._groups(todo)
        slots = [groups[i % len(groups)] if groups else () for i in range(count)]
        _Pool(self, slots, max(1, cores() // count)).run(todo, progress)

    def count(self, todo: Sequence[Todo]) -> int:
        """Return how many cells are worked on at a time; 0 for one by one in this process."""
        given = self.jobs
        if given == "auto" and os.environ.get(VARIABLE, "").isdecimal():
            given = int(os.environ[VARIABLE])
        groups, together = self._groups(todo), _together(todo)
        if together > 1 and given == 0:
            raise UserError(
                f"training.processes={together}, and jobs=0 (--jobs or {VARIABLE}) runs all in "
                "this process; allowed: 1"
            )
        if given != "auto":
            return min(int(given), len(todo))
        places = len(groups) or cores() // together
        return max(1, min(places, room() // together, len(todo)))

    def _groups(self, todo: Sequence[Todo]) -> list[tuple[int, ...]]:
        """Return the CUDA devices that each cell under way may use.

        Raises:
            UserError: A cell is to have more than there are, of these or, without any, of cores.
        """
        found, together = self._gpus(todo), _together(todo)
        if found and len(found) < together:
            raise UserError(
                f"{together} devices for each cell, and there {_are(len(found))}; allowed: at most "
                "as many, or training.device=cpu"
            )
        if not found and together > (most := max(LEAST, cores())):
            raise UserError(
                f"training.processes={together}, and this machine has {cores()} cores; allowed: at "
                f"most {most}"
            )
        starts = range(0, len(found) - together + 1, together)
        return [tuple(found[k : k + together]) for k in starts]

    def _gpus(self, todo: Sequence[Todo]) -> list[int]:
        """Return the CUDA devices that cells may use."""
        if all(cell.config["training"]["device"] == "cpu" for cell in todo):
            return []
        there = gpus()
        if self.devices == "auto":
            return there
        chosen = [int(d) for d in self.devices]
        for device in chosen:
            if device not in there:
                raise UserError(f"devices={device}; there are: {there or 'none'}")
        return chosen


def _together(todo: Sequence[Todo]) -> int:
    """Return how many processes train a cell together, at most."""
    return max((cell.processes for cell in todo), default=1)


def _are(count: int) -> str:
    return "is 1 CUDA device" if count == 1 else f"are {count} CUDA devices"


def _are_devices(given: object) -> bool:
    """Whether a value lists CUDA devices."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        return False
    return bool(given) and all(isinstance(d, int) and d >= 0 for d in given)


def _run_here(todo: Sequence[Todo], progress: Progress, is_stopping: bool) -> None:
    """Run cells one after the other in this process."""
    from ..cells.run import Cell
    from ..cells.run import run_cell as run_here

    for cell in todo:
        try:
            Cell(cell.folder)
        except UserError:
            raise
        except Exception:
            continue  # no value's fault: it comes again below, where it becomes a row
    for number, cell in enumerate(todo, 1):
        folder = cell.folder  # now: a user's files may have changed meanwhile
        if not cell.is_forced and is_finished(read_record(folder)):
            progress.ended(cell)  # by another process, since this one began
            continue
        progress.say(f"[{number}/{len(todo)}] {cell.label}")
        try:
            run_here(folder, progress, cell.is_forced)
            has_failed = False
        except Exception as error:
            # The boundary of a cell: what a method, a file or a disk raises is its row's status.
            status = write_failure(folder, error)["status"]
            progress.say(f"  {cell.label} {status} ({folder.files.error})", is_error=True)
            has_failed = True
        progress.ended(cell)
        if has_failed and is_stopping:
            return


class _Pool:
    """Slots that take cells one after the other."""

    def __init__(self, options: Local, slots: Sequence[tuple[int, ...]], threads: int) -> None:
        self._options, self._slots = options, slots
        given = os.environ.get("OMP_NUM_THREADS", "")
        self._threads = min(threads, int(given)) if given.isdecimal() and int(given) else threads
        self._workers = new_workers()
        self._guard = threading.Lock()
        self._waiting: deque[tuple[int, Todo, int]] = deque()
        self._is_over = False
        self._error: BaseException | None = None

    def run(self, todo: Sequence[Todo], progress: Progress) -> None:
        """Run cells in all slots."""
        self._total = len(todo)
        before = None
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, stopping.raise_at_once)
        threads = [
            threading.Thread(target=self._slot, args=(gpus, progress), daemon=True)
            for gpus in self._slots
        ]
        try:
            rounds = check(self._workers, todo, progress)
            ordered = list(todo)
            if len(self._slots) > 1:
                # The longest first, so that none is left alone at the end.
                ordered.sort(key=lambda cell: (cell.has_failed, -rounds.get(id(cell), 0)))
            self._waiting.extend((number, cell, 0) for number, cell in enumerate(ordered, 1))
            with progress.live():
                for thread in threads:
                    thread.start()
                for thread in threads:
                    while thread.is_alive():
                        thread.join(0.2)
        except KeyboardInterrupt:
            progress.say("stopping: the state of what is under way is written first")
            raise
        finally:
            self._is_over = True
            self._workers.end()
            if before is not None:
                signal.signal(signal.SIGTERM, before)
        if self._error is not None:
            raise self._error

    def _slot(self, gpus: tuple[int, ...], progress: Progress) -> None:
        """Take cells until there are none."""
        while not self._is_over:
            with self._guard:
                if not self._waiting:
                    return
                number, cell, tried = self._waiting.popleft()
            try:
                self._cell(number, cell, tried, gpus, progress)
            except stopping.Stopped:
                return
            except BaseException as error:  # ours: told by the main thread
                self._error, self._is_over = error, True
                return

    def _cell(
        self, number: int, cell: Todo, tried: int, gpus: tuple[int, ...], progress: Progress
    ) -> None:
        """Work on one cell, or put it back where another process does."""
        folder = cell.folder  # now: a user's files may have changed meanwhile
        if not cell.is_forced and is_finished(read_record(folder)):
            self._ended(cell, progress)  # by another process, since this one began
            return
        if tried >= 0:
            told = cell.label + in_processes(cell.processes)
            progress.say(f"[{number}/{self._total}] {told}")
        short = f"[{number}] {folder.names['method']}"
        shown = Shown(progress, cell.label, short, folder.files.log)
        try:
            timeout = self._options.timeout
            is_forced = cell.is_forced and tried == 0
            run_cell(self._workers, folder, self._threads, gpus, shown, is_forced, timeout)
            self._ended(cell, progress)
        except Busy:
            self._wait(number, cell, tried, progress)
        except (UserError, StageFailed) as error:
            is_last = tried >= self._options.retries or isinstance(error, UserError | TimedOut)
            status = write_failure(folder, error)["status"]
            progress.say(f"  {cell.label} {status} ({folder.files.error})", is_error=True)
            if not is_last:
                with self._guard:
                    self._waiting.append((number, cell, tried + 1))
                return
            self._ended(cell, progress)
            self._is_over = self._is_over or self._options.is_stopping
        finally:
            shown.close()

    def _ended(self, cell: Todo, progress: Progress) -> None:
        with self._guard:
            progress.ended(cell)

    def _wait(self, number: int, cell: Todo, tried: int, progress: Progress) -> None:
        """Put a cell back that another process works on."""
        if tried >= 0:
            beat = Beat.read(cell.folder.files.beat)
            who = f" ({beat.host}, process {beat.pid})" if beat is not None else ""
            progress.say(f"  {cell.label}: another process works on it{who}")
        with self._guard:
            is_alone = not self._waiting
            self._waiting.append((number, cell, -1))
        if is_alone:
            time.sleep(WAIT)
