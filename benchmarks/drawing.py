"""Pictures of a problem, drawn again only where something in them changed. No torch."""

import hashlib
import json
import warnings
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pandas as pd

from cleanprior.cells.record import Record
from cleanprior.files import write_text

from .plan import Problem

STAMP = ".drawn.json"
#: What decides how pictures look.
CODE = ("figures.py", "palette.py", "pictures.py", "plots.py", "tables.py", "tiles.py")


def draw(
    problem: Problem,
    records: dict[str, list[Record]],
    summary: pd.DataFrame,
    out: Path,
    folder: Path,
) -> list[Path]:
    """Write the pictures of a problem; keep those that were made from the same records.

    Arguments:
        problem: The problem.
        records: Its records.
        summary: From :func:`cleanprior.benchmarks.tables.summarise`.
        out: Folder of all runs.
        folder: Folder of the problem's tables.

    Returns:
        The pictures, in their order.
    """
    stamp = folder / STAMP
    made_of = _digest(problem, records)
    try:
        drawn = json.loads(stamp.read_text(encoding="utf-8"))
        written = [folder / name for name in drawn["files"]]
        if drawn["made_of"] == made_of and all(path.exists() for path in written):
            return written
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no stamp, or none that can be read: draw
    from . import pictures, plots

    with warnings.catch_warnings():
        # A title names the user's folder in whatever script; its box in a picture is no news.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        written = pictures.write(problem, records, out, folder)
        written += plots.write(problem, records, summary, folder)
    names = [path.name for path in written]
    write_text(stamp, json.dumps({"made_of": made_of, "files": names}))
    return written


def _digest(problem: Problem, records: dict[str, list[Record]]) -> str:
    """Return the hash of what decides the pictures: records, and the code that draws them."""
    digest = hashlib.sha256(json.dumps([problem.title, records, version("matplotlib")]).encode())
    for module in CODE:
        digest.update(files("cleanprior.benchmarks").joinpath(module).read_bytes())
    return digest.hexdigest()
