"""The one warning of a table that matters most. No torch."""

from collections.abc import Iterator, Mapping, Sequence

from cleanprior.cells.fields import RowOf
from cleanprior.cells.record import Record, is_finished
from cleanprior.cells.status import Status

from .statistics import RANKED, Entry

Name = tuple[str, str]
#: A restoration that knows more than its measurement does: graver than a row that failed.
LEAK = "leak?"
#: Draws with less spread over error than this have more PSNR than calibrated ones.
NARROW = 0.9


def warning(
    records: dict[str, list[Record]],
    rows: Sequence[Entry],
    leads: Mapping[str, Entry],
    names: Mapping[Name, str],
    is_all_told: bool = False,
) -> str:
    """Return the gravest warning, or an empty text.

    In this order: a leak, a method that failed or did not run, a mark of a leader, a leader that is
    not above ``naive``, a leader whose draws are too narrow, a mark of another row.

    Arguments:
        records: Records by method, one a seed.
        rows: All rows that finished.
        leads: The leading row by metric.
        names: How rows are called.
        is_all_told: Whether methods that were skipped are named too; their status in the table says
            why.
    """
    marks = list(_marks(records, rows, names))
    leading = {(row.method, row.way) for row in leads.values()}
    return next(
        (
            found
            for found in (
                *(text for _, code, text in marks if code == LEAK),
                _unfinished(records, is_all_told),
                *(text for row, _, text in marks if row in leading),
                _not_above_naive(rows, leads, names),
                _narrow(records, leads, names),
                *(text for _, _, text in marks),
            )
            if found
        ),
        "",
    )


def _marks(
    records: dict[str, list[Record]], rows: Sequence[Entry], names: Mapping[Name, str]
) -> Iterator[tuple[Name, str, str]]:
    """Return each mark of a row as (row, code, sentence)."""
    for row in rows:
        for found in _rows_of(records, row):
            for code in found.get("marks", ()):
                key = row.method, row.way
                sentence = found.get("marked", {}).get(code, "see the table").rstrip(".")
                yield key, code, f"{names[key]} [{code}]: {sentence}"


def _rows_of(records: dict[str, list[Record]], row: Entry) -> list[RowOf]:
    return [found for r in records[row.method] for found in r["rows"] if found["way"] == row.way]


def _unfinished(records: dict[str, list[Record]], is_all_told: bool) -> str:
    """Name the methods that are not compared because some of their cells did not finish."""
    told = []
    for method, cells in records.items():
        words = [Status.of(r).kind for r in cells if not is_finished(r)]
        if words and (is_all_told or words[0] != "skipped"):
            seeds = f" on {len(words)} of {len(cells)} seeds" if len(words) < len(cells) else ""
            told.append(f"{method} ({words[0]}{seeds})")
    return f"not compared: {', '.join(told)}" if told else ""


def _not_above_naive(
    rows: Sequence[Entry], leads: Mapping[str, Entry], names: Mapping[Name, str]
) -> str:
    """Name a leader that is not above ``naive``, which learns from nothing but observed pixels."""
    for metric, lead in leads.items():
        for row in rows:
            if row.method == "naive" and row.is_reference and metric in {**row.images, **row.seeds}:
                gain = _mean(lead, metric) - _mean(row, metric)
                if gain * (1 if RANKED[metric] else -1) <= 0:
                    return f"{names[lead.method, lead.way]} is not above naive in {metric}"
    return ""


def _mean(row: Entry, metric: str) -> float:
    return float((row.images[metric] if metric in row.images else row.seeds[metric]).mean())


def _narrow(
    records: dict[str, list[Record]], leads: Mapping[str, Entry], names: Mapping[Name, str]
) -> str:
    """Say where draws that lead in PSNR owe it to too little spread."""
    if (lead := leads.get("psnr")) is None:
        return ""
    found = [row["metrics"].get("spread_ratio", 0.0) for row in _rows_of(records, lead)]
    if not all(found) or (ratio := sum(found) / len(found)) >= NARROW:
        return ""
    name = names[lead.method, lead.way]
    return f"the draws of {name} vary too little (spread {ratio:.2f}), which raises their PSNR"
