"""Labelled picture grids, a row a method, and the strips that a page compares. No torch."""

import io
import json
import textwrap
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import get_data_path
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cleanprior.cells.fields import RowOf
from cleanprior.cells.folder import CellFolder
from cleanprior.cells.record import Record, is_finished
from cleanprior.config import Config
from cleanprior.files import write_bytes, write_text
from cleanprior.hashed import Damaged, check_owner, read_arrays

from ..plan import Problem
from ..tables.row_names import row_name
from . import tiles
from .problems import STRIPS
from .tiles import Images, View

#: Pixels of a picture's width that images may take, and of its text.
WIDTH, TEXT, MARGIN = 1000, 17, 10
INK, SOFT = (28, 36, 48), (91, 102, 117)


@dataclass(frozen=True)
class Strip:
    """A labelled row of images.

    Attributes:
        label: What they are.
        images: (n, c, h, w) in [-1, 1].
        seen: 1 where an entry was measured, or None.
        row: Method and way that restored them; empty for none.
    """

    label: str
    images: Images
    seen: Images | None = None
    row: tuple[str, ...] = ()


@lru_cache(maxsize=2)
def _font(is_bold: bool) -> Any:
    name = "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), TEXT)


def grid(strips: list[Strip], view: View, title: str) -> bytes:
    """Return strips under each other as a PNG file, each below its label.

    Arguments:
        strips: At least one; their images have one size.
        view: How images become colours.
        title: Written above; how the images are shown is added to it.
    """
    height, width = strips[0].images.shape[-2:]
    factor, smaller = tiles.enlargement(height, width), tiles.reduction(height, width)
    gap = max(2, factor // 3)
    cell = -(-width // smaller) * factor + gap
    count = max(1, (WIDTH + gap) // cell)
    drawn = []
    for strip in strips:
        shown = [view.colours(strip.images[:count], _first(strip.seen, count))]
        if view.channels == 2:
            shown.append(view.phases(strip.images[:count]))
        pixels = [tiles.enlarged(tiles.reduced(colours), factor) for colours in shown]
        drawn.append((strip.label, tiles.under_each_other(pixels, gap)))
    said = [view.said] if view.said else []
    if view.channels == 2:
        said.append("below it the phase as a hue, red 0, cyan half a turn")
    if smaller > 1:
        said.append(f"{width} x {height} pixels, means of {smaller} x {smaller}")
    elif factor > 1:
        said.append(f"{width} x {height} pixels, enlarged {factor} times")
    lines = textwrap.wrap(f"{title} · {'; '.join(said)}" if said else title, WIDTH * 17 // 180)
    picture = _paste(drawn, lines)
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _first(images: Images | None, count: int) -> Images | None:
    return None if images is None else images[:count]


def _paste(drawn: list[tuple[str, NDArray[np.uint8]]], lines: list[str]) -> Image.Image:
    """Put the title's lines, labels and pictures under each other."""
    line = TEXT + 6
    named = [(textwrap.wrap(label, WIDTH // 10) or [""], pixels) for label, pixels in drawn]
    tall = sum(line * len(label) + pixels.shape[0] + MARGIN for label, pixels in named)
    wide = max(WIDTH, *(pixels.shape[1] for _, pixels in drawn)) + 2 * MARGIN
    picture = Image.new("RGB", (wide, tall + line * len(lines) + 3 * MARGIN), "white")
    pen = ImageDraw.Draw(picture)
    y = MARGIN
    for text in lines:
        pen.text((MARGIN, y), text, SOFT, _font(is_bold=False))
        y += line
    y += MARGIN
    for label, pixels in named:
        for text in label:
            pen.text((MARGIN, y), text, INK, _font(is_bold=True))
            y += line
        picture.paste(Image.fromarray(pixels), (MARGIN, y))
        y += pixels.shape[0] + MARGIN
    return picture


@dataclass
class _Found:
    """The strips of a problem."""

    measured: list[Strip]
    truth: list[Strip]
    samples: list[Strip]
    restored: list[Strip]
    nearest: list[Strip]
    lines: list[str]


def _collect(problem: Problem, records: dict[str, list[Record]], out: Path) -> _Found:
    """Read the pictures of the first finished seed of each method."""
    found = _Found([], [], [], [], [], [])
    for method, cells in records.items():
        place = next((i for i, r in enumerate(cells) if is_finished(r)), None)
        if place is None:
            continue
        config: Config = problem.cells[method][place]
        try:
            pictures = _read(CellFolder(out, config))
        except Damaged as error:
            found.lines.append(
                f"{method}: no images are shown, {error}; `--force {method}` makes them again"
            )
            continue
        if not found.measured:
            label = str(cells[place].get("evaluation", {}).get("observations") or "measurements")
            found.measured.append(Strip(label, pictures["measurement"], pictures.get("seen")))
            if "truth" in pictures:
                found.truth.append(Strip("truth: clean test images", pictures["truth"]))
        rows = cells[place]["rows"]
        for row in rows:
            _add_row(found, method, row, len(rows) > 1, pictures)
        share = next((r["metrics"]["memorised"] for r in rows if "memorised" in r["metrics"]), None)
        if share is not None and "memorised.sample" in pictures:
            label = f"{method}, memorised {share:.1%}"
            found.nearest.append(Strip(label, pictures["memorised.sample"]))
            found.nearest.append(Strip("nearest of training", pictures["memorised.neighbour"]))
    return found


def _read(cell: CellFolder) -> dict[str, Images]:
    """Return the pictures of a cell.

    Raises:
        Damaged: They are missing, damaged, or another cell's.
    """
    path = cell.pictures
    if not path.exists():
        raise Damaged(f"'{path}' is missing")
    pictures, meta = read_arrays(path)
    check_owner(path, meta, cell.identity.evaluation)
    if "measurement" not in pictures or any(v.ndim != 4 for v in pictures.values()):
        raise Damaged(f"'{path}' is damaged: it holds no pictures")
    return pictures


def _add_row(
    found: _Found, method: str, row: RowOf, has_more: bool, pictures: dict[str, Images]
) -> None:
    """Add what a row drew and restored; what a restoration is stands in its label."""
    way, draws = row["way"], row.get("draws")
    name = row_name(method, row, row["is_own"] and has_more)
    if (key := f"samples.{way}") in pictures:
        found.samples.append(Strip(f"{name}: samples", pictures[key]))
    if (key := f"restored.{way}") in pictures:
        # Records of earlier versions do not say what they restored.
        kind = "restoration" if draws is None else "point estimate" if draws <= 1 else "one draw"
        found.restored.append(Strip(f"{name}: {kind}", pictures[key], row=(method, way)))
    if (key := f"mean.{way}") in pictures:
        label = f"{name}: mean of {draws} draws"
        found.restored.append(Strip(label, pictures[key], row=(method, way)))


def write(
    problem: Problem, records: dict[str, list[Record]], out: Path, folder: Path
) -> tuple[list[Path], list[str]]:
    """Write the grids of the first finished seed of each method.

    ``samples.png``, ``restorations.png``, where clean images can tell ``memorised.png``, and the
    strips of the page (:data:`.problems.STRIPS`).

    Returns:
        The files, and a line for each method whose images cannot be shown.
    """
    found = _collect(problem, records, out)
    if not found.measured:
        return [], found.lines
    anchors = found.truth or found.restored or found.measured
    view = View.of(np.concatenate([strip.images for strip in anchors]))
    written = []
    for name, title, strips in (
        ("samples.png", "generated samples", [*found.truth, *found.samples]),
        ("restorations.png", "restorations", [*found.measured, *found.restored, *found.truth]),
        ("memorised.png", "samples nearest to a training image", found.nearest),
    ):
        if len(strips) > len(found.truth):
            write_bytes(folder / name, grid(strips, view, f"{title} · {problem.title}"))
            written.append(folder / name)
    write_text(folder / STRIPS, json.dumps(_strips(found, view)))
    return [*written, folder / STRIPS], found.lines


def _strips(found: _Found, view: View) -> dict[str, Any]:
    """Return every restored row as one picture for the page, images side by side, no gap."""
    height, width = found.measured[0].images.shape[-2:]
    smaller = tiles.reduction(height, width)
    shown = []
    for kind, strips in (
        ("measured", found.measured),
        ("row", found.restored),
        ("truth", found.truth),
    ):
        for strip in strips:
            pixels = tiles.reduced(view.colours(strip.images, strip.seen))
            picture = tiles.side_by_side(pixels, 0) if len(pixels) else pixels
            known = {"kind": kind, "label": strip.label, "row": strip.row}
            shown.append({**known, "uri": tiles.uri(picture)})
    said = [view.said] if view.said else []
    if smaller > 1:
        said.append(f"means of {smaller} x {smaller} pixels")
    return {
        "count": len(found.measured[0].images),
        "width": -(-width // smaller),
        "height": -(-height // smaller),
        "said": "; ".join(said),
        "strips": shown,
    }
