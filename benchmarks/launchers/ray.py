"""Cells as tasks of Ray, on its cluster or on this machine. No torch."""

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cleanprior.errors import UserError
from cleanprior.jobs.drive import Todo
from cleanprior.jobs.node import Node, Task, hand_over
from cleanprior.progress import Progress

from .following import Following, check_keys, following, need

#: What Ray on this machine is to do otherwise: it would tell its makers of its use, and its workers
#: give way to any other process (a niceness of 15), beside which they hardly move.
PRIVATE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


def work(task: Task) -> str:
    """Work on a cell; return its status."""
    return Node(task).work()


@dataclass(frozen=True)
class Ray:
    """Tasks of Ray; see ``configs/launcher/ray.yaml`` for units.

    Raises:
        ValueError: A value outside its range.
        UserError: Ray is not installed.
    """

    address: str | None = None
    gpus: float = 0.0
    cpus: int = 1
    memory: float | None = None
    requeues: int = 10
    max_parallel: int = 64
    timeout: float | None = None
    retries: int = 0
    is_stopping: bool = False

    def __post_init__(self) -> None:
        check_keys(self)
        need("ray")

    def count(self, todo: Sequence[Todo]) -> int:
        """Return how many cells are worked on at a time."""
        return min(self.max_parallel, len(todo))

    def run(self, todo: Sequence[Todo], progress: Progress) -> None:
        """Train and evaluate cells; what one of them raises is the status of its row.

        Raises:
            UserError: There is no such cluster, or a value that a part refuses.
            Stopped: The process was asked to end; the tasks are cancelled.
        """
        with following(todo, progress, self.is_stopping) as told, _connected(self.address):
            self._run(todo, told)

    def _run(self, todo: Sequence[Todo], told: Following) -> None:
        import ray

        needed: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory is not None:
            needed["memory"] = int(self.memory * 2**30)
        remote = ray.remote(max_retries=self.requeues, **needed)(work)
        waiting, running = deque(todo), dict[Any, Todo]()
        try:
            while (waiting or running) and not told.is_over:
                while waiting and len(running) < self.max_parallel:
                    cell = hand_over(waiting.popleft())
                    task = Task(cell, self.cpus, self.timeout, self.retries)
                    running[remote.remote(task)] = cell
                ended, _ = ray.wait(list(running), timeout=1.0)
                for reference in ended:
                    cell = running.pop(reference)
                    try:
                        told.ended(cell, ray.get(reference))
                    except ray.exceptions.RayError as error:
                        lines = str(error).strip().splitlines() or [type(error).__name__]
                        told.lost(cell, f"its task of Ray left no result: {lines[-1]}")
        finally:
            for reference in running:
                ray.cancel(reference)
            if running:  # they write their state
                ray.wait(list(running), num_returns=len(running), timeout=60.0)


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster inside the block; to the one that the caller has, if any."""
    import ray

    if ray.is_initialized():
        yield
        return
    if address is None:
        for name, value in PRIVATE.items():
            os.environ.setdefault(name, value)
    try:
        ray.init(
            address,
            include_dashboard=False if address is None else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"launcher.address={address}: {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()
