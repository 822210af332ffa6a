"""The command ``cleanprior inspect``: what a user's file holds. Light to import."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..files import check_folder
from .options import GIVEN, Overrides

if TYPE_CHECKING:
    from ..inspection import Inspection

#: Columns where nobody says how wide the output is.
WIDTH = 80


def inspect(
    file: Annotated[
        Path, typer.Argument(help="Your measurements: a file, or a folder of files.", **GIVEN)
    ],
    overrides: Overrides = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write the first images and a histogram (.png).", **GIVEN)
    ] = None,
) -> None:
    """Say what a file holds: noise, gaps, the operator, methods for it, and the command to run."""
    from ..config import compose

    if picture is not None:
        if picture.suffix.lower() != ".png":
            raise UserError(f"--picture {picture}: its ending is not .png")
        check_folder("--picture", picture.parent)
    if not file.exists():
        raise UserError(f"'{file}' is not there; needed: a file of measurements, or a folder")
    given = list(overrides or [])
    if not any(o.startswith("data=") for o in given):
        from ..inspection.scans import holds_scans

        given.insert(0, "data=kspace" if holds_scans(file) else "data=measurements")
    config = compose(given)
    found = _looked(file, config, given)
    for heading, lines in found.sections.items():
        _print(heading, lines)
    for command in found.commands:
        typer.echo("\n" + _wrapped(command))
    if picture is not None:
        _draw(found, picture)
        typer.echo(f"\nwrote {picture}")


def _looked(file: Path, config: dict[str, Any], given: list[str]) -> "Inspection":
    """Print what the file holds, and return what it is."""
    from ..inspection import inspect as look
    from ..inspection.report import contents
    from .restore import reading_of

    data = config["data"]
    if data["name"] not in ("measurements", "kspace"):
        raise UserError(f"data={data['name']}: measurements or kspace can be inspected")
    if data["name"] == "kspace":
        from ..inspection.scans import inspect_scans

        return inspect_scans(file, data, given)
    lines = contents(file)
    _print(str(file), lines)
    shape = data.get("image_shape")
    try:
        return look(file, reading_of(config), None if shape is None else tuple(shape))
    except UserError as error:
        if not any("complex" in line for line in lines):
            raise
        raise UserError(f"{error}; is it k-space of a scanner? Add data=kspace") from error


def _print(heading: str, lines: list[str]) -> None:
    """Print a heading and its sentences within the width."""
    from ..terminal import Screen, wrap

    screen = Screen()
    width = WIDTH if screen.is_assumed else min(screen.width, WIDTH)
    screen.say(heading)
    for line in lines:
        if line.startswith("|") or set(line) <= set("0123456789.-e+ "):
            screen.say(f"  {line}")  # the histogram
            continue
        screen.say("\n".join(f"  {part}" for part in wrap(line, width - 2, "  ")))


def _wrapped(command: str) -> str:
    """Return a command over several lines that a shell reads as one."""
    lines, line = [], ""
    for word in command.split(" "):
        if line and len(line) + len(word) + 3 > WIDTH:
            lines.append(line + " \\")
            line = "  " + word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


def _draw(found: "Inspection", path: Path) -> None:
    """Write the first images and the histogram of y as a picture.

    Raises:
        UserError: y is no images.
    """
    import io

    import numpy as np
    from matplotlib.figure import Figure

    from ..files import write_bytes
    from ..rendering import rgb

    if found.y is None:
        raise UserError("--picture: y is no images")
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    first = rgb(found.y[:8].astype(np.float32))
    axes = figure.subplot_mosaic([[f"{i}" for i in range(8)], ["h"] * 8])
    for i in range(8):
        axes[f"{i}"].axis("off")
        if i < len(first):
            axes[f"{i}"].imshow(first[i], interpolation="nearest")
    values = found.y[np.isfinite(found.y)]
    axes["h"].hist(values.ravel(), bins=120, log=True, color="0.35")
    axes["h"].set_xlabel("y in units of images, [-1, 1]")
    axes["h"].set_ylabel("entries")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_bytes(path, buffer.getvalue())
