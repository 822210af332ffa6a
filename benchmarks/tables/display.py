"""A summary as a person reads it: numbers with their spread, headings, what is in bold."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cleanprior.cells.status import Status
from cleanprior.metric_names import further as further_metrics

from .columns import DASH, SIGNIFICANT, Column, shown_columns
from .numbers import lettered, significant, with_spread
from .row_names import names
from .summary import QUALITIES

#: Below this a residual is the rounding of float32 images.
ROUNDING = 1e-6


def number(line: Mapping[str, Any], key: str, form: str, plus_minus: str) -> str:
    """Return a number of :func:`summarise` as text, with its spread over seeds if it has one."""
    value, spread = line[key], line.get(f"{key}_std", math.nan)
    if value is None or pd.isna(value):
        return DASH
    if form == SIGNIFICANT:
        if key.startswith("consistency") and abs(value) < ROUNDING:
            return "0"
        if pd.isna(spread):
            return significant(value)
        return with_spread(value, spread, plus_minus)
    return f"{value:{form}}" + (f"{plus_minus}{spread:{form}}" if not pd.isna(spread) else "")


def display(summary: pd.DataFrame, references: Sequence[str]) -> pd.DataFrame:
    """Return the table as strings, with its headings.

    Arguments:
        summary: From :func:`summarise`.
        references: Methods that anchor the table.
    """
    lines = []
    columns = shown_columns(summary)
    for name, record in zip(names(summary, references), summary.to_dict("records"), strict=True):
        line = {str(k): v for k, v in record.items()}
        shown = {"method": name, "restores by": str(line["way"]) or DASH}
        shown |= {c.heading: _cell(line, c) for c in columns}
        # A reason is a sentence: it stands under the table, where it does not widen a column.
        ended = Status.from_json(str(line["status"]))
        codes = [f"[{code}]" for code in str(line["warning"] or "").split("+") if code]
        shown["status"] = " ".join(
            [f"{ended.kind}, see below" if ended.reason else ended.kind, *codes]
        )
        lines.append(shown)
    return pd.DataFrame(lines)


def _cell(line: dict[str, Any], column: Column) -> str:
    key, form = column.key, column.form
    if key in QUALITIES or key in further_metrics():
        return number(line, key, form, " ± ")
    value = line["evaluations" if key == "nfe" else key]
    if value is None or pd.isna(value):
        return DASH
    if key == "nfe":
        backward = int(line["backwards"])
        return f"{int(value)} (+{backward})" if backward else str(int(value))
    if form == "d":
        return str(int(value))
    if form == "letter":
        return lettered(float(value))
    # Costs have no spread: it is that of the machine; table.csv has it.
    return significant(float(value), 2) if form == "time" else f"{value:{form}}"


def marks(summary: pd.DataFrame, best: Mapping[str, Sequence[tuple[str, str]]]) -> pd.DataFrame:
    """Return which cells of :func:`display` are in bold: significantly best in their track.

    Draws and points are columns of their own, so that bold never crosses them.

    Arguments:
        summary: From :func:`summarise`, in the order of the table.
        best: From :func:`cleanprior.benchmarks.tables.statistics.best`.
    """
    rows = list(zip(summary["method"], summary["way"], strict=True))
    headings = ["method", "restores by", *(c.heading for c in shown_columns(summary)), "status"]
    bold = pd.DataFrame(False, index=range(len(rows)), columns=headings)
    for column in shown_columns(summary):
        bold[column.heading] = [row in best.get(column.key, []) for row in rows]
    return bold
