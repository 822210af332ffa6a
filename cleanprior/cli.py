"""The command line. Light to import: commands load torch when they begin to work."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__, capabilities, registry
from .errors import UserError
from .notices import show_on_stderr

app = typer.Typer(
    name="cleanprior",
    help="Train generative priors from corrupted data only, and say which method is better.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="group=name and key=value, e.g. operator.p=0.3")
]
Out = Annotated[Path, typer.Option("--out", help="Folder of all runs.")]


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"cleanprior {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train generative priors from corrupted data only, and say which method is better."""
    show_on_stderr()


@app.command()
def train(overrides: Overrides = None, out: Out = Path("runs"), force: bool = False) -> None:
    """Train and evaluate one method: cleanprior train method=em operator=denoising."""
    from .config import compose
    from .records import cell_folder, is_finished, read_record

    config = compose(overrides or [])
    folder = cell_folder(out, config)
    record = read_record(out, config)
    if force or not is_finished(record):
        _check_needs(config)
        from .run import run_cell

        record = run_cell(config, out, _progress(), force)
    assert record is not None
    _tell(record, folder)
    if record["status"] != "done":
        raise typer.Exit(1)


@app.command()
def measure(
    overrides: Overrides = None,
    to: Annotated[Path, typer.Option(help=".npz, .h5 or .safetensors.")] = Path("measurements.npz"),
) -> None:
    """Write a problem's measurements to a file without clean images, for data=measurements."""
    from .config import compose

    config = compose(overrides or [])
    from .run import write_measurements

    train, test = write_measurements(config, to)
    typer.echo(f"wrote {to}: {train} measurements and {test} held out, operator and noise level")


@app.command()
def sample(
    prior: Annotated[Path, typer.Argument(help="Folder of a saved prior, or of its cell.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 64,
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 0,
    to: Annotated[Path | None, typer.Option(help="Where to write; default samples.npz.")] = None,
    overrides: Overrides = None,
) -> None:
    """Draw images from a saved prior: an .npz with float32 images in [-1, 1], and a .png."""
    from .config import build, compose

    config = compose(overrides or [])
    from .own_sampler import load_own_sampler
    from .run import load_prior
    from .seeding import generator_for

    own = load_own_sampler(prior)
    if own is not None:
        _write_images(own(n, generator_for(seed, "own-samples")), to or Path("samples.npz"))
        return
    loaded = load_prior(prior)
    with _progress().live() as progress, progress.task("sample", n) as task:
        chunk = 64
        parts = []
        for first in range(0, n, chunk):
            count = min(chunk, n - first)
            parts.append(loaded.sample(count, build(config["sampler"]), seed, chunk, first))
            task.advance(count)
    import torch

    _write_images(torch.cat(parts), to or Path("samples.npz"))


@app.command()
def restore(
    prior: Annotated[Path, typer.Argument(help="Folder of a saved prior, or of its cell.")],
    operator: Annotated[str | None, typer.Option(help="Operator; default: the prior's.")] = None,
    measurements: Annotated[
        Path | None,
        typer.Option(help="Your measurements (.npz, .h5, ...); default: held-out ones."),
    ] = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="The first n measurements.")] = None,
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 0,
    to: Annotated[Path | None, typer.Option(help="Where to write; default restored.npz.")] = None,
    overrides: Overrides = None,
) -> None:
    """Restore measurements with a saved prior and a posterior sampler."""
    from .config import build, check_name, compose

    if operator is not None:
        check_name("operator", operator, list(registry.options("operator")))
    given = list(overrides or [])
    compose(given)
    import torch

    from .data.datasets import CleanData
    from .data.measured import check_measurements
    from .data.measurements import Measurements
    from .operators.base import Operator, take
    from .run import Cell, load_prior

    loaded = load_prior(prior)
    trained = loaded.about.get("config", {})
    if operator is None:
        operator = trained.get("operator", {}).get("name", "inpainting")
        if not any(o.startswith("operator") for o in given):
            kept = trained.get("operator", {})
            given += [f"operator.{k}={_text(v)}" for k, v in kept.items() if _is_plain(k, v)]
    kept = trained.get("data", {})
    data = [f"data={kept['name']}"] if kept else []
    data += [f"data.{k}={_text(v)}" for k, v in kept.items() if _is_plain(k, v)]
    config = compose([f"operator={operator}", *data, *given])
    truth = None
    if measurements is None:
        cell = Cell(config, Path("runs"))
        physics: Operator = cell.operator
        if isinstance(cell.data, CleanData):
            truth = cell.data.test
            measured = Measurements.draw(truth, physics, config["data_seed"], "test")
        else:
            measured = cell.data.test
    else:
        physics = build(config["operator"], image_shape=loaded.image_shape)
        measured = Measurements.load(measurements, config["operator"]["sigma"])
        check_measurements(measured, physics)
    count = min(n or len(measured), len(measured))
    if physics.image_shape != loaded.image_shape:
        raise UserError(
            f"the measurements are of images {physics.image_shape}; the prior makes "
            f"{loaded.image_shape}"
        )
    params = take(measured.params, slice(count))
    with _progress().live() as progress, progress.task("restore", count) as task:
        draw = loaded.restore(
            measured.y[:count],
            params,
            measured.sigma_y[:count],
            physics,
            build(config["posterior"]),
            seed,
            64,
            task.advance,
        )
    from .evaluation.metrics import consistency, expected_consistency

    y, sigma_y = measured.y[:count], measured.sigma_y[:count]
    residual = consistency(draw.x, y, params, physics).mean().item()
    expected = expected_consistency(sigma_y, y, params, physics).mean().item()
    typer.echo(
        f"{count} restorations by {config['posterior']['name']}, one sample each, "
        f"{draw.evaluations} evaluations (+{draw.backwards} backward) an image; "
        f"||y - A x|| per observed pixel {residual:.4f} (the noise alone: {expected:.4f})"
    )
    if truth is not None:
        from .evaluation.metrics import psnr

        mean = psnr(draw.x, truth[:count]).mean().item()
        typer.echo(f"PSNR against the held-out images: {mean:.2f} dB")
    assert isinstance(draw.x, torch.Tensor)
    _write_images(draw.x, to or Path("restored.npz"))


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(help="methods, operators, datasets, benches, tables, backbones")
    ] = "methods",
) -> None:
    """List what is installed, and which method may be trained on which operator."""
    from .listing import show

    show(what)


def _is_plain(key: str, value: Any) -> bool:
    described = key.startswith("_") or key in ("name", "about", "capabilities")
    if isinstance(value, list):
        return not described and all(isinstance(v, (int, float)) for v in value)
    return not described and isinstance(value, (bool, int, float, str))


def _text(value: Any) -> str:
    """Write a value as an override; a path may hold any character."""
    import json

    return json.dumps(value)


def _check_needs(config: dict[str, Any]) -> None:
    """Refuse a method on an operator before torch is loaded."""
    method, operator = config["method"], config["operator"]
    if (lack := capabilities.entitlement(method, config["data"])) is not None:
        raise UserError(f"{lack}; `cleanprior list methods` shows how many each one starts from")
    _, reason = capabilities.unmet(method["name"], method, operator["name"], operator)
    if reason:
        raise UserError(reason + suggestion(operator))


def suggestion(operator: dict[str, Any]) -> str:
    """Name the installed methods that may be trained on a composed operator."""
    able = []
    for name in registry.methods():
        method = registry.read("method", name)
        if capabilities.unmet(name, method, operator["name"], operator)[0] is None:
            able.append(name)
    return f". Methods that can be trained on it: {', '.join(able)}" if able else ""


def _progress() -> Any:
    from rich.console import Console

    from .progress import Progress

    return Progress(Console(stderr=True))


def _tell(record: dict[str, Any], folder: Path) -> None:
    typer.echo(f"{record['method']} on {record['operator']}, {record['data']}: {record['status']}")
    for row in record.get("rows", ()):
        figures = ", ".join(f"{k} {v:.3f}" for k, v in row["metrics"].items())
        typer.echo(f"  {row['way']}: {figures}")
    typer.echo(f"files: {folder}")


def _write_images(x: Any, path: Path) -> None:
    """Write images as float32 in [-1, 1] (.npz) and as a grid (.png) beside it."""
    import os

    import numpy as np
    from torchvision.utils import save_image

    path = path.with_suffix(".npz")
    staging = path.with_name(f".{path.name}.{os.getpid()}.npz")
    picture = path.with_suffix(".png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(staging, x=x.numpy())
        os.replace(staging, path)
        zoom = max(1, 64 // x.shape[-1])
        enlarged = x[:64].clamp(-1, 1).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
        save_image(enlarged, picture, nrow=8, normalize=True, value_range=(-1, 1), pad_value=1)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error}") from error
    finally:
        staging.unlink(missing_ok=True)
    typer.echo(f"wrote {path} and {picture}")


def build_app() -> typer.Typer:
    """Return the application with the commands that entry points add."""
    for name, entry in registry.installed(registry.COMMANDS).items():
        app.command(name)(entry.load())
    return app


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        build_app()()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command to go on from the last checkpoint\n")
        sys.exit(130)
