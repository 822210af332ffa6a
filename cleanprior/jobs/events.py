"""What a worker tells while it works: lines of JSON on a pipe, each short enough to be whole."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..notices import logger
from ..progress import Progress, Task
from .lease import Pulse

#: A pipe takes a line of up to this many bytes as a whole, whoever else writes (POSIX's PIPE_BUF).
WHOLE = 4000
#: Seconds between two lines about one phase.
INTERVAL = 0.2


class Sender:
    """Writes events of one task.

    Arguments:
        descriptor: Where they go.
        task: The number of the task, which stands in each.
    """

    def __init__(self, descriptor: int, task: int) -> None:
        self._descriptor, self._task = descriptor, task

    def send(self, event: str, **values: Any) -> None:
        """Write an event; texts that are too long are cut."""
        line = self._line(event, values)
        if len(line) > WHOLE:
            cut = {k: v[:500] if isinstance(v, str) else v for k, v in values.items()}
            line = self._line(event, cut)
        with suppress(OSError):  # nobody listens any more: the task is told to end by a signal
            os.write(self._descriptor, line)

    def _line(self, event: str, values: dict[str, Any]) -> bytes:
        return json.dumps({"task": self._task, "event": event, **values}).encode() + b"\n"


class SentTask(Task):
    """A phase whose steps are told to the process that shows them."""

    def __init__(self, progress: "SentProgress", phase: str, total: int) -> None:
        super().__init__(progress, phase, total, is_line=False)
        self._sender, self._pulse = progress.sender, progress.pulse
        self._sent = 0.0
        self._sender.send("begin", phase=phase, total=total)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Tell that ``steps`` more are done."""
        super().advance(steps, note)
        now = time.monotonic()
        if now - self._sent >= INTERVAL or self.done == self.total:
            self._sent = now
            self._sender.send("steps", phase=self.phase, done=self.done, note=note)
            self._pulse.tell(self.phase, self.done, self.total)

    def close(self) -> None:
        """Tell that the phase is over."""
        self._sender.send("end", phase=self.phase, done=self.done)


class SentProgress(Progress):
    """Progress that another process shows.

    Arguments:
        sender: Where it is told.
        pulse: Where it is kept for whoever asks from outside.
    """

    def __init__(self, sender: Sender, pulse: Pulse) -> None:
        super().__init__(None)
        self.sender, self.pulse = sender, pulse

    def say(self, line: str, is_error: bool = False) -> None:  # noqa: ARG002
        """Have a line printed."""
        self.sender.send("say", text=line)

    @contextmanager
    def task(self, phase: str, total: int) -> Iterator[Task]:
        """Open a phase of ``total`` steps."""
        task = SentTask(self, phase, total)
        try:
            yield task
        finally:
            task.close()


class SentNotices(logging.Handler):
    """Has the other process tell what a user should know of the data."""

    def __init__(self, sender: Sender) -> None:
        super().__init__()
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        """Send one notice."""
        is_warning = record.levelno >= logging.WARNING
        self._sender.send("notice", text=record.getMessage(), is_warning=is_warning)


def send_notices(sender: Sender) -> None:
    """Send notices from now on, and show none here."""
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [SentNotices(sender)]
    logger.propagate = False
