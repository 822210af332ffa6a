"""The command ``cleanprior measure``: a problem's measurements as a file. Light to import."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..files import check_folder
from .options import GIVEN, Overrides

#: Files that it writes.
WRITTEN = (".npz", ".h5", ".hdf5", ".safetensors")


def measure(
    overrides: Overrides = None,
    to: Annotated[Path, typer.Option(help=".npz, .h5 or .safetensors.", **GIVEN)] = Path(
        "measurements.npz"
    ),
) -> None:
    """Write a problem's measurements to a file without clean images, for data=measurements."""
    from ..config import compose

    if to.suffix not in WRITTEN:
        raise UserError(f"--to {to}: its ending is none of {', '.join(WRITTEN)}")
    check_folder("--to", to.parent)
    if to.is_dir():
        raise UserError(f"--to {to} is a folder; name a file in it")
    config = compose(overrides or [])
    from ..cells.run import write_measurements

    train, test = write_measurements(config, to)
    typer.echo(f"wrote {to}: {train} measurements and {test} held out, operator and noise level")
