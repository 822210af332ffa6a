"""The command ``cleanprior sample``, and what commands on a saved prior share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from ..files import check_folder
from ..notices import Notice, tell
from .options import GIVEN, Overrides, live_progress

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
    from ..cells.generators import load_own_sampler, load_prior
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
    _remember_noise(trained, kept, groups)
    # The draws of the training: held-out measurements, and an operator that was drawn itself.
    if isinstance(data_seed := trained.get("data_seed"), int) and "data_seed" not in groups:
        chosen.append(f"data_seed={data_seed}")
    return [*chosen, *given], kept


def _remember_noise(trained: Mapping[str, Any], kept: dict[str, Any], groups: set[str]) -> None:
    """Keep the noise of a prior's training with its operator; tell what becomes of roots."""
    if not (noise := trained.get("noise")):
        return
    if not isinstance(noise, Mapping):
        raise UserError("the prior's card is damaged: its noise is not a configuration")
    if "operator" in kept and "operator.sigma" not in groups:
        kept["noise"] = noise
    elif noise.get("as") == "anscombe":
        text = "the prior is one of roots of counts (noise.as=anscombe), and other noise is assumed"
        tell([Notice(text, is_warning=True)])


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
