"""Tables on the terminal: the columns that matter most in the width that there is. No torch."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cleanprior.terminal import Column, Screen

from .tables import COLUMNS, TEXTS

#: Columns by importance: those before one that has no room are shown. The first cost that a table
#: has stands for both.
IMPORTANT = (
    "psnr",
    "psnr_point",
    "spread_ratio",
    "fd",
    "proximal_fd",
    "train_flops",
    "clean_images",
)
#: After those and the status.
THEN = ("train_seconds", "ssim", "ssim_point", "fd_inf", "nfe", "consistency", "consistency_point")


def _importance(headings: Sequence[str]) -> list[int]:
    """Return the positions of a table's columns, the most important first."""
    by_key = {c.key: c.heading for c in COLUMNS}
    important = [by_key[key] for key in IMPORTANT]
    if by_key["train_flops"] not in headings:
        important[IMPORTANT.index("train_flops")] = by_key["train_seconds"]
    order = ["problem", "published row", "our row", "method", *important, "status"]
    order += [by_key[key] for key in THEN] + ["restores by"]
    places = {heading: place for place, heading in enumerate(order)}
    return sorted(range(len(headings)), key=lambda i: (places.get(headings[i], len(order)), i))


def print_table(
    screen: Screen, title: str, shown: pd.DataFrame, bold: pd.DataFrame, whole: Path | None
) -> None:
    """Print a table, and what had no room.

    Arguments:
        screen: Where.
        title: Heading.
        shown: The table as strings.
        bold: Which cells are bold.
        whole: A file with all of its columns.
    """
    columns = [
        Column(
            str(heading),
            # A spread stays on its line.
            [" ".join(str(v).split()).replace(" ± ", "±") for v in shown[heading]],
            heading in TEXTS,
            [bool(b) for b in bold[heading]],
        )
        for heading in shown.columns
    ]
    screen.say()
    screen.note(title)
    screen.say()
    absent = screen.table(columns, _importance([c.heading for c in columns]))
    if absent:
        where = "" if screen.is_terminal else ", no terminal; COLUMNS sets another width"
        names = ", ".join(columns[i].heading for i in absent)
        screen.say()
        screen.note(
            f"no room at {screen.width} columns{where}: {names}. --wide shows them"
            + (f", and {whole}" if whole else "")
        )


def print_notes(screen: Screen, heading: str, lines: Sequence[str]) -> None:
    """Print the lines under a table, each as a paragraph of its own.

    Arguments:
        screen: Where.
        heading: Above them, or nothing.
        lines: The lines; empty ones are left out.
    """
    said = [line for line in lines if line.strip()]
    if not said:
        return
    screen.say()
    if heading:
        screen.say(heading)
    for line in said:
        screen.note(" ".join(line.split()), first="  " if heading else "", indent="  ")
