"""Who works on a cell: a lock that dies with its owner, and a file that says who it is. No torch.

The lock is the operating system's (``flock``): a process that is killed loses it at once, so that
nothing has to be taken over from a dead owner. The file beside it is for people.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..environment import processes
from ..errors import UserError
from ..files import write_text
from ..outside import read_json

#: Seconds between two entries of the file that says how far a process is.
BEAT = 5.0
#: Seconds after which an entry is that of a process which is no more.
STALE = 60.0


class Busy(Exception):
    """Another process works on the cell."""


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Hold the lock of a cell inside the block.

    Raises:
        Busy: Another process holds it.
        UserError: The disk refuses it.
    """
    taken = FileLock(lock, timeout=0)
    try:
        taken.acquire()
    except Timeout as error:
        raise Busy(str(lock)) from error
    except OSError as error:
        raise UserError(f"cannot lock '{lock}': {error.strerror or error}") from error
    try:
        yield
    finally:
        taken.release()


@dataclass
class Beat:
    """What a process does on a cell.

    Attributes:
        stage: ``prepare``, ``train`` or ``evaluate``.
        phase: Part of it, as progress shows it.
        done: Steps of the phase that are done.
        total: Steps of the phase; 0 where they are not known.
        since: When the stage began, seconds since the epoch.
        began: When the phase began.
        first: Steps of the phase that an earlier process had done.
        time: When this was written.
        host: The machine's name.
        pid: The process.
        processes: How many train the cell together; this is the first.
    """

    stage: str
    phase: str
    done: int
    total: int
    since: float
    began: float
    first: int
    time: float
    host: str
    pid: int
    processes: int = 1

    @property
    def left(self) -> float | None:
        """Seconds until the phase ends at the rate so far; None where that is not known."""
        steps = self.done - self.first
        if steps < 1 or self.total < self.done:
            return None
        return (self.time - self.began) / steps * (self.total - self.done)

    @property
    def is_alive(self) -> bool:
        """Whether the process has said something of late, or is known to run on this machine."""
        if self.host == socket.gethostname():
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return False
            except PermissionError:
                return True
            return True
        return time.time() - self.time < STALE

    @classmethod
    def read(cls, path: Path) -> "Beat | None":
        """Return what a file says, or None where there is none that can be read."""
        try:
            found = cls(**read_json(path))
            numbers = (found.done, found.total, found.since, found.began, found.first, found.time)
            is_sound = all(isinstance(n, int | float) for n in (*numbers, found.pid))
            counts = (found.pid, found.processes)
            is_sound = is_sound and all(isinstance(n, int) and n > 0 for n in counts)
            return found if is_sound else None
        except (UserError, TypeError):
            return None


class Pulse:
    """Writes now and then what this process does on a cell.

    Arguments:
        path: The file; None writes nothing.
        stage: The stage.
    """

    def __init__(self, path: Path | None, stage: str) -> None:
        self._path, self._stage = path, stage
        self._since = self._began = time.time()
        self._phase, self._first, self._last = "", 0, 0.0
        self.tell("", 0, 0)

    def tell(self, phase: str, done: int, total: int) -> None:
        """Write how far the process is, unless it did so a moment ago."""
        now = time.time()
        if phase != self._phase:
            self._phase, self._began, self._first = phase, now, done
        if self._path is None or now - self._last < BEAT:
            return
        self._last = now
        beat = Beat(
            stage=self._stage,
            phase=phase,
            done=done,
            total=total,
            since=self._since,
            began=self._began,
            first=self._first,
            time=now,
            host=socket.gethostname(),
            pid=os.getpid(),
            processes=processes(),
        )
        write_text(self._path, json.dumps(asdict(beat)))

    def end(self) -> None:
        """Remove the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
