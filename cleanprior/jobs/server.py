"""A process that has loaded every library and knows no data: it forks one process a task.

A line of JSON on its input is a task (:func:`cleanprior.jobs.worker.work`), or ``{"end": task,
"signal": number}``. Events come out on its output, and ``{"task": ..., "event": "exit"}`` when the
process of a task is no more, whatever became of it. Where the input ends, whoever gave the tasks is
gone, and the processes are asked to end.
"""

import gc
import json
import os
import selectors
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from ..environment import take_precision_away
from .worker import Task, to_log, watch, work

#: Libraries that a stage loads when it begins; loaded here once.
LOADED = (
    "accelerate",
    "azula.nn.unet",
    "cleanprior.cells.run",
    "deepinv",
    "normflows",
    "scipy.linalg",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.neighbors",
    "torchmetrics.image",
)
#: Seconds that processes have to write their state once whoever gave the tasks is gone.
GRACE = 30.0


class _Server:
    """The loop that takes tasks and tells of processes that have ended."""

    def __init__(self, events: int) -> None:
        self._events = events
        self._tasks: dict[int, int] = {}  # by process
        self._rest = b""
        # A child reads the first; it ends when this process is gone, in whatever way.
        self._alive, self._living = os.pipe()
        self._woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> Task | None:
        """Take tasks until the input ends. In the process of a task, return it."""
        selector = selectors.DefaultSelector()
        selector.register(0, selectors.EVENT_READ)
        selector.register(self._woken, selectors.EVENT_READ)
        is_open = True
        while is_open:
            for key, _ in selector.select(timeout=5.0):
                if key.fd == self._woken:
                    self._drain()
                    continue
                given = os.read(0, 1 << 16)
                is_open = bool(given)
                *lines, self._rest = (self._rest + given).split(b"\n")
                for line in lines:
                    task = self._take(json.loads(line))
                    if task is not None:
                        selector.close()
                        return task
            self._reap()
        self._end_all()
        return None

    def _drain(self) -> None:
        try:
            while os.read(self._woken, 1 << 10):
                pass
        except BlockingIOError:
            pass

    def _take(self, given: Any) -> Task | None:
        """Begin a task, or pass a signal on."""
        if "end" in given:
            for process, task in self._tasks.items():
                if task == given["end"]:
                    os.kill(process, given["signal"])
            return None
        process = os.fork()
        if process:
            self._tasks[process] = given["task"]
            return None
        # Nothing of the tasks of others, nor of the loop, is known in this process.
        self._rest = b""
        os.close(self._living)
        os.close(self._woken)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        watch(self._alive)
        return given

    def _reap(self) -> None:
        """Tell of processes that have ended."""
        while self._tasks:
            process, status, used = os.wait4(-1, os.WNOHANG)
            if process == 0:
                return
            told = {
                "task": self._tasks.pop(process),
                "event": "exit",
                "code": os.waitstatus_to_exitcode(status),
                "cpu_seconds": used.ru_utime + used.ru_stime,
                "memory_mb": used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
            }
            with suppress(OSError):  # nobody listens any more
                os.write(self._events, json.dumps(told).encode() + b"\n")

    def _end_all(self) -> None:
        """Ask all processes to end, and see to it that they do."""
        for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5.0)):
            for process in self._tasks:
                os.kill(process, number)
            until = time.monotonic() + seconds
            while self._tasks and time.monotonic() < until:
                time.sleep(0.05)
                self._reap()


def _load() -> None:
    """Load what stages need."""
    import importlib

    import torch

    torch.set_num_threads(1)  # a fork gets no threads
    for name in LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is shared with the processes stays shared


def main() -> None:
    """Serve; in the process of a task, do it."""
    events = os.dup(1)
    os.dup2(2, 1)
    take_precision_away()
    _load()
    task = _Server(events).serve()
    if task is None:
        return
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    to_log(task["log"])
    code = work(task, events)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the server's own endings are not this process's


if __name__ == "__main__":
    main()
