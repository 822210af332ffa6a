"""Tables and pictures of a plan, from its records."""

from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import pictures, runner, statistics, tables
from .plan import Plan


def report(plan: Plan, out: Path) -> bool:
    """Print and write the tables of every problem.

    Returns:
        Whether no row failed or diverged.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=190)
    is_sound = True
    for problem in plan.problems:
        records = runner.records(problem, out)
        frame = tables.tidy(records)
        summary = tables.summarise(frame)
        shown = tables.display(summary, plan.references)
        comparisons = statistics.compare(records, plan.references)
        bold = tables.marks(summary, statistics.best(comparisons))
        seeds = max(len(cells) for cells in problem.cells.values())
        lines = tables.notes(problem, records, seeds)
        folder = out / "tables" / f"{plan.name}-{problem.key}"
        files = tables.write(folder, problem.title, shown, summary, frame, lines, bold, comparisons)
        files += pictures.write(problem, records, out, folder)
        print_table(console, problem.title, shown, lines, bold)
        console.print(f"files in {folder}/: {', '.join(f.name for f in files)}", soft_wrap=True)
        is_sound &= not frame["status"].str.startswith(("failed", "diverged")).any()
    return is_sound


def print_table(
    console: Console, title: str, shown: pd.DataFrame, lines: list[str], bold: pd.DataFrame
) -> None:
    """Print a table with its notes."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    texts = ("method", "restores by", "status")
    for heading in shown.columns:
        is_text = heading in texts
        table.add_column(
            heading,
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=heading == "method",
        )
    for line, is_bold in zip(
        shown.itertuples(index=False), bold.itertuples(index=False), strict=True
    ):
        cells = [escape(str(v)) for v in line]
        table.add_row(*(f"[bold]{c}[/]" if b else c for c, b in zip(cells, is_bold, strict=True)))
    console.print(table)
    for text in lines:
        console.print(f"  {text}", soft_wrap=True, highlight=False, markup=False)
