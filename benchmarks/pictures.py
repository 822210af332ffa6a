"""Labelled picture grids: generated samples and restorations, a row a method. No torch."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors.numpy import load_file

from cleanprior.config import Config
from cleanprior.errors import UserError
from cleanprior.records import Record, is_finished, pictures_path
from cleanprior.rendering import Images, rgb

from .plan import Problem
from .tables import row_name

# Hidden pixels are drawn in this colour: 0 is mid-grey in [-1, 1] and would look like content.
HIDDEN = np.array([0.62, 0.76, 0.92], np.float32)


def strip(images: Images, seen: Images | None = None, gap: int = 1) -> NDArray[np.float32]:
    """Return images side by side as one RGB array in [0, 1], separated by white."""
    x = rgb(images)
    if seen is not None:
        shown = seen.min(axis=1)[..., None]
        x = shown * x + (1 - shown) * HIDDEN
    white = np.ones((x.shape[1], gap, 3), np.float32)
    parts = [p for image in x for p in (image, white)][:-1]
    return np.concatenate(parts, axis=1)


def draw_grid(rows: list[tuple[str, NDArray[np.float32]]], title: str, path: Path) -> None:
    """Draw one labelled strip a row."""
    longest = max(len(label) for label, _ in rows)
    height, width = rows[0][1].shape[:2]
    row_inches = 0.62
    picture = row_inches * width / height * 0.9
    margin = 0.075 * longest + 0.25
    total_width = margin + picture + 0.15
    lines = textwrap.wrap(title, int(14 * total_width))  # 14 characters of this size an inch
    total_height = row_inches * len(rows) + 0.3 + 0.15 * len(lines)
    figure = Figure(figsize=(total_width, total_height), dpi=150)
    figure.suptitle(
        "\n".join(lines),
        x=0.1 / total_width,
        y=1 - 0.08 / total_height,
        ha="left",
        va="top",
        fontsize=9,
        parse_math=False,  # a path may hold dollars
    )
    for number, (label, image) in enumerate(rows):
        bottom = 0.05 + row_inches * (len(rows) - 1 - number)
        axis = figure.add_axes(
            (
                margin / total_width,
                bottom / total_height,
                picture / total_width,
                0.9 * row_inches / total_height,
            )
        )
        axis.imshow(image, interpolation="nearest", aspect="auto")
        axis.set_axis_off()
        figure.text(
            (margin - 0.1) / total_width,
            (bottom + 0.45 * row_inches) / total_height,
            label,
            ha="right",
            va="center",
            fontsize=8,
        )
    staging = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(staging, format="png")
        staging.replace(path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error}") from error


def write(
    problem: Problem, records: dict[str, list[Record]], out: Path, folder: Path
) -> list[Path]:
    """Write the grids of the first finished seed of each method.

    ``samples.png``, ``restorations.png`` and, where clean images can tell, ``memorised.png``.
    """
    samples: list[tuple[str, NDArray[np.float32]]] = []
    restored: list[tuple[str, NDArray[np.float32]]] = []
    nearest: list[tuple[str, NDArray[np.float32]]] = []
    truth = None
    for method, cells in records.items():
        found = next((i for i, r in enumerate(cells) if is_finished(r)), None)
        if found is None:
            continue
        config: Config = problem.cells[method][found]
        pictures = load_file(pictures_path(out, config))
        if not restored:
            restored.append(("measurement", strip(pictures["measurement"], pictures.get("seen"))))
            if "truth" in pictures:
                truth = strip(pictures["truth"])
                samples.append(("clean test images", truth))
        rows = cells[found]["rows"]
        for row in rows:
            label = row_name(method, row["way"], row["is_own"] and len(rows) > 1)
            if (key := f"samples.{row['way']}") in pictures:
                samples.append((label, strip(pictures[key])))
            if (key := f"restored.{row['way']}") in pictures:
                restored.append((label, strip(pictures[key])))
        share = next((r["metrics"]["memorised"] for r in rows if "memorised" in r["metrics"]), None)
        if share is not None and "memorised.sample" in pictures:
            nearest.append(
                (f"{method}, memorised {share:.1%}", strip(pictures["memorised.sample"]))
            )
            nearest.append(("nearest of training", strip(pictures["memorised.neighbour"])))
    if restored and truth is not None:
        restored.append(("truth", truth))
    written = []
    for name, title, rows_shown in (
        ("samples.png", "generated samples", samples),
        ("restorations.png", "restorations", restored),
        ("memorised.png", "samples nearest to a training image", nearest),
    ):
        if rows_shown:
            draw_grid(rows_shown, f"{title} · {problem.title}", folder / name)
            written.append(folder / name)
    return written
