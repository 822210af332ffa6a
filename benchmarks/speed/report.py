"""The tables of ``cleanprior speed``: printed, as Markdown and CSV, and as a plot."""

import math
import platform
import time
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from cleanprior.files import write_bytes
from cleanprior.terminal import Screen

from ..figures import layout
from ..tables.numbers import significant
from ..tables.printing import print_notes, print_table
from ..tables.writing import write_plain
from .timing import Bench, Section

PEERS = ("azula", "deepinv")
OURS, OTHERS = "#4269d0", "#e08a00"


def write(section: Section, bench: Bench, out: Path, screen: Screen) -> None:
    """Print a section and write its files."""
    shown = section.frame.map(_text)
    bold = shown.map(lambda _: False)
    notes = [*section.notes, machine(bench, section.is_timed)]
    files = write_plain(out, section.name, section.title, shown, section.frame, notes, bold)
    if section.points is not None:
        figure = plot(section)
        assert figure is not None
        files.append(out / f"{section.name}.png")
        write_bytes(files[-1], layout.png(figure))
    print_table(screen, section.title, shown, bold, files[0])
    print_notes(screen, "", [*notes, f"files: {', '.join(map(str, files))}"])


def machine(bench: Bench, is_timed: bool = True) -> str:
    """Return what the figures were measured on, and how seconds were taken."""
    if bench.device.type == "cuda":
        name, how = torch.cuda.get_device_name(bench.device), "wall seconds of an idle GPU"
    else:
        name, how = f"{platform.machine()} CPU", "CPU seconds of one thread"
    where = f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    if not is_timed:
        return where
    return (
        f"{where}; {how}, median of {bench.repeats} interleaved repeats, ± half of the middle "
        "half's width"
    )


@layout.styled
def plot(section: Section) -> Figure:
    """Return a picture of the section's points: quality over time, each with its name."""
    assert section.points is not None
    x, y, name = section.points
    lines = section.frame.dropna(subset=[x, y]).sort_values(x).to_dict("records")
    figure = layout.headed(4.0, section.title)
    axes = figure.subplots()
    axes.set_xlabel(f"{x} (blue: ours)")
    axes.set_ylabel(y)
    middle = math.sqrt(float(lines[0][x]) * float(lines[-1][x]))
    for line in lines:
        label, place = str(line[name]), (line[x], line[y])
        is_left = line[x] < middle
        axes.plot(*place, "o", color=OTHERS if label.startswith(PEERS) else OURS)
        axes.annotate(
            label,
            place,
            (6, 0) if is_left else (-6, 0),
            textcoords="offset points",
            fontsize=layout.SMALL,
            ha="left" if is_left else "right",
            va="center",
        )
    layout.log_ticks(axes, "x", layout.NUMBERS, layout.number)
    return figure


def _text(value: object) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else significant(value)
    return str(value)
