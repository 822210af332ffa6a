"""One metric of several problems side by side."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .columns import COLUMNS, DASH
from .display import number
from .row_names import names

#: Metrics that an overview shows, with their headings.
OVERVIEWS = {
    "psnr": "PSNR in dB of one draw",
    "psnr_point": "PSNR in dB of point estimates and means of draws",
    "fd": "FD",
}


def overview(
    summaries: Mapping[str, pd.DataFrame],
    best: Mapping[str, Mapping[str, Sequence[tuple[str, str]]]],
    references: Sequence[str],
    key: str,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Put one metric of several problems side by side: rows by method and way, a column a problem.

    Arguments:
        summaries: From :func:`cleanprior.benchmarks.tables.summary.summarise`, by the
            problem's label.
        best: From :func:`cleanprior.benchmarks.tables.statistics.best`, by the problem's label.
        references: Methods that are not ranked.
        key: The metric, one of :data:`OVERVIEWS`.

    Returns:
        The table as strings, its numbers, and what is bold.
    """
    form = next(c.form for c in COLUMNS if c.key == key)
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for label, summary in summaries.items():
        for record in summary.to_dict("records"):
            line = {str(k): v for k, v in record.items()}
            if not pd.isna(line.get(key, math.nan)):
                found.setdefault((line["method"], line["way"]), {})[label] = line
    order = list(dict.fromkeys(m for s in summaries.values() for m in s["method"]))
    rows = sorted(found, key=lambda name: order.index(name[0]))
    named = names(pd.DataFrame([next(iter(found[row].values())) for row in rows]), references)
    texts, numbers, marked = [], [], []
    for (method, way), name in zip(rows, named, strict=True):
        lines = found[method, way]
        head = {"method": name, "restores by": way}
        texts.append(
            head
            | {k: number(lines[k], key, form, " ± ") if k in lines else DASH for k in summaries}
        )
        is_own = next(iter(lines.values()))["is_own"] and method not in references
        values = {k: lines[k][key] if k in lines else math.nan for k in summaries}
        numbers.append({"method": method, "way": way, "is_own": is_own, "status": "done"} | values)
        marked.append(
            {"method": False, "restores by": False}
            | {k: (method, way) in best[k].get(key, []) for k in summaries}
        )
    return pd.DataFrame(texts), pd.DataFrame(numbers), pd.DataFrame(marked)
