"""Tables on the terminal: the columns that matter most in the width that there is. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cleanprior.terminal import Column, Screen, choose

from .columns import COLUMNS, IMPORTANT, TEXTS

#: After those and the status.
THEN = ("train_seconds", "ssim", "ssim_point", "fd_inf", "nfe", "consistency", "consistency_point")


#: What loses its ``±`` where the important columns have no room, one step after the other; last
#: the distances, whose sampling alone moves them.
PLAINER: tuple[Callable[[str], bool], ...] = (
    lambda heading: False,
    lambda heading: not heading.startswith(("PSNR", "FD", "proximal FD")),
    lambda heading: not heading.startswith(("FD", "proximal FD")),
    lambda heading: heading != "FD",
)
_HEADINGS = {c.key: c.heading for c in COLUMNS}


def _importance(headings: Sequence[str]) -> tuple[list[int], int]:
    """Return the positions of a table's columns, the most important first, and how many are."""
    important = [_HEADINGS[key] for key in IMPORTANT]
    if _HEADINGS["train_flops"] not in headings:
        important[IMPORTANT.index("train_flops")] = _HEADINGS["train_seconds"]
    order = ["problem", "published row", "our row", "method", *important, "status"]
    count = sum(heading in order for heading in headings)
    order += [_HEADINGS[key] for key in THEN] + ["restores by"]
    places = {heading: place for place, heading in enumerate(order)}
    found = sorted(range(len(headings)), key=lambda i: (places.get(headings[i], len(order)), i))
    return found, count


def _columns(shown: pd.DataFrame, bold: pd.DataFrame) -> list[Column]:
    """Return the columns of a table; a spread stands close to its number."""
    found = []
    for heading in shown.columns:
        cells = [" ".join(str(v).split()).replace(" ± ", "±") for v in shown[heading]]
        if heading == "status":  # a code tells enough
            cells = [c.removeprefix("done ") for c in cells]
        is_bold = [bool(b) for b in bold[heading]]
        found.append(Column(str(heading), cells, heading in TEXTS, is_bold))
    return found


def _without_spread(column: Column) -> Column:
    return replace(column, cells=[cell.partition("±")[0] for cell in column.cells])


def _fitting(columns: list[Column], screen: Screen) -> tuple[list[Column], list[str]]:
    """Return the columns, without spreads where the important ones fit then; and those."""
    if screen.is_wide:
        return columns, []
    order, count = _importance([c.heading for c in columns])
    most: tuple[int, list[Column], list[str]] | None = None
    for is_plain in PLAINER:
        lost = [c.heading for c in columns if is_plain(c.heading) and "±" in "".join(c.cells)]
        found = [_without_spread(c) if c.heading in lost else c for c in columns]
        kept = set(choose(found, screen.width, order)) & set(order[:count])
        if most is None or len(kept) > most[0]:
            most = len(kept), found, lost
        if len(kept) == count:
            break
    assert most is not None
    kept = set(choose(most[1], screen.width, order))
    return most[1], [
        h for i, h in enumerate(c.heading for c in columns) if h in most[2] and i in kept
    ]


def print_table(
    screen: Screen, title: str, shown: pd.DataFrame, bold: pd.DataFrame, whole: Path
) -> None:
    """Print a table, and what had no room.

    Arguments:
        screen: Where.
        title: Heading.
        shown: The table as strings.
        bold: Which cells are bold.
        whole: A file with all of its columns.
    """
    columns, plainer = _fitting(_columns(shown, bold), screen)
    screen.say()
    screen.note(title)
    screen.say()
    order, _ = _importance([c.heading for c in columns])
    absent = [columns[i].heading for i in screen.table(columns, order)]
    absent += [f"± of {', '.join(plainer)}"] if plainer else []
    if absent:
        where = " (no terminal; COLUMNS sets another width)" if screen.is_assumed else ""
        screen.say()
        screen.note(
            f"no room at {screen.width} columns{where}: {', '.join(absent)}. --wide shows them, "
            f"and {whole}"
        )


def print_blocks(screen: Screen, title: str, shown: pd.DataFrame, bold: pd.DataFrame) -> None:
    """Print a table with a column a problem, below each other where they have no room.

    Arguments:
        screen: Where.
        title: Heading.
        shown: The table as strings: ``method``, ``restores by``, then the problems.
        bold: Which cells are bold.
    """
    columns = _columns(shown, bold)
    screen.say()
    screen.note(title)
    screen.blocks(columns[:1], columns[2:])


def print_notes(screen: Screen, heading: str, lines: Sequence[str]) -> None:
    """Print the lines under a table, each as a paragraph of its own.

    Arguments:
        screen: Where.
        heading: Above them, or nothing.
        lines: The lines; empty ones are left out.
    """
    said = [line for line in lines if line.strip()]
    if not said or screen.is_quiet:
        return
    screen.say()
    if heading:
        screen.say(heading)
    for line in said:
        screen.note(" ".join(line.split()), first="  " if heading else "", indent="  ")
