"""The commands ``list``, ``status`` and ``new``: what is installed, what runs, a part of one's own.

Light to import.
"""

from pathlib import Path
from typing import Annotated

import typer

from .options import GIVEN, offers


def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="methods, operators, datasets, posteriors, samplers, evaluations, metrics, "
            "benches, tables, backbones",
            autocompletion=offers("lists"),
        ),
    ] = "methods",
) -> None:
    """List what is installed, and which method may be trained on which operator."""
    from .listing import show

    show(what)


def status(
    folder: Annotated[Path, typer.Argument(help="Folder of all runs.", **GIVEN)] = Path("runs"),
    every: Annotated[
        bool, typer.Option("--all", help="List what is done or skipped, too.")
    ] = False,
) -> None:
    """Say what runs in a folder, since when and at which step; what failed, and what is done."""
    from .status import lines, states

    for line in lines(states(folder), every):
        typer.echo(line)


def new(
    kind: Annotated[
        str,
        typer.Argument(help="method, operator, data or metric.", autocompletion=offers("kinds")),
    ],
    name: Annotated[str, typer.Argument(help="Name of its configuration, e.g. my_own.")],
    to: Annotated[
        Path | None, typer.Option(help="The package's folder; default: cleanprior_NAME.", **GIVEN)
    ] = None,
) -> None:
    """Write an installable package with a part of your own, its YAML and its contract tests."""
    from .scaffold import FIRST, write_package

    folder = write_package(kind, name, to)
    first = FIRST[kind].replace("__name__", name)
    typer.echo(f"wrote {folder}: pip install -e {folder}; pytest {folder}; {first}")
