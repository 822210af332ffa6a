"""Records become tables: terminal, Markdown, CSV, LaTeX and Parquet."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cleanprior import registry
from cleanprior.files import write_bytes, write_text
from cleanprior.metric_names import in_order
from cleanprior.records import Record, is_finished

from .latex import to_latex
from .plan import Problem
from .statistics import SEEDS_FOR_T

DASH = "-"
# key, heading, LaTeX heading, format, what it is
COLUMNS: tuple[tuple[str, str, str, str], ...] = (
    ("clean_images", "clean images", "d", "clean images that the method was handed"),
    ("psnr", "PSNR dB", ".2f", "of restorations of held-out measurements; higher is better"),
    ("ssim", "SSIM", ".3f", "of the same; higher is better"),
    ("lpips", "LPIPS", ".3f", "of the same, AlexNet; lower is better"),
    ("consistency", "|y-Ax|", ".3f", "root mean square residual per observed pixel, units of x"),
    ("fd", "FD", ".1f", "Frechet distance of generated samples to the clean training split"),
    (
        "proximal_fd",
        "proximal FD",
        ".2f",
        "of samples, corrupted again, to the training measurements; needs no clean image",
    ),
    ("train_seconds", "train s", ".0f", "training with its E-steps"),
    ("restore_seconds", "restore s", ".1f", "restoring all held-out measurements"),
    ("sample_seconds", "sample s", ".1f", "drawing the samples"),
    ("nfe", "NFE", "", "forward (+ backward) passes of the denoiser for one restored image"),
    ("memory_mb", "peak MB", ".0f", "peak memory of the process (of the GPU where there is one)"),
    (
        "energy_kj",
        "energy kJ",
        ".1f",
        "of training, as CPU and GPU counters report it, whatever else ran on them",
    ),
    ("parameters", "params", "", "of all networks trained"),
)
#: Headings of columns that hold words.
TEXTS = ("method", "restores by", "status", "problem", "published row", "our row")
#: Columns that stand only where some row has a value.
OPTIONAL = ("lpips", "energy_kj")
# The same for every seed of a row.
FIRST = (
    "warning",
    "clean_images",
    "train_images",
    "is_own",
    "parameters",
    "evaluations",
    "backwards",
)
QUALITIES = ("psnr", "ssim", "lpips", "consistency", "fd", "proximal_fd")
COSTS = ("train_seconds", "restore_seconds", "sample_seconds", "memory_mb", "energy_kj")
NUMBERS = (*QUALITIES, *COSTS)


def tidy(records: dict[str, list[Record]]) -> pd.DataFrame:
    """Return one line for each cell and way of restoring, with plain columns."""
    lines: list[dict[str, Any]] = []
    for method, cells in records.items():
        for record in cells:
            base = {
                "method": method,
                "seed": record["seed"],
                "status": record["status"],
                "warning": record.get("warning", ""),
                "clean_images": record.get("clean_images"),
                "train_images": record.get("train_images"),
                "measurements_sha256": record.get("measurements_sha256"),
                "cell": record.get("cell"),
            }
            if not is_finished(record):
                lines.append({**base, "way": "", "is_own": False})
                continue
            training = record["training"]
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
            }
            for row in record["rows"]:
                seconds = row["seconds"]
                lines.append(
                    {
                        **base,
                        "way": row["way"],
                        "is_own": row["is_own"],
                        **row["metrics"],
                        "restore_seconds": seconds.get("restoration"),
                        "sample_seconds": seconds.get("sampling"),
                        "evaluations": row["evaluations"] if "restoration" in seconds else None,
                        "backwards": row["backwards"],
                        "missing": "; ".join(dict.fromkeys(row["missing"].values())),
                    }
                )
    return pd.DataFrame(lines)


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line for each method and way: mean, spread and number of seeds."""
    further = [c for c in in_order(frame.columns) if c not in NUMBERS]
    frame = frame.reindex(columns=[*frame.columns, *(c for c in NUMBERS if c not in frame)])
    lines = []
    for keys, group in frame.groupby(["method", "way"], sort=False):
        line: dict[str, Any] = dict(zip(("method", "way"), keys, strict=True))
        done = group[group["status"] == "done"]
        line["n"] = len(done)
        statuses = list(dict.fromkeys(group["status"]))
        line["status"] = statuses[0] if len(statuses) == 1 else "; ".join(statuses)
        first = (done if len(done) else group).iloc[0].to_dict()
        for key in FIRST:
            line[key] = first.get(key)
        for key in (*NUMBERS, *further):
            values = done[key].dropna().astype(float)
            line[key] = values.mean() if len(values) else math.nan
            line[f"{key}_std"] = values.std(ddof=1) if len(values) > 1 else math.nan
        lines.append(line)
    return pd.DataFrame(lines)


def _count(value: Any) -> str:
    if value is None or pd.isna(value):
        return DASH
    n = int(value)
    return f"{n / 1e6:.1f}M" if n >= 10**6 else f"{n / 1e3:.0f}k" if n >= 1000 else str(n)


def number(line: dict[str, Any], key: str, form: str, plus_minus: str) -> str:
    """Return a number of :func:`summarise` as text, with its spread over seeds if it has one."""
    value, spread = line[key], line[f"{key}_std"]
    if pd.isna(value):
        return DASH
    return f"{value:{form}}" + (f"{plus_minus}{spread:{form}}" if not pd.isna(spread) else "")


def row_name(method: str, way: str, is_own: bool) -> str:
    """Return how a row is called outside of its table: a method's own way by what it does."""
    return f"{method}: {way.removeprefix('none; ')}" if is_own else method


def columns(summary: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return the columns of :data:`COLUMNS` that this table shows."""
    return [c for c in COLUMNS if c[0] not in OPTIONAL or summary[c[0]].notna().any()]


def display(summary: pd.DataFrame, references: Sequence[str]) -> pd.DataFrame:
    """Return the table as strings, with its headings.

    Arguments:
        summary: From :func:`summarise`.
        references: Methods that anchor the table.
    """
    lines = []
    for record in summary.to_dict("records"):
        line = {str(k): v for k, v in record.items()}
        name = str(line["method"])
        if line["is_own"] and name not in references:
            name = f"{name}: own way"
        if line["clean_images"] and line["clean_images"] == line["train_images"]:
            name = f"{name} †"
        shown = {"method": name, "restores by": line["way"] or DASH}
        for key, heading, form, _ in columns(summary):
            if key in QUALITIES:
                shown[heading] = number(line, key, form, " ± ")
            elif key in COSTS:  # their spread is that of the machine; table.csv has it
                shown[heading] = DASH if pd.isna(line[key]) else f"{line[key]:{form}}"
            elif key == "nfe":
                shown[heading] = _evaluations(line)
            elif key == "clean_images":
                shown[heading] = DASH if pd.isna(line[key]) else str(int(line[key]))
            else:
                shown[heading] = _count(line[key])
        # A reason is a sentence: it stands under the table, where it does not widen a column.
        word, colon, _ = str(line["status"]).partition(":")
        warned = f" [{line['warning']}]" if line["warning"] else ""
        shown["status"] = (f"{word}, see below" if colon else word) + warned
        lines.append(shown)
    return pd.DataFrame(lines)


def _energy(training: dict[str, Any]) -> float | None:
    told = [joules for joules in training.get("energy_j", {}).values() if joules is not None]
    return sum(told) / 1000 if told else None


def _evaluations(line: dict[str, Any]) -> str:
    if pd.isna(line["evaluations"]):
        return DASH
    forward, backward = int(line["evaluations"]), int(line["backwards"])
    return f"{forward} (+{backward})" if backward else str(forward)


def marks(summary: pd.DataFrame, best: dict[str, list[tuple[str, str]]]) -> pd.DataFrame:
    """Return which cells of :func:`display` are in bold: significantly best in their track.

    Arguments:
        summary: From :func:`summarise`, in the order of the table.
        best: From :func:`cleanprior.benchmarks.statistics.best`.
    """
    names = list(zip(summary["method"], summary["way"], strict=True))
    headings = ["method", "restores by", *(c[1] for c in columns(summary)), "status"]
    bold = pd.DataFrame(False, index=range(len(names)), columns=headings)
    for key, heading, _, _ in columns(summary):
        bold[heading] = [name in best.get(key, []) for name in names]
    return bold


def overview(
    summaries: dict[str, pd.DataFrame],
    best: dict[str, dict[str, list[tuple[str, str]]]],
    references: Sequence[str],
    key: str,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Put one metric of several problems side by side: rows by method and way, a column a problem.

    Arguments:
        summaries: From :func:`summarise`, by the problem's label.
        best: From :func:`cleanprior.benchmarks.statistics.best`, by the problem's label.
        references: Methods that are not ranked.
        key: The metric, one of :data:`NUMBERS`.

    Returns:
        The table as strings, its numbers, and what is bold.
    """
    form = next(c[2] for c in COLUMNS if c[0] == key)
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for label, summary in summaries.items():
        for record in summary.to_dict("records"):
            line = {str(k): v for k, v in record.items()}
            if not pd.isna(line[key]):
                found.setdefault((line["method"], line["way"]), {})[label] = line
    order = list(dict.fromkeys(m for s in summaries.values() for m in s["method"]))
    names = sorted(found, key=lambda name: order.index(name[0]))
    texts, numbers, marked = [], [], []
    for method, way in names:
        lines = found[method, way]
        is_own = next(iter(lines.values()))["is_own"] and method not in references
        head = {"method": f"{method}: own way" if is_own else method, "restores by": way}
        texts.append(
            head
            | {k: number(lines[k], key, form, " ± ") if k in lines else DASH for k in summaries}
        )
        values = {k: lines[k][key] if k in lines else math.nan for k in summaries}
        numbers.append({"method": method, "way": way, "is_own": is_own, "status": "done"} | values)
        marked.append(
            {"method": False, "restores by": False}
            | {k: (method, way) in best[k].get(key, []) for k in summaries}
        )
    return pd.DataFrame(texts), pd.DataFrame(numbers), pd.DataFrame(marked)


def to_markdown(shown: pd.DataFrame, bold: pd.DataFrame) -> str:
    """Return a table as GitHub's Markdown; words to the left, numbers to the right."""
    markdown = shown.map(lambda v: str(v).replace("|", "\\|"))
    markdown = markdown.mask(bold.to_numpy(), "**" + markdown + "**")
    markdown.columns = [c.replace("|", "\\|") for c in shown.columns]
    sides = ["left" if c in TEXTS else "right" for c in shown.columns]
    return str(markdown.to_markdown(index=False, colalign=sides, disable_numparse=True))


def notes(problem: Problem, records: dict[str, list[Record]], seeds: int) -> list[str]:
    """Return the lines under the table: what was measured, how, and what to be careful of."""
    done = [r for rs in records.values() for r in rs if is_finished(r)]
    lines = []
    if done:
        notes = done[0]["evaluation"]
        training = done[0]["config"]["training"]
        lines += [
            f"measurements: sha256 {done[0]['measurements_sha256'][:12]}, the same bytes for every "
            f"row; budget: {training['budget']:,} images seen by each denoiser",
            f"restorations: {notes['test_images']} held-out measurements; rows share one posterior "
            "sampler and its noise, own ways stand in rows of their own",
        ]
        if "features" in notes:
            lines.append(
                f"FD: features {notes['features']}, {notes['samples']} samples against the "
                f"{notes['reference']}; the test split itself has {notes['fd_train_test']:.1f}"
            )
        elif not notes.get("has_clean", False):
            lines.append(
                "no clean images: no PSNR, SSIM or FD; |y-Ax| of the true images would be "
                f"{notes['expected_consistency']:.3f} by the noise; a restoration far "
                "below it fits the noise, far above it does not explain y"
            )
        if "proximal_floor" in notes:
            lines.append(
                f"proximal FD: features {notes['proximal_features']}; training measurements among "
                f"themselves have {notes['proximal_floor']:.2f}, zeros "
                f"{notes['proximal_ceiling']:.2f}"
            )
        absent = [row["missing"] for r in done for row in r["rows"]]
        lines += dict.fromkeys(
            f"{heading}: {missing[key]}"
            for key, heading, _, _ in COLUMNS
            for missing in absent
            if key in missing
        )
    for method, cells in records.items():
        lines += dict.fromkeys(f"{method}: {r['status']}" for r in cells if ":" in r["status"])
        lines += dict.fromkeys(
            f"{method}: {reason}"
            for r in cells
            for row in r.get("rows", ())
            for kind, reason in row["missing"].items()
            if kind in ("restoration", "generation")
        )
        done = [r for r in cells if is_finished(r)]
        if any(
            r["code"]["method_sha256"] != registry.code_hash(r["config"]["method"]["name"])
            for r in done
        ):
            lines.append(
                f"{method}: its code changed after this row; retrain with --force {method}"
            )
        if any(r.get("clean_images") and r["clean_images"] == r.get("train_images") for r in cells):
            lines.append(f"† {method}: upper bound, trained on all clean images; not ranked")
    codes = {c for rs in records.values() for r in rs for c in r.get("warning", "").split("+") if c}
    explained = {
        "floor": "[floor]: noise-free data; the likelihood uses a noise floor in its place",
        "rank": "[rank]: some pixels are never supervised under this operator",
        "shift": "[shift]: trained with missing coordinates, sampled with none",
        "straw-man": "[straw-man]: y was taken for a noisy image; the operator was not used",
        "ambient-o": "[ambient-o]: the operator is not modelled, its corruption drowned in noise",
        "null": "[null]: what the operator never shows comes from the method's start, not from y",
    }
    lines += [explained[c] for c in sorted(codes) if c in explained]
    lines.append(
        "bold: better than every other row of its track (clean images handed out), 5 % level after "
        "Holm's correction; pairs in comparisons.csv"
    )
    if seeds == 1:
        lines.append(
            "n = 1 training seed: intervals cover other test images, not other training runs; "
            "differences of a few tenths of a dB are not evidence about the methods"
        )
    else:
        lines.append(f"mean ± standard deviation over n = {seeds} training seeds")
    if seeds < SEEDS_FOR_T:
        lines.append(f"FD is not ranked: one number a run needs {SEEDS_FOR_T} training seeds")
    return lines


def write(
    folder: Path,
    title: str,
    shown: pd.DataFrame,
    summary: pd.DataFrame,
    frame: pd.DataFrame,
    lines: Sequence[str],
    bold: pd.DataFrame,
    comparisons: pd.DataFrame,
) -> list[Path]:
    """Write the table in four formats and the pairwise comparisons, each file atomically."""
    legend = [f"{c[1]}: {c[3]}" for c in COLUMNS if c[1] in shown.columns]
    text = to_markdown(shown, bold)
    bullets = "\n".join(f"- {line}" for line in [*lines, *legend])
    write_text(folder / "table.md", f"## {title}\n\n{text}\n\n{bullets}\n")
    write_text(folder / "table.csv", summary.to_csv(index=False))
    write_text(folder / "table.tex", to_latex(shown, bold, [title, *lines, *legend]))
    write_bytes(folder / "records.parquet", frame.to_parquet(index=False))
    write_text(folder / "comparisons.csv", comparisons.to_csv(index=False))
    names = ("table.md", "table.csv", "table.tex", "records.parquet", "comparisons.csv")
    return [folder / n for n in names]
