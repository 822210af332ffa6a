"""``python -m cleanprior.benchmarks.soak``: kill a benchmark again and again, and see what is lost.

The benchmark runs once undisturbed. Then it runs in another folder while processes of it are
killed at random: one that trains or evaluates, the one that starts those, the benchmark itself, or
all of them; half of the time a second benchmark works on the same folder. In the end it is left to
finish, and its numbers are compared with those of the first run.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from cleanprior.cells.folder import cells_below
from cleanprior.cells.reading import load_record
from cleanprior.cells.record import is_finished
from cleanprior.progress import Progress

#: What is run: E-steps, a second seed, two networks of a flow; a few seconds a cell.
ARGUMENTS = (
    "bench",
    "--bench",
    "smoke",
    "--methods",
    "naive,em_mmps,flowdiff",
    "--no-references",
    "--seeds",
    "2",
    "training.checkpoint_seconds=1",
    "evaluation.test_images=16",
    "evaluation.samples=32",
)
TARGETS = ("worker", "server", "benchmark", "all")
#: Seconds between the start of a benchmark and the kill.
LONGEST = 25.0


class Watch(threading.Thread):
    """Counts how often each cell's training has ended."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self._out, self._is_over = out, False
        self._seen: set[tuple[int, str, int, int]] = set()
        self._time = 0

    def run(self) -> None:
        """Look at the files in which a training says how it ended."""
        while not self._is_over:
            for files in cells_below(self._out):
                try:
                    told = files.training.outcome.stat()
                except OSError:
                    continue
                seen = (self._time, files.folder.name, told.st_ino, told.st_mtime_ns)
                self._seen.add(seen)
            time.sleep(0.02)

    def begin_anew(self) -> None:
        """Take what is trained from now on as other cells, though they have the same names."""
        self._time += 1

    def counts(self) -> Counter[tuple[int, str]]:
        """Return how often each cell was trained to its end."""
        self._is_over = True
        self.join()
        return Counter((time, name) for time, name, _, _ in self._seen)


def start(out: Path, jobs: int) -> "subprocess.Popen[bytes]":
    """Start the benchmark on a folder."""
    program = [sys.executable, "-m", "cleanprior", *ARGUMENTS]
    return subprocess.Popen(
        [*program, "--jobs", str(jobs), "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill(benchmark: "subprocess.Popen[bytes]", target: str, chance: random.Random) -> str:
    """Kill some of a benchmark's processes; return what was killed, ``nothing`` where none is."""
    try:
        root = psutil.Process(benchmark.pid)
        below = root.children(recursive=True)
        servers = [p for p in below if "cleanprior.jobs.server" in p.cmdline()[-1:]]
        workers = [p for p in servers if p.parent() in servers]
        servers = [p for p in servers if p not in workers]
        chosen = {
            "worker": [chance.choice(workers)] if workers else [],
            "server": servers,
            "benchmark": [root],
            "all": [root, *below],
        }[target]
        for process in chosen:
            process.kill()
    except psutil.NoSuchProcess:
        return "nothing"
    return target if chosen else "nothing"


def numbers(out: Path) -> dict[str, Any]:
    """Return what every finished cell has measured, by the cell's name."""
    found = {}
    for files in cells_below(out):
        for path in files.records().values():
            record = load_record(path)
            if record is not None and is_finished(record):
                rows = [(row["way"], row["metrics"], row["per_image"]) for row in record["rows"]]
                told = [rows, record["training"]["history"], record["measurements_sha256"]]
                found[files.folder.name] = json.dumps(told, sort_keys=True)
    return found


def soak(kills: int, seed: int, folder: Path, progress: Progress) -> dict[str, Any]:
    """Run the benchmark undisturbed and disturbed, and compare.

    Arguments:
        kills: How often something is killed.
        seed: Of what is killed, and when.
        folder: Where both folders of runs lie.
        progress: Where to show progress.

    Returns:
        ``killed`` by target, ``cells``, ``lost``, ``twice`` and ``differing``.
    """
    chance = random.Random(seed)
    whole, torn = folder / "whole", folder / "torn"
    if start(whole, 1).wait() != 0:
        raise SystemExit("the benchmark fails by itself")
    expected = numbers(whole)
    watch = Watch(torn)
    watch.start()
    killed: Counter[str] = Counter()
    with progress.live(), progress.task("kills", kills) as task:
        while sum(killed.values()) < kills:
            running = [start(torn, chance.choice((1, 2))) for _ in range(chance.choice((1, 2)))]
            time.sleep(chance.uniform(1.0, LONGEST))
            target = kill(chance.choice(running), chance.choice(TARGETS), chance)
            if target != "nothing":
                killed[target] += 1
                task.advance(note=target)
            elif len(numbers(torn)) == len(expected):
                # Nothing is left to be disturbed: begin with new cells.
                _check_whole(numbers(torn), expected)
                for files in cells_below(torn):
                    shutil.rmtree(files.folder)
                watch.begin_anew()
            if chance.random() < 0.5:
                for process in running:
                    process.kill()
            for process in running:
                process.wait()
    for _ in range(3):  # a row whose process was killed is run again by the next call
        if start(torn, 1).wait() == 0:
            break
    counts, found = watch.counts(), numbers(torn)
    return {
        "killed": dict(killed),
        "cells": len(expected),
        "lost": len(expected.keys() - found.keys()),
        "twice": sum(count - 1 for count in counts.values()),
        "differing": sum(found[name] != told for name, told in expected.items() if name in found),
    }


def _check_whole(found: dict[str, Any], expected: dict[str, Any]) -> None:
    if found != expected:
        raise SystemExit("the numbers differ from those of the undisturbed run")


def main() -> None:
    """Read the options, run, and print what was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder to work in; default: a temporary one")
    given = parser.parse_args()
    from cleanprior.commands.options import live_progress

    with tempfile.TemporaryDirectory() as name:
        found = soak(given.kills, given.seed, given.out or Path(name), live_progress())
    killed = ", ".join(f"{count} {target}" for target, count in sorted(found["killed"].items()))
    print(f"killed: {killed}")
    print(
        f"{found['cells']} cells: lost {found['lost']}, trained twice {found['twice']}, "
        f"other numbers {found['differing']}"
    )
    sys.exit(1 if found["lost"] or found["twice"] or found["differing"] else 0)


if __name__ == "__main__":
    main()
