"""Records become tables: tidy lines, means over seeds, and what is shown of them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cleanprior.cells.record import Record, is_finished
from cleanprior.cells.status import Status
from cleanprior.metric_names import further as further_metrics
from cleanprior.metric_names import in_order

from .numbers import lettered, significant, with_spread
from .row_names import names, procedure

DASH = "-"
#: Significant digits instead of a number of decimals.
SIGNIFICANT = "significant"


class Column(NamedTuple):
    """A column of the table: key of the summary, heading, format, what it is."""

    key: str
    heading: str
    form: str
    meaning: str


#: What an exact restoration is, for the headings that say ``point``.
POINT = "of the mean of several draws, or of a point estimate; not to be compared with one draw"
COLUMNS: tuple[Column, ...] = (
    Column("clean_images", "clean images", "d", "clean images that the method was handed"),
    Column(
        "psnr",
        "PSNR dB draw",
        ".2f",
        "of one posterior draw for each held-out measurement; higher is better",
    ),
    Column("psnr_point", "PSNR dB point", ".2f", f"{POINT}; higher is better"),
    Column(
        "spread_ratio",
        "spread",
        ".2f",
        "spread of posterior draws over their error; 1 is calibrated, below 1 too sure",
    ),
    Column("ssim", "SSIM draw", ".3f", "of the same draws; higher is better"),
    Column("ssim_point", "SSIM point", ".3f", "as PSNR point; higher is better"),
    Column("lpips", "LPIPS draw", ".3f", "of the same draws, AlexNet; lower is better"),
    Column("lpips_point", "LPIPS point", ".3f", "as PSNR point, AlexNet; lower is better"),
    Column(
        "consistency",
        "|y-Ax| draw",
        SIGNIFICANT,
        "root mean square residual per observed number, units of x",
    ),
    Column("consistency_point", "|y-Ax| point", SIGNIFICANT, "the same, as PSNR point"),
    Column(
        "fd",
        "FD",
        SIGNIFICANT,
        "Frechet distance of generated samples to the clean training split; lower is better",
    ),
    Column(
        "fd_inf",
        "FD inf",
        SIGNIFICANT,
        "the same, extrapolated to infinitely many samples; lower is better",
    ),
    Column(
        "proximal_fd",
        "proximal FD",
        SIGNIFICANT,
        "of samples, corrupted again, to the training measurements; needs no clean image",
    ),
    Column(
        "train_flops",
        "train FLOP",
        "letter",
        "floating-point operations of all networks in training, E-steps included",
    ),
    Column("train_seconds", "train s", "time", "training with its E-steps"),
    Column("restore_flops", "restore FLOP", "letter", "of one restoration"),
    Column("restore_seconds", "restore s", "time", "restoring all held-out measurements once"),
    Column("sample_flops", "sample FLOP", "letter", "of one sample"),
    Column("sample_seconds", "sample s", "time", "drawing the samples of one sampling seed"),
    Column("nfe", "NFE", "", "forward (+ backward) passes of the denoiser for one restored image"),
    Column(
        "memory_mb", "peak MB", ".0f", "peak memory of the process (of the GPU where there is one)"
    ),
    Column(
        "energy_kj",
        "energy kJ",
        "time",
        "of training, as CPU and GPU counters report it, whatever else ran on them",
    ),
    Column("parameters", "params", "letter", "of all networks trained"),
)
#: Headings of columns that hold words.
TEXTS = ("method", "restores by", "status", "problem", "published row", "our row")
#: Columns that stand even where no row has a value: the reason stands under the table.
ALWAYS = ("clean_images", "psnr", "fd", "proximal_fd", "train_seconds", "nfe", "parameters")
# The same for every seed of a row.
FIRST = (
    "procedure",
    "clean_images",
    "train_images",
    "is_own",
    "draws",
    "parameters",
    "train_flops",
    "restore_flops",
    "sample_flops",
    "train_passes",
    "evaluations",
    "backwards",
)
QUALITIES = (
    "psnr",
    "psnr_point",
    "spread_ratio",
    "ssim",
    "ssim_point",
    "lpips",
    "lpips_point",
    "consistency",
    "consistency_point",
    "fd",
    "fd_inf",
    "proximal_fd",
)
COSTS = ("train_seconds", "restore_seconds", "sample_seconds", "memory_mb", "energy_kj")
NUMBERS = (*QUALITIES, *COSTS)
#: Below this a residual is the rounding of float32 images.
ROUNDING = 1e-6


def codes_of(record: Record, row: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the warning codes of a record, and of one of its rows, each with its sentence.

    A sentence is empty where the record has none.
    """
    told: Mapping[str, str] = record.get("warned") or {}
    found = {c: told.get(c, "") for c in str(record.get("warning") or "").split("+") if c}
    if row is not None:
        marked: Mapping[str, str] = row.get("marked") or {}
        found |= {code: marked.get(code, "") for code in row.get("marks") or ()}
    return found


def tidy(records: Mapping[str, Sequence[Record]]) -> pd.DataFrame:
    """Return one line for each cell and way of restoring, with plain columns."""
    lines: list[dict[str, Any]] = []
    for method, cells in records.items():
        for record in cells:
            base = {
                "method": method,
                "seed": record["seed"],
                "status": record["status"],
                "warning": "+".join(codes_of(record)),
                "clean_images": record.get("clean_images"),
                "train_images": record.get("train_images"),
                "measurements_sha256": record.get("measurements_sha256"),
                "cell": record.get("cell"),
            }
            if not is_finished(record):
                lines.append({**base, "way": "", "is_own": False})
                continue
            training, costs = record["training"], record.get("costs") or {}
            memory = training["memory_mb"]
            base |= {
                "operator": record["operator"],
                "data": record["data"],
                "train_seconds": sum(training["seconds"].values()),
                "memory_mb": memory["gpu"] or memory["cpu"],
                "energy_kj": _energy(training),
                "parameters": sum(record["parameters"].values()),
                "images_seen": training["images"],
                "estep_evaluations": training["costs"].get("evaluations", 0),
                "train_flops": costs.get("train_flops"),
                "train_passes": _passes(costs),
            }
            for row in record["rows"]:
                seconds, spent = row["seconds"], row.get("costs", costs) or {}
                lines.append(
                    {
                        **base,
                        "warning": "+".join(codes_of(record, row)),
                        "way": row["way"],
                        "procedure": procedure(row),
                        "is_own": row["is_own"],
                        "draws": row.get("draws"),
                        "samples": row.get("samples"),
                        "sampling_seeds": len((row.get("curves") or {}).get("fd_by_seed", ())),
                        **row["metrics"],
                        "restore_seconds": seconds.get("restoration"),
                        "sample_seconds": seconds.get("sampling"),
                        "restore_flops": spent.get("restore_flops"),
                        "sample_flops": spent.get("sample_flops"),
                        "evaluations": row["evaluations"] if "restoration" in seconds else None,
                        "backwards": row["backwards"],
                        "missing": "; ".join(dict.fromkeys(row["missing"].values())),
                    }
                )
    return pd.DataFrame(lines)


def _energy(training: dict[str, Any]) -> float | None:
    told = [joules for joules in training.get("energy_j", {}).values() if joules is not None]
    return sum(told) / 1000 if told else None


def _passes(costs: Mapping[str, Any]) -> float | None:
    told = [costs.get("train_forwards"), costs.get("train_backwards")]
    return sum(t for t in told if t is not None) if any(t is not None for t in told) else None


def _is_spread(key: str) -> bool:
    """Whether a key is a standard deviation over sampling seeds: ``fd_std``, ``fd_std_NAME``."""
    return re.match(r"(proximal_)?fd_std(_|$)", key) is not None


def _sampling_spread(key: str) -> str:
    """Return where a metric keeps its standard deviation over sampling seeds: ``fd_std_NAME``."""
    for name in ("proximal_fd", "fd"):
        if key == name or key.startswith(f"{name}_"):
            return f"{name}_std{key[len(name) :]}"
    return f"{key}_std"


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line for each method and way: mean, spread and number of training seeds.

    ``KEY_std`` is the standard deviation over training seeds; of distances of samples, over
    training and sampling seeds together.
    """
    keys = list(frame.columns)
    further = [c for c in in_order(keys) if c not in NUMBERS and not _is_spread(c)]
    absent = [c for c in (*NUMBERS, *FIRST) if c not in frame]
    frame = frame.reindex(columns=[*keys, *absent])
    lines = []
    for pair, group in frame.groupby(["method", "way"], sort=False):
        line: dict[str, Any] = dict(zip(("method", "way"), pair, strict=True))
        done = group[group["status"] == "done"]
        line["n"] = len(done)
        statuses = list(dict.fromkeys(group["status"]))
        line["status"] = statuses[0] if len(statuses) == 1 else "; ".join(statuses)
        codes = [c for text in group["warning"].fillna("") for c in str(text).split("+") if c]
        line["warning"] = "+".join(dict.fromkeys(codes))
        first = (done if len(done) else group).iloc[0].to_dict()
        for key in FIRST:
            line[key] = first.get(key)
        for key in (*NUMBERS, *further):
            values = done[key].dropna().astype(float)
            line[key] = values.mean() if len(values) else math.nan
            line[f"{key}_std"] = _spread(values.to_numpy(), done, _sampling_spread(key))
        lines.append(line)
    return pd.DataFrame(lines)


def _spread(values: Any, done: pd.DataFrame, key: str) -> float:
    r"""Return the standard deviation of one value: over training seeds, and sampling seeds.

    The mean over K sampling seeds varies by the training's variance and a K-th of the sampling's,
    so that one value varies by ``var(means) + (1 - 1/K) var(sampling)``.
    """
    between = float(np.var(values, ddof=1)) if len(values) > 1 else math.nan
    within = done[key].dropna().to_numpy(float) if key in done else np.zeros(0)
    if not len(within):
        return math.sqrt(between)
    sampling = float(np.mean(within**2))
    if math.isnan(between):
        return math.sqrt(sampling)
    seeds = max(float(done["sampling_seeds"].max()), 2.0) if "sampling_seeds" in done else 2.0
    return math.sqrt(between + (1 - 1 / seeds) * sampling)


def number(line: Mapping[str, Any], key: str, form: str, plus_minus: str) -> str:
    """Return a number of :func:`summarise` as text, with its spread over seeds if it has one."""
    value, spread = line[key], line.get(f"{key}_std", math.nan)
    if value is None or pd.isna(value):
        return DASH
    if form == SIGNIFICANT:
        if key.startswith("consistency") and abs(value) < ROUNDING:
            return "0"
        if pd.isna(spread):
            return significant(value)
        return with_spread(value, spread, plus_minus)
    return f"{value:{form}}" + (f"{plus_minus}{spread:{form}}" if not pd.isna(spread) else "")


def all_columns() -> tuple[Column, ...]:
    """Return every column, those of plug-ins' metrics before the costs."""
    first = next(i for i, column in enumerate(COLUMNS) if column.key == "train_flops")
    added = (
        Column(key, key.replace("_point", " point"), SIGNIFICANT, meaning)
        for key, meaning in further_metrics().items()
    )
    return (*COLUMNS[:first], *added, *COLUMNS[first:])


def columns(summary: pd.DataFrame) -> list[Column]:
    """Return the columns of :func:`all_columns` that this table shows."""
    return [
        c
        for c in all_columns()
        if c.key in ALWAYS or (c.key in summary and summary[c.key].notna().any())
    ]


def display(summary: pd.DataFrame, references: Sequence[str]) -> pd.DataFrame:
    """Return the table as strings, with its headings.

    Arguments:
        summary: From :func:`summarise`.
        references: Methods that anchor the table.
    """
    lines = []
    shown_columns = columns(summary)
    for name, record in zip(names(summary, references), summary.to_dict("records"), strict=True):
        line = {str(k): v for k, v in record.items()}
        shown = {"method": name, "restores by": str(line["way"]) or DASH}
        shown |= {c.heading: _cell(line, c) for c in shown_columns}
        # A reason is a sentence: it stands under the table, where it does not widen a column.
        ended = Status.from_json(str(line["status"]))
        codes = [f"[{code}]" for code in str(line["warning"] or "").split("+") if code]
        shown["status"] = " ".join(
            [f"{ended.kind}, see below" if ended.reason else ended.kind, *codes]
        )
        lines.append(shown)
    return pd.DataFrame(lines)


def _cell(line: dict[str, Any], column: Column) -> str:
    key, form = column.key, column.form
    if key in QUALITIES or key in further_metrics():
        return number(line, key, form, " ± ")
    value = line["evaluations" if key == "nfe" else key]
    if value is None or pd.isna(value):
        return DASH
    if key == "nfe":
        backward = int(line["backwards"])
        return f"{int(value)} (+{backward})" if backward else str(int(value))
    if form == "d":
        return str(int(value))
    if form == "letter":
        return lettered(float(value))
    # Costs have no spread: it is that of the machine; table.csv has it.
    return significant(float(value), 2) if form == "time" else f"{value:{form}}"


def marks(summary: pd.DataFrame, best: Mapping[str, Sequence[tuple[str, str]]]) -> pd.DataFrame:
    """Return which cells of :func:`display` are in bold: significantly best in their track.

    Draws and points are columns of their own, so that bold never crosses them.

    Arguments:
        summary: From :func:`summarise`, in the order of the table.
        best: From :func:`cleanprior.benchmarks.statistics.best`.
    """
    rows = list(zip(summary["method"], summary["way"], strict=True))
    headings = ["method", "restores by", *(c.heading for c in columns(summary)), "status"]
    bold = pd.DataFrame(False, index=range(len(rows)), columns=headings)
    for column in columns(summary):
        bold[column.heading] = [row in best.get(column.key, []) for row in rows]
    return bold
