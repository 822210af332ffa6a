"""The processes that work on tasks, as whoever gives the tasks sees them. No torch."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any, Protocol

from ..errors import PeerLost, StageFailed, UserError
from ..stopping import Stopped
from .lease import Busy

Event = dict[str, Any]
#: Seconds that a process has to write its state before it is killed.
GRACE = 20.0
#: What ends a process at once, on any system.
KILL = getattr(signal, "SIGKILL", SIGTERM)
#: What a cluster tells all processes of a job that it will end; heard by the one that began it.
NOTICES = tuple(getattr(signal, n) for n in ("SIGUSR1", "SIGUSR2") if hasattr(signal, n))


#: Seconds in which the others of those that train together end by themselves, before they are
#: killed, once one of them has failed.
PATIENCE = 5.0


class TimedOut(StageFailed):
    """A cell took longer than it was given."""


class Died(StageFailed):
    """A process ended without a word."""


@dataclass(frozen=True)
class Rank:
    """One of the processes that train a cell together.

    Attributes:
        index: Which of them it is; the first holds the cell's lock and writes its files.
        count: How many there are.
        port: Of this machine, where the first one waits for the others.
    """

    index: int
    count: int
    port: int


@dataclass(frozen=True)
class Place:
    """Where a task is done, and what lies beside it.

    Attributes:
        threads: Threads of its process.
        gpus: The CUDA devices that the process sees, by number; none lets it see all.
        rank: Which of the processes that train together it is; None for one that is alone.
        lock: The lock of the cell; None for a task that belongs to no cell.
        beat: Where the process says how far it is.
        log: Where its output and error streams go.
        error: Where a traceback goes.
    """

    threads: int = 1
    gpus: tuple[int, ...] = ()
    rank: Rank | None = None
    lock: Path | None = None
    beat: Path | None = None
    log: Path | None = None
    error: Path | None = None


class Runner(Protocol):
    """Has tasks done by other processes."""

    @property
    def is_ending(self) -> bool:
        """Whether :meth:`end` was called."""
        ...

    def run(
        self,
        stage: str,
        request: Mapping[str, Any],
        place: Place,
        tell: Callable[[Event], None],
        until: float | None = None,
        over: threading.Event | None = None,
    ) -> Any:
        """Have a task done, and wait for it.

        Arguments:
            stage: Key of :data:`cleanprior.jobs.stages.STAGES`.
            request: Its request.
            place: Where.
            tell: Gets the events that progress is made of.
            until: When it is to be ended, in seconds of ``time.monotonic``; None for never.
            over: Where it is set the process is killed, unless it ends by itself within
                :data:`PATIENCE`; None for never.

        Returns:
            What the stage returned.

        Raises:
            UserError: The stage refused a value.
            StageFailed: It raised something else, or its process ended by itself.
            TimedOut: It took too long.
            PeerLost: A process that it trains with is gone.
            Busy: Another process works on the cell.
            Stopped: It was asked to end.
        """
        ...

    def end(self) -> None:
        """Ask all processes to write their state and end; what still waits raises Stopped."""
        ...


class Workers:
    """Processes that are forked from one that has loaded every library."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._queues: dict[int, queue.Queue[Event]] = {}
        self._count = 0
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
        """See :meth:`Runner.run`."""
        number, events = self._begin(stage, request, place)
        try:
            return follow(events, tell, until, lambda which: self._signal(number, which), over)
        finally:
            with self._guard:
                del self._queues[number]

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
            line = task_line(number, stage, request, place)
            server = self._server
            if server is None or server.poll() is not None:
                self._server = server = start("server")
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
        with server.stdout as lines:
            for line in lines:
                event = json.loads(line)
                waiting = self._queues.get(event["task"])
                if waiting is not None:
                    waiting.put(event)
        code = server.wait()
        with self._guard:
            left = list(self._queues.values())
        for waiting in left:
            waiting.put({"event": "exit", "code": code, "server": True})

    def _signal(self, number: int, which: Signals) -> None:
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


def task_line(number: int, stage: str, request: Mapping[str, Any], place: Place) -> bytes:
    """Return a task as the line that a process reads."""
    task: dict[str, Any] = {
        "task": number,
        "stage": stage,
        "request": request,
        "threads": place.threads,
        "gpus": place.gpus,
        "rank": None if place.rank is None else asdict(place.rank),
    }
    for name in ("lock", "beat", "log", "error"):
        path = getattr(place, name)
        task[name] = None if path is None else str(path.absolute())
    return json.dumps(task).encode() + b"\n"


def follow(
    events: "queue.Queue[Event]",
    tell: Callable[[Event], None],
    until: float | None,
    send: Callable[[Signals], None],
    over: threading.Event | None = None,
) -> Any:
    """Pass the events of a task on until its process is no more.

    Arguments:
        events: Of the task; the last is ``exit``.
        tell: Gets those that progress is made of.
        until: When the process is to be ended; None for never.
        send: Sends a signal to it.
        over: Where it is set the process is killed, soon.

    Returns:
        What the stage returned; raises as :meth:`Runner.run`.
    """
    last: Event = {}
    is_late, is_killed, soon = False, False, None
    while True:
        try:
            event = events.get(timeout=0.5)
        except queue.Empty:
            event = {"event": "started"}  # nothing new
        kind = event["event"]
        if kind == "exit":
            break
        now = time.monotonic()
        if until is not None and now > until:
            send(KILL if is_late else SIGTERM)
            is_late, until = True, now + GRACE
        if over is not None and over.is_set():
            soon = soon or now + PATIENCE
            if now > soon:
                send(KILL)
                is_killed, soon = True, now + GRACE
        if kind in ("result", "refused", "failed", "lost", "busy", "stopped"):
            last = event
        elif kind != "started":
            tell(event)
    if is_killed:
        raise PeerLost("it was ended, because a process that it trains with has failed")
    if is_late:
        raise TimedOut("took longer than it was given (--timeout)")
    return _result(last, event)


def _result(last: Event, end: Event) -> Any:
    """Return what a task returned, or raise what became of it."""
    kind = last.get("event")
    if kind == "result":
        return last["value"]
    if kind == "refused":
        raise UserError(last["text"])
    if kind == "failed":
        raise StageFailed(last["text"])
    if kind == "lost":
        raise PeerLost(last["text"])
    if kind == "busy":
        raise Busy
    if kind == "stopped":
        raise Stopped
    code = end.get("code", 0)
    if code < 0:
        name = Signals(-code).name
        what = " (out of memory?)" if -code == KILL else ""
        raise Died(f"its process was ended by {name}{what}")
    raise Died(f"its process ended with exit code {code}")


@contextmanager
def _unheard() -> Iterator[None]:
    """Have what is started inside the block hear none of :data:`NOTICES`, which end a process."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(module: str) -> "subprocess.Popen[bytes]":
    """Start a Python process of this package that no signal of the terminal reaches."""
    with _unheard():
        return subprocess.Popen(
            [sys.executable, "-m", f"cleanprior.jobs.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=os.environ.copy(),
        )
