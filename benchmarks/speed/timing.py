"""Times that another process disturbs least: CPU seconds of one thread, interleaved, medians."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cleanprior.progress import Progress

#: Seconds of each repeat.
Seconds = Sequence[float] | NDArray[np.float64]


@dataclass
class Section:
    """One table of the command.

    Attributes:
        name: Of its files.
        title: What was timed, and in which unit.
        frame: One line a row, numbers as numbers.
        notes: What a reader must know.
        points: Columns of a plot (x, y, what a point is called), or None.
        is_timed: Whether its numbers are seconds.
    """

    name: str
    title: str
    frame: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    points: tuple[str, str, str] | None = None
    is_timed: bool = True


@dataclass(frozen=True)
class Bench:
    """How things are timed.

    Attributes:
        device: Where.
        repeats: How often each thing is timed.
        progress: Where to show progress.
    """

    device: torch.device
    repeats: int
    progress: Progress

    def clock(self) -> float:
        """Return seconds: of a GPU by the wall once it is idle, else of this process's CPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def interleaved(
        self, title: str, runs: Mapping[str, Callable[[], Any]]
    ) -> dict[str, NDArray[np.float64]]:
        """Time several things in turn, so that a change of the machine meets all of them.

        Arguments:
            title: How progress calls it.
            runs: What is timed, by name; each is called once before.

        Returns:
            Seconds of each repeat, by name.
        """
        found: dict[str, list[float]] = {name: [] for name in runs}
        with self.progress.task(title, len(runs) * (self.repeats + 1)) as task:
            for number in range(self.repeats + 1):
                for name, run in runs.items():
                    start = self.clock()
                    run()
                    if number:  # the first time loads and compiles
                        found[name].append(self.clock() - start)
                    task.advance()
        return {name: np.array(seconds) for name, seconds in found.items()}


def ratio(seconds: Seconds, of: Seconds) -> tuple[float, float]:
    """Return the median ratio of paired repeats, and half of their middle half's width."""
    found = np.asarray(seconds, float) / np.asarray(of, float)
    low, high = np.quantile(found, [0.25, 0.75])
    return float(np.median(found)), float(high - low) / 2


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return b of the fit ``seconds = a * size**b``."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def machine_rates(bench: Bench) -> dict[str, float]:
    """Return FLOP/s of a large matrix product and of a large convolution, best of the repeats."""
    x, w = torch.randn(768, 768, device=bench.device), torch.randn(768, 768, device=bench.device)
    image = torch.randn(8, 64, 64, 64, device=bench.device)
    kernel = torch.randn(64, 64, 3, 3, device=bench.device)
    with torch.no_grad():
        seconds = bench.interleaved(
            "rates of this machine",
            {
                "matmul": lambda: x @ w,
                "conv": lambda: torch.nn.functional.conv2d(image, kernel, padding=1),
            },
        )
    flops = {"matmul": 2 * 768**3, "conv": 2 * 8 * 64 * 64 * 64 * 64 * 9}
    return {name: flops[name] / float(seconds[name].min()) for name in flops}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use some threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
