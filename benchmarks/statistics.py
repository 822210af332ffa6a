r"""Which differences are evidence: a paired bootstrap between rows, Holm's correction. No torch.

Rows of one problem restore the same measurements, so they are compared image by image. Test images
and training seeds are crossed (each seed restores every image), and are resampled independently of
each other (the pigeonhole bootstrap): the interval covers both other test images and other training
runs. With one seed it covers other test images only, and tables say so.

Distances of generated samples are one number a seed: those are compared by a paired t-test, from
three seeds on.

References:
    The Pigeonhole Bootstrap (Owen, 2007), Annals of Applied Statistics 1(2), arXiv:0706.4349
    A Simple Sequentially Rejective Multiple Test Procedure (Holm, 1979)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import ttest_rel

from cleanprior.records import Record, is_finished

#: Metrics that are ranked, and whether higher is better.
RANKED = {"psnr": True, "ssim": True, "lpips": False, "fd": False}
LEVEL = 0.05
RESAMPLES = 4000
#: Fewer seeds give a t-test without power.
SEEDS_FOR_T = 3

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A paired difference between two rows.

    Attributes:
        mean: Mean difference.
        low: Lower end of its 95 % interval; NaN where there is none.
        high: Upper end.
        p: Two-sided p-value, uncorrected; NaN where no test applies.
    """

    mean: float
    low: float
    high: float
    p: float


@lru_cache(maxsize=1)  # every two rows of a benchmark are resampled alike
def _resampled(seeds: int, images: int, resamples: int, seed: int) -> tuple[Array, Array]:
    """Return the weight of each seed and of each image in each bootstrap sample."""
    generator = np.random.default_rng(seed)
    rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    columns = generator.multinomial(images, np.full(images, 1 / images), resamples) / images
    return rows, columns


def bootstrap(difference: Array, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """Compare two rows by the pigeonhole bootstrap of their paired differences.

    Arguments:
        difference: (seeds, images).
        resamples: Bootstrap samples.
        seed: Of the resampling.

    Returns:
        Mean, percentile interval and two-sided p-value. With few seeds the interval is too short by
        about a factor sqrt((S - 1) / S) in its between-seed part, S the number of seeds.
    """
    rows, columns = _resampled(*difference.shape, resamples, seed)
    means = (rows * (columns @ difference.T)).sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (1 + float(tail)) / (1 + resamples))
    return Difference(float(difference.mean()), float(low), float(high), p)


def between_seeds(difference: Array) -> Difference:
    """Compare two rows that have one number a seed, (seeds,), by a paired t-test."""
    mean = float(difference.mean())
    if len(difference) < SEEDS_FOR_T:
        return Difference(mean, math.nan, math.nan, math.nan)
    if np.ptp(difference) == 0:  # scipy's t is 0 / 0 or x / 0 here
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    test = ttest_rel(difference, np.zeros_like(difference))
    interval = test.confidence_interval()
    return Difference(mean, float(interval.low), float(interval.high), float(test.pvalue))


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values; NaN stays NaN and does not count as a comparison."""
    values = np.asarray(p, float)
    adjusted = np.full(len(values), math.nan)
    order = [i for i in np.argsort(values) if not math.isnan(values[i])]
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * values[i]))
        adjusted[i] = running
    return adjusted.tolist()


@dataclass(frozen=True)
class Entry:
    """A row as the comparison sees it: its name and its numbers by metric.

    Attributes:
        method: Name of the method.
        way: How it restores or samples.
        track: Rows are ranked within their track: the number of clean images they were handed.
        images: (seeds, images) by metric.
        seeds: (seeds,) by metric.
    """

    method: str
    way: str
    track: int
    images: dict[str, Array]
    seeds: dict[str, Array]


def entries(records: dict[str, list[Record]], references: Sequence[str]) -> list[Entry]:
    """Collect the rows that are ranked: every finished seed, no reference row."""
    found = []
    for method, cells in records.items():
        if method in references or not cells or not all(is_finished(r) for r in cells):
            continue
        for position, row in enumerate(cells[0]["rows"]):
            rows = [r["rows"][position] for r in cells]
            images = {
                key: np.array([r["per_image"][key] for r in rows], float)
                for key in RANKED
                if all(key in r["per_image"] for r in rows)
            }
            seeds = {
                key: np.array([r["metrics"][key] for r in rows], float)
                for key in RANKED
                if key not in images and all(key in r["metrics"] for r in rows)
            }
            found.append(Entry(method, row["way"], cells[0]["clean_images"], images, seeds))
    return found


def _difference(a: Entry, b: Entry, metric: str) -> Difference | None:
    if metric in a.images and metric in b.images:
        return bootstrap(a.images[metric] - b.images[metric])
    if metric in a.seeds and metric in b.seeds:
        return between_seeds(a.seeds[metric] - b.seeds[metric])
    return None


def compare(records: dict[str, list[Record]], references: Sequence[str]) -> pd.DataFrame:
    """Compare every two ranked rows of a track, Holm-corrected within each metric.

    Arguments:
        records: Records by method, one a seed.
        references: Methods that are not ranked.

    Returns:
        One line a pair and metric: ``metric, track, a, a_way, b, b_way, difference`` (a - b),
        ``low, high`` (95 %), ``p, p_holm, seeds``.
    """
    rows = entries(records, references)
    lines: list[dict[str, Any]] = []
    for metric in RANKED:
        for a, b in combinations(rows, 2):
            if a.track != b.track or (d := _difference(a, b, metric)) is None:
                continue
            count = len(a.images.get(metric, a.seeds.get(metric, ())))
            lines.append(
                {
                    "metric": metric,
                    "track": a.track,
                    "a": a.method,
                    "a_way": a.way,
                    "b": b.method,
                    "b_way": b.way,
                    "difference": d.mean,
                    "low": d.low,
                    "high": d.high,
                    "p": d.p,
                    "seeds": count,
                }
            )
    frame = pd.DataFrame(lines)
    if len(frame):
        frame["p_holm"] = frame.groupby(["metric", "track"])["p"].transform(
            lambda p: holm(p.tolist())
        )
    return frame


def best(comparisons: pd.DataFrame) -> dict[str, list[tuple[str, str]]]:
    """Return, by metric, the row of each track that is significantly better than all others.

    A track in which the first row does not differ significantly from the second has no best row.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    if not len(comparisons):
        return found
    for (metric, _), group in comparisons.groupby(["metric", "track"], sort=False):
        sign = 1 if RANKED[str(metric)] else -1
        wins: dict[tuple[str, str], int] = {}
        names: set[tuple[str, str]] = set()
        for line in group.to_dict("records"):
            a, b = (line["a"], line["a_way"]), (line["b"], line["b_way"])
            names |= {a, b}
            if line["p_holm"] < LEVEL:
                winner = a if sign * line["difference"] > 0 else b
                wins[winner] = wins.get(winner, 0) + 1
        found.setdefault(str(metric), []).extend(
            name for name, count in wins.items() if count == len(names) - 1
        )
    return found
