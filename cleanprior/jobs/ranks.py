"""One task in several processes that train together: one result, one error. No torch."""

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..config import Config
from ..errors import PeerLost
from ..stopping import Stopped
from .lease import Busy
from .workers import Died, Event, Place, Rank, Runner, TimedOut


def processes_of(config: Config) -> int:
    """Return how many processes train a cell together."""
    return int(config["training"].get("processes") or 1)


def in_processes(count: int) -> str:
    """Return what is added where a cell is told; nothing for one process."""
    return f", in {count} processes" if count > 1 else ""


def run_ranks(
    workers: Runner,
    stage: str,
    request: Mapping[str, Any],
    place: Place,
    count: int,
    tell: Callable[[Event], None],
    until: float | None = None,
) -> Any:
    """Have a task done by several processes together, and wait for all of them.

    The first one holds the lock and is the one that is shown. Where one fails the others are killed
    unless they end by themselves.

    Arguments:
        workers: Processes.
        stage: See :meth:`cleanprior.jobs.workers.Runner.run`.
        request: The same for all.
        place: The same for all, but for lock and beat; each sees all GPUs and takes its own.
        count: How many.
        tell: Gets the events of the first.
        until: When all are to be ended, or None.

    Returns:
        What the stage returned in the first process; raises as ``Runner.run``. Of several errors it
        is the one that the others come from.
    """
    if count == 1:
        return workers.run(stage, request, place, tell, until)
    over, errors, port = threading.Event(), list[BaseException](), free_port()
    result: list[Any] = []

    def work(index: int) -> None:
        own = replace(place, rank=Rank(index, count, port))
        try:
            if index:
                own = replace(own, lock=None, beat=None)
                workers.run(stage, request, own, _unheard, until, over)
                return
            result.append(workers.run(stage, request, own, tell, until, over))
            over.set()
        except Stopped as error:  # all were asked, and the first may still write its state
            errors.append(error)
            if index == 0:
                over.set()
        except BaseException as error:  # raised again below, in the thread that has asked
            errors.append(error)
            over.set()

    others = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(1, count)]
    for other in others:
        other.start()
    work(0)
    for other in others:
        other.join()
    if result:
        return result[0]
    raise cause(errors)


def cause(errors: Sequence[BaseException]) -> BaseException:
    """Return the error that the others come from: the first of the kind that explains most.

    Arguments:
        errors: Of all processes, in the order in which they were heard.
    """
    for kind in (Busy, TimedOut, Stopped, Died):
        if found := [error for error in errors if isinstance(error, kind)]:
            return found[0]
    return next((error for error in errors if not isinstance(error, PeerLost)), errors[0])


def _unheard(_: Event) -> None:
    """Take an event that the first process tells, too."""


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
