"""Published numbers beside ours, with everything that differs. No torch.

Published numbers are data (``published/*.yaml``), each with its source and how far it can be
trusted. They stand in a table of their own and never in a measured column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml

from cleanprior.cells.record import Record, is_finished
from cleanprior.errors import UserError, unknown

from .plan import Problem
from .tables.columns import DASH, SIGNIFICANT
from .tables.display import number
from .tables.row_names import row_name

#: Published metric, ours, format, headings. FD is never called FID: it has other features and fewer
#: samples.
METRICS = (
    ("psnr", "psnr", ".2f", "PSNR published", "PSNR ours"),
    ("fid", "fd", SIGNIFICANT, "FID published", "FD ours"),
    ("lpips", "lpips", ".3f", "LPIPS published", "LPIPS ours"),
    ("is", None, ".2f", "IS published", "IS ours"),
)
#: What a group says whose PSNR was computed after a contrast stretch of each picture.
STRETCHED = "psnr on min-max images"
_INHERITED = ("id", "rows")


@dataclass(frozen=True)
class Printed:
    """One row of a published table.

    Attributes:
        method: The method's name there.
        metrics: Numbers by metric.
        setting: Every other key: data, operator, noise, protocol, clean images, source, trust.
    """

    method: str
    metrics: dict[str, float]
    setting: dict[str, Any]

    @property
    def source(self) -> str:
        """Paper, table and trust in a few words."""
        s = self.setting
        return f"{s['paper']} ({s['arxiv']}), {s['table']}; read from: {s['trust']}"


@cache
def groups() -> dict[str, list[Printed]]:
    """Read every group of published rows, by identifier."""
    found: dict[str, list[Printed]] = {}
    for entry in sorted(files("cleanprior.benchmarks").joinpath("published").iterdir(), key=str):
        if not entry.name.endswith(".yaml"):
            continue
        for group in yaml.safe_load(entry.read_text(encoding="utf-8"))["groups"]:
            shared = {k: v for k, v in group.items() if k not in _INHERITED}
            rows = []
            for row in group["rows"]:
                setting = {**shared, **row}
                method, metrics = setting.pop("method"), setting.pop("metrics")
                rows.append(Printed(method, metrics, setting))
            found[group["id"]] = rows
    return found


def select(group: str, where: dict[str, Any]) -> list[Printed]:
    """Return the rows of a group whose settings hold all of ``where``.

    Raises:
        UserError: No such group, or no such row in it.
    """
    if group not in groups():
        raise unknown("published group", group, groups())

    def holds(row: Printed) -> bool:
        operator = row.setting.get("operator", {})
        known = {**operator, **row.setting, "method": row.method}
        return all(known.get(k) == v or operator.get(k) == v for k, v in where.items())

    rows = [r for r in groups()[group] if holds(r)]
    if not rows:
        raise UserError(f"published group '{group}' has no row with {where}")
    return rows


def _known(value: Any) -> str:
    if value is None:
        return "not established"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
    return str(value)


@dataclass(frozen=True)
class Difference:
    """One thing in which a published row and ours differ.

    Attributes:
        problem: Label of our problem.
        row: The published row.
        what: Data, operator, ...
        theirs: As published.
        ours: As measured.
    """

    problem: str
    row: str
    what: str
    theirs: str
    ours: str


def differences(printed: Printed, record: Record) -> dict[str, tuple[str, str]]:
    """Return what differs between a published setting and a record: (published, ours) by what."""
    theirs, config, notes = printed.setting, record["config"], record["evaluation"]
    channels, height, width = record["image_shape"]
    operator = {
        k: v
        for k, v in config["operator"].items()
        if k not in ("_target_", "about", "capabilities", "name")
    }
    features = notes.get("features", "no features")
    return {
        "data": (
            f"{_known(theirs.get('dataset'))} at {_known(theirs.get('resolution'))}",
            f"{record['data']}, {record['train_images']:,} training images, "
            f"{channels} x {height} x {width}",
        ),
        "operator": (
            _known({**theirs.get("operator", {}), "p_missing": _share(theirs)}),
            f"{config['operator']['name']}: {_known(operator)}",
        ),
        "noise": (_known(theirs.get("noise")), f"sigma {operator.get('sigma', 0)} on [-1, 1]"),
        "budget": (
            "not in the table",
            f"{config['training']['budget']:,} images seen by each denoiser, backbone "
            f"{config['backbone']['name']}",
        ),
        "evaluation": (
            _known(theirs.get("protocol")),
            f"{notes.get('test_images')} test images, posterior {config['posterior']['name']}; FD "
            f"on {features}, {notes.get('samples')} samples against the "
            f"{notes.get('reference', '-')}",
        ),
    }


def tell(found: Sequence[Difference]) -> list[str]:
    """Return differences as lines, each said once with the problems and rows that it holds for."""
    said: dict[tuple[str, str, str], list[Difference]] = {}
    for d in found:
        said.setdefault((d.what, d.theirs, d.ours), []).append(d)
    order = list(dict.fromkeys(d.what for d in found))
    lines = []
    for (what, theirs, ours), group in sorted(said.items(), key=lambda kv: order.index(kv[0][0])):
        where = _where(group, found)
        lines.append(f"{what}{where}: published: {theirs}; ours: {ours}")
    return lines


def _where(group: Sequence[Difference], found: Sequence[Difference]) -> str:
    """Return the problems and rows of a difference in words; empty where it holds everywhere."""
    if {(d.problem, d.row) for d in group} == {(d.problem, d.row) for d in found}:
        return ""
    parts = []
    for problem in dict.fromkeys(d.problem for d in group):
        rows = list(dict.fromkeys(d.row for d in group if d.problem == problem))
        everything = {d.row for d in found if d.problem == problem}
        parts.append(problem if set(rows) == everything else f"{problem} ({', '.join(rows)})")
    return f", {'; '.join(parts)}"


def _share(setting: dict[str, Any]) -> Any:
    return setting.get("p_missing", setting.get("operator", {}).get("p_missing"))


def _ours(summary: pd.DataFrame, row: str, way: str) -> dict[str, Any] | None:
    found = summary[(summary["method"] == row) & summary["way"].astype(str).str.startswith(way)]
    return None if not len(found) else {str(k): v for k, v in found.iloc[0].to_dict().items()}


def beside(
    problem: Problem, records: dict[str, list[Record]], summary: pd.DataFrame
) -> tuple[pd.DataFrame, list[Difference], list[str]]:
    """Return published rows with ours beside them, what differs, and remarks with their source.

    Arguments:
        problem: The problem; its ``beside`` says which published rows.
        records: Its records.
        summary: From :func:`cleanprior.benchmarks.tables.summary.summarise`.
    """
    if problem.beside is None:
        return pd.DataFrame(), [], []
    lines: list[dict[str, str]] = []
    found: list[Difference] = []
    remarks: list[str] = []
    for printed in select(problem.beside.group, problem.beside.where):
        row, way = problem.beside.rows.get(printed.method, ("", ""))
        ours = _ours(summary, row, way) if row else None
        line = {
            "problem": problem.label,
            "published row": printed.method,
            "our row": row_name(row, ours, ours["is_own"]) if ours else row or "-",
        }
        is_stretched = printed.setting.get("metric_convention") == STRETCHED
        for name, key, form, theirs, here in METRICS:
            published = printed.metrics.get(name)
            line[theirs] = DASH if published is None else _printed(published, form)
            likest = "psnr_minmax" if key == "psnr" and is_stretched else key
            line[here] = _like(ours, likest, form)
        line["clean images there"] = _known(printed.setting.get("n_clean"))
        line["clean images here"] = "-" if ours is None else _count(ours["clean_images"])
        lines.append(line)
        remarks.append(f"source: {printed.source}")
        if is_stretched and "psnr" in printed.metrics:
            remarks.append(
                f"{printed.setting['paper']} has its PSNR after a contrast stretch of each picture "
                "to its own minimum and maximum, and so has ours here (psnr_minmax in table.csv); "
                "the problem's own table has PSNR without it"
            )
        if printed.setting.get("notes"):
            remarks.append(f"{problem.label}, {printed.method}: {printed.setting['notes']}")
        first = next((r for r in records.get(row, []) if is_finished(r)), None)
        if first is not None:
            found += [
                Difference(problem.label, printed.method, what, there, here)
                for what, (there, here) in differences(printed, first).items()
            ]
    table = pd.DataFrame(lines)
    for *_, theirs, here in METRICS:  # a metric that nothing published here has is no column
        if (table[theirs] == "-").all():
            table = table.drop(columns=[theirs, here])
    return table, found, list(dict.fromkeys(remarks))


def _like(ours: dict[str, Any] | None, key: str | None, form: str) -> str:
    """Return our number; where a row has no draws, that of its point estimate, which says so."""
    if ours is None or key is None:
        return DASH
    for name, remark in ((key, ""), (f"{key}_point", " (point)")):
        if not pd.isna(ours.get(name, float("nan"))):
            return number(ours, name, form, " ± ") + remark
    return DASH


def _printed(value: float, form: str) -> str:
    """Return a published number; a distance as it was printed there."""
    return f"{value:g}" if form == SIGNIFICANT else f"{value:{form}}"


def numbers(shown: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers behind a table of :func:`beside`, without spreads; NaN for words."""
    return shown.apply(lambda column: pd.to_numeric(column.str.split().str[0], errors="coerce"))


def _count(value: Any) -> str:
    return "-" if value is None or pd.isna(value) else str(int(value))
