"""What a training begins from: a prior, or a ``UNet2DModel`` of diffusers. No torch.

``training.start`` names a folder, one of its files, the folder of a cell, or ``user/name`` on the
Hub. What it is decides the backbone, and its content is part of the cell's identity; its place is
not. What it has seen goes with the results: a start of clean images is no start from measurements.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .cells.folder import CellFiles
from .config.named_parts import fits
from .config.values import ANY
from .errors import UserError
from .files import given_path
from .fingerprint import fingerprint
from .hub import fetched
from .outside import CARD as LARGEST_CARD
from .outside import read_json
from .prior_files import CARD, WEIGHTS, check_complete, read_card

NETWORK, TENSORS = "config.json", "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
#: Of a scheduler's configuration: what decides the noise of its timesteps.
_SCHEDULE = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    "rescale_betas_zero_snr",
)
_COSTS = ("images", "seconds", "flops", "forwards", "backwards", "evaluations")
#: The key of ``backbone`` that wraps a network of diffusers.
UNET2D = "unet2d"


@dataclass(frozen=True)
class Start:
    """What a training begins from.

    Attributes:
        folder: Where it lies.
        weights: Its safetensors file.
        files: All that it is read from.
        hash: 16 hexadecimal digits of its content, wherever it lies.
        image_shape: Of a prior; None where only the channels are known.
        channels: Of its images.
        condition_channels: Channels that its network is told beside the image.
        preconditioning: Of a prior.
        sigma_data: Of a preconditioned network; None for any.
        backbone: Its network as a configuration, without the keys that nobody knows.
        prefix: What its tensors are called within a denoiser.
        seen: What a record and a card say: ``hash``, ``said``, ``is_clean``, ``costs``.
    """

    folder: Path
    weights: Path
    files: tuple[Path, ...]
    hash: str
    image_shape: tuple[int, int, int] | None
    channels: int
    condition_channels: int
    preconditioning: str
    sigma_data: float | None
    backbone: dict[str, Any]
    prefix: str
    seen: dict[str, Any]


def read_start(given: str) -> Start:
    """Read what ``training.start`` names; the weights are only hashed.

    Raises:
        UserError: There is neither a prior nor a network of diffusers, or it is damaged.
    """
    place = fetched(given_path(given), is_start=True)
    if place.is_file():
        place = place.parent
    if (inside := CellFiles(place).prior).is_dir():  # a cell, or what cp.train has kept
        place = inside
    if (place / CARD).exists():
        check_complete(place)
        files = (place / CARD, place / WEIGHTS)
        return _prior(place, *_marks(files))
    network = next((p for p in (place / "unet", place) if (p / NETWORK).is_file()), None)
    if network is None or not (network / TENSORS).is_file():
        raise UserError(
            f"training.start={given}: neither a prior ({CARD}, {WEIGHTS}) nor a UNet2DModel of "
            f"diffusers ({NETWORK}, {TENSORS}) is there"
        )
    files = (network / NETWORK, network / TENSORS)
    scheduler = place / SCHEDULER
    return _diffusers(network, *_marks((*files, *((scheduler,) if scheduler.is_file() else ()))))


def _marks(files: tuple[Path, ...]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Return files with the hashes of their content."""
    return files, tuple(str(fingerprint(file)) for file in files)


@lru_cache(maxsize=16)
def _prior(folder: Path, files: tuple[Path, ...], hashes: tuple[str, ...]) -> Start:
    card = read_card(folder)
    told = {k: v for k, v in card.values("").items() if k not in ("about", "cleanprior")}
    mark = _digest([told, hashes[1]])
    return Start(
        folder=folder,
        weights=folder / WEIGHTS,
        files=files,
        hash=mark,
        image_shape=card.image_shape,
        channels=card.image_shape[0],
        condition_channels=card.condition_channels,
        preconditioning=card.preconditioning,
        sigma_data=card.sigma_data,
        backbone=card.backbone,
        prefix="",
        seen=_seen_by(card.about, mark),
    )


@lru_cache(maxsize=16)
def _diffusers(folder: Path, files: tuple[Path, ...], hashes: tuple[str, ...]) -> Start:
    config = _object(files[0])
    if config.get("_class_name") != "UNet2DModel":
        kind = str(config.get("_class_name"))[:60]
        raise UserError(f"'{files[0]}' is a {kind}; a start is a UNet2DModel")
    unet = {k: v for k, v in config.items() if not k.startswith("_")}
    channels, out = unet.pop("in_channels", 3), unet.pop("out_channels", 3)
    if type(channels) is not int or channels != out or channels < 1:
        raise UserError(f"'{files[0]}' has {channels} channels in and {out} out; a start has equal")
    known, sigma_data = _known(_object(files[2])) if len(files) > 2 else ({}, None)
    # What stands in a configuration may be called; these are a stranger's words.
    for key, value in {**unet, **known.get("schedule", {})}.items():
        if not fits(value, ANY):
            raise UserError(f"'{folder}': {key} is {value!r:.80}; needed: plain values")
    mark = _digest([unet, channels, known, sigma_data, hashes[1]])
    said = f"a UNet2DModel of diffusers ({mark}), of which nobody says what images it has seen"
    return Start(
        folder=folder,
        weights=folder / TENSORS,
        files=files,
        hash=mark,
        image_shape=None,
        channels=channels,
        condition_channels=0,
        preconditioning="edm",
        sigma_data=sigma_data,
        backbone={"unet": unet, **known},
        prefix="backbone.unet.",
        seen={"hash": mark, "said": said, "is_clean": True, "costs": {}},
    )


def _known(scheduler: Mapping[str, Any]) -> tuple[dict[str, Any], float | None]:
    """Return how a network was trained by the scheduler that stands beside it, and sigma_data."""
    name = str(scheduler.get("_class_name"))[:60]
    prediction = scheduler.get("prediction_type", "epsilon")
    if name.startswith("EDM"):
        found = {"parametrisation": "edm", "prediction": prediction, "schedule": {}}
        given = scheduler.get("sigma_data", 0.5)
        if not isinstance(given, int | float) or isinstance(given, bool):
            raise UserError(f"the scheduler's sigma_data is {given!r:.60}, no number")
        return found, float(given)
    if "beta_schedule" not in scheduler and "trained_betas" not in scheduler:
        raise UserError(f"its scheduler {name} is neither EDM's nor one of DDPM's timesteps")
    schedule = {k: scheduler[k] for k in _SCHEDULE if scheduler.get(k) is not None}
    return {"parametrisation": "ddpm", "prediction": prediction, "schedule": schedule}, None


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path, LARGEST_CARD)
    if not isinstance(found, dict):
        raise UserError(f"'{path}' is damaged: it holds no keys")
    return found


def _seen_by(about: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """Return what a prior has seen, as far as it says so; it may be a stranger's."""
    config, before = _mapping(about.get("config")), _mapping(about.get("start"))
    method = _mapping(config.get("method"))
    handed = about.get("clean_images", method.get("clean_images"))
    is_blind = handed in (0, "0") and not isinstance(handed, bool)
    # What a start of the start has seen counts, too, and where nobody says it, it may be anything.
    has_before = bool(before) or _mapping(config.get("training")).get("start") is not None
    is_clean = not is_blind or (has_before and before.get("is_clean") is not False)
    costs = _costs(about.get("costs")) or _costs(
        {"images": _mapping(config.get("training")).get("budget")}
    )
    for key, value in _costs(before.get("costs")).items():
        costs[key] = costs.get(key, 0) + value
    if not is_blind:
        images = "nobody says how many" if handed is None else _word(handed)
        images = f"{images} clean images"
    elif is_clean:
        images = "a start of clean images"
    else:
        images = "no clean image"
    spent = f", {costs['images']:,.0f} images in training" if "images" in costs else ""
    said = (
        f"a prior ({mark}) by {_word(about.get('method', 'an unknown method'))} on "
        f"{_word(about.get('data', 'unknown data'))}, {_word(about.get('operator', 'unknown'))}: "
        f"it has seen {images}{spent}"
    )
    return {"hash": mark, "said": said, "is_clean": is_clean, "costs": costs}


def _costs(given: Any) -> dict[str, float]:
    """Return the costs among what a card says, each a finite number."""
    found = {k: _mapping(given).get(k) for k in _COSTS}
    return {k: v for k, v in found.items() if _is_cost(v)}  # type: ignore[misc]


def _is_cost(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _word(value: Any) -> str:
    """Return a value as a few printable characters of one line."""
    return "".join(c if c.isprintable() else " " for c in str(value))[:40]


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def start_hash(given: str | None) -> str | None:
    """Return the hash of what ``training.start`` names, or None where nothing is named."""
    return None if given is None else read_start(given).hash


def settle(
    config: dict[str, Any], given: Collection[str], is_chosen: bool, values: Mapping[str, Any]
) -> None:
    """Give a composed configuration the backbone and the ``sigma_data`` of its start, in place.

    Arguments:
        config: The configuration.
        given: Keys that somebody has set, ``group.key``.
        is_chosen: Whether somebody has chosen a backbone.
        values: The YAML of :data:`UNET2D`, for a network of diffusers.

    Raises:
        UserError: What was set contradicts the start, or nobody says how it was trained.
    """
    start = read_start(config["training"]["start"])
    if start.sigma_data is not None and start.sigma_data != config["training"]["sigma_data"]:
        if "training.sigma_data" in given:
            raise UserError(
                f"training.sigma_data={config['training']['sigma_data']:g}, and the start has "
                f"{start.sigma_data:g}; leave it out"
            )
        config["training"]["sigma_data"] = start.sigma_data
    before = config["backbone"]
    if not start.prefix:
        if is_chosen and (fault := _difference(before, start.backbone)):
            raise UserError(f"{fault}; leave backbone out, it is the start's then")
        config["backbone"] = {k: v for k, v in start.backbone.items() if k != "gate"}
        return
    if is_chosen and before["name"] != UNET2D:
        raise UserError(f"backbone={before['name']}, and the start is a UNet2DModel; leave it out")
    own = before if is_chosen else {**values, "name": UNET2D}
    set_by_hand = {k.split(".")[1] for k in given if k.startswith("backbone.")}
    if "unet" in set_by_hand:
        raise UserError("backbone.unet is that of the start; leave it out")
    if "parametrisation" not in start.backbone and "parametrisation" not in set_by_hand:
        raise UserError(
            f"'{start.folder}' has no {SCHEDULER} beside it, which says how it was trained; set "
            "backbone=unet2d backbone.parametrisation=edm, or =ddpm and backbone.schedule"
        )
    theirs = {k: v for k, v in start.backbone.items() if k not in set_by_hand}
    config["backbone"] = {**own, **theirs, "sigma_data": config["training"]["sigma_data"]}


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """Return in what two backbones differ, or None."""
    no_part = ("name", "about", "capabilities", "unless", "ranges", "gate")
    for key in sorted((ours.keys() | theirs.keys()) - set(no_part)):
        if ours.get(key) != theirs.get(key):
            named = "its class" if key == "_target_" else f"{key}={ours.get(key)}"
            return f"backbone={ours['name']} has {named}, and the start's {theirs.get(key)}"
    return None


__all__ = ["Start", "read_start", "settle", "start_hash"]
