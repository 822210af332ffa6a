"""Pairwise comparisons as a page shows them: a matrix a metric. No torch."""

import math
from typing import Any

import pandas as pd

from cleanprior.metric_names import describe

from .row_names import row_name
from .statistics import LEVEL, RANKED


def matrix(comparisons: pd.DataFrame | None, summary: pd.DataFrame) -> dict[str, Any] | None:
    """Return every pair of rows by metric, or None where no two rows were compared.

    Arguments:
        comparisons: From :func:`cleanprior.benchmarks.tables.statistics.compare`.
        summary: From :func:`cleanprior.benchmarks.tables.summary.summarise`, for the rows'
            names and order.

    Returns:
        ``level`` and ``metrics``, each with its ``key``, what it ``is``, whether ``higher`` is
        better, its ``rows`` by name and ``pairs`` of ``[a, b, a - b, low, high, p]``: places in
        rows, the 95 % interval and Holm's p-value, null where there is none.
    """
    if comparisons is None or not len(comparisons):
        return None
    names = {
        (line["method"], line["way"]): row_name(line["method"], line, bool(line["is_own"]))
        for line in summary.to_dict("records")
    }
    metrics = []
    for key, group in comparisons.groupby("metric", sort=False):
        lines = group.to_dict("records")
        met = {(line[side], line[f"{side}_way"]) for line in lines for side in ("a", "b")}
        rows = [name for name in names if name in met]
        pairs = [
            [
                rows.index((line["a"], line["a_way"])),
                rows.index((line["b"], line["b_way"])),
                *(_plain(line.get(k)) for k in ("difference", "low", "high", "p_holm")),
            ]
            for line in lines
            if (line["a"], line["a_way"]) in rows and (line["b"], line["b_way"]) in rows
        ]
        if pairs:
            metrics.append(
                {
                    "key": str(key),
                    "is": describe(str(key)),
                    "higher": RANKED[str(key)],
                    "rows": [names[row] for row in rows],
                    "pairs": pairs,
                }
            )
    return {"level": LEVEL, "metrics": metrics} if metrics else None


def _plain(value: Any) -> float | None:
    """Return four significant digits: a page is read, comparisons.csv has them all."""
    if value is None or math.isnan(value):
        return None
    return float(f"{value:.4g}")
