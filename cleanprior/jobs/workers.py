"""The processes that work on tasks, as whoever gives the tasks sees them. No torch."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Any

from ..errors import StageFailed, UserError
from ..stopping import Stopped
from .lease import Busy

Event = dict[str, Any]
#: Seconds that a process has to write its state before it is killed.
GRACE = 20.0


class TimedOut(StageFailed):
    """A cell took longer than it was given."""


@dataclass(frozen=True)
class Place:
    """Where a task is done, and what lies beside it.

    Attributes:
        threads: Threads of its process.
        gpu: The one CUDA device that the process sees, by number; None lets it see all.
        lock: The lock of the cell; None for a task that belongs to no cell.
        beat: Where the process says how far it is.
        log: Where its output and error streams go.
        error: Where a traceback goes.
    """

    threads: int = 1
    gpu: int | None = None
    lock: Path | None = None
    beat: Path | None = None
    log: Path | None = None
    error: Path | None = None


class Workers:
    """Processes that are forked from one that has loaded every library.

    Where the system has no ``fork``, a task is a new process that loads them again.
    """

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._queues: dict[int, queue.Queue[Event]] = {}
        self._count = 0
        self._guard = threading.Lock()
        self._is_ending = False

    def run(
        self,
        stage: str,
        request: Mapping[str, Any],
        place: Place,
        tell: Callable[[Event], None],
        until: float | None = None,
    ) -> Any:
        """Have a task done, and wait for it.

        Arguments:
            stage: Key of :data:`cleanprior.jobs.stages.STAGES`.
            request: Its request.
            place: Where.
            tell: Gets the events that progress is made of.
            until: When it is to be ended, in seconds of ``time.monotonic``; None for never.

        Returns:
            What the stage returned.

        Raises:
            UserError: The stage refused a value.
            StageFailed: It raised something else, or its process ended by itself.
            TimedOut: It took too long.
            Busy: Another process works on the cell.
            Stopped: It was asked to end.
        """
        number, events = self._begin(stage, request, place)
        process, last = 0, {}
        is_late = False
        while True:
            try:
                event = events.get(timeout=0.5)
            except queue.Empty:
                if until is not None and time.monotonic() > until:
                    self._signal(number, process, SIGKILL if is_late else SIGTERM)
                    is_late, until = True, time.monotonic() + GRACE
                continue
            kind = event["event"]
            if kind == "started":
                process = event["pid"]
            elif kind == "exit":
                break
            elif kind in ("result", "refused", "failed", "busy", "stopped"):
                last = event
            else:
                tell(event)
        with self._guard:
            del self._queues[number]
        if is_late:
            raise TimedOut("took longer than it was given (--timeout)")
        return _result(last, event)

    def end(self) -> None:
        """Ask all processes to write their state and end; what still waits raises Stopped."""
        with self._guard:
            self._is_ending = True
            server, self._server = self._server, None
        if server is None:
            return
        assert server.stdin is not None
        try:
            server.stdin.close()
            server.wait(timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            server.kill()

    def _begin(
        self, stage: str, request: Mapping[str, Any], place: Place
    ) -> tuple[int, "queue.Queue[Event]"]:
        with self._guard:
            if self._is_ending:
                raise Stopped
            self._count += 1
            number, events = self._count, queue.Queue[Event]()
            self._queues[number] = events
            task = {
                "task": number,
                "stage": stage,
                "request": request,
                "threads": place.threads,
                "gpu": place.gpu,
            }
            for name in ("lock", "beat", "log", "error"):
                path = getattr(place, name)
                task[name] = None if path is None else str(path.absolute())
            line = json.dumps(task).encode() + b"\n"
            server = self._server
            if server is None or server.poll() is not None:
                self._server = server = _start("server")
                threading.Thread(target=self._listen, args=(server,), daemon=True).start()
            assert server.stdin is not None
            try:
                server.stdin.write(line)
                server.stdin.flush()
            except OSError:
                pass  # it has just ended: told by the listener
            return number, events

    def _listen(self, server: "subprocess.Popen[bytes]") -> None:
        """Pass events on until a server is no more."""
        assert server.stdout is not None
        for line in server.stdout:
            event = json.loads(line)
            waiting = self._queues.get(event["task"])
            if waiting is not None:
                waiting.put(event)
        code = server.wait()
        with self._guard:
            left = list(self._queues.values())
        for waiting in left:
            waiting.put({"event": "exit", "code": code, "server": True})

    def _signal(self, number: int, process: int, which: Signals) -> None:
        """Send a signal to the process of a task."""
        server = self._server
        if server is None or server.stdin is None:
            return
        try:
            line = json.dumps({"end": number, "signal": int(which)}).encode() + b"\n"
            server.stdin.write(line)
            server.stdin.flush()
        except OSError:
            pass


def _result(last: Event, end: Event) -> Any:
    """Return what a task returned, or raise what became of it."""
    kind = last.get("event")
    if kind == "result":
        return last["value"]
    if kind == "refused":
        raise UserError(last["text"])
    if kind == "failed":
        raise StageFailed(last["text"])
    if kind == "busy":
        raise Busy
    if kind == "stopped":
        raise Stopped
    code = end.get("code", 0)
    if code < 0:
        name = Signals(-code).name
        what = " (out of memory?)" if -code == SIGKILL else ""
        raise StageFailed(f"its process was ended by {name}{what}")
    raise StageFailed(f"its process ended with exit code {code}")


def _start(module: str) -> "subprocess.Popen[bytes]":
    """Start a Python process of this package that no signal of the terminal reaches."""
    return subprocess.Popen(
        [sys.executable, "-m", f"cleanprior.jobs.{module}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=os.environ.copy(),
    )
