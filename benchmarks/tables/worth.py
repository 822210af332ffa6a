"""As good as how many clean images: rows on the scale of training on few of them. No torch.

The scale of a metric is its value against the number N of clean images, made monotone (isotonic
regression) and read between two counts on a straight line over log N. Intervals resample test
images, the same ones for all rows, training seeds and sampling seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cleanprior.cells.fields import RowOf
from cleanprior.cells.record import Record, is_finished

from .columns import DASH
from .difference import Array
from .row_names import row_name
from .statistics import RANKED

#: Metrics whose worth is told, and what they judge.
JUDGED = {
    "psnr": "one draw (PSNR)",
    "psnr_point": "mean or estimate (PSNR)",
    "fd": "samples (FD)",
}
#: Resamplings of an interval, and its level.
RESAMPLED, LEVEL = 1000, 0.95


@dataclass(frozen=True)
class Values:
    """A metric of one row: (training seeds, test images), or (training seeds, sampling seeds).

    Attributes:
        each: The values.
        is_paired: Whether the second axis is the same for all rows: test images are.
    """

    each: Array
    is_paired: bool

    def resampled(self, images: Array, generator: np.random.Generator) -> Array:
        """Return the mean of each resampling.

        Arguments:
            images: How often each test image is taken, from :func:`taken`.
            generator: For what belongs to this row alone.
        """
        seeds, n = self.each.shape
        rows = taken(seeds, generator)
        inner = images if self.is_paired else taken(n, generator)
        return ((rows @ self.each) * inner).sum(1)


def taken(n: int, generator: np.random.Generator) -> Array:
    """Return the share of each of ``n`` values in :data:`RESAMPLED` resamplings, a row each."""
    return generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLED) / n


@dataclass(frozen=True)
class Worth:
    """As good as how many clean images.

    Attributes:
        images: The number; below the least count it is that, above the largest infinite.
        low: Lower end of the interval, in the same way.
        high: Upper end.
    """

    images: float
    low: float
    high: float


def values_of(cells: Sequence[Record], way: str, metric: str) -> Values | None:
    """Return a metric of a row in all of its training seeds, or None where one has none."""
    if not cells or not all(is_finished(r) for r in cells):
        return None
    rows: list[RowOf] = []
    for record in cells:
        found = next((r for r in record["rows"] if r["way"] == way), None)
        if found is None:
            return None
        rows.append(found)
    each: list[Sequence[float | None]] = [r["per_image"].get(metric) or [] for r in rows]
    is_paired = all(each)
    if not is_paired:
        curves = [(r.get("curves") or {}).get(f"{metric}_by_seed") for r in rows]
        alone = [[row["metrics"].get(metric)] for row in rows]
        each = [list(drawn) if drawn else one for drawn, one in zip(curves, alone, strict=True)]
    if any(None in v or len(v) != len(each[0]) for v in each):
        return None
    array = np.array(each, float)
    return Values(array, is_paired) if np.isfinite(array).all() else None


def read_off(counts: Array, scale: Array, value: float, is_higher_better: bool) -> float:
    """Return how many clean images have a value.

    Arguments:
        counts: Numbers of clean images, increasing, at least two.
        scale: The metric at them.
        value: That of a row.
        is_higher_better: Whether more is better.

    Returns:
        The number; of a stretch of equal values its first one. 0 for a value that is worse than at
        the least count, infinite for one that is better than at the largest.
    """
    from scipy.optimize import isotonic_regression

    sign = 1.0 if is_higher_better else -1.0
    x = np.log(counts)
    level = isotonic_regression(sign * scale).x
    if sign * value < level[0]:
        return 0.0
    if sign * value > level[-1]:
        return math.inf
    first = np.concatenate([[True], np.diff(level) > 0])  # of equal ones, the fewest images
    return float(np.exp(np.interp(sign * value, level[first], x[first])))


def worth(
    scale: dict[int, Values], row: Values, is_higher_better: bool, seed: int = 0
) -> Worth | None:
    """Return what a row is worth, with its interval; None where nothing can be compared.

    Arguments:
        scale: The metric by number of clean images.
        row: That of the row.
        is_higher_better: Whether more is better.
        seed: Of the resampling.
    """
    alike = {n: v for n, v in sorted(scale.items()) if v.is_paired == row.is_paired}
    if row.is_paired:
        alike = {n: v for n, v in alike.items() if v.each.shape[1] == row.each.shape[1]}
    if len(alike) < 2:
        return None
    counts = np.array(list(alike), float)
    generator = np.random.default_rng(seed)
    images = taken(row.each.shape[1], generator)
    scales = np.stack([v.resampled(images, generator) for v in alike.values()], 1)
    values = row.resampled(images, generator)
    drawn = [read_off(counts, *pair, is_higher_better) for pair in zip(scales, values, strict=True)]
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(np.array(drawn), ends, method="closest_observation")
    at = np.array([v.each.mean() for v in alike.values()])
    found = read_off(counts, at, float(row.each.mean()), is_higher_better)
    return Worth(found, float(low), float(high))


def table(
    records: dict[str, list[Record]], rows: Sequence[str], references: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Say what each row is worth.

    Arguments:
        records: Records by row, one a seed.
        rows: Those of :func:`cleanprior.benchmarks.worth.worth_rows`.
        references: Rows that anchor the table.

    Returns:
        The table as strings, its numbers, and what is to be said of it.
    """
    ladder = {int(records[r][0]["clean_images"]): r for r in rows if _is_done(records.get(r))}
    counts = sorted(ladder)
    if len(counts) < 2:
        return pd.DataFrame(), pd.DataFrame(), ["worth: fewer than two numbers of clean images"]
    texts, numbers = [], []
    scales = {metric: scale_of(records, ladder, metric) for metric in JUDGED}
    for method, cells in records.items():
        if method in rows or not _is_done(cells):
            continue
        for row in cells[0]["rows"]:
            name = row_name(method, row, row["is_own"] and method not in references)
            text: dict[str, Any] = {"method": name, "restores by": row["way"]}
            line: dict[str, Any] = {"method": method, "way": row["way"]}
            for metric, heading in JUDGED.items():
                values = values_of(cells, row["way"], metric)
                scale = scales[metric]
                found = worth(scale, values, RANKED[metric]) if values and scale else None
                text[heading] = _text(found, counts)
                for key in ("images", "low", "high"):
                    line[f"{metric}_{key}"] = getattr(found, key) if found else math.nan
            if any(text[heading] != DASH for heading in JUDGED.values()):
                texts.append(text)
                numbers.append(line)
    listed = ", ".join(map(str, counts))
    said = [
        f"as good as so many clean images: the number whose training gives the same value "
        f"(the same network and budget on {listed} of them), read between counts over log N; in "
        f"brackets {LEVEL:.0%} over test images, training seeds and sampling seeds",
        f"a row below {counts[0]} is worse than training on {counts[0]} clean images; above "
        f"{counts[-1]} it is better than training on all that there are",
    ]
    if any(len(cells) < 3 for cells in records.values()):
        said.append("fewer than 3 training seeds: intervals speak of these networks, not methods")
    return pd.DataFrame(texts), pd.DataFrame(numbers), said


def scale_of(
    records: dict[str, list[Record]], ladder: dict[int, str], metric: str
) -> dict[int, Values]:
    """Return a metric by number of clean images, of the first way that has it."""
    found = {}
    for count, name in sorted(ladder.items()):
        for row in records[name][0]["rows"]:
            values = values_of(records[name], row["way"], metric)
            if values is not None:
                found[count] = values
                break
    return found


def _is_done(cells: Sequence[Record] | None) -> bool:
    return bool(cells) and all(is_finished(record) for record in cells or ())


def _text(found: Worth | None, counts: Sequence[int]) -> str:
    if found is None:
        return DASH
    one, low, high = (_number(v, counts) for v in (found.images, found.low, found.high))
    return one if one == low == high else f"{one} ({low} to {high})"


def _number(value: float, counts: Sequence[int]) -> str:
    if value <= 0:
        return f"< {counts[0]}"
    if math.isinf(value):
        return f"> {counts[-1]}"
    return f"{float(f'{value:.2g}'):.0f}"
