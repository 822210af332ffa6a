"""What runs in a folder of runs, since when, at which step; what failed, what is done. No torch."""

import time
from dataclasses import dataclass
from pathlib import Path

from ..cells.folder import CellFiles, cells_below
from ..cells.status import Status
from ..errors import UserError
from ..jobs.lease import Beat
from ..outside import read_json


@dataclass(frozen=True)
class State:
    """How a cell stands.

    Attributes:
        title: Its method, operator, data set and seed.
        kind: ``running``, ``done``, ``failed``, ``diverged``, ``skipped`` or ``begun``.
        told: What is to be said of it beside.
    """

    title: str
    kind: str
    told: str = ""


#: In the order in which they are shown.
KINDS = {
    "running": "running",
    "begun": "begun, and nobody works on them: the same command goes on",
    "failed": "failed",
    "diverged": "diverged",
    "skipped": "skipped",
    "done": "done",
}


def states(out: Path) -> list[State]:
    """Return how each cell below a folder of runs stands.

    Raises:
        UserError: The folder holds no cells.
    """
    found = [state for files in cells_below(out) for state in _states(files)]
    if not found:
        raise UserError(f"'{out}' holds no cells; give the folder that --out named (runs)")
    return found


def lines(found: list[State], is_long: bool) -> list[str]:
    """Return what is printed: counts, then each kind's cells.

    Arguments:
        found: From :func:`states`.
        is_long: Whether the cells that are done or skipped are listed too.
    """
    by_kind = {kind: [s for s in found if s.kind == kind] for kind in KINDS}
    counts = [f"{len(of)} {kind}" for kind, of in by_kind.items() if of]
    count = "1 cell" if len(found) == 1 else f"{len(found)} cells"
    told = [f"{count}: {', '.join(counts)}"]
    for kind, of in by_kind.items():
        if not of or (kind in ("done", "skipped") and not is_long):
            continue
        told += ["", f"{KINDS[kind]}:"]
        for state in of:
            told.append(f"  {state.title}" + (f": {state.told}" if state.told else ""))
    return told


def _states(files: CellFiles) -> list[State]:
    """Return how a cell stands: one state for each evaluation, or that of its training."""
    beat = Beat.read(files.beat)
    if beat is not None and beat.is_alive:
        return [State(_title(files), "running", _progress(beat))]
    found = []
    for path in files.records().values():
        try:
            record = read_json(path)
            ended = Status.of(record)
            title = f"{record['method']} on {record['operator']}"
            title += f", {record.get('data') or '?'}, seed {record['seed']}"
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
        found.append(State(title, ended.kind if ended.kind in KINDS else "failed", ended.reason))
    return found or [State(_title(files), "begun", _last(files))]


def _title(files: CellFiles) -> str:
    """Return the name of a cell without a record."""
    try:
        config = read_json(files.training.job)["config"]
        method, operator = config["method"]["name"], config["operator"]["name"]
        data = files.folder.name.partition(f"-{operator}-")[0]
        return f"{method} on {operator}, {data}, seed {config['seed']}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return files.folder.name


def _progress(beat: Beat) -> str:
    """Return where a process is and how long it will take."""
    where = f"{beat.phase} {beat.done}/{beat.total}" if beat.total else beat.stage
    told = f"{where}, for {duration(time.time() - beat.since)}"
    if beat.left is not None:
        told += f", {duration(beat.left)} left of it"
    return f"{told} ({beat.host}, process {beat.pid}{others(beat.processes)})"


def others(processes: int) -> str:
    """Return what is added where the first of processes that train together is told."""
    return f" and {processes - 1} more" if processes > 1 else ""


def _last(files: CellFiles) -> str:
    """Return when a cell's training was last written to the disk."""
    try:
        age = time.time() - files.training.checkpoint.stat().st_mtime
    except OSError:
        return ""
    return f"last checkpoint {duration(age)} ago"


def duration(seconds: float) -> str:
    """Return seconds as people say them: ``40 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    if hours < 48:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(hours // 24)} d {int(hours % 24)} h"
