"""Plots of a table: quality against cost, training, calibration, a sweep. No torch."""

import io
import math
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from cleanprior.files import write_bytes
from cleanprior.records import Record, is_finished

from .plan import Problem
from .tables import row_name

#: key in the summary, label of the axis
QUALITIES = (("psnr", "PSNR in dB (higher is better)"), ("fd", "FD (lower is better)"))
#: What stands in their place where nobody has a clean image.
WITHOUT_CLEAN = (("proximal_fd", "proximal FD (lower is better)"),)
#: Seconds that read as whole seconds, minutes, hours or days.
TICKS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 18000, 36000, 86400, 432000)
#: The same where the slowest row takes less than four times the fastest.
CLOSE_TICKS = tuple(
    unit * n
    for unit in (1, 60, 3600)
    for n in (1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50)
    if unit < 3600 or n < 30
)
COLOURS = (
    "#4269d0",
    "#e08a00",
    "#ff725c",
    "#2f9e8f",
    "#3ca951",
    "#c0568f",
    "#8a55d7",
    "#9c6b4e",
    "#6b7280",
    "#1f77b4",
)


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _headed(width: float, height: float, title: str) -> Figure:
    """Return a figure in inches with its title beside where a legend stands."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    characters = max(40, int(13 * (width - 2)))  # 13 of this size an inch
    lines = textwrap.wrap(title, characters)
    figure.suptitle("\n".join(lines), fontsize=9, ha="left", x=0.01)
    return figure


def _seconds(value: float, _: Any = None) -> str:
    if value < 60:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 3600 else f"{value / 3600:.3g} h"


def _place(labels: list[tuple[float, float, str]], axes: Axes) -> None:
    """Write numbers beside points; one that would cover another is moved up."""
    taken: list[tuple[float, float]] = []
    for x, y, text in sorted(labels, key=lambda item: item[1]):
        px, py = axes.transData.transform((x, y))
        shift = 0.0
        while any(abs(px - tx) < 14 and abs(py + shift - ty) < 12 for tx, ty in taken):
            shift += 4
        taken.append((px, py + shift))
        axes.annotate(text, (x, y), (6, -3 + shift * 0.72), textcoords="offset points", fontsize=8)


def quality_cost(summary: pd.DataFrame, title: str) -> Figure | None:
    """Draw quality against the seconds of training, one point a row; None without numbers.

    Arguments:
        summary: From :func:`cleanprior.benchmarks.tables.summarise`.
        title: Written above.
    """
    done = summary[(summary["status"] == "done") & (summary["train_seconds"] > 0)]
    shown = _qualities(done)
    if not shown:
        return None
    figure = _headed(4.4 * len(shown) + 2.6, 4.4, title)
    lines = done.to_dict("records")
    handles = [_handle(line, number + 1, summary) for number, line in enumerate(lines)]
    drawn = [h for h, line in zip(handles, lines, strict=True) if _has_any(line, shown)]
    figure.legend(handles=drawn, loc="outside right upper", fontsize=8, frameon=False)
    for place, (key, label) in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), place + 1)
        axes.set_xscale("log")
        if key != "psnr" and (done[key].max() > 8 * done[key].min()):
            _plain_log(axes)
        names: list[tuple[float, float, str]] = []
        for number, (line, handle) in enumerate(zip(lines, handles, strict=True)):
            x, y, spread = line["train_seconds"], line[key], line[f"{key}_std"]
            if math.isnan(y):
                continue
            if not math.isnan(spread):
                axes.errorbar(x, y, yerr=spread, color=handle.get_color(), capsize=2, lw=1)
            axes.plot(
                x,
                y,
                marker=handle.get_marker(),
                color=handle.get_color(),
                markersize=6,
                mfc=handle.get_markerfacecolor(),
            )
            names.append((x, y, str(number + 1)))
        axes.set_xlabel("seconds of training, E-steps included")
        axes.set_ylabel(label)
        is_close = done["train_seconds"].max() < 4 * done["train_seconds"].min()
        axes.xaxis.set_major_locator(FixedLocator(CLOSE_TICKS if is_close else TICKS))
        axes.xaxis.set_major_formatter(FuncFormatter(_seconds))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.15, high * 1.15)
        _place(names, axes)
    return figure


def _qualities(done: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what can be drawn: PSNR and FD, or what needs no clean image."""
    for choice in (QUALITIES, WITHOUT_CLEAN):
        if shown := [(k, label) for k, label in choice if k in done and done[k].notna().any()]:
            return shown
    return []


def _has_any(line: dict[Any, Any], shown: list[tuple[str, str]]) -> bool:
    return not all(math.isnan(line[key]) for key, _ in shown)


def _handle(line: dict[Any, Any], number: int, summary: pd.DataFrame) -> Line2D:
    """Return what stands for a row: a disc, or an open square for a method's own way."""
    methods = list(summary["method"].unique())
    colour = COLOURS[methods.index(line["method"]) % len(COLOURS)]
    return Line2D(
        [],
        [],
        linestyle="none",
        marker="s" if line["is_own"] else "o",
        color=colour,
        mfc="white" if line["is_own"] else colour,
        label=f"{number}  {row_name(line['method'], line['way'], line['is_own'])}",
    )


def _plain_log(axes: Axes) -> None:
    """Make the y axis logarithmic, with ticks that read 20, 50, 100."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _numbers(log: dict[str, Any]) -> dict[str, list[float]]:
    """Return the entries of a method's log that have one number a round."""
    found = {}
    for name, values in log.items():
        is_series = isinstance(values, list) and len(values) > 1
        if is_series and all(isinstance(v, (int, float)) for v in values):
            found[name] = [float(v) for v in values]
    return found


def curves(records: dict[str, list[Record]], title: str) -> Figure | None:
    """Draw the training loss of each method, and what its rounds logged; first finished seed."""
    found = {
        m: next((r for r in rs if is_finished(r) and r["training"]["history"]), None)
        for m, rs in records.items()
    }
    runs = {m: r for m, r in found.items() if r is not None}
    if not runs:
        return None
    rounds = {m: _numbers(r["training"].get("log", {})) for m, r in runs.items()}
    keys = list(dict.fromkeys(k for values in rounds.values() for k in values))
    panels = 1 + len(keys)
    columns = min(3, panels)
    rows = math.ceil(panels / columns)
    figure = _headed(4.6 * columns + 1.2, 3.2 * rows, title)
    places = {m: i for i, m in enumerate(records)}  # colours are those of the other plots
    colours = {m: COLOURS[places[m] % len(COLOURS)] for m in runs}
    dashes = {m: "-" if places[m] < len(COLOURS) else "--" for m in runs}
    axes = figure.add_subplot(rows, columns, 1)
    for method, record in runs.items():
        losses = [(p["step"], p["loss"]) for p in record["training"]["history"]]
        steps, offset, last = [], 0, -1
        for step, _ in losses:
            if step <= last:  # a new round counts from 0
                offset += last + 1
            steps.append(offset + step)
            last = step
        values = [v if v > 0 else math.nan for _, v in losses]
        axes.plot(steps, values, dashes[method], label=method, color=colours[method], lw=1.2)
    _plain_log(axes)
    axes.set_xlabel("step")
    axes.set_title("training loss, each method's own; above 0", fontsize=8, loc="left")
    for number, key in enumerate(keys):
        panel = figure.add_subplot(rows, columns, number + 2)
        for method, logged in rounds.items():
            if key in logged:
                panel.plot(
                    range(1, len(logged[key]) + 1), logged[key], "o-", color=colours[method], lw=1.2
                )
        panel.set_title(f"{key.replace('_', ' ')} by round", fontsize=8, loc="left")
        panel.set_xlabel("round")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in figure.axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def calibration(records: dict[str, list[Record]], title: str) -> Figure | None:
    """Draw where the truth ranks among posterior draws, a panel a row; first finished seed.

    A flat histogram is calibrated; one that is high at both ends is too sure of itself.
    """
    found = []
    for method, cells in records.items():
        for row in next((r["rows"] for r in cells if is_finished(r)), []):
            if ranks := row.get("curves", {}).get("rank_histogram"):
                found.append((row_name(method, row["way"], row["is_own"]), ranks, row))
    if not found:
        return None
    columns = max(3, min(5, len(found)))  # room for the title
    rows = math.ceil(len(found) / columns)
    figure = _headed(2.3 * columns + 0.4, 1.7 * rows + 0.6, title)
    figure.supxlabel("rank of the truth among the draws; dashed: calibrated", fontsize=8)
    figure.supylabel("share of hidden pixels", fontsize=8)
    top = 1.1 * max(max(ranks) for _, ranks, _ in found)
    for number, (name, ranks, row) in enumerate(found):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.bar(range(len(ranks)), ranks, width=0.9, color=COLOURS[0])
        axes.axhline(1 / len(ranks), color="#1c2430", lw=1, ls="--")
        ratio = row["metrics"].get("spread_ratio", math.nan)
        words = "\n".join(textwrap.wrap(name, 30))
        axes.set_title(f"{words}\nspread / error {ratio:.2f}", fontsize=8, loc="left")
        axes.set_ylim(0, top)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def sweep(
    points: list[tuple[float, pd.DataFrame]], key: str, references: tuple[str, ...], title: str
) -> Figure | None:
    """Draw quality of each row against a key that differs between problems.

    A method's own way is an open square on a dotted line.

    Arguments:
        points: Value of the key and summary of its problem.
        key: The key, e.g. ``operator.p``.
        references: Drawn in grey.
        title: Written above.
    """
    joined = pd.concat([s.assign(value=v) for v, s in points], ignore_index=True)
    done = joined[joined["status"] == "done"]
    shown = _qualities(done)
    if not shown or done["value"].nunique() < 2:
        return None
    figure = _headed(5.2 * len(shown) + 3, 4.0, title)
    ranked = [m for m in done["method"].unique() if m not in references]
    styles = ("--", ":", "-.")
    handles: dict[str, Any] = {}
    for number, (quality, label) in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), number + 1)
        for (method, way, is_own), group in done.groupby(["method", "way", "is_own"], sort=False):
            lines = group[group[quality].notna()].sort_values("value")
            is_reference = method in references
            if not len(lines) or (is_own and is_reference):
                continue
            colour = "#8b929c" if is_reference else COLOURS[ranked.index(method) % len(COLOURS)]
            style = styles[references.index(method) % len(styles)] if is_reference else "-"
            name = row_name(str(method), str(way), bool(is_own))
            handles[name] = axes.errorbar(
                lines["value"],
                lines[quality],
                yerr=lines[f"{quality}_std"].fillna(0),
                marker="s" if is_own else "o",
                mfc="white" if is_own else colour,
                markersize=4,
                capsize=2,
                lw=1 if is_own else 1.4,
                ls=":" if is_own else style,
                color=colour,
            )
        axes.set_xlabel(key)
        axes.set_ylabel(label)
        if quality != "psnr":
            _plain_log(axes)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        list(handles.values()), list(handles), loc="outside right upper", fontsize=8, frameon=False
    )
    return figure


def write(
    problem: Problem, records: dict[str, list[Record]], summary: pd.DataFrame, folder: Path
) -> list[Path]:
    """Write quality against cost, curves and calibration; what has no numbers is left out."""
    figures = {
        "quality_cost.png": quality_cost(summary, problem.title),
        "curves.png": curves(records, problem.title),
        "calibration.png": calibration(records, problem.title),
    }
    for name, figure in figures.items():
        if figure is not None:
            write_bytes(folder / name, png(figure))
    return [folder / name for name, figure in figures.items() if figure is not None]
