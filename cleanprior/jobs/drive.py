"""One cell from its configuration to its record, each stage in a process of its own. No torch."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..cells.folder import CellFolder
from ..config import Config
from ..errors import StageFailed, one_line
from ..fingerprint import known
from ..progress import Progress, Task
from .ranks import processes_of, run_ranks
from .workers import Event, Place, Runner

#: Side of images up to which one thread is as good as several: convolutions of 8x8 and 16x16
#: images gain 1.26 and 1.41 from a second thread, two trainings side by side 2.
SMALL = 16
#: Seconds between two lines about a phase where no terminal is.
INTERVAL = 60.0


@dataclass(frozen=True)
class Todo:
    """A cell to be trained and evaluated.

    Attributes:
        label: How progress names it.
        out: Folder of all runs.
        config: Its composed configuration.
        is_forced: Whether what is there is trained again.
        has_failed: Whether it was tried before.
    """

    label: str
    out: Path
    config: Config
    is_forced: bool = False
    has_failed: bool = False

    @property
    def processes(self) -> int:
        """How many processes train it together."""
        return processes_of(self.config)

    @property
    def folder(self) -> CellFolder:
        """Its folder, by what a user's files hold now."""
        return CellFolder(self.out, self.config)


def run_cell(
    workers: Runner,
    folder: CellFolder,
    threads: int,
    gpus: Sequence[int],
    tell: Callable[[Event], None],
    is_forced: bool = False,
    timeout: float | None = None,
) -> None:
    """Prepare, train and evaluate a cell; what is done already is found again.

    Arguments:
        workers: Processes.
        folder: The cell.
        threads: Threads that it may take; processes that train it together share them, and where
            images are small each has one.
        gpus: The CUDA devices it sees; none for all.
        tell: Gets the events that progress is made of.
        is_forced: Remove what an earlier training left.
        timeout: Seconds for all three stages, or None.

    Raises:
        UserError: A stage refused a value.
        StageFailed: It raised something else, its process died, or it took too long.
        Busy: Another process works on the cell.
        Stopped: The processes were asked to end.
    """
    files = folder.files
    place = Place(
        threads,
        tuple(gpus),
        lock=folder.lock(),
        beat=files.beat,
        log=files.log,
        error=files.error,
    )
    until = None if timeout is None else time.monotonic() + timeout
    request: Mapping[str, Any] = {
        "out": str(folder.out.absolute()),
        "config": folder.config,
        "known": known(),
    }
    for _ in range(3):
        asked = {**request, "force": is_forced}
        state, shape = workers.run("prepare", asked, place, tell, until)
        is_forced = False
        if state == "refused":
            return
        if max(shape[1:]) <= SMALL:
            place = replace(place, threads=1)
        if state == "ready":
            # The folder of the job, and not the runs that it lies in.
            asked = {"folder": str(files.training.folder.absolute())}
            count = processes_of(folder.config)
            shared = replace(place, threads=max(1, place.threads // count))
            run_ranks(workers, "train", asked, shared, count, tell, until)
        if workers.run("evaluate", request, place, tell, until):
            return
    raise StageFailed("its training is damaged each time that it is evaluated")


def check(workers: Runner, todo: Sequence[Todo], progress: Progress) -> dict[int, int]:
    """Have a value that a part refuses told before the first cell is trained.

    Returns:
        The rounds of each cell's training, by the cell's ``id``: what has more takes longer.

    Raises:
        UserError: There is one.
    """
    asked: dict[str, list[Todo]] = {}
    for cell in todo:
        asked.setdefault(str(cell.out.absolute()), []).append(cell)
    rounds: dict[int, int] = {}
    for out, cells in asked.items():
        shown = Shown(progress, "")
        request = {"out": out, "configs": [cell.config for cell in cells], "known": known()}
        try:
            found = workers.run("check", request, Place(threads=1), shown)
        except StageFailed:
            continue  # a constructor that ends its process: its row says so
        rounds |= {id(cell): count for cell, count in zip(cells, found, strict=True)}
    return rounds


class Log:
    """What is written to the end of a file from now on.

    Arguments:
        path: The file; it may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._rest = path, b""
        self._read = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        """Return the whole lines that are new, without what would move a terminal's cursor."""
        try:
            with self._path.open("rb") as file:
                is_longer = self._path.stat().st_size >= self._read
                file.seek(self._read if is_longer else 0)  # else the folder was made anew
                *found, self._rest = (self._rest + file.read()).split(b"\n")
                self._read = file.tell()
        except OSError:
            self._read = 0
            return []
        return [one_line(line.decode("utf-8", "replace")) for line in found]


class Shown:
    """Shows the events of one cell in the progress of all.

    Arguments:
        progress: Of all cells.
        label: The cell's name.
        short: Its name beside a bar, which has little room; None takes the same.
        log: What its processes print, shown where progress is to have it; None for nothing.
    """

    def __init__(
        self,
        progress: Progress,
        label: str,
        short: str | None = None,
        log: Path | None = None,
    ) -> None:
        self._log = Log(log) if log is not None and progress.has_logs else None
        is_bar = progress.bars is not None and short is not None
        self._progress, self._label = progress, short if is_bar else label
        self._tasks: dict[str, Task] = {}
        self._began: dict[str, tuple[float, float]] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._tell_log()
        kind, phase = event["event"], event.get("phase", "")
        if kind == "say":
            self._progress.say(event["text"])
        elif kind == "notice":
            from ..notices import Notice, tell

            tell([Notice(event["text"], event["is_warning"])])
        elif kind == "begin":
            now = time.monotonic()
            self._began[phase] = now, now
            task = Task(self._progress, f"{self._label}: {phase}", event["total"], is_line=False)
            self._tasks[phase] = task
        elif phase in self._tasks:
            task = self._tasks[phase]
            task.advance(event["done"] - task.done, event.get("note", ""))
            self._line(task, phase, kind == "end", event.get("note", ""))
            if kind == "end":
                self._tasks.pop(phase).close()

    def close(self) -> None:
        """Take what is left away, of a process that ended early."""
        self._tell_log()
        for task in self._tasks.values():
            task.close()
        self._tasks.clear()

    def _tell_log(self) -> None:
        for line in self._log.lines() if self._log is not None else ():
            self._progress.say(f"  {self._label} | {line}")

    def _line(self, task: Task, phase: str, is_over: bool, note: str) -> None:
        """Say how far a phase is, where there are no bars: at its end, and once a minute."""
        if self._progress.bars is not None:
            return
        now, (began, told) = time.monotonic(), self._began[phase]
        if is_over and now - began > 2:
            self._progress.say(f"  {task.phase}: {task.done}/{task.total} in {now - began:.0f} s")
        elif not is_over and now - told > INTERVAL:
            self._began[phase] = began, now
            left = (now - began) * (task.total - task.done) / max(task.done, 1)
            self._progress.say(
                f"  {task.phase}: {task.done}/{task.total}, {left:.0f} s left {note}"
            )
