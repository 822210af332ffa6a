"""The command ``cleanprior snapshots``: which checkpoint the measurements would choose."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cleanprior.commands.options import GIVEN, Out
from cleanprior.files import check_folder

if TYPE_CHECKING:
    from cleanprior.cells.folder import CellFiles
    from cleanprior.cells.snapshot_choice import Scores


def snapshots(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="The cell, as given to train: group=name, key=value.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=2, help="Samples from each snapshot.")] = 360,
    features: Annotated[
        str, typer.Option(help="Of the proximal distance; pixels need no clean image.")
    ] = "pixels",
    to: Annotated[
        Path | None,
        typer.Option(help="Write the prior that the measurements choose to a folder.", **GIVEN),
    ] = None,
    out: Out = Path("runs"),
) -> None:
    """Compare the snapshots of a trained cell by their samples, without clean images."""
    from rich.console import Console

    from cleanprior.cells.folder import CellFolder
    from cleanprior.cells.migration import take_over
    from cleanprior.config import compose
    from cleanprior.progress import Progress

    if to is not None:
        check_folder("--to", to)
    config = compose(overrides or [])
    from cleanprior.cells.run import Cell
    from cleanprior.cells.snapshot_choice import save_chosen, score_snapshots

    folder = CellFolder(out, config)
    take_over([folder])
    with Progress(Console(stderr=True)).live() as progress:
        cell = Cell(folder)
        scores = score_snapshots(cell, n, progress, features)
    write(scores, folder.files)
    if to is not None:
        save_chosen(cell, scores, to)
    for score in scores.scores:
        known = "-" if score.distance is None else f"{score.distance:.1f}"
        mark = "  <- chosen by measurements" if score == scores.chosen else ""
        typer.echo(f"step {score.step}: proximal FD {score.proximal:.3f}, FD {known}{mark}")
    typer.echo(
        f"floor {scores.floor:.3f}, zeros {scores.ceiling:.3f}; proximal FD on {scores.features}"
    )
    if (line := agreement(scores)) is not None:
        typer.echo(line)
    typer.echo(f"files: {folder.files.snapshot_table}, {folder.files.snapshot_plot}")
    if to is not None:
        typer.echo(f"prior of step {scores.chosen.step}: {to}")


def agreement(scores: "Scores") -> str | None:
    """Say whether clean images would have chosen alike; None where nobody has them."""
    from scipy.stats import spearmanr

    distances = [s.distance for s in scores.scores if s.distance is not None]
    if len(distances) < 2 or scores.chosen.distance is None:
        return None
    rank = spearmanr([s.proximal for s in scores.scores], distances).statistic
    return (
        f"chosen: FD {scores.chosen.distance:.1f}, the least is {min(distances):.1f}; rank "
        f"correlation of proximal FD and FD over snapshots {rank:.2f}"
    )


def write(scores: "Scores", files: "CellFiles") -> None:
    """Write ``snapshots.csv`` and ``snapshots.png``: both distances over the steps of training."""
    import pandas as pd
    from matplotlib.figure import Figure

    from cleanprior.files import write_bytes, write_text

    from .figures.plots import png

    frame = pd.DataFrame([vars(s) for s in scores.scores])
    write_text(files.snapshot_table, frame.to_csv(index=False))
    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    left = figure.subplots()
    left.set_title(f"proximal FD on {scores.features}", fontsize=8, loc="left")
    left.plot(frame["step"], frame["proximal"], "o-", color="#4269d0", label="proximal FD")
    left.axhline(scores.floor, color="#4269d0", linestyle=":", label="its floor")
    left.set_xlabel("step of training")
    left.set_ylabel("proximal FD", fontsize=8)
    chosen = left.axvline(scores.chosen.step, color="#6b7280", linewidth=0.8, label="chosen by it")
    lines = [*left.get_lines()[:2], chosen]
    if frame["distance"].notna().any():
        right = left.twinx()
        lines += right.plot(
            frame["step"], frame["distance"], "s--", color="#e08a00", label="FD to clean images"
        )
        right.set_ylabel("FD to clean images", fontsize=8)
    left.legend(handles=lines, fontsize=7)
    write_bytes(files.snapshot_plot, png(figure))
