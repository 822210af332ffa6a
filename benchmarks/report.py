"""Tables and pictures of a plan, from its records."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from cleanprior.cells.status import Status
from cleanprior.files import RefusedWrite, write_bytes
from cleanprior.notices import Notice, tell
from cleanprior.terminal import Screen

from . import page, places, published, runner
from .figures import problems
from .page import Sheet
from .plan import Plan, Problem
from .tables import notes, statistics, worth, writing
from .tables.columns import DASH
from .tables.display import display, marks
from .tables.overview import OVERVIEWS, overview
from .tables.printing import print_blocks, print_notes, print_table
from .tables.summary import summarise, tidy
from .tables.verdict import verdict

Best = dict[str, dict[str, list[tuple[str, str]]]]


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        sheets: The summary, one a problem.
        page: The page with all of them.
    """

    sheets: list[Sheet]
    page: Path

    @property
    def is_sound(self) -> bool:
        """Whether no row failed or diverged."""
        return not any(
            Status.of(record).is_broken
            for sheet in self.sheets
            for cells in sheet.records.values()
            for record in cells
        )


def report(plan: Plan, out: Path, screen: Screen, is_kept: bool = True) -> Report:
    """Print and write the tables of every problem, an overview of several, and the page.

    Arguments:
        plan: The benchmark.
        out: Folder of all runs.
        screen: Where to print.
        is_kept: Whether anything is written.

    Raises:
        RefusedWrite: The disk takes no file; what is on it has been printed.
    """
    best: Best = {}
    disk = _Disk(is_kept)
    sheets = [_problem(plan, p, out, screen, best, disk) for p in plan.problems]
    folder = places.tables(out, plan.key)
    front = _published(plan, sheets, folder, screen, disk)
    told = _worth(plan, sheets, out, screen, disk) if plan.worth else []
    if len(sheets) > 1:
        front += _overviews(plan, sheets, best, folder, screen, disk)
    if disk.refusals:
        raise disk.refusals[0]
    path = folder / places.PAGE
    if is_kept:
        page.write(path, plan.name, plan.about, [*front, *sheets, *told])
    else:
        tell([Notice(f"'{out}' takes no files: what it holds is printed, and nothing written")])
    if not screen.is_quiet and path.exists():
        screen.say(f"page: {path}")
    return Report(sheets, path)


class _Disk:
    """Takes files, or says once that it does not.

    Arguments:
        is_kept: Whether anything is to be written.
    """

    def __init__(self, is_kept: bool) -> None:
        self._is_kept = is_kept
        self.refusals: list[RefusedWrite] = []

    def take(self, write: Callable[[], list[Path]]) -> list[Path]:
        """Return the files that ``write`` has written; none after a refusal."""
        if not self._is_kept or self.refusals:
            return []
        try:
            return write()
        except RefusedWrite as error:
            self.refusals.append(error)
            return []


def _problem(
    plan: Plan, problem: Problem, out: Path, screen: Screen, best: Best, disk: _Disk
) -> Sheet:
    """Print and write the tables of one problem."""
    records = runner.records(problem, out)
    for row, cells in records.items():
        for config, record in zip(problem.cells[row], cells, strict=True):
            if Status.of(record).kind != "not run":
                screen.record(id(config), record)
    frame = tidy(records)
    summary = summarise(frame)
    shown = display(summary, plan.references)
    comparisons = statistics.compare(records, plan.references)
    best[problem.label] = statistics.best(comparisons)
    bold = marks(summary, best[problem.label])
    said = notes.write_notes(problem, records, plan.references)
    folder = places.tables(out, plan.key_of(problem))
    sentences = verdict(records, plan.references, comparisons)

    def write() -> list[Path]:
        drawn, absent = problems.draw(problem, records, summary, out, folder)
        said.careful.extend(absent)
        written = writing.write(
            folder, problem.title, shown, summary, frame, sentences, said.lines, bold, comparisons
        )
        return written + drawn

    files = disk.take(write)
    print_table(screen, problem.title, shown, bold, folder / "table.md")
    for heading, lines in (
        ("", sentences),
        ("Careful:", said.careful),
        ("Measured:", said.details),
    ):
        print_notes(screen, heading, lines)
    screen.say()
    named = [f.name for f in files if not f.name.startswith(".")]
    if named and not screen.is_quiet:
        screen.note(f"files in {folder}/: {', '.join(named)}")
    return Sheet(
        problem.label,
        problem.title,
        shown,
        summary,
        bold,
        said.lines,
        files,
        records,
        plan.references,
        verdict=" ".join(sentences),
        comparisons=comparisons,
    )


def _published(
    plan: Plan, sheets: list[Sheet], folder: Path, screen: Screen, disk: _Disk
) -> list[Sheet]:
    """Print and write published numbers beside ours, and what differs."""
    found = [
        published.beside(problem, sheet.records, sheet.summary)
        for problem, sheet in zip(plan.problems, sheets, strict=True)
        if problem.beside is not None
    ]
    if not found:
        return []
    shown = pd.concat([frame for frame, _, _ in found], ignore_index=True).fillna(DASH)
    lines = [
        "published numbers are quoted, never measured here; another setting gives other numbers, "
        "so compare orderings and ratios and not levels",
        *dict.fromkeys(remark for _, _, remarks in found for remark in remarks),
        *published.tell([d for _, differences, _ in found for d in differences]),
    ]
    bold = shown.map(lambda _: False)
    title = f"Published numbers beside ours: {plan.about or plan.name}"
    files = disk.take(
        lambda: writing.write_plain(folder, "published", title, shown, shown, lines, bold)
    )
    whole = folder / "published.md"
    print_table(screen, title, shown, bold, whole)
    print_notes(screen, "", [*lines[:1], f"what differs, line by line: {whole}"])
    numbers = published.numbers(shown)
    return [Sheet("published", title, shown, numbers, bold, lines, files, {}, plan.references)]


def _worth(plan: Plan, sheets: list[Sheet], out: Path, screen: Screen, disk: _Disk) -> list[Sheet]:
    """Print and write what each row is worth in clean images."""
    from .figures import worth as worth_plot  # matplotlib, which a table alone does without

    found = []
    for problem, sheet in zip(plan.problems, sheets, strict=True):
        shown, numbers, lines = worth.table(sheet.records, plan.worth, plan.references)
        title = f"As good as how many clean images: {problem.title}"
        folder = places.tables(out, plan.key_of(problem))
        if not len(shown):
            print_notes(screen, title, lines)
            continue
        bold = shown.map(lambda _: False)
        written = (folder, "worth", title, shown, numbers, lines, bold)
        files = disk.take(partial(writing.write_plain, *written))
        files += disk.take(partial(worth_plot.write, sheet.records, plan, problem.title, folder))
        print_table(screen, title, shown, bold, folder / "worth.md")
        print_notes(screen, "", lines)
        tab = "worth" if len(sheets) == 1 else f"worth: {sheet.tab}"
        found.append(Sheet(tab, title, shown, numbers, bold, lines, files, {}, plan.references))
    return found


def _overviews(
    plan: Plan, sheets: list[Sheet], best: Best, folder: Path, screen: Screen, disk: _Disk
) -> list[Sheet]:
    """Print and write one table a metric with all problems side by side."""
    found = []
    summaries = {s.tab: s.summary for s in sheets}
    plotted = disk.take(partial(_sweep, plan, sheets, folder))
    lines = [
        "bold: significantly best on that problem of its track (clean images handed out); details "
        "in the problem's own table",
        "-: not trained there, or no such number; the reason stands in the problem's own table",
    ]
    for key, heading in OVERVIEWS.items():
        shown, numbers, bold = overview(summaries, best, plan.references, key)
        if not len(shown):
            continue
        title = f"{heading} on every problem of {plan.name}"
        name = f"overview_{key}"
        written = (folder, name, title, shown, numbers, lines, bold)
        files = disk.take(partial(writing.write_plain, *written))
        print_blocks(screen, title, shown, bold)
        print_notes(screen, "", lines)
        files += plotted
        plotted = []  # on the first tab only
        found.append(
            Sheet(f"all: {key}", title, shown, numbers, bold, lines, files, {}, plan.references)
        )
    return found


def _sweep(plan: Plan, sheets: list[Sheet], folder: Path) -> list[Path]:
    """Write ``sweep.png`` where the problems differ in one number."""
    if not plan.sweep:
        return []
    group, _, key = plan.sweep.partition(".")
    from .figures import plots

    points = []
    for problem, sheet in zip(plan.problems, sheets, strict=True):
        config = next(iter(problem.cells.values()))[0]
        points.append((float(config[group][key]), sheet.summary))
    figure = plots.sweep(points, plan.sweep, plan.references, plan.about or plan.name)
    if figure is None:
        return []
    write_bytes(folder / "sweep.png", plots.png(figure))
    return [folder / "sweep.png"]
