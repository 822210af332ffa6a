"""Plots of a table: quality against cost, training, calibration, a sweep. No torch."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cleanprior.cells.record import Record, is_finished
from cleanprior.files import write_bytes

from ..plan import Problem
from ..tables.row_names import row_name
from . import layout
from .layout import png, styled
from .palette import Look, looks

__all__ = ["calibration", "curves", "png", "quality_cost", "sweep", "write"]

#: key in the summary, label of the axis
QUALITIES = (
    ("psnr", "PSNR in dB,\none draw (higher is better)"),
    ("psnr_point", "PSNR in dB, mean of draws\nor estimate (higher is better)"),
    ("fd", "FD of samples\n(lower is better)"),
)
#: What stands in their place where nobody has a clean image.
WITHOUT_CLEAN = (("proximal_fd", "proximal FD of samples\n(lower is better)"),)
#: key of a method's log, label of the axis
LOGGED = {
    "residual": "residual of draws,\nsquared units of x",
    "residual_ratio": "residual over noise\n(1: as expected)",
    "drift": "change of the draws'\ncovariance (share)",
    "scales": "guidance scale\n(a factor)",
    "scale": "guidance scale\n(a factor)",
}
INK = "#1c2430"


def _qualities(done: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what can be drawn: PSNR and FD, or what needs no clean image."""
    for choice in (QUALITIES, WITHOUT_CLEAN):
        if shown := [(k, label) for k, label in choice if k in done and done[k].notna().any()]:
            return shown
    return []


def _is_wide(values: pd.Series) -> bool:
    """Whether a distance spans so much that its axis must be logarithmic."""
    found = values.dropna()
    return bool(len(found) and found.min() > 0 and found.max() > 8 * found.min())


#: Where a number may stand beside its point, in typographic points, best first.
BESIDE = (
    *((side * 9, up) for up in (0, 5, -5) for side in (1, -1)),
    *((side, up) for up in (10, -10) for side in (0, 5, -5)),
    *((side * 9, up) for up in (12, -12, 18, -18, 24, -24) for side in (1, -1)),
)


def _place(names: list[tuple[float, float, str]], axes: Axes) -> None:
    """Write numbers beside points, where they cover neither each other nor another's marker."""
    points = []
    for x, y, _ in names:
        px, py = axes.transData.transform((x, y)) * 72 / layout.DPI
        points.append((float(px), float(py)))
    numbers: list[tuple[float, float]] = []
    for (x, y, text), (px, py) in zip(names, points, strict=True):
        for dx, dy in BESIDE:
            at = px + dx, py + dy
            others = [point for point in points if point != (px, py)]
            if not any(abs(at[0] - u) < 8 and abs(at[1] - v) < 9 for u, v in (*others, *numbers)):
                break
        numbers.append(at)
        axes.annotate(
            text,
            (x, y),
            (dx, dy),
            textcoords="offset points",
            fontsize=layout.SMALL,
            annotation_clip=False,
            ha="center",
            va="center_baseline",
        )


def train_flops(records: Mapping[str, Sequence[Record]]) -> dict[str, float]:
    """Return the mean FLOPs of training of each method whose finished cells all have them."""
    found = {}
    for method, cells in records.items():
        finished = [r for r in cells if is_finished(r)]
        counted = [f for r in finished if (f := r.get("costs", {}).get("train_flops")) is not None]
        if counted and len(counted) == len(finished):
            found[method] = sum(counted) / len(counted)
    return found


@styled
def quality_cost(
    summary: pd.DataFrame, records: Mapping[str, Sequence[Record]], title: str
) -> Figure | None:
    """Draw quality against the cost of training, a point a row; None without numbers.

    FLOPs first, which no other process disturbs; seconds beside them. A row that trains nothing is
    a line across.

    Arguments:
        summary: From :func:`cleanprior.benchmarks.tables.summary.summarise`.
        records: Records by method, one a seed.
        title: Written above.
    """
    done = summary[summary["status"] == "done"].reset_index(drop=True)
    flops = train_flops(records)
    done["train_flop"] = done["method"].map(flops).astype(float)
    trained = done[done["train_seconds"] > 0]
    shown = _qualities(trained)
    if not shown:
        return None
    costs = [
        ("train_seconds", "time of training, whatever else ran", layout.SECONDS, layout.seconds)
    ]
    if trained["train_flop"].gt(0).any():
        about = "FLOP of training, E-steps included"
        costs.insert(0, ("train_flop", about, layout.COUNTS, layout.lettered))
    figure = layout.headed(2.3 * len(shown) + 0.4, title)
    panels = figure.subplots(len(shown), len(costs), squeeze=False, sharey="row", sharex="col")
    styles = looks(records)
    lines = [{str(k): v for k, v in line.items()} for line in done.to_dict("records")]
    drawn = [i for i, line in enumerate(lines) if _has_any(line, shown)]
    numbers = {i: str(n + 1) for n, i in enumerate(drawn)}
    for across, (key, label) in zip(panels, shown, strict=True):
        for axes, (cost, about, choice, form) in zip(across, costs, strict=True):
            for i in drawn:
                _point(axes, lines[i], cost, key, styles[lines[i]["method"]])
            if key != "psnr" and not key.startswith("psnr") and _is_wide(done[key]):
                layout.log_ticks(axes, "y", layout.NUMBERS, layout.number)
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            axes.set_xlim(low / 1.15, high * 1.3)
            layout.log_ticks(axes, "x", choice, form)
            if axes is across[0]:
                axes.set_ylabel(label)
            if key == shown[-1][0]:
                axes.set_xlabel(about)
    handles = [_handle(styles[lines[i]["method"]], lines[i]) for i in drawn]
    names = [f"{numbers[i]}  {_row(lines[i])}" for i in drawn]
    uncounted = [m for m in dict.fromkeys(trained["method"]) if m not in flops]
    if uncounted and len(costs) > 1:
        handles.append(Line2D([], [], linestyle="none"))
        names.append(f"no FLOP count: {', '.join(map(str, uncounted))}")
    layout.legend(figure, handles, names)
    figure.draw_without_rendering()  # the layout decides where numbers cover each other
    for across, (key, _) in zip(panels, shown, strict=True):
        for axes, (cost, *_) in zip(across, costs, strict=True):
            places = [(lines[i][cost], lines[i][key], numbers[i]) for i in drawn]
            finite = [p for p in places if p[0] > 0 and not math.isnan(p[1])]
            _place(finite, axes)
    return figure


def _row(line: Mapping[str, Any]) -> str:
    return row_name(str(line["method"]), line, bool(line["is_own"]))


def _has_any(line: Mapping[str, Any], shown: list[tuple[str, str]]) -> bool:
    return not all(math.isnan(line[key]) for key, _ in shown)


def _point(axes: Axes, line: Mapping[str, Any], cost: str, key: str, style: Look) -> None:
    """Draw a row: a point with its spread over seeds, or a line where nothing was trained."""
    x, y, spread = line[cost], line[key], line.get(f"{key}_std", math.nan)
    if math.isnan(y):
        return
    if line["train_seconds"] <= 0 or x == 0:
        axes.axhline(y, color=style.colour, lw=1, ls=style.line)
    elif not math.isnan(x):
        if not math.isnan(spread):
            axes.errorbar(x, y, yerr=spread, color=style.colour, capsize=2, lw=1)
        axes.plot(x, y, ls="none", color=style.colour, **_marker(style, line["is_own"]))


def _marker(style: Look, is_own: bool) -> dict[str, Any]:
    """Return a marker's settings: hollow for a method's own way."""
    face = "white" if is_own else style.colour
    edge = style.colour if is_own else INK
    width = 1.4 if is_own else 0.4
    return {"marker": style.marker, "markersize": 6.5, "mfc": face, "mec": edge, "mew": width}


def _handle(style: Look, line: Mapping[str, Any]) -> Line2D:
    if line["train_seconds"] <= 0:
        return Line2D([], [], color=style.colour, lw=1, ls=style.line)
    return Line2D([], [], ls="none", color=style.colour, **_marker(style, bool(line["is_own"])))


def _numbers(log: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the entries of a method's log that have one number a round."""
    found = {}
    for name, values in log.items():
        is_series = isinstance(values, list) and len(values) > 1
        if is_series and all(isinstance(v, (int, float)) for v in values):
            found[name] = [float(v) for v in values]
    return found


@styled
def curves(records: Mapping[str, Sequence[Record]], title: str) -> Figure | None:
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
    rows = 1 + math.ceil(len(keys) / 2)
    figure = layout.headed(2.4 + 1.9 * (rows - 1), title)
    grid = figure.add_gridspec(rows, 2, height_ratios=[1.3] + [1.0] * (rows - 1))
    styles = looks(records)
    axes = figure.add_subplot(grid[0, :])
    handles = {m: _loss(axes, r, styles[m]) for m, r in runs.items()}
    layout.log_ticks(axes, "y", layout.NUMBERS, layout.number)
    axes.set_xlabel("optimiser steps of all rounds")
    axes.set_ylabel("training loss, above 0\n(each method's own units)")
    for place, key in enumerate(keys):
        is_last_alone = place == len(keys) - 1 and place % 2 == 0
        cell = grid[1 + place // 2, :] if is_last_alone else grid[1 + place // 2, place % 2]
        panel = figure.add_subplot(cell)
        for method, logged in rounds.items():
            if key in logged:
                style, values = styles[method], logged[key]
                line: dict[str, Any] = {"color": style.colour, "ls": style.line, "lw": 1.4}
                places = range(1, len(values) + 1)
                panel.plot(places, values, **line, **_marker(style, is_own=False))
        panel.set_ylabel(LOGGED.get(key, f"{key},\nas the method logs it"))
        panel.set_xlabel("round")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    layout.legend(figure, list(handles.values()), list(handles))
    return figure


def _loss(axes: Axes, record: Record, style: Look) -> Line2D:
    """Draw the loss over all rounds; what is not positive has no place on this axis."""
    steps, losses, offset, last = [], [], 0, -1
    for entry in record["training"]["history"]:
        if entry["step"] <= last:  # a new round counts from 0
            offset += last + 1
        last = entry["step"]
        steps.append(offset + last)
        losses.append(entry["loss"] if entry["loss"] > 0 else math.nan)
    (line,) = axes.plot(
        steps,
        losses,
        color=style.colour,
        ls=style.line,
        lw=1.4,
        markevery=max(1, len(steps) // 6),
        **_marker(style, is_own=False),
    )
    return line


@styled
def calibration(records: Mapping[str, Sequence[Record]], title: str) -> Figure | None:
    """Draw where the truth ranks among posterior draws, a panel a row; first finished seed.

    A flat histogram is calibrated; one that is high at both ends is too sure of itself.
    """
    found = []
    for method, cells in records.items():
        for row in next((r["rows"] for r in cells if is_finished(r)), []):
            if ranks := row.get("curves", {}).get("rank_histogram"):
                found.append((method, row, ranks))
    if not found:
        return None
    columns = min(len(found), 3) if len(found) != 4 else 2
    rows = math.ceil(len(found) / columns)
    figure = layout.headed(1.75 * rows + 0.5, title)
    figure.supxlabel("rank of the truth among the draws (dashed: calibrated)", fontsize=layout.TEXT)
    figure.supylabel("share of hidden pixels", fontsize=layout.TEXT)
    styles = looks(records)
    top = 1.1 * max(max(ranks) for _, _, ranks in found)
    for number, (method, row, ranks) in enumerate(found):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.bar(range(len(ranks)), ranks, width=0.9, color=styles[method].colour)
        axes.axhline(1 / len(ranks), color=INK, lw=1, ls="--")
        ratio = row["metrics"].get("spread_ratio", math.nan)
        name = row_name(method, row, row["is_own"])
        words = "\n".join(textwrap.wrap(name, 66 // columns))
        axes.set_title(f"{words}\nspread / error {ratio:.2f}", fontsize=layout.SMALL, loc="left")
        axes.set_ylim(0, top)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.grid(visible=False)
    return figure


@styled
def sweep(
    points: list[tuple[float, pd.DataFrame]], key: str, references: tuple[str, ...], title: str
) -> Figure | None:
    """Draw quality of each row against a key that differs between problems.

    A method's own way has hollow markers on a dotted line; reference rows are thin.

    Arguments:
        points: Value of the key and summary of its problem.
        key: The key, e.g. ``operator.p``.
        references: Methods that anchor the table.
        title: Written above.
    """
    joined = pd.concat([s.assign(value=v) for v, s in points], ignore_index=True)
    done = joined[joined["status"] == "done"]
    shown = _qualities(done)
    if not shown or done["value"].nunique() < 2:
        return None
    figure = layout.headed(2.4 * math.ceil(len(shown) / 2) + 0.3, title)
    grid = figure.add_gridspec(math.ceil(len(shown) / 2), 2)
    styles = looks(str(m) for m in joined["method"])
    handles: dict[str, Any] = {}
    for place, (quality, label) in enumerate(shown):
        is_last_alone = place == len(shown) - 1 and place % 2 == 0
        axes = figure.add_subplot(grid[place // 2, :] if is_last_alone else grid[divmod(place, 2)])
        for (method, _, is_own), group in done.groupby(["method", "way", "is_own"], sort=False):
            lines = group[group[quality].notna()].sort_values("value")
            is_reference = method in references
            if not len(lines) or (is_own and is_reference):
                continue
            style = styles[str(method)]
            name = row_name(str(method), group.iloc[0].to_dict(), bool(is_own))
            handles[name] = axes.errorbar(
                lines["value"],
                lines[quality],
                yerr=lines[f"{quality}_std"].fillna(0),
                capsize=2,
                lw=1 if is_own or is_reference else 1.6,
                ls=":" if is_own else style.line,
                color=style.colour,
                **_marker(style, bool(is_own)),
            )
        axes.set_xlabel(key)
        axes.set_ylabel(label)
        if not quality.startswith("psnr") and _is_wide(done[quality]):
            layout.log_ticks(axes, "y", layout.NUMBERS, layout.number)
    layout.legend(figure, list(handles.values()), list(handles))
    return figure


def write(
    problem: Problem, records: dict[str, list[Record]], summary: pd.DataFrame, folder: Path
) -> list[Path]:
    """Write quality against cost, curves and calibration; what has no numbers is left out."""
    drawn = {
        "quality_cost.png": quality_cost(summary, records, problem.title),
        "curves.png": curves(records, problem.title),
        "calibration.png": calibration(records, problem.title),
    }
    for name, figure in drawn.items():
        if figure is not None:
            write_bytes(folder / name, png(figure))
    return [folder / name for name, figure in drawn.items() if figure is not None]
