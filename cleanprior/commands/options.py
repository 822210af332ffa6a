"""What several commands take and show. Light to import."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from ..files import check_folder, given_path


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


def offered(context: typer.Context, incomplete: str) -> list[str]:
    """Return what completes overrides."""
    from . import completion

    return completion.overrides(context, incomplete)


Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="group=name and key=value, e.g. operator.p=0.3", autocompletion=offered),
]
Out = Annotated[
    Path,
    typer.Option("--out", help="Folder of all runs.", parser=_folder_of_runs, metavar="PATH"),
]


def offers(kind: str, *given: str) -> Callable[[str], list[str]]:
    """Return what completes an option, computed when a shell asks.

    Arguments:
        kind: A function of :mod:`cleanprior.commands.completion` that makes what completes.
        given: Its arguments.
    """

    def offer(incomplete: str) -> list[str]:
        from . import completion

        made: Callable[[str], list[str]] = getattr(completion, kind)(*given)
        return made(incomplete)

    return offer


def live_progress() -> Any:
    """Return a progress display on stderr."""
    from rich.console import Console

    from ..progress import Progress

    return Progress(Console(stderr=True))
