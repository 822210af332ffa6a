"""The command ``cleanprior evaluate``: a saved prior or anybody's restorations, judged."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__
from ..config import registry
from ..errors import UserError
from ..files import check_folder, write_text
from .options import GIVEN, Out, Overrides, PriorsOperator, live_progress, offers
from .priors import remembered

if TYPE_CHECKING:
    from ..config import Config
    from ..evaluation.saved import Evaluation, Judge


def evaluate(
    what: Annotated[
        Path,
        typer.Argument(
            help="Folder of a saved prior or of its cell; or restorations, in the order of the "
            "held-out measurements: a folder of pictures, an .npz, .npy or .safetensors.",
            **GIVEN,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set; default: the prior's.", autocompletion=offers("one_of", "data")
        ),
    ] = None,
    operator: PriorsOperator = None,
    point: Annotated[
        bool, typer.Option("--point", help="The restorations are point estimates, not draws.")
    ] = False,
    to: Annotated[Path | None, typer.Option(help="A .json file to write.", **GIVEN)] = None,
    out: Out = Path("runs"),
    overrides: Overrides = None,
) -> None:
    """Judge a saved prior, or a folder of restorations, as the benchmarks judge their rows."""
    from ..config import build, compose
    from ..config.composition import check_name

    _check_destination(to)
    if operator is not None:
        check_name("operator", operator, list(registry.options("operator")))
    if data is not None:
        check_name("data set", data, list(registry.options("data")))
    given = [*([] if data is None else [f"data={data}"]), *(overrides or [])]
    compose([*([] if operator is None else [f"operator={operator}"]), *given])
    if not what.exists():
        raise UserError(f"'{what}' is not there; needed: a saved prior, or restorations")
    is_prior = _is_prior(what)
    if is_prior and point:
        raise UserError("--point says what restorations are; a prior draws")

    from ..cells.folder import CellFolder
    from ..data.datasets import CleanData
    from ..data.instrument_noise import with_noise
    from ..evaluation.saved import Judge, written
    from ..operators.building import build_operator

    learned = _trained_on(what) if is_prior else {}
    config = compose(*remembered(learned, operator, given))
    images = build(config["data"])
    physics = build_operator(config["operator"], images.image_shape, config["data_seed"])
    if isinstance(images, CleanData):
        physics = with_noise(config, physics)
    judge = Judge(
        images,
        physics,
        config["data_seed"],
        build(config["evaluation"]),
        CellFolder(out, config).features if out.is_dir() else None,
        live_progress(),
    )
    found = _judge_prior(judge, what, config) if is_prior else _judge_files(judge, what, point)
    names = f"{config['operator']['name']}, {config['data']['name']}"
    count = found.notes["test_images"]
    typer.echo(f"{what} on {names}: {count} held-out measurements")
    for line in found.lines():
        typer.echo(line)
    if to is not None:
        about = {"cleanprior": __version__, **written(str(what), config, found)}
        write_text(to, json.dumps(about, indent=1, allow_nan=False))
        typer.echo(f"wrote {to}")


def _check_destination(to: Path | None) -> None:
    if to is None:
        return
    if to.suffix.lower() != ".json":
        raise UserError(f"--to {to}: what is found is written as .json; give a name that ends so")
    check_folder("--to", to.parent)
    if to.is_dir():
        raise UserError(f"--to {to} is a folder; name a file in it")


def _is_prior(path: Path) -> bool:
    """Whether a path is the folder of a prior, or of a cell."""
    from ..cells.folder import CellFiles
    from ..prior_files import CARD

    files = CellFiles(path)
    is_cell = files.prior.is_dir() or files.training.folder.is_dir() or bool(files.records())
    return path.is_dir() and ((path / CARD).is_file() or is_cell)


def _trained_on(path: Path) -> "Config":
    """Return the configuration that a prior, or the cell of a method without one, remembers."""
    from ..cells.generators import finished_without_prior, load_prior

    record = finished_without_prior(path)
    found = record if record is not None else load_prior(path).about
    config = found.get("config", {})
    if not isinstance(config, dict):
        raise UserError(f"'{path}' is damaged: its config is not a configuration")
    return config


def _judge_prior(judge: "Judge", path: Path, config: "Config") -> "Evaluation":
    from ..cells.generators import load_own_sampler, load_prior
    from ..config import build
    from ..training.route import Route

    own = load_own_sampler(path)
    if own is not None:
        reason = "the method has no denoiser to restore with"
        return judge.route(Route(samples_by="its own way", sample=own, reason=reason))
    posterior: Any = build(config["posterior"])
    name = config["posterior"]["name"]
    return judge.prior(load_prior(path), name, posterior, build(config["sampler"]))


def _judge_files(judge: "Judge", path: Path, is_point: bool) -> "Evaluation":
    from ..evaluation.given import read_restorations

    return judge.restorations(read_restorations(path, judge.operator.image_shape), is_point)
