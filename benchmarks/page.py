"""The page of a benchmark: one HTML file that opens offline, everything inside. No torch."""

import base64
import json
import math
import mimetypes
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from cleanprior.files import write_text
from cleanprior.metric_names import describe, in_order
from cleanprior.records import Record, is_finished

from .tables import COLUMNS, TEXTS, number

#: Pictures in their order.
CAPTIONS = {
    "sweep.png": "Quality against the strength of the corruption",
    "samples.png": "Generated samples",
    "restorations.png": "Restorations of the first held-out measurements",
    "quality_cost.png": "Quality against cost",
    "curves.png": "Training",
    "calibration.png": "Is the spread of posterior draws right?",
    "memorised.png": "Samples nearest to a training image, that image below",
}
#: Rows that can be hidden together.
KINDS = {
    "reference": "reference rows",
    "own": "methods' own ways",
    "unfinished": "skipped and failed",
}


@dataclass(frozen=True)
class Sheet:
    """One tab: a table, its marks, notes and files.

    Attributes:
        tab: Short name.
        title: Heading.
        shown: The table as strings.
        summary: The numbers behind it, the same rows.
        bold: Which cells are significantly best.
        lines: Notes.
        files: Everything written beside; pictures are shown, the rest is offered as downloads.
        records: Records by method, one a seed.
        references: Methods that are not ranked.
    """

    tab: str
    title: str
    shown: pd.DataFrame
    summary: pd.DataFrame
    bold: pd.DataFrame
    lines: list[str]
    files: list[Path]
    records: dict[str, list[Record]]
    references: tuple[str, ...]


def _uri(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _value(line: dict[str, Any], key: str | None) -> float | None:
    if key is None:
        return None
    value = line.get("evaluations" if key == "nfe" else key)
    if value is None or isinstance(value, str) or math.isnan(value):
        return None
    return float(value)


def _further(summary: pd.DataFrame) -> list[str]:
    """Return the metrics of a table that have no column of their own in it."""
    left_out = {key for key, *_ in COLUMNS} | {f"{key}_std" for key in summary.columns}
    return [k for k in in_order(summary.columns) if k not in left_out and summary[k].notna().any()]


def _rows(sheet: Sheet, further: list[str]) -> list[dict[str, Any]]:
    keys: dict[str, str | None] = {heading: key for key, heading, _, _ in COLUMNS}
    keys |= dict.fromkeys(TEXTS)
    rows = []
    tables = (sheet.summary, sheet.shown, sheet.bold)
    for numbers, texts, bold in zip(*(t.to_dict("records") for t in tables), strict=True):
        line = {str(k): v for k, v in numbers.items()}
        kinds = []
        if line.get("method") in sheet.references:
            kinds.append("reference")
        elif line.get("is_own"):
            kinds.append("own")
        if line.get("status", "done") != "done":
            kinds.append("unfinished")
        cells = [
            {
                "text": text,
                "is_text": heading in TEXTS,
                "is_best": bool(bold[heading]),
                "is_further": False,
                "value": _value(line, keys.get(str(heading), str(heading))),
            }
            for heading, text in texts.items()
        ]
        cells += [
            {
                "text": number(line, key, ".3g", " ± "),
                "is_text": False,
                "is_best": False,
                "is_further": True,
                "value": _value(line, key),
            }
            for key in further
        ]
        rows.append({"kinds": " ".join(kinds), "cells": cells})
    return rows


def _headings(sheet: Sheet, further: list[str]) -> list[dict[str, Any]]:
    meanings = {heading: meaning for _, heading, _, meaning in COLUMNS}
    headings = [
        {
            "name": heading,
            "is_text": heading in TEXTS,
            "is_further": False,
            "meaning": meanings.get(heading, ""),
        }
        for heading in sheet.shown.columns
    ]
    headings += [
        {
            "name": key.replace("_", " "),
            "is_text": False,
            "is_further": True,
            "meaning": describe(key),
        }
        for key in further
    ]
    return headings


def _cells(records: dict[str, list[Record]]) -> list[dict[str, str]]:
    """Return what defines each cell and where it ran, as readable JSON."""
    cells = []
    for method, found in records.items():
        for record in found:
            kept = {k: v for k, v in record.items() if k not in ("rows", "method", "seed")}
            if "training" in kept:
                kept["training"] = {k: v for k, v in kept["training"].items() if k != "history"}
            title = f"{method}, seed {record['seed']}"
            if is_finished(record):
                title += f" · {record['device']}, {record['time']}"
            else:
                title += f" · {record['status'].partition(':')[0]}"
            cells.append({"title": title, "text": json.dumps(kept, indent=1, ensure_ascii=False)})
    return cells


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    text = files("cleanprior.benchmarks").joinpath("page.html.j2").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)


def write(path: Path, name: str, about: str, sheets: list[Sheet]) -> Path:
    """Write the page.

    Arguments:
        path: The file.
        name: Name of the benchmark.
        about: One sentence below it.
        sheets: The tabs, in order.
    """
    views = []
    for sheet in sheets:
        order = list(CAPTIONS)
        pictures = sorted(
            (f for f in sheet.files if f.suffix == ".png"), key=lambda f: order.index(f.name)
        )
        further = _further(sheet.summary)
        rows = _rows(sheet, further)
        views.append(
            {
                "tab": sheet.tab,
                "title": sheet.title,
                "headings": _headings(sheet, further),
                "rows": rows,
                "has_further": bool(further),
                "kinds": {kind for row in rows for kind in row["kinds"].split()},
                "lines": sheet.lines,
                "downloads": [
                    {"name": f.name, "uri": _uri(f)} for f in sheet.files if f not in pictures
                ],
                "pictures": [{"caption": CAPTIONS[f.name], "uri": _uri(f)} for f in pictures],
                "cells": _cells(sheet.records),
            }
        )
    write_text(path, _template().render(name=name, about=about, sheets=views, kinds=KINDS))
    return path
