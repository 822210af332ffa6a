"""What a person waits for before anything is computed: seconds of commands, beside Python's own."""

import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd

from .timing import Bench, Section

#: What is timed, by its arguments behind ``python``.
COMMANDS = {
    "python": ("-c", "pass"),
    "import cleanprior": ("-c", "import cleanprior"),
    "import torch": ("-c", "import torch"),
    "--help": ("-m", "cleanprior", "--help"),
    "list": ("-m", "cleanprior", "list"),
    "a wrong value": ("-m", "cleanprior", "train", "operator.p=abc"),
    "a wrong name": ("-m", "cleanprior", "bench", "--methods", "ambiet"),
}


def startup(bench: Bench) -> Section:
    """Time commands that compute nothing, in processes of their own."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with bench.progress.task("start-up", len(COMMANDS) * (bench.repeats + 1)) as task:
        for number in range(bench.repeats + 1):
            for name, arguments in COMMANDS.items():
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, *arguments], capture_output=True, check=False, env=environment
                )
                if number:
                    seconds[name].append(time.perf_counter() - start)
                task.advance()
    lines = []
    for name, times in seconds.items():
        low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
        lines.append({"command": name, "s": middle, "±": (high - low) / 2})
    note = "wall seconds of a new process, which whatever else runs here makes longer"
    return Section("startup", "Before anything is computed", pd.DataFrame(lines), [note])
