"""What a benchmark will take before it begins: ``bench --dry-run``. No torch."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cleanprior.cells.folder import CellFolder, cells_below
from cleanprior.cells.reading import load_record
from cleanprior.cells.record import Record, is_finished, read_record
from cleanprior.commands.status import duration
from cleanprior.config import Config
from cleanprior.errors import StageFailed, UserError
from cleanprior.jobs.drive import Shown, Todo
from cleanprior.jobs.fresh import new_workers
from cleanprior.jobs.workers import Place
from cleanprior.progress import Progress
from cleanprior.terminal import Column, Screen

from .plan import Plan, refusal
from .runner import Launcher

#: What cells may differ in and still cost alike; ``budget`` scales.
_APART = ("seed", "data_seed")
#: A key of a training that records of earlier versions lack, and that says nothing where it is
#: empty.
_ALONE = "processes"


@dataclass
class Row:
    """A row of one problem, all seeds.

    Attributes:
        problem: The problem's label.
        name: The row.
        finished: How many cells are done.
        todo: The cells that are not.
        told: Why they are not run, or how the estimate was made.
        seconds: For one cell, or None.
        memory_mb: Of its process, or None.
        disk_mb: What it leaves, or None.
    """

    problem: str
    name: str
    finished: int
    todo: list[Config]
    told: str = ""
    seconds: float | None = None
    memory_mb: float | None = None
    disk_mb: float | None = None


def forecast(plan: Plan, out: Path, launcher: Launcher, screen: Screen, progress: Progress) -> None:
    """Print what a benchmark will do and what that will take; nothing is trained or written.

    Arguments:
        plan: The benchmark.
        out: Folder of all runs.
        launcher: Where its cells would run.
        screen: Where to print.
        progress: Where to show the progress of trials.
    """
    found = rows(plan, out)
    try_out(found, out, progress)
    todo = [Todo(row.name, out, config) for row in found for config in row.todo]
    show(found, launcher.count(todo) if todo else 1, screen)


def rows(plan: Plan, out: Path) -> list[Row]:
    """Return the rows of a plan with what is known of them from the records of like cells."""
    known = _known(out)
    found = []
    for problem in plan.problems:
        for name, configs in problem.cells.items():
            row = Row(problem.label, name, 0, [])
            found.append(row)
            reason = refusal(configs[0])
            if reason is not None:
                row.told = f"skipped: {reason}"
                continue
            for config in configs:
                if is_finished(read_record(CellFolder(out, config))):
                    row.finished += 1
                else:
                    row.todo.append(config)
            if row.todo:
                _from_records(row, known[_kind(row.todo[0])])
    return found


def try_out(found: Sequence[Row], out: Path, progress: Progress) -> None:
    """Take a few steps of each row that no record tells anything of."""
    unknown = [row for row in found if row.todo and row.seconds is None]
    if not unknown:
        return
    workers = new_workers()
    try:
        with progress.live(), progress.task("a few steps of each method", len(unknown)) as task:
            for row in unknown:
                shown = Shown(Progress(), row.name)
                asked = {"out": str(out.absolute()), "config": row.todo[0]}
                try:
                    told = workers.run("trial", asked, Place(), shown)
                except (UserError, StageFailed) as error:
                    told = {"refused": str(error)}
                if "refused" in told:
                    row.told, row.todo = f"skipped: {told['refused']}", []
                else:
                    row.seconds, row.memory_mb = told["seconds"], told["memory_mb"]
                    row.disk_mb, row.told = told["disk_mb"], "20 steps"
                task.advance(note=row.name)
    finally:
        workers.end()


def show(found: Sequence[Row], jobs: int, screen: Screen) -> None:
    """Print what is done, refused and to be done, and what that will take."""
    several = len({row.problem for row in found}) > 1
    names = [f"{row.name} · {row.problem}" if several else row.name for row in found]
    cells = [
        "-" if not row.todo and not row.finished else f"{len(row.todo)} of {_count(row)}"
        for row in found
    ]
    screen.table(
        [
            Column("row", names, is_text=True),
            Column("to do", cells),
            Column("a cell", [_time(row.seconds) if row.todo else "" for row in found]),
            Column("memory", [_size(row.memory_mb) if row.todo else "" for row in found]),
            Column("disk", [_size(row.disk_mb) if row.todo else "" for row in found]),
            Column("by", [row.told for row in found], is_text=True),
        ]
    )
    screen.say()
    screen.note(summary(found, jobs))


def summary(found: Sequence[Row], jobs: int) -> str:
    """Return how many cells there are to do, and how long that takes where it is known."""
    todo = sum(len(row.todo) for row in found)
    finished = sum(row.finished for row in found)
    skipped = sum(not row.todo and not row.finished for row in found)
    text = f"{todo} cells to do, {finished} finished"
    if skipped:
        text += f", {skipped} rows skipped"
    waiting = [row for row in found if row.todo]
    if todo and all(row.seconds is not None for row in waiting):
        times = [row.seconds or 0.0 for row in waiting for _ in row.todo]
        # No plan is shorter than its longest cell.
        whole = max(sum(times) / max(jobs, 1), max(times))
        text += f"; about {duration(whole)} with {jobs} at a time"
        text += f" ({duration(sum(times))} one after the other)"
    return text


def _count(row: Row) -> int:
    return len(row.todo) + row.finished


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else duration(seconds)


def _size(megabytes: float | None) -> str:
    if megabytes is None:
        return "?"
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"


def _kind(config: Mapping[str, Any]) -> str:
    """Return what cells that cost alike have in common."""
    kept: dict[str, Any] = {k: v for k, v in config.items() if k not in _APART}
    kept["training"] = {
        k: v for k, v in config["training"].items() if k != "budget" and (k, v) != (_ALONE, None)
    }
    return json.dumps(kept, sort_keys=True, default=str)


def _known(out: Path) -> dict[str, list[tuple[Record, float]]]:
    """Return finished records by kind, each with the megabytes of its folder."""
    found: dict[str, list[tuple[Record, float]]] = defaultdict(list)
    for files in cells_below(out):
        for path in files.records().values():
            record = load_record(path)
            if record is None or not is_finished(record) or "config" not in record:
                continue
            size = sum(f.stat().st_size for f in files.folder.rglob("*") if f.is_file())
            found[_kind(record["config"])].append((record, size / 2**20))
    return found


def _from_records(row: Row, like: Sequence[tuple[Record, float]]) -> None:
    """Estimate a row from records of like cells, scaled by the budget."""
    times, memories, sizes = [], [], []
    budget = row.todo[0]["training"]["budget"]
    for record, size in like:
        try:
            spent = record["training"]
            trained = (
                sum(spent["seconds"].values()) * budget / record["config"]["training"]["budget"]
            )
            judged = sum(sum(r["seconds"].values()) for r in record["rows"])
            times.append(trained + judged)
            memories.append(spent["memory_mb"].get("cpu"))
            sizes.append(size)
        except (LookupError, TypeError, AttributeError, ZeroDivisionError):
            continue
    if not times:
        return
    row.seconds, row.disk_mb = median(times), median(sizes)
    row.memory_mb = median([m for m in memories if m is not None] or [0.0]) or None
    row.told = "1 record" if len(times) == 1 else f"{len(times)} records"
