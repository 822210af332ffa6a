"""The command ``cleanprior speed``: what the software takes, as ratios. Light to import."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cleanprior.commands.options import GIVEN, live_progress
from cleanprior.errors import UserError, unknown
from cleanprior.files import check_folder
from cleanprior.terminal import Screen

if TYPE_CHECKING:
    from .timing import Bench, Section

#: What is timed, by the module and the function that does it.
SECTIONS = {
    "trainer": "training",
    "posterior": "posterior",
    "estep": "estep",
    "backbone": "network",
    "memory": "memory",
    "scaling": "network",
    "startup": "startup",
}
DEVICES = ("auto", "cpu", "cuda")


def speed(
    what: Annotated[
        list[str] | None, typer.Argument(help=f"{', '.join(SECTIONS)}; default: all.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each thing is timed.")] = 3,
    device: Annotated[str, typer.Option(help=f"{', '.join(DEVICES)}.")] = "auto",
    out: Annotated[Path, typer.Option("--out", help="Folder of the tables.", **GIVEN)] = Path(
        "speed"
    ),
) -> None:
    """Time the software beside its peers, in one process, and write tables of ratios."""
    chosen = list(dict.fromkeys(what or SECTIONS))
    for name in chosen:
        if name not in SECTIONS:
            raise unknown("section", name, list(SECTIONS))
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    check_folder("--out", out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from error
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here")
    is_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    from .report import write
    from .timing import Bench, threads

    screen, progress = Screen(False), live_progress()
    bench = Bench(torch.device("cuda" if is_gpu else "cpu"), repeats, progress)
    for name in chosen:  # each is written before the next begins, which may take minutes
        with progress.live(), threads(1):
            found = _section(name)(bench)
        write(found, bench, out, screen)


def _section(name: str) -> "Callable[[Bench], Section]":
    from importlib import import_module

    made: Callable[[Bench], Section] = getattr(
        import_module(f"cleanprior.benchmarks.speed.{SECTIONS[name]}"), name
    )
    return made
