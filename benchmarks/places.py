"""Where a benchmark's tables lie below a folder of runs. No torch."""

from pathlib import Path

#: What was asked for, beside its tables.
REQUEST = "request.json"
#: The page that shows them.
PAGE = "report.html"


def tables(out: Path, key: str) -> Path:
    """Return the folder of a plan's tables, or of a problem's, by its key."""
    return out / "tables" / key


def all_tables(out: Path) -> list[Path]:
    """Return the folders of tables that can be made again."""
    return sorted(path.parent for path in (out / "tables").glob(f"*/{REQUEST}"))


def runs_of(folder: Path) -> Path:
    """Return the folder of runs that a folder of tables lies in."""
    return folder.resolve().parent.parent
