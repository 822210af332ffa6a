"""Tables as files: Markdown, CSV, LaTeX and Parquet. No torch."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cleanprior.files import write_bytes, write_text

from .columns import TEXTS, all_columns
from .latex import to_latex

#: What a spreadsheet takes for a formula; a number or a dash of ours is none.
_FORMULA = re.compile(r"^[=+\-@\t\r](?!$)")
_NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?( ± .*)?$", re.IGNORECASE)
_MARKED = re.compile(r"([\\|*<`])")


def to_markdown(shown: pd.DataFrame, bold: pd.DataFrame) -> str:
    """Return a table as GitHub's Markdown; words to the left, numbers to the right."""
    markdown = shown.map(_escape)
    markdown = markdown.mask(bold.to_numpy(), "**" + markdown + "**")
    markdown.columns = [_escape(c) for c in shown.columns]
    sides = ["left" if c in TEXTS else "right" for c in shown.columns]
    return str(markdown.to_markdown(index=False, colalign=sides, disable_numparse=True))


def _escape(value: object) -> str:
    return _MARKED.sub(r"\\\1", " ".join(str(value).split()))


def to_csv(frame: pd.DataFrame) -> str:
    """Return a table as CSV in which no text is a spreadsheet's formula: it begins with ``'``."""
    return frame.map(_safe).rename(columns=_safe).to_csv(index=False)


def _safe(value: object) -> object:
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.match(value):
        return f"'{value}"
    return value


def bullets(lines: Sequence[str]) -> str:
    """Return lines as a list in Markdown."""
    return "".join(f"- {' '.join(line.split())}\n" for line in lines)


def write(
    folder: Path,
    title: str,
    shown: pd.DataFrame,
    summary: pd.DataFrame,
    frame: pd.DataFrame,
    verdict: Sequence[str],
    lines: Sequence[str],
    bold: pd.DataFrame,
    comparisons: pd.DataFrame,
) -> list[Path]:
    """Write a problem's table in four formats and its comparisons, each file atomically.

    Arguments:
        folder: Where.
        title: Heading.
        shown: From :func:`cleanprior.benchmarks.tables.display.display`.
        summary: From :func:`cleanprior.benchmarks.tables.summary.summarise`.
        frame: From :func:`cleanprior.benchmarks.tables.summary.tidy`.
        verdict: Sentences below the table.
        lines: Notes below them.
        bold: From :func:`cleanprior.benchmarks.tables.display.marks`.
        comparisons: From :func:`cleanprior.benchmarks.tables.statistics.compare`.

    Returns:
        The files.
    """
    legend = [f"{c.heading}: {c.meaning}" for c in all_columns() if c.heading in shown.columns]
    said = f"{' '.join(verdict)}\n\n" if verdict else ""
    text = f"## {title}\n\n{to_markdown(shown, bold)}\n\n{said}{bullets([*lines, *legend])}"
    comments = [title, *verdict, *lines, *legend]
    write_text(folder / "table.md", text)
    write_text(folder / "table.csv", to_csv(summary))
    write_text(folder / "table.tex", to_latex(shown, summary, bold, comments))
    write_bytes(folder / "records.parquet", frame.to_parquet(index=False))
    write_text(folder / "comparisons.csv", to_csv(comparisons))
    files = ("table.md", "table.csv", "table.tex", "records.parquet", "comparisons.csv")
    return [folder / name for name in files]


def write_plain(
    folder: Path,
    name: str,
    title: str,
    shown: pd.DataFrame,
    numbers: pd.DataFrame,
    lines: Sequence[str],
    bold: pd.DataFrame,
) -> list[Path]:
    """Write a further table as ``NAME.md`` and ``NAME.csv``.

    Arguments:
        folder: Where.
        name: Of the files.
        title: Heading.
        shown: The table as strings.
        numbers: What the CSV holds.
        lines: Notes below the table.
        bold: Which cells are bold.

    Returns:
        The files.
    """
    text = f"## {title}\n\n{to_markdown(shown, bold)}\n\n{bullets(lines)}"
    write_text(folder / f"{name}.md", text)
    write_text(folder / f"{name}.csv", to_csv(numbers))
    return [folder / f"{name}.md", folder / f"{name}.csv"]
