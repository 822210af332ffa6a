"""The page of a benchmark: one HTML file that opens offline, everything inside. No torch."""

import base64
import io
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
from PIL import Image

from cleanprior.cells.record import Record, is_finished
from cleanprior.files import write_text
from cleanprior.metric_names import describe, in_order

from . import cell_commands
from .figures.palette import looks
from .figures.problems import STRIPS
from .tables.columns import DASH, IMPORTANT, TEXTS, all_columns
from .tables.display import number
from .tables.matrix import matrix

#: Pictures in their order.
CAPTIONS = {
    "worth.png": "As good as how many clean images: the same network trained on so many of them, "
    "and where each row lies",
    "sweep.png": "Quality against the strength of the corruption",
    "quality_cost.png": "Quality against cost: FLOP of training, which no other process disturbs, "
    "and seconds; hollow: a method's own way",
    "restorations.png": "Restorations of the first held-out measurements",
    "samples.png": "Generated samples",
    "calibration.png": "Is the spread of posterior draws right? Flat is calibrated, high at both "
    "ends too sure",
    "curves.png": "Training: the loss, and what rounds logged",
    "memorised.png": "Samples nearest to a training image, that image below",
}
#: Rows that can be hidden together.
KINDS = {
    "reference": "reference rows",
    "own": "methods' own ways",
    "unfinished": "skipped and failed",
}
#: Columns that are shown before anybody asks for all.
MAIN = (*IMPORTANT, "train_seconds")
#: Where nobody has a clean image, this tells restorations apart.
WITHOUT_CLEAN = ("consistency", "consistency_point")
#: Bytes from which a picture of photographs is embedded as JPEG.
HEAVY = 300_000


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
        verdict: What the table says, in two sentences; empty for none.
        comparisons: From :func:`cleanprior.benchmarks.tables.statistics.compare`, or None.
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
    verdict: str = ""
    comparisons: pd.DataFrame | None = None


def _uri(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    data = path.read_bytes()
    if kind == "image/png" and len(data) > HEAVY:
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").save(buffer, "jpeg", quality=88)
        if len(buffer.getvalue()) < len(data) / 2:  # photographs; drawings stay as they are
            kind, data = "image/jpeg", buffer.getvalue()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _value(line: dict[str, Any], key: str | None) -> float | None:
    if key is None:
        return None
    value = line.get("evaluations" if key == "nfe" else key)
    if value is None or isinstance(value, str) or math.isnan(value):
        return None
    return float(value)


def _further(summary: pd.DataFrame) -> list[str]:
    """Return the metrics of a table that have no column of their own in it."""
    left_out = {key for key, *_ in all_columns()} | {f"{key}_std" for key in summary.columns}
    return [k for k in in_order(summary.columns) if k not in left_out and summary[k].notna().any()]


def _main(summary: pd.DataFrame) -> set[str]:
    """Return the keys of columns that are shown at once."""
    has_clean = any(key in summary and summary[key].notna().any() for key in ("psnr", "psnr_point"))
    return {*MAIN, *(() if has_clean else WITHOUT_CLEAN)}


def _headings(sheet: Sheet, further: list[str]) -> list[dict[str, Any]]:
    meanings = {heading: meaning for _, heading, _, meaning in all_columns()}
    keys = {heading: key for key, heading, _, _ in all_columns()}
    main = _main(sheet.summary)
    headings = [
        {
            "name": heading,
            "key": keys.get(heading, heading if heading not in TEXTS else None),
            "is_text": heading in TEXTS,
            "is_further": heading in keys and keys[heading] not in main,
            "meaning": meanings.get(heading, ""),
        }
        for heading in map(str, sheet.shown.columns)
    ]
    headings += [
        {
            "name": key.replace("_", " "),
            "key": key,
            "is_text": False,
            "is_further": True,
            "meaning": describe(key),
        }
        for key in further
    ]
    return headings


def _rows(sheet: Sheet, headings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    colours = looks(dict.fromkeys(sheet.records))
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
        cells = []
        for heading in headings:
            name, key = heading["name"], heading["key"]
            text = texts[name] if name in texts else number(line, key, ".3g", " ± ")
            cells.append(
                {
                    "heading": heading,
                    "text": text,
                    "is_best": bool(bold.get(name, False)),
                    "is_empty": text == DASH,
                    "value": _value(line, key),
                }
            )
        look = colours.get(str(line.get("method")))
        rows.append(
            {"kinds": " ".join(kinds), "cells": cells, "colour": look.colour if look else ""}
        )
    return rows


def _cells(
    records: dict[str, list[Record]], out: Path, priors: dict[str, Path]
) -> list[dict[str, Any]]:
    """Return what defines each cell, where it ran and how to get it again."""
    cells = []
    for method, found in records.items():
        for record in found:
            kept = {k: v for k, v in record.items() if k not in ("rows", "method", "seed")}
            if "training" in record:
                kept["training"] = {k: v for k, v in record["training"].items() if k != "history"}
            title = f"{method}, seed {record['seed']}"
            if is_finished(record):
                title += f" · {record['device']}, {record['time']}"
            else:
                title += f" · {record['status'].partition(':')[0]}"
            cells.append(
                {
                    "title": title,
                    "notes": cell_commands.notes(record, out, priors),
                    "text": json.dumps(kept, indent=1, ensure_ascii=False),
                }
            )
    return cells


def _strips(sheet: Sheet) -> dict[str, Any] | None:
    """Return the strips of restorations that can be put side by side."""
    for file in sheet.files:
        if file.name == STRIPS:
            strips: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            rows = [tuple(s["row"]) for s in strips["strips"] if s["kind"] == "row"]
            return {**strips, "chosen": _chosen(sheet, rows)}
    return None


def _chosen(sheet: Sheet, rows: list[tuple[str, ...]]) -> list[int]:
    """Return the two strips that are shown first: of the best row of each of the two best methods.

    Of a row's strips that is the last one, the mean of its draws where there is one.
    """
    key = next((k for k in ("psnr_point", "psnr") if k in sheet.summary), None)
    ranked = sheet.summary if key is None else sheet.summary.sort_values(key, ascending=False)
    names = [(str(m), str(w)) for m, w in zip(ranked["method"], ranked["way"], strict=True)]
    names = [name for name in names if name in rows and name[0] not in sheet.references]
    first = {method: (method, way) for method, way in reversed(names)}
    best = sorted(first.values(), key=names.index)
    last = {row: place for place, row in enumerate(rows)}
    found = [last[name] for name in best[:2]]
    return [*found, *range(len(rows))][:2] if len(rows) > 1 else [0, 0]


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    text = files("cleanprior.benchmarks").joinpath("page.html.j2").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)


def write(path: Path, name: str, about: str, sheets: list[Sheet]) -> Path:
    """Write the page.

    Arguments:
        path: The file, in ``tables/KEY/`` of the folder of all runs.
        name: Name of the benchmark.
        about: One sentence below it.
        sheets: The tabs, in order.
    """
    views = []
    out = cell_commands.from_here(path.parents[2] if len(path.parents) > 2 else path.parent)
    priors = cell_commands.priors(out)
    order = list(CAPTIONS)
    for sheet in sheets:
        pictures = sorted(
            (f for f in sheet.files if f.suffix == ".png"), key=lambda f: order.index(f.name)
        )
        headings = _headings(sheet, _further(sheet.summary))
        rows = _rows(sheet, headings)
        others = [f for f in sheet.files if f not in pictures and f.name != STRIPS]
        views.append(
            {
                "tab": sheet.tab,
                "title": sheet.title,
                "verdict": sheet.verdict,
                "headings": headings,
                "rows": rows,
                "has_further": any(h["is_further"] for h in headings),
                "kinds": {kind for row in rows for kind in row["kinds"].split()},
                "lines": sheet.lines,
                "downloads": [{"name": f.name, "uri": _uri(f)} for f in others],
                "pictures": [{"caption": CAPTIONS[f.name], "uri": _uri(f)} for f in pictures],
                "cells": _cells(sheet.records, out, priors),
                "matrix": matrix(sheet.comparisons, sheet.summary),
                "strips": _strips(sheet),
            }
        )
    write_text(path, _template().render(name=name, about=about, sheets=views, kinds=KINDS))
    return path
