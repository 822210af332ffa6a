"""The verdict on a table, in two sentences. No torch.

The first says who leads, by what and at which cost; the second what that is worth: which rows
cannot be told apart, what too few training seeds leave open, and the one warning that matters most.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cleanprior.cells.record import Record, is_finished

from .numbers import significant
from .row_names import row_name
from .statistics import LEVEL, NETWORKS, RANKED, SEEDS_FOR_T, Entry, best, compare, entries, told
from .summary import with_start
from .warned import warning

Name = tuple[str, str]


@dataclass(frozen=True)
class Aim:
    """What rows compete in.

    Attributes:
        metric: The metric that ranks them.
        what: The noun of a sentence.
        short: In brackets behind names.
        before: Before a value.
        form: Of a value.
        unit: Behind a value.
    """

    metric: str
    what: str
    short: str
    before: str
    form: str
    unit: str


AIMS = (
    Aim("psnr", "restorations by one draw", "one draw", "", ".2f", " dB"),
    Aim("psnr_point", "by mean of draws or point estimate", "mean or point", "", ".2f", " dB"),
    Aim("fd", "samples", "samples", "FD ", ".3g", ""),
)
#: Where there are no clean images.
BLIND = (
    Aim(
        "proximal_fd", "samples, as far as measurements tell", "samples", "proximal FD ", ".3g", ""
    ),
)
#: Costs of training that may be told, the first that every leader has: unit, and its size.
COSTS = {"train_flops": ("TFLOP", 1e12), "seconds": ("seconds", 1.0)}
_STARTS = {"train_flops": "flops", "seconds": "seconds"}
#: More names than these are a number.
NAMES = 4


@dataclass(frozen=True)
class Lead:
    """Who leads a track in one metric.

    Attributes:
        aim: What in.
        row: The leading row.
        value: Its mean over seeds.
        is_best: Whether it is significantly better than each other row.
        level: Rows of exactly the same value.
        equals: Rows that cannot be told from it, those of the same value among them.
        others: How many rows it was compared with.
    """

    aim: Aim
    row: Entry
    value: float
    is_best: bool
    level: list[Entry]
    equals: list[Entry]
    others: int

    @property
    def seeds(self) -> int:
        """Number of training runs."""
        metric = self.aim.metric
        return len(self.row.images.get(metric, self.row.seeds.get(metric, ())))


def verdict(
    records: dict[str, list[Record]],
    references: Sequence[str],
    comparisons: pd.DataFrame | None = None,
) -> list[str]:
    """Say in two sentences what a table shows.

    Arguments:
        records: Records by method, one a seed.
        references: Methods that are not ranked.
        comparisons: From :func:`cleanprior.benchmarks.tables.statistics.compare`; made
            where not given.
    """
    rows = entries(records, references)
    names = called(records, rows)
    ranked = [r for r in rows if not r.is_reference]
    if comparisons is None:
        comparisons = compare(records, references)
    has_truth = any(_value(r, aim.metric) is not None for r in rows for aim in AIMS)
    aims = AIMS if has_truth else BLIND
    leads = {aim.metric: _leads(aim, ranked, comparisons) for aim in aims}
    if not any(leads.values()):
        if ranked:
            why = "the rows have no number that is compared"
        else:
            why = "only reference rows finished" if rows else "no row finished"
        caution = warning(records, rows, {}, names, is_all_told=True)
        return [f"Nothing can be ranked: {why}.", _sentence([caution or "no method competes"])]
    parts = [_told(found, names) for found in leads.values() if found]
    leaders = [lead.row.method for found in leads.values() for lead in found[:1]]
    parts.append(_cost(records, leaders, references))
    start = "" if has_truth else "no clean images, so no restoration is ranked; "
    first = {metric: found[0].row for metric, found in leads.items() if found}
    caution = warning(records, rows, first, names)
    doubts = _doubts([lead for found in leads.values() for lead in found], names)
    return [
        _sentence([start + "; ".join(p for p in parts if p)]),
        _sentence([*doubts, caution]),
    ]


def called(records: dict[str, list[Record]], rows: Sequence[Entry]) -> dict[Name, str]:
    """Return how each row is called: as in its table, by its method and what further ways do."""
    names = {}
    for row in rows:
        found = records[row.method][0]["rows"]
        is_plain = len(found) == 1 or (found[0]["way"] == row.way and not found[0]["is_own"])
        shown = next(r for r in found if r["way"] == row.way)
        names[row.method, row.way] = row_name(row.method, shown, not is_plain)
    return names


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(p for p in parts if p)
    return f"{text[:1].upper()}{text[1:]}."


def _list(names: Sequence[str]) -> str:
    if len(names) > NAMES:
        names = [*names[: NAMES - 1], f"{len(names) - NAMES + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _name(row: Entry, names: dict[Name, str]) -> str:
    return names[row.method, row.way]


def _value(row: Entry, metric: str) -> float | None:
    values = row.images.get(metric, row.seeds.get(metric))
    return None if values is None or math.isnan(values.mean()) else float(values.mean())


def _leads(aim: Aim, rows: Sequence[Entry], frame: pd.DataFrame) -> list[Lead]:
    """Return who leads each track, the track with the fewest clean images first."""
    leads = []
    for track in sorted({r.track for r in rows}, key=lambda t: (isinstance(t, str), t)):
        of_track = {(r.method, r.way): r for r in rows if r.track == track}
        values = {k: v for k, r in of_track.items() if (v := _value(r, aim.metric)) is not None}
        if not values:
            continue
        first = (max if RANKED[aim.metric] else min)(values, key=values.__getitem__)
        pairs = frame[(frame["metric"] == aim.metric) & (frame["family"] == "ranked")]
        pairs = pairs[pairs["track_a"] == track]
        equals = []
        for line in pairs.to_dict("records"):
            sides = [(line["a"], line["a_way"]), (line["b"], line["b_way"])]
            if first in sides and not _is_apart(line):
                equals.append(of_track[sides[1 - sides.index(first)]])
        is_best = first in best(pairs).get(aim.metric, [])
        level = [r for r in equals if _value(r, aim.metric) == values[first]]
        others = len(values) - 1
        leads.append(Lead(aim, of_track[first], values[first], is_best, level, equals, others))
    return leads


def _is_apart(line: dict[Hashable, Any]) -> bool:
    if line["scope"] == NETWORKS:
        return bool(line["low"] > 0 or line["high"] < 0)
    return bool(line["p"] < LEVEL)


def _told(leads: list[Lead], names: dict[Name, str]) -> str:
    """Say who leads in one metric; further tracks, which had clean images, in brackets."""
    aim, lead = leads[0].aim, leads[0]
    word = "best" if lead.is_best else "first" if lead.others else "alone"
    who = _list([_name(r, names) for r in (lead.row, *lead.level)])
    handed = f" {told(lead.row.track)}" if lead.row.track else ""
    beside = [f"{_name(f.row, names)} {told(f.row.track)} {_number(f)}" for f in leads[1:]]
    return f"{aim.what}: {who}{handed} {word} ({', '.join([_number(lead), *beside])})"


def _number(lead: Lead) -> str:
    return f"{lead.aim.before}{lead.value:{lead.aim.form}}{lead.aim.unit}"


def _cost(
    records: dict[str, list[Record]], leaders: Sequence[str], references: Sequence[str]
) -> str:
    """Say what the leaders' training costs, beside the cheapest method that is ranked."""
    competing = {m: cells for m, cells in records.items() if m not in references}
    for key, (unit, size) in COSTS.items():
        found = {method: _mean_cost(cells, key) for method, cells in competing.items()}
        costs = {method: value for method, value in found.items() if value}
        if not all(m in costs for m in leaders):
            continue
        cheapest = min(costs, key=costs.__getitem__)
        told = []
        for method in dict.fromkeys(leaders):
            text = f"{method} {significant(costs[method] / size, 2)} {unit}"
            if costs[method] > 1.05 * costs[cheapest]:
                text += f", {costs[method] / costs[cheapest]:.1f} times {cheapest}"
            told.append(text)
        return f"cost of training: {'; '.join(told)}"
    return ""


def _mean_cost(cells: list[Record], key: str) -> float | None:
    """Return the mean over seeds of a cost of training; None where a seed lacks it."""
    values = []
    for record in filter(is_finished, cells):
        if key == "seconds":
            own = sum(record.get("training", {}).get("seconds", {}).values()) or None
        else:
            own = record.get("costs", {}).get(key)
        values.append(with_start(own, record, _STARTS[key]))
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _doubts(leads: list[Lead], names: dict[Name, str]) -> list[str]:
    """Say which rows cannot be told from a leader, and of what that speaks."""
    compared = [lead for lead in leads if lead.others]
    if not compared:
        return ["a single row has nothing to be compared with"]
    unclear = [
        f"{_list([_name(r, names) for r in lead.equals])} from {_name(lead.row, names)} "
        f"({lead.aim.short})"
        for lead in compared
        if lead.equals
    ]
    apart = f"cannot be told apart: {', '.join(unclear)}" if unclear else ""
    seeds = min(lead.seeds for lead in compared)
    if seeds < SEEDS_FOR_T:
        few = "one training seed" if seeds == 1 else f"{seeds} training seeds"
        caution = (
            f"{few}: this ranks the trained networks on these images; to compare methods, use "
            f"--seeds {SEEDS_FOR_T} or more"
        )
        return [caution, f"even so, some {apart}" if apart else ""]
    return [apart or f"each lead holds over training seeds and test images at {LEVEL:.0%}"]
