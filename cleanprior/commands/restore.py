"""The command ``cleanprior restore``: images in the container that their measurements came in."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import registry
from ..errors import UserError
from ..notices import tell
from .options import GIVEN, Overrides, PriorsOperator, live_progress
from .priors import PriorFolder, Seed, destination, remembered, write_images

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.measurements import Measurements
    from ..data.reading import Reading
    from ..data.results import Target
    from ..diffusion.posterior import Draw, PosteriorSampler
    from ..operators.base import ImageShape, Operator
    from ..operators.likelihood import Likelihood
    from ..prior import Prior

#: Share of measured pixels that ``--hold-out`` drops; lines, rows and boxes have their own number.
DROPPED = 0.1


def restore(
    prior: PriorFolder,
    operator: PriorsOperator = None,
    measurements: Annotated[
        Path | None,
        typer.Option(
            help="Your measurements (.npz, .tif, .fits, ... or a folder); default: held-out ones.",
            **GIVEN,
        ),
    ] = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="The first n measurements.")] = None,
    seed: Seed = 0,
    draws: Annotated[int, typer.Option(min=1, help="Draws of each, a file each.")] = 1,
    mean: Annotated[bool, typer.Option("--mean", help="Write the mean of the draws.")] = False,
    std: Annotated[
        bool, typer.Option("--std", help="Write their standard deviation, float32.")
    ] = False,
    hold_out: Annotated[
        bool,
        typer.Option(
            "--hold-out", help="Also restore from fewer entries and print the NRMSE of the others."
        ),
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Where to write; its ending is the kind of file, default: as the measurements. A "
            ".png beside; default name: restored.",
            **GIVEN,
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Restore measurements with a saved prior and a posterior sampler, in their own container."""
    from ..config import build, compose
    from ..config.composition import check_name

    if std and draws < 2:
        raise UserError("--std is the spread of several draws; add --draws 8")
    written = None if measurements is not None else destination(to, "restored")
    if operator is not None:
        check_name("operator", operator, list(registry.options("operator")))
    given = list(overrides or [])
    compose(given)

    from ..cells.generators import load_prior
    from ..defaults import exact_products
    from ..operators.likelihood import Likelihood

    exact_products()
    loaded = load_prior(prior)
    config = compose(*remembered(loaded.about.get("config", {}), operator, given))
    target, truth, scale = None, None, None
    if measurements is None:
        measured, physics, truth, scale = _held_out(config)
    else:
        reading = reading_of(config)
        target = _target(to, measurements, loaded.image_shape, reading, std)
        measured, physics = read_for(measurements, config, loaded.image_shape, reading)
    some = _first(measured, n, measurements, physics, hold_out)
    posterior = build(config["posterior"])
    pixels = physics.image_shape[1] * physics.image_shape[2]
    own = loaded.image_shape[1] * loaded.image_shape[2]
    chunk = max(1, 64 * own // max(pixels, own))
    first: Draw | None = None
    total: Any = 0
    squares: Any = 0
    with live_progress().live() as progress, progress.task("restore", len(some) * draws) as task:
        for k in range(draws):
            draw = loaded.restore(some, physics, posterior, seed + k, chunk, task.advance)
            first = first or draw
            x = _shown(draw.x, physics).double().numpy()
            x = x if target is None else target.units(x)
            total, squares = total + x, squares + x**2
            if not (mean or std):
                _save(x, "" if draws == 1 else str(k + 1), target, written, scale)
    assert first is not None
    shown, name = _shown(first.x, physics), config["posterior"]["name"]
    _tell_fit(first, Likelihood.of(physics, some), name, shown, truth)
    if hold_out:
        _tell_held_out(loaded, some, physics, posterior, seed, chunk)
    if mean:
        _save(total / draws, "mean", target, written, scale)
    if std:
        variance = (squares - total**2 / draws) / (draws - 1)
        _save(variance.clip(0) ** 0.5, "std", target, written, scale, is_spread=True)


def _first(
    measured: "Measurements",
    n: int | None,
    path: Path | None,
    physics: "Operator",
    hold_out: bool,
) -> "Measurements":
    """Return the first n measurements.

    Raises:
        UserError: There is none, or nothing that ``--hold-out`` could drop.
    """
    count = min(n or len(measured), len(measured))
    if count == 0:
        raise UserError(f"'{path}' holds no measurement")
    if hold_out and "further" not in physics.capabilities:
        raise UserError(f"--hold-out drops measured entries, and {physics.name} has none to drop")
    return measured[:count]


def _tell_held_out(
    prior: "Prior",
    measured: "Measurements",
    physics: "Operator",
    posterior: "PosteriorSampler",
    seed: int,
    chunk: int,
) -> None:
    """Restore from measurements corrupted further; print how far the others are."""
    from ..data.measurements import Measurements
    from ..evaluation.metrics.restoration import held_out_error
    from ..operators.likelihood import Likelihood
    from ..seeding import generator_for

    further = physics.further(measured.params, DROPPED, generator_for(seed, "held-out"))
    seen = physics.observed(measured.y, further)
    fewer = Measurements(measured.y * seen, further, measured.sigma_y)
    x = prior.restore(fewer, physics, posterior, seed, chunk).x
    found = held_out_error(x, Likelihood.of(physics, measured), further)
    typer.echo(f"NRMSE of measured entries that were held out: {found.mean().item():.4f}")


def _save(
    x: Any,
    what: str,
    target: "Target | None",
    written: Path | None,
    scale: "Tensor | None",
    is_spread: bool = False,
) -> None:
    """Write images like their measurements, in their units, or as .npz where there are none."""
    import numpy as np

    from ..files import write_bytes
    from ..rendering import grid

    if target is None:
        assert written is not None
        name = f"{written.name}_{what}" if what else written.name
        if scale is not None:
            x = x * scale[: len(x), None, None, None].numpy()
        write_images(x.astype(np.float32), written.with_name(name))
        return
    place = target.called(what) if what else target
    place.write(x, is_spread)
    shown = x[:64]
    # Of a spread black is 0, and white the largest.
    top = max(float(shown.max()), 1e-9)
    shown = 2 * shown / top - 1 if is_spread else place.unit(shown)
    write_bytes(place.picture(), grid(shown.astype(np.float32)))
    typer.echo(f"wrote {place.path} and {place.picture()}")


def reading_of(config: Mapping[str, Any]) -> "Reading":
    """Return what ``data=measurements`` says of a user's files; nothing for other data sets."""
    from ..data.reading import Reading

    data = config["data"]
    if config.get("noise", {}).get("as") == "anscombe" and data.get("photons") is None:
        raise UserError(
            "the prior is one of roots of counts (noise.as=anscombe): read counts by "
            "data=measurements data.range=[LOW,HIGH] data.photons=[GAIN,OFFSET,READ]"
        )
    if data.get("name") != "measurements":
        return Reading()
    keys = ("layout", "key", "range", "missing", "mask", "sigma_y", "photons")
    return Reading(**{k: data.get(k) for k in keys})


def _target(
    to: Path | None, path: Path, image_shape: "ImageShape", reading: "Reading", is_float: bool
) -> "Target":
    """Return where restorations go, refused before any compute where they cannot be written."""
    from ..data.results import Target, original_of
    from ..files import check_folder

    target = Target.of(to, original_of(path, image_shape, reading))
    target.check(is_float)
    check_folder("--to", target.path if target.is_folder else target.path.parent)
    return target


def _held_out(
    config: dict[str, Any],
) -> "tuple[Measurements, Operator, Tensor | None, Tensor | None]":
    """Return the held-out measurements of a prior's own problem, their images, their scale."""
    from ..cells.folder import CellFolder
    from ..cells.run import Cell
    from ..data.datasets import CleanData
    from ..data.measurements import Measurements

    cell = Cell(CellFolder(Path("runs"), config))
    if not isinstance(cell.data, CleanData):
        return cell.data.test, cell.operator, None, cell.data.scales.get("test")
    truth = cell.data.test
    return (
        Measurements.draw(truth, cell.operator, config["data_seed"], "test"),
        cell.operator,
        truth,
        None,
    )


def read_for(
    path: Path, config: Mapping[str, Any], own: "ImageShape", reading: "Reading"
) -> "tuple[Measurements, Operator]":
    """Read a user's measurements for a prior; where A keeps single pixels they may be larger.

    Arguments:
        path: The file or folder.
        config: Composed, with the operator.
        own: Shape of the prior's images.
        reading: What the user says of the file.

    Raises:
        UserError: It cannot be read, or is not of that operator.
    """
    from ..data.measured import check_measurements
    from ..data.measurements import Measurements
    from ..operators.building import build_operator

    level = None if "noise" in config else config["operator"]["sigma"]
    physics = build_operator(config["operator"], own, config["data_seed"])
    per_pixel = physics.capabilities & {"mask", "identity"} and (
        "fourier" not in physics.capabilities
    )
    measured = Measurements.load(path, level, own, reading=reading)
    if per_pixel and measured.y.dim() == 3:  # larger grey images
        measured = Measurements.load(path, level, None, reading=reading)
    if per_pixel and measured.y.dim() == 4 and measured.y.shape[1:] != own:
        found = tuple(int(v) for v in measured.y.shape[1:])
        if found[0] == own[0] and found[1] >= own[1] and found[2] >= own[2]:
            physics = build_operator(config["operator"], found, config["data_seed"])  # type: ignore[arg-type]
    tell(check_measurements(measured, physics))
    return measured, physics


def _shown(x: "Tensor", operator: "Operator") -> "Tensor":
    """Return restorations as images, where the prior is one of the roots of counts."""
    return x if operator.noise is None else operator.noise.images(x)


def _tell_fit(
    draw: "Draw", likelihood: "Likelihood", name: str, shown: "Tensor", truth: "Tensor | None"
) -> None:
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
        mean = psnr(shown, truth[: len(shown)]).mean().item()
        typer.echo(f"PSNR against the held-out images: {mean:.2f} dB")
