"""Records become tidy lines, and lines become means and spreads over seeds."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cleanprior.cells.fields import TrainingOf
from cleanprior.cells.record import Record, is_finished
from cleanprior.metric_names import in_order

from .row_names import procedure

# The same for every seed of a row.
FIRST = (
    "procedure",
    "clean_images",
    "clean_start",
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
                "clean_start": _clean_start(record),
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
                "train_seconds": with_start(sum(training["seconds"].values()), record, "seconds"),
                "memory_mb": memory["gpu"] or memory["cpu"],
                "energy_kj": _energy(training),
                "parameters": sum(record["parameters"].values()),
                "images_seen": with_start(training["images"], record, "images"),
                "estep_evaluations": with_start(
                    training["costs"].get("evaluations", 0), record, "evaluations"
                ),
                "train_flops": with_start(costs.get("train_flops"), record, "flops"),
                "train_passes": with_start(_passes(costs), record, "forwards", "backwards"),
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


def with_start(own: float | None, record: Record, *keys: str) -> float | None:
    """Return a cost of a training with that of what it began from, as far as that is known."""
    before = (record.get("start") or {}).get("costs") or {}
    return None if own is None else own + sum(before.get(key) or 0 for key in keys)


def _clean_start(record: Record) -> str | None:
    """Return the hash of a start that has seen clean images, or None."""
    start = record.get("start") or {}
    return str(start.get("hash")) if start.get("is_clean") else None


def _energy(training: TrainingOf) -> float | None:
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
