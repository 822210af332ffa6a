"""Which differences between rows are evidence, from their records. No torch.

Three kinds of pairs, each a family of its own under Holm's correction, a metric at a time: rows of
one track (the same number of clean images handed out), which are ranked; rows of two tracks; and
pairs with a reference row. So pairs that are only listed cost the ranked ones no power. Draws are
compared with draws and point estimates with point estimates: those are different metrics.

Bold asks less than all pairs: is the row that leads better than each other one? The test of the
    leader against each other row, two-sided, needs no correction for the choice of the leader or
    for the number of rows (Hung and Fithian): with equal rows the gap between the first two shrinks
    as rows are added.

From :data:`SEEDS_FOR_T` training runs on, p-values speak of methods. With fewer there is an
interval about the trained networks at hand: over test images, for distances of samples over
sampling seeds.

References:
    Rank Verification for Exponential Families (Hung and Fithian, 2019), arXiv:1610.03944
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from cleanprior.cells.fields import RowOf
from cleanprior.cells.record import Record, is_finished

from .difference import (
    LEVEL,
    SEEDS_FOR_T,
    Array,
    Noise,
    between,
    half_width,
    holm,
    moderate,
    of_images,
    p_values,
    seeds_needed,
)
from .summary import codes_of

__all__ = [
    "BOLD",
    "LEVEL",
    "RANKED",
    "SEEDS_FOR_T",
    "Entry",
    "best",
    "compare",
    "entries",
    "needed",
    "told",
    "track_of",
]

#: Metrics that are ranked, and whether higher is better: of one posterior draw, of means and point
#: estimates, of generated samples.
RANKED = {
    "psnr": True,
    "ssim": True,
    "lpips": False,
    "psnr_point": True,
    "ssim_point": True,
    "lpips_point": False,
    "fd": False,
    "proximal_fd": False,
}
#: Standard deviations of PSNR between training runs in dB, taken where a table cannot tell its
#: own: a
#: usual one, and the largest of em_table1 at CPU scale with three seeds.
ASSUMED = (0.1, 0.3)
METHODS, NETWORKS = "methods", "these networks"
#: What bold means, for under a table.
BOLD = (
    "bold: better than each other row of its track (clean images handed out), two-sided at "
    f"{LEVEL:.0%}, over training seeds and test images; needs {SEEDS_FOR_T} training seeds. All "
    "pairs, with Holm's correction, in comparisons.csv"
)
_COLUMNS = [
    *("metric", "family", "a", "a_way", "track_a", "b", "b_way", "track_b", "note"),
    *("difference", "low", "high", "p", "p_holm", "seeds_a", "seeds_b", "scope"),
]


@dataclass(frozen=True)
class Entry:
    """A row as the comparison sees it: its name and its numbers by metric.

    Attributes:
        method: Name of the method.
        way: How it restores or samples.
        track: Rows are ranked within their track: the number of clean images they were handed, or
            the start that has seen some (:func:`track_of`).
        is_reference: Whether it is not ranked: it anchors the table, or leaks on purpose.
        images: (seeds, images) by metric.
        seeds: (seeds,) by metric.
        sampling: By metric of ``seeds``: the variance that sampling seeds leave in one run's
            number, and its degrees of freedom.
    """

    method: str
    way: str
    track: int | str
    is_reference: bool
    images: dict[str, Array]
    seeds: dict[str, Array]
    sampling: dict[str, tuple[float, float]]


def entries(records: dict[str, list[Record]], references: Sequence[str]) -> list[Entry]:
    """Collect the rows of methods that finished on every seed.

    A method that failed on some seeds is left out: the seeds that it survived would flatter it.
    """
    found = []
    for method, cells in records.items():
        if not cells or not all(is_finished(r) for r in cells):
            continue
        by_way = [{row["way"]: row for row in r["rows"]} for r in cells]
        for way in by_way[0]:
            if not all(way in rows for rows in by_way):
                continue
            rows = [found_rows[way] for found_rows in by_way]
            images: dict[str, Array] = {}
            seeds: dict[str, Array] = {}
            for key in RANKED:
                each = [r["per_image"].get(key, []) for r in rows]
                if all(each) and len({len(v) for v in each}) == 1:
                    images[key] = _finite(each)
                elif all(r["metrics"].get(key) is not None for r in rows):
                    seeds[key] = _finite([r["metrics"][key] for r in rows])
            sampling = {key: _sampling(rows, key) for key in seeds}
            is_reference = method in references or "leak" in codes_of(cells[0])
            track = track_of(cells[0])
            found.append(Entry(method, way, track, is_reference, images, seeds, sampling))
    return found


def track_of(record: Record) -> int | str:
    """Return the track of a record: its clean images, or ``clean start`` with the start's hash."""
    start = record.get("start") or {}
    if start.get("is_clean"):
        return f"clean start {str(start.get('hash'))[:8]}"
    return int(record.get("clean_images") or 0)


def told(track: int | str) -> str:
    """Return what a track has seen, as the end of a sentence; empty for measurements alone."""
    if isinstance(track, str):
        return f"from a {track}"
    return f"with {track} clean images" if track else ""


def _finite(values: Any) -> Array:
    """Return numbers as an array; what is infinite cannot be averaged and becomes NaN."""
    array = np.array(values, float)
    return np.where(np.isfinite(array), array, math.nan)


def _sampling(rows: Sequence[RowOf], key: str) -> tuple[float, float]:
    """Return the variance that sampling seeds leave in one run's mean, and its freedom."""
    drawn = [r.get("curves", {}).get(f"{key}_by_seed", ()) for r in rows]
    if not all(len(values) > 1 for values in drawn):
        return math.nan, math.nan
    variance = np.mean([np.var(values, ddof=1) / len(values) for values in drawn])
    return float(variance), float(sum(len(values) - 1 for values in drawn))


def compare(records: dict[str, list[Record]], references: Sequence[str]) -> pd.DataFrame:
    """Compare every two rows by every metric that both have.

    Arguments:
        records: Records by method, one a seed.
        references: Methods that are not ranked.

    Returns:
        One line a pair and metric: ``metric``, ``family`` (``ranked``, ``tracks``, ``references``),
        ``a, a_way, track_a, b, b_way, track_b`` (a track is a number of clean images), ``note``
        (who used clean images), ``difference`` (a - b), ``low, high`` (95 %), ``p``, ``p_holm``
        (corrected within metric and family, each track by itself), ``seeds_a, seeds_b``, and
        ``scope``: what the interval speaks of, ``methods`` or, with fewer than :data:`SEEDS_FOR_T`
        seeds and then without p, ``these networks``.
    """
    rows = entries(records, references)
    lines: list[dict[str, Any]] = []
    for metric in RANKED:
        # What is seen image by image is compared so; the rest by one number a run.
        for n in sorted({r.images[metric].shape[1] for r in rows if metric in r.images}):
            alike = [r for r in rows if metric in r.images and r.images[metric].shape[1] == n]
            lines += _lines(metric, alike)
        lines += _lines(metric, [r for r in rows if metric in r.seeds])
    frame = pd.DataFrame(lines, columns=_COLUMNS)
    if len(frame):
        within = frame["track_a"].astype(str).where(frame["family"] == "ranked", "")
        frame["p_holm"] = frame.groupby(["metric", "family", within])["p"].transform(
            lambda p: holm(p.tolist())
        )
    return frame


def _lines(metric: str, rows: list[Entry]) -> list[dict[str, Any]]:
    """Compare every two of some rows that all have numbers of one kind."""
    if len(rows) < 2:
        return []
    pairs = list(combinations(range(len(rows)), 2))
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    difference, noise, is_about_methods = _differences(metric, rows, a, b)
    width = half_width(noise)
    p = np.where(is_about_methods, p_values(difference, noise), math.nan)
    return [
        {
            "metric": metric,
            **_named(rows[i], rows[j]),
            "difference": difference[k],
            "low": difference[k] - width[k],
            "high": difference[k] + width[k],
            "p": p[k],
            "seeds_a": _runs(metric, rows[i]).size,
            "seeds_b": _runs(metric, rows[j]).size,
            "scope": METHODS if is_about_methods[k] else NETWORKS,
        }
        for k, (i, j) in enumerate(pairs)
    ]


def _named(a: Entry, b: Entry) -> dict[str, Any]:
    """Return the columns that say which pair this is."""
    handed = [
        f"{e.method} began from a {e.track}"
        if isinstance(e.track, str)
        else f"{e.method} used {e.track} clean images"
        for e in (a, b)
        if e.track
    ]
    if a.is_reference or b.is_reference:
        family = "references"
    else:
        family = "ranked" if a.track == b.track else "tracks"
    return {
        "family": family,
        "a": a.method,
        "a_way": a.way,
        "track_a": a.track,
        "b": b.method,
        "b_way": b.way,
        "track_b": b.track,
        "note": "; ".join(dict.fromkeys(handed)) if a.track != b.track else "",
    }


def _runs(metric: str, row: Entry) -> Array:
    """Return a row's number of each training run."""
    return row.images[metric].mean(1) if metric in row.images else row.seeds[metric]


def _differences(metric: str, rows: list[Entry], a: Array, b: Array) -> tuple[Array, Noise, Array]:
    """Return the pairs' differences, their noise, and which of them speak of methods."""
    runs = [_runs(metric, row) for row in rows]
    mean = np.array([r.mean() for r in runs])
    seeds = np.array([r.size for r in runs])
    variance = np.array([r.var(ddof=1) if r.size > 1 else math.nan for r in runs])
    is_about_methods = np.minimum(seeds[a], seeds[b]) >= SEEDS_FOR_T
    within, freedom = np.zeros(len(a)), 1.0
    sampling = np.array([row.sampling.get(metric, (0.0, 1.0)) for row in rows])
    if metric in rows[0].images:
        freedom = rows[0].images[metric].shape[1] - 1.0
        within = of_images(np.array([row.images[metric].mean(0) for row in rows]), a, b)
    else:
        # A run's number cannot be steadier than its sampling seeds leave it.
        variance = np.where(variance > 0, np.fmax(variance, sampling[:, 0]), variance)
    total, welch = between(*moderate(variance, seeds - 1.0), seeds, a, b)
    for k, (i, j) in enumerate(zip(a, b, strict=True)):
        if rows[i].method == rows[j].method and is_about_methods[k]:  # the same trained networks
            total[k] = (runs[i] - runs[j]).var(ddof=1) / seeds[i]
            welch[k] = seeds[i] - 1
    if metric not in rows[0].images:  # of a few runs: what sampling leaves in their numbers
        drawn, drawn_welch = between(sampling[:, 0], sampling[:, 1], seeds, a, b)
        total = np.where(is_about_methods, total, drawn)
        welch = np.where(is_about_methods, welch, drawn_welch)
    else:
        total = np.where(is_about_methods, total, 0.0)
    return mean[a] - mean[b], Noise(total, welch, within, freedom), is_about_methods


def best(comparisons: pd.DataFrame) -> dict[str, list[tuple[str, str]]]:
    """Return, by metric, the row of each track that is significantly better than each other one.

    A track in which the first row does not differ significantly from the second has no best row,
    nor has one of fewer than :data:`SEEDS_FOR_T` seeds.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    ranked = comparisons[comparisons["family"] == "ranked"]
    for (metric, _), group in ranked.groupby(["metric", "track_a"], sort=False):
        sign = 1 if RANKED[str(metric)] else -1
        wins: dict[tuple[str, str], int] = {}
        names: set[tuple[str, str]] = set()
        for line in group.to_dict("records"):
            a, b = (line["a"], line["a_way"]), (line["b"], line["b_way"])
            names |= {a, b}
            if line["p"] < LEVEL:
                winner = a if sign * line["difference"] > 0 else b
                wins[winner] = wins.get(winner, 0) + 1
        found.setdefault(str(metric), []).extend(
            name for name, count in wins.items() if count == len(names) - 1
        )
    return found


def needed(
    records: dict[str, list[Record]], references: Sequence[str], difference: float = 0.3
) -> str:
    """Say how many training seeds would show a difference in PSNR, four times out of five.

    Arguments:
        records: Records by method, one a seed.
        references: Methods that are not ranked.
        difference: In dB.

    Returns:
        One sentence, from the spread of runs in this table or, where it has fewer than
        :data:`SEEDS_FOR_T` seeds, from :data:`ASSUMED`; empty where fewer than two rows are ranked
        or there is no PSNR.
    """
    rows = [r for r in entries(records, references) if not r.is_reference]
    for metric in ("psnr", "psnr_point"):
        chosen = [r.images[metric] for r in rows if metric in r.images]
        if len(chosen) > 1 and chosen[0].shape[1] > 1:
            break
    else:
        return ""
    a, b = np.array(list(combinations(range(len(chosen)), 2))).T
    n = chosen[0].shape[1]
    each = np.array([x.mean(0) for x in chosen])
    in_images = float(np.median(of_images(each, a, b))) * n
    seen = [x.mean(1).var(ddof=1) for x in chosen if len(x) >= SEEDS_FOR_T]
    spreads = [math.sqrt(float(np.median(seen)))] if seen else ASSUMED
    if seeds_needed(difference, 0.0, in_images, n) is None:
        return (
            f"{n} test images cannot show a difference of {difference:g} dB with any number of "
            "seeds: raise evaluation.test_images"
        )
    told = [
        f"--seeds {seeds_needed(difference, spread**2, in_images, n) or 'above 1000'} where "
        f"training runs scatter by {spread:.2g} dB"
        for spread in spreads
    ]
    origin = "as the median row here does" if seen else "assumed: these runs cannot tell"
    return (
        f"to see a difference of {difference:g} dB between two rows four times out of five: "
        f"{', '.join(told)} ({origin})"
    )
