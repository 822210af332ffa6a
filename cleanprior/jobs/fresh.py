"""A new process for each task, for systems that cannot fork one that is loaded. No torch."""

import os
import queue
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from json import loads
from typing import Any

from ..stopping import Stopped
from .workers import Event, Place, Runner, Workers, follow, start, task_line


class Fresh:
    """Processes that load every library again, each for one task."""

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self._is_ending = False

    @property
    def is_ending(self) -> bool:
        """Whether :meth:`end` was called."""
        return self._is_ending

    def run(
        self,
        stage: str,
        request: Mapping[str, Any],
        place: Place,
        tell: Callable[[Event], None],
        until: float | None = None,
        over: threading.Event | None = None,
    ) -> Any:
        """See :meth:`cleanprior.jobs.workers.Runner.run`."""
        with self._guard:
            if self._is_ending:
                raise Stopped
            process = start("worker")
            self._processes.add(process)
        events: queue.Queue[Event] = queue.Queue()
        assert process.stdin is not None
        with suppress(OSError, ValueError):  # it has ended, or was asked to: told by its exit code
            process.stdin.write(task_line(0, stage, request, place))
            process.stdin.flush()
        threading.Thread(target=_listen, args=(process, events), daemon=True).start()
        try:
            return follow(events, tell, until, process.send_signal, over)
        finally:
            with self._guard:
                self._processes.discard(process)
                _close(process)

    def end(self) -> None:
        """Ask all processes to write their state and end; what still waits raises Stopped."""
        with self._guard:
            self._is_ending = True
            left = list(self._processes)
            for process in left:
                _close(process)
        for process in left:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def _close(process: "subprocess.Popen[bytes]") -> None:
    """Close the input of a process, which tells it to end."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()


def _listen(process: "subprocess.Popen[bytes]", events: "queue.Queue[Event]") -> None:
    """Pass events on until a process is no more."""

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                events.put(loads(line))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    code = process.wait()
    reader.join(5.0)  # a process that it has left behind may hold the pipe
    events.put({"event": "exit", "code": code})


def new_workers() -> Runner:
    """Return what does tasks on this system: forks of one loaded process, where it can fork."""
    return Workers() if hasattr(os, "fork") else Fresh()
