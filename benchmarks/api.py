"""``cleanprior.bench``: a benchmark from Python, and what it gives back."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cleanprior.commands.options import live_progress
from cleanprior.errors import UserError
from cleanprior.jobs.drive import Todo
from cleanprior.jobs.local import Local
from cleanprior.progress import Progress
from cleanprior.terminal import Screen

from .forecast import rows, summary
from .launchers import chosen, given, split
from .places import tables
from .plan import Plan
from .report import Report, report
from .request import Request, names
from .runner import Launcher, Part, may_write, record_of, run


@dataclass(frozen=True)
class Result:
    """A finished benchmark.

    Attributes:
        tables: The numbers of each problem, a row a method, by the problem's name.
        verdicts: What each table says, in two sentences.
        page: The page with tables, plots and pictures; opens offline.
        is_sound: Whether no row failed or diverged.
    """

    tables: dict[str, pd.DataFrame]
    verdicts: dict[str, str]
    page: Path
    is_sound: bool

    @property
    def table(self) -> pd.DataFrame:
        """The numbers of all problems, a row a method; ``problem`` tells several apart."""
        if len(self.tables) == 1:
            return next(iter(self.tables.values()))
        parts = [frame.assign(problem=name) for name, frame in self.tables.items()]
        return pd.concat(parts, ignore_index=True)


def bench(
    methods: Sequence[str] | str | None = None,
    *,
    operator: Sequence[str] | str | None = None,
    data: str | None = None,
    seeds: int | Sequence[int] | None = None,
    bench: str = "default",
    table: str | None = None,
    scale: str = "cpu",
    references: bool = True,
    worth: bool = False,
    force: Sequence[str] | str = (),
    overrides: Mapping[str, Any] | Sequence[str] = (),
    jobs: int | str = "auto",
    launcher: str | Launcher = "local",
    out: str | Path = "runs",
    progress: bool = True,
) -> Result:
    """Train methods on identical measurements and compare them; what is finished is not run again.

    The same cells, records and files as ``cleanprior bench``.

    Arguments:
        methods: Rows of the table; None takes the benchmark's.
        operator: One operator, or several: a table each.
        data: The data set.
        seeds: How many training seeds, or which.
        bench: Name in ``configs/bench``.
        table: Name of a paper's table, in its place.
        scale: Of a paper's table: ``cpu``, ``gpu`` or ``paper``.
        references: Whether the rows that anchor the table (observations, oracle, ...) are added.
        worth: Whether rows are told as good as so many clean images.
        force: Rows to train again.
        overrides: For every row, ``{"operator.p": 0.8}`` or ``["operator.p=0.8"]``; and keys of the
            launcher, ``{"launcher.partition": "gpu"}``.
        jobs: Cells at a time, each in a process of its own; see
            :class:`cleanprior.jobs.local.Local`.
        launcher: Where they run: a name in ``configs/launcher``, or what has its ``run``.
        out: Folder of all runs.
        progress: Whether progress is shown on stderr.

    Raises:
        UserError: A name, key or value that does not exist, before any compute.
    """
    if isinstance(overrides, Mapping):
        overrides = list(_settings(overrides))
    settings, overrides = split(overrides)
    if isinstance(launcher, str):
        launcher = chosen(launcher, given(str(jobs)) + settings)
    elif settings:
        raise UserError(f"{', '.join(settings)}: the launcher was given, with its keys")
    request = Request(
        bench=bench,
        table=table,
        scale=scale,
        methods=names("methods", methods),
        operators=names("operator", operator),
        data=data,
        seeds=seeds,
        overrides=overrides,
        with_references=references,
        worth=worth,
    )
    shown = live_progress() if progress else Progress()
    forced = names("force", force or None) or []
    place = Path(out)
    is_kept = may_write("out", request.plan(forced), place, forced)
    made = run_request(
        request,
        place,
        Screen(is_silent=True),
        shown,
        forced,
        launcher=launcher,
        is_kept=is_kept,
    )
    return Result(
        tables={s.tab: s.summary for s in made.sheets},
        verdicts={s.tab: s.verdict for s in made.sheets},
        page=made.page,
        is_sound=made.is_sound,
    )


def run_request(
    request: Request,
    out: Path,
    screen: Screen,
    progress: Progress,
    forced: Collection[str] = (),
    part: Part | None = None,
    launcher: Launcher | None = None,
    is_kept: bool = True,
) -> Report:
    """Train what a request lacks, and write its tables and its page.

    Arguments:
        request: What was asked for.
        out: Folder of all runs.
        screen: Where the tables are printed.
        progress: Where progress is shown.
        forced: Rows to train again.
        part: The share of this process; None for all.
        launcher: Where cells run; None takes the processes of this machine.
        is_kept: Whether anything is written; if not, all cells are finished.
    """
    plan = request.plan(list(forced))
    if not is_kept:
        return report(plan, out, screen, is_kept=False)
    launcher = launcher or Local()
    found = rows(plan, out)
    todo = [Todo(row.name, out, config) for row in found for config in row.todo]
    if len(todo) > 1 and all(row.seconds is not None for row in found if row.todo):
        progress.say(summary(found, launcher.count(todo)))
    _tell_ends(plan, out, screen, progress)
    run(plan, out, forced, progress, part or Part(), launcher)
    request.write(tables(out, plan.key))
    return report(plan, out, screen)


def _tell_ends(plan: Plan, out: Path, screen: Screen, progress: Progress) -> None:
    """Have the record of each cell printed when it ends, where records are printed."""
    if not screen.has_lines:
        return
    rows = {
        id(config): row
        for problem in plan.problems
        for row, configs in problem.cells.items()
        for config in configs
    }

    def ended(cell: Todo) -> None:
        key = id(cell.config)
        if key in rows:  # else a launcher's own; told at the end
            screen.record(key, record_of(rows[key], cell.config, out))

    progress.ended = ended


def _settings(given: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield ``key=value`` of keys that are dotted, nested or both."""
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={_text(value)}"


def _text(value: Any) -> str:
    """Return a value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(_text(v) for v in value)}]"
    return str(value)
