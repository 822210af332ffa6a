"""Published numbers beside ours, with everything that differs. No torch.

Published numbers are data (``published/*.yaml``), each with its source and how far it can be
trusted. They stand in a table of their own and never in a measured column.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml

from cleanprior.errors import UserError, unknown
from cleanprior.records import Record, is_finished

from .plan import Problem

#: Published metric, our metrics in order of likeness, format, headings. FD is never called FID: it
#: has other features and fewer samples.
METRICS = (
    ("psnr", ("psnr_minmax", "psnr"), ".2f", "PSNR published", "PSNR ours"),
    ("lpips", ("lpips",), ".3f", "LPIPS published", "LPIPS ours"),
    ("fid", ("fd",), ".1f", "FID published", "FD ours"),
    ("is", (), ".2f", "IS published", "IS ours"),
)
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


def differences(printed: Printed, record: Record) -> list[tuple[str, str, str]]:
    """List what differs between a published setting and a record: (what, published, ours)."""
    theirs, config, notes = printed.setting, record["config"], record["evaluation"]
    channels, height, width = record["image_shape"]
    operator = {
        k: v
        for k, v in config["operator"].items()
        if k not in ("_target_", "about", "capabilities", "name")
    }
    features = notes.get("features", "no features")
    return [
        (
            "data",
            f"{_known(theirs.get('dataset'))} at {_known(theirs.get('resolution'))}",
            f"{record['data']}, {record['train_images']:,} training images, "
            f"{channels} x {height} x {width}",
        ),
        (
            "operator",
            _known({**theirs.get("operator", {}), "p_missing": _share(theirs)}),
            f"{config['operator']['name']}: {_known(operator)}",
        ),
        ("noise", _known(theirs.get("noise")), f"sigma {operator.get('sigma', 0)} on [-1, 1]"),
        ("clean images", _known(theirs.get("n_clean")), str(record["clean_images"])),
        (
            "budget",
            "not in the table",
            f"{config['training']['budget']:,} images seen, "
            f"{sum(record['parameters'].values()):,} parameters",
        ),
        (
            "evaluation",
            _known(theirs.get("protocol")),
            f"{notes.get('test_images')} test images, posterior {config['posterior']['name']}; FD "
            f"on {features}, {notes.get('samples')} samples against the "
            f"{notes.get('reference', '-')}",
        ),
    ]


def _share(setting: dict[str, Any]) -> Any:
    return setting.get("p_missing", setting.get("operator", {}).get("p_missing"))


def _ours(summary: pd.DataFrame, row: str, way: str) -> dict[str, Any] | None:
    found = summary[(summary["method"] == row) & summary["way"].astype(str).str.startswith(way)]
    return None if not len(found) else {str(k): v for k, v in found.iloc[0].to_dict().items()}


def beside(
    problem: Problem, records: dict[str, list[Record]], summary: pd.DataFrame
) -> tuple[pd.DataFrame, list[str]]:
    """Return published rows with ours beside them, and what differs; empty where there is none.

    Arguments:
        problem: The problem; its ``beside`` says which published rows.
        records: Its records.
        summary: From :func:`cleanprior.benchmarks.tables.summarise`.
    """
    if problem.beside is None:
        return pd.DataFrame(), []
    lines: list[dict[str, str]] = []
    notes: list[str] = []
    for printed in select(problem.beside.group, problem.beside.where):
        row, way = problem.beside.rows.get(printed.method, ("", ""))
        ours = _ours(summary, row, way) if row else None
        line = {
            "problem": problem.label,
            "published row": printed.method,
            "clean images there": _known(printed.setting.get("n_clean")),
            "our row": f"{row} ({ours['way']})" if ours and ours["way"] else row or "-",
            "clean images here": "-" if ours is None else _count(ours["clean_images"]),
        }
        for name, likeness, form, theirs, here in METRICS:
            number = printed.metrics.get(name)
            line[theirs] = "-" if number is None else f"{number:{form}}"
            key = next((k for k in likeness if ours and not pd.isna(ours.get(k))), None)
            shown = "-" if key is None or ours is None else f"{ours[key]:{form}}"
            is_other = key is not None and key not in likeness[:1]
            line[here] = f"{shown} ({key})" if is_other else shown
        lines.append(line)
        first = next((r for r in records.get(row, []) if is_finished(r)), None)
        source = f"{problem.label}, published: {printed.source}"
        if first is not None:
            notes += [source] + [
                f"{problem.label}, {printed.method} against {row}, {what}: published: {there}; "
                f"ours: {here}"
                for what, there, here in differences(printed, first)
            ]
        if printed.setting.get("notes"):
            notes.append(f"{problem.label}, {printed.method}: {printed.setting['notes']}")
    table = pd.DataFrame(lines)
    for *_, theirs, here in METRICS:  # a metric that nothing published here has is no column
        if (table[theirs] == "-").all():
            table = table.drop(columns=[theirs, here])
    return table, list(dict.fromkeys(notes))


def _count(value: Any) -> str:
    return "-" if value is None or pd.isna(value) else str(int(value))
