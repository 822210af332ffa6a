"""Live progress: phase, step, steps a second, time left. Plain lines where no terminal is."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from . import stopping


class Task:
    """One phase with a known number of steps.

    Arguments:
        progress: Where it is shown.
        phase: Its name.
        total: Its steps.
        is_line: Whether it is told as lines where no terminal is.
    """

    def __init__(self, progress: "Progress", phase: str, total: int, is_line: bool = True) -> None:
        self._progress, self._is_line = progress, is_line
        self.phase = phase
        self.total = total
        self.done = 0
        self._start = self._told = time.monotonic()
        self._bar = None
        if progress.bars is not None:
            self._bar = progress.bars.add_task(phase, total=total, rate="", note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Tell that ``steps`` more are done; ``note`` is shown beside the bar (e.g. the loss).

        Raises:
            Stopped: The process was asked to end.
        """
        stopping.check()
        self.done += steps
        now = time.monotonic()
        rate = self.done / max(now - self._start, 1e-9)
        if self._bar is not None and self._progress.bars is not None:
            self._progress.bars.update(
                self._bar,
                advance=steps,
                rate=f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s",
                note=note,
            )
        elif self._is_line and now - self._told > self._progress.interval:
            self._told = now
            left = (self.total - self.done) / max(rate, 1e-9)
            self._progress.say(
                f"  {self.phase}: {self.done}/{self.total}, {rate:.1f}/s, {left:.0f} s left {note}"
            )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None and self._progress.bars is not None:
            self._progress.bars.remove_task(self._bar)


class Progress:
    """Shows the phases of a run.

    Arguments:
        console: Where to write; None for silence.
        interval: Seconds between plain lines where the console is no terminal.
        is_quiet: Show errors alone.
        has_logs: Show what cells print, too.
    """

    def __init__(
        self,
        console: Console | None = None,
        interval: float = 10.0,
        is_quiet: bool = False,
        has_logs: bool = False,
    ) -> None:
        self.console = console
        self.is_quiet, self.has_logs = is_quiet, has_logs
        self.interval = interval
        self.bars: RichProgress | None = None
        #: Called with each cell that has ended, one at a time.
        self.ended: Callable[[Any], None] = lambda cell: None

    @property
    def is_verbose(self) -> bool:
        """Whether anything is shown at all."""
        return self.console is not None

    def say(self, line: str, is_error: bool = False) -> None:
        """Print a line above the bars; where it is quiet, errors alone."""
        if self.console is not None and (is_error or not self.is_quiet):
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    @contextmanager
    def live(self) -> Iterator["Progress"]:
        """Show bars inside the block when the console is a terminal."""
        if self.console is None or self.is_quiet or not self.console.is_terminal:
            yield self
            return
        columns = (  # names and notes hold brackets, which are no markup
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with RichProgress(*columns, console=self.console, transient=True) as bars:
            self.bars = bars
            yield self
        self.bars = None

    @contextmanager
    def task(self, phase: str, total: int) -> Iterator[Task]:
        """Open a phase of ``total`` steps."""
        task = Task(self, phase, total)
        try:
            yield task
        finally:
            task.close()
