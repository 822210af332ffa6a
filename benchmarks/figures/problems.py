"""Pictures of a problem, drawn again only where something in them changed. No torch."""

import hashlib
import json
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pandas as pd

from cleanprior.cells.folder import CellFolder
from cleanprior.cells.reading import read_sealed, sealed
from cleanprior.cells.record import Record
from cleanprior.files import write_text

from ..plan import Problem

STAMP = ".drawn.json"
#: What the page compares, kept beside the pictures for its next writing.
STRIPS = ".strips.json"
#: What decides how pictures look: all sources of these rooms.
ROOMS = ("figures", "tables")


def draw(
    problem: Problem,
    records: dict[str, list[Record]],
    summary: pd.DataFrame,
    out: Path,
    folder: Path,
) -> tuple[list[Path], list[str]]:
    """Write the pictures of a problem; keep those that were made from the same records.

    Arguments:
        problem: The problem.
        records: Its records.
        summary: From :func:`cleanprior.benchmarks.tables.summary.summarise`.
        out: Folder of all runs.
        folder: Folder of the problem's tables.

    Returns:
        The grids, in their order, and a line for each method whose images cannot be shown.
    """
    stamp = folder / STAMP
    made_of = _digest(problem, records, out)
    try:
        drawn = read_sealed(stamp) if stamp.exists() else {}
        is_whole = drawn["made_of"] == made_of and None not in drawn["files"].values()
        if is_whole and drawn["files"] == _hashes(folder, drawn["files"]):
            return [folder / name for name in drawn["files"]], drawn["lines"]
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # no stamp, or none that can be read: draw
    from . import grids, plots

    with warnings.catch_warnings():
        # A title names the user's folder in whatever script; its box in a picture is no news.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        written, lines = grids.write(problem, records, out, folder)
        written += plots.write(problem, records, summary, folder)
    files = _hashes(folder, [path.name for path in written])
    write_text(stamp, sealed({"made_of": made_of, "files": files, "lines": lines}))
    return written, lines


def _hashes(folder: Path, names: Iterable[str]) -> dict[str, str | None]:
    """Return the sha256 of files; None where one is missing."""
    found: dict[str, str | None] = {}
    for name in names:
        path = folder / name
        is_here = path.parent == folder and path.is_file()
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if is_here else None
    return found


def _digest(problem: Problem, records: dict[str, list[Record]], out: Path) -> str:
    """Return the hash of what decides the pictures: records, images, the code that draws them."""
    images = []
    for cells in problem.cells.values():
        for config in cells:
            path = CellFolder(out, config).pictures
            status = path.stat() if path.is_file() else None
            images.append(None if status is None else [status.st_size, status.st_mtime_ns])
    made_of = [problem.title, records, images, version("matplotlib")]
    digest = hashlib.sha256(json.dumps(made_of).encode())
    for room in ROOMS:
        sources = files("cleanprior.benchmarks").joinpath(room).iterdir()
        for source in sorted(sources, key=lambda path: path.name):
            if source.name.endswith(".py"):
                digest.update(source.read_bytes())
    return digest.hexdigest()
