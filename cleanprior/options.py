"""What several commands take and show. Light to import."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import UserError
from .files import check_folder, given_path


def _path(text: str | Path) -> Path:
    try:
        return given_path(text)
    except UserError as error:
        raise typer.BadParameter(str(error)) from error


def _folder_of_runs(text: str | Path) -> Path:
    try:
        return check_folder("--out", given_path(text))
    except UserError as error:
        raise typer.BadParameter(str(error)) from error


#: How typer reads a path: literally, ``~`` expanded.
GIVEN: dict[str, Any] = {"parser": _path, "metavar": "PATH"}

Overrides = Annotated[
    list[str] | None, typer.Argument(help="group=name and key=value, e.g. operator.p=0.3")
]
Out = Annotated[
    Path,
    typer.Option("--out", help="Folder of all runs.", parser=_folder_of_runs, metavar="PATH"),
]


def live_progress() -> Any:
    """Return a progress display on stderr."""
    from rich.console import Console

    from .progress import Progress

    return Progress(Console(stderr=True))
