"""Tables and pictures of a plan, from its records."""

from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cleanprior.files import write_bytes, write_text

from . import drawing, page, published, runner, statistics, tables
from .page import Sheet
from .plan import Plan

#: Metrics that an overview of several problems shows, with their headings.
OVERVIEWS = {"psnr": "PSNR in dB", "fd": "FD"}


def report(plan: Plan, out: Path) -> bool:
    """Print and write the tables of every problem, an overview of several, and the page.

    Returns:
        Whether no row failed or diverged.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=190)
    is_sound = True
    sheets: list[Sheet] = []
    best: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for problem in plan.problems:
        records = runner.records(problem, out)
        frame = tables.tidy(records)
        summary = tables.summarise(frame)
        shown = tables.display(summary, plan.references)
        comparisons = statistics.compare(records, plan.references)
        best[problem.label] = statistics.best(comparisons)
        bold = tables.marks(summary, best[problem.label])
        seeds = max(len(cells) for cells in problem.cells.values())
        lines = tables.notes(problem, records, seeds)
        folder = out / "tables" / f"{plan.name}-{problem.key}"
        files = tables.write(folder, problem.title, shown, summary, frame, lines, bold, comparisons)
        files += drawing.draw(problem, records, summary, out, folder)
        print_table(console, problem.title, shown, lines, bold)
        console.print(f"files in {folder}/: {', '.join(f.name for f in files)}", soft_wrap=True)
        is_sound &= not frame["status"].str.startswith(("failed", "diverged")).any()
        sheets.append(
            Sheet(
                problem.label,
                problem.title,
                shown,
                summary,
                bold,
                lines,
                files,
                records,
                plan.references,
            )
        )
    folder = out / "tables" / plan.key
    front = _published(plan, sheets, folder, console)
    if len(sheets) > 1:
        front += _overviews(plan, sheets, best, folder, console)
    sheets = [*front, *sheets]
    path = page.write(folder / "report.html", plan.name, plan.about, sheets)
    console.print(f"page: {path}", soft_wrap=True)
    return is_sound


def _published(plan: Plan, sheets: list[Sheet], folder: Path, console: Console) -> list[Sheet]:
    """Print and write published numbers beside ours, and what differs."""
    found = [
        published.beside(problem, sheet.records, sheet.summary)
        for problem, sheet in zip(plan.problems, sheets, strict=True)
        if problem.beside is not None
    ]
    if not found:
        return []
    shown = pd.concat([frame for frame, _, _ in found], ignore_index=True).fillna("-")
    lines = [
        "published numbers are quoted, never measured here; another setting gives other numbers, "
        "so compare orderings and ratios and not levels",
        *dict.fromkeys(remark for _, _, remarks in found for remark in remarks),
        *published.tell([d for _, differences, _ in found for d in differences]),
    ]
    bold = shown.map(lambda _: False)
    title = f"Published numbers beside ours: {plan.about or plan.name}"
    print_table(console, title, shown, lines[:1], bold)
    bullets = "\n".join(f"- {line}" for line in lines)
    text = f"## {title}\n\n{tables.to_markdown(shown, bold)}\n\n{bullets}\n"
    write_text(folder / "published.md", text)
    write_text(folder / "published.csv", shown.to_csv(index=False))
    files = [folder / "published.md", folder / "published.csv"]
    console.print(f"what differs, line by line: {files[0]}", soft_wrap=True)
    numbers = published.numbers(shown)
    return [Sheet("published", title, shown, numbers, bold, lines, files, {}, plan.references)]


def _overviews(
    plan: Plan,
    sheets: list[Sheet],
    best: dict[str, dict[str, list[tuple[str, str]]]],
    folder: Path,
    console: Console,
) -> list[Sheet]:
    """Print and write one table a metric with all problems side by side."""
    found = []
    summaries = {s.tab: s.summary for s in sheets}
    plotted = _sweep(plan, sheets, folder)
    lines = [
        "bold: significantly best on that problem of its track (clean images handed out); details "
        "in the problem's own table",
        "-: not trained there, or no such number; the reason stands in the problem's own table",
    ]
    for key, heading in OVERVIEWS.items():
        shown, numbers, bold = tables.overview(summaries, best, plan.references, key)
        if not len(shown):
            continue
        title = f"{heading} on every problem of {plan.name}"
        print_table(console, title, shown, lines, bold)
        name = f"overview_{key}"
        text = f"## {title}\n\n{tables.to_markdown(shown, bold)}\n\n"
        write_text(folder / f"{name}.md", text + "\n".join(f"- {line}" for line in lines) + "\n")
        write_text(folder / f"{name}.csv", numbers.to_csv(index=False))
        files = [folder / f"{name}.md", folder / f"{name}.csv", *plotted]
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
    from . import plots

    points = []
    for problem, sheet in zip(plan.problems, sheets, strict=True):
        config = next(iter(problem.cells.values()))[0]
        points.append((float(config[group][key]), sheet.summary))
    figure = plots.sweep(points, plan.sweep, plan.references, plan.about or plan.name)
    if figure is None:
        return []
    write_bytes(folder / "sweep.png", plots.png(figure))
    return [folder / "sweep.png"]


def print_table(
    console: Console, title: str, shown: pd.DataFrame, lines: list[str], bold: pd.DataFrame
) -> None:
    """Print a table with its notes."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in shown.columns:
        is_text = heading in tables.TEXTS
        table.add_column(
            heading,
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=heading == "method",
        )
    for line, is_bold in zip(
        shown.itertuples(index=False), bold.itertuples(index=False), strict=True
    ):
        cells = [escape(str(v)).replace(" ± ", "±") for v in line]  # a spread stays on its line
        table.add_row(*(f"[bold]{c}[/]" if b else c for c, b in zip(cells, is_bold, strict=True)))
    console.print(table)
    for text in lines:
        console.print(f"  {text}", soft_wrap=True, highlight=False, markup=False)
