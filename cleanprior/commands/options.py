"""What several commands take and show. Light to import."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from ..files import check_folder, given_path
from ..notices import hide


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

Quiet = Annotated[bool, typer.Option("--quiet", help="Show errors and the result alone.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show what the processes of cells print, too.")
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the record of each finished cell as a line of JSON alone."),
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


#: An operator beside a saved prior, which has one of its own.
PriorsOperator = Annotated[
    str | None,
    typer.Option(
        help="Operator; default: the prior's.", autocompletion=offers("one_of", "operator")
    ),
]


def live_progress(is_quiet: bool = False, has_logs: bool = False) -> Any:
    """Return a progress display on stderr.

    Arguments:
        is_quiet: Show errors alone.
        has_logs: Show what cells print, too.
    """
    from rich.console import Console

    from ..progress import Progress

    return Progress(Console(stderr=True), is_quiet=is_quiet, has_logs=has_logs)


def asked_progress(is_quiet: bool, is_verbose: bool) -> Any:
    """Return the progress display that ``--quiet`` and ``--verbose`` ask for.

    Raises:
        UserError: Both are given.
    """
    if is_quiet and is_verbose:
        raise UserError("--quiet and --verbose: give one of them")
    if is_quiet:
        hide()
    return live_progress(is_quiet, is_verbose)
