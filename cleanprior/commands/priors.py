"""The commands ``cleanprior sample`` and ``cleanprior restore``: what a saved prior is for."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import registry
from ..errors import UserError
from ..files import check_folder
from ..notices import tell
from .options import GIVEN, Overrides, PriorsOperator, live_progress

if TYPE_CHECKING:
    from torch import Tensor

    from ..diffusion.posterior import Draw
    from ..operators.likelihood import Likelihood

#: What :func:`write_images` writes, beside the names that have another meaning.
_ENDINGS = (".npz", ".png")
_OTHERS = {".npy", ".pt", ".pth", ".safetensors", ".h5", ".hdf5", ".zarr", ".zip", ".csv", ".json"}
_OTHERS |= {".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pdf"}

PriorFolder = Annotated[
    Path, typer.Argument(help="Folder of a saved prior, or of its cell.", **GIVEN)
]
Seed = Annotated[int, typer.Option(min=0, help="Sampling seed.")]


def sample(
    prior: PriorFolder,
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 64,
    seed: Seed = 0,
    to: Annotated[
        Path | None,
        typer.Option(help="Where to write: NAME.npz and NAME.png; default samples.", **GIVEN),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Draw images from a saved prior: an .npz with float32 images in [-1, 1], and a .png."""
    from ..config import build, compose

    written = destination(to, "samples")
    config = compose(overrides or [])
    from ..cells.generators import load_own_sampler
    from ..cells.run import load_prior
    from ..defaults import exact_products
    from ..seeding import generator_for

    exact_products()
    own = load_own_sampler(prior)
    if own is not None:
        write_images(own(n, generator_for(seed, "own-samples")).numpy(), written)
        return
    loaded = load_prior(prior)
    sampler = build(config["sampler"])
    with live_progress().live() as progress, progress.task("sample", n) as task:
        chunk = 64
        parts = []
        for first in range(0, n, chunk):
            count = min(chunk, n - first)
            parts.append(loaded.sample(count, sampler, seed, chunk, first))
            task.advance(count)
    import torch

    write_images(torch.cat(parts).numpy(), written)


def restore(
    prior: PriorFolder,
    operator: PriorsOperator = None,
    measurements: Annotated[
        Path | None,
        typer.Option(help="Your measurements (.npz, .h5, ...); default: held-out ones.", **GIVEN),
    ] = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="The first n measurements.")] = None,
    seed: Seed = 0,
    to: Annotated[
        Path | None,
        typer.Option(help="Where to write: NAME.npz and NAME.png; default restored.", **GIVEN),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Restore measurements with a saved prior and a posterior sampler."""
    from ..cells.folder import CellFolder
    from ..config import build, compose
    from ..config.composition import check_name

    written = destination(to, "restored")
    if operator is not None:
        check_name("operator", operator, list(registry.options("operator")))
    given = list(overrides or [])
    compose(given)

    from ..cells.run import Cell, load_prior
    from ..data.datasets import CleanData
    from ..data.measured import check_measurements
    from ..data.measurements import Measurements
    from ..defaults import exact_products
    from ..operators.base import Operator
    from ..operators.building import build_operator

    exact_products()
    loaded = load_prior(prior)
    trained = loaded.about.get("config", {})
    config = compose(*remembered(trained, operator, given))
    truth = None
    if measurements is None:
        cell = Cell(CellFolder(Path("runs"), config))
        physics: Operator = cell.operator
        if isinstance(cell.data, CleanData):
            truth = cell.data.test
            measured = Measurements.draw(truth, physics, config["data_seed"], "test")
        else:
            measured = cell.data.test
    else:
        physics = build_operator(config["operator"], loaded.image_shape, config["data_seed"])
        level = config["operator"]["sigma"]
        measured = Measurements.load(measurements, level, loaded.image_shape)
        tell(check_measurements(measured, physics))
    if physics.image_shape != loaded.image_shape:
        raise UserError(
            f"the measurements are of images {physics.image_shape}; the prior makes "
            f"{loaded.image_shape}"
        )
    count = min(n or len(measured), len(measured))
    if count == 0:
        raise UserError(f"'{measurements}' holds no measurement")
    some = measured[:count]
    posterior = build(config["posterior"])
    with live_progress().live() as progress, progress.task("restore", count) as task:
        draw = loaded.restore(some, physics, posterior, seed, 64, task.advance)
    from ..operators.likelihood import Likelihood

    _tell_fit(draw, Likelihood.of(physics, some), config["posterior"]["name"], truth)
    write_images(draw.x.numpy(), written)


def _tell_fit(draw: "Draw", likelihood: "Likelihood", name: str, truth: "Tensor | None") -> None:
    """Print how restorations fit their measurements, and the held-out images where there are."""
    from ..evaluation.metrics.restoration import consistency, expected_consistency, psnr

    residual = consistency(draw.x, likelihood).mean().item()
    expected = expected_consistency(likelihood).mean().item()
    typer.echo(
        f"{len(draw.x)} restorations by {name}, one sample each, "
        f"{draw.evaluations} evaluations (+{draw.backwards} backward) an image; "
        f"||y - A x|| per observed pixel {residual:.4f} (the noise alone: {expected:.4f})"
    )
    if truth is not None:
        mean = psnr(draw.x, truth[: len(draw.x)]).mean().item()
        typer.echo(f"PSNR against the held-out images: {mean:.2f} dB")


def remembered(
    trained: Mapping[str, Any], operator: str | None, given: list[str]
) -> tuple[list[str], dict[str, Any]]:
    """Return what to compose where a prior says on what it was trained.

    Arguments:
        trained: The configuration in the prior's card; empty where it has none.
        operator: The operator of the command line, or None for the prior's.
        given: Further overrides of the command line.

    Returns:
        Overrides that choose the operator and the data set, and the values that they had.
    """
    chosen: list[str] = []
    kept: dict[str, Any] = {}
    groups = {o.lstrip("+").partition("=")[0] for o in given}
    for group, default in (("operator", "inpainting"), ("data", None)):
        values = trained.get(group, {})
        if not isinstance(values, Mapping):
            raise UserError(f"the prior's card is damaged: its {group} is not a configuration")
        name = values.get("name", default)
        if group == "operator" and operator is not None:
            chosen.append(f"operator={operator}")
        elif group not in groups and name is not None:
            chosen.append(f"{group}={name}")
            kept[group] = values
    # The draws of the training: held-out measurements, and an operator that was drawn itself.
    if isinstance(data_seed := trained.get("data_seed"), int) and "data_seed" not in groups:
        chosen.append(f"data_seed={data_seed}")
    return [*chosen, *given], kept


def destination(to: Path | None, default: str) -> Path:
    """Return where images go, without an ending: ``NAME``, for ``NAME.npz`` and ``NAME.png``.

    The endings ``.npz`` and ``.png`` are taken off; every other dot belongs to the name. Into a
    folder that exists goes the default name.

    Raises:
        UserError: Another kind of file, or a place that cannot be written.
    """
    if to is None:
        to = Path(default)
    elif to.is_dir():
        to = to / default
    elif to.suffix.lower() in _ENDINGS and to.stem:
        to = to.with_suffix("")
    elif to.suffix.lower() in _OTHERS:
        raise UserError(
            f"--to {to}: images are written as .npz and .png; give a name without "
            f"'{to.suffix}', or with one of these endings"
        )
    check_folder("--to", to.parent)
    return to


def write_images(x: Any, path: Path) -> None:
    """Write images as float32 in [-1, 1] (``.npz``), and the first 64 as a grid (``.png``).

    Arguments:
        x: Images (n, c, h, w), of any number of channels.
        path: Without an ending, which is added to the name.
    """
    import numpy as np

    from ..files import write_bytes, write_with
    from ..rendering import grid

    array, picture = path.with_name(f"{path.name}.npz"), path.with_name(f"{path.name}.png")
    write_with(array, lambda staging: np.savez(staging, x=x))
    write_bytes(picture, grid(x[:64]))
    typer.echo(f"wrote {array} and {picture}")
