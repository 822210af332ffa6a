"""A prior's folder: what its card says, checked; how a folder is replaced. No torch.

The card may be a stranger's: it is data of known keys and types, and nothing that it names is
imported unless the YAML of an installed part names it too.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from .cells.reading import HASH, content_hash
from .config.named_parts import named, plain, understood
from .errors import UserError
from .files import write_text
from .memory import total_bytes
from .model_card import model_card
from .outside import check_regular, read_yaml

#: Format 1 said ``_target_`` in the place of the backbone's name.
FORMAT, FORMATS = 2, (1, 2)
CARD, WEIGHTS = "prior.yaml", "weights.safetensors"
#: For readers, and for diffusers; the prior itself is read without them.
README, INDEX, SCHEDULER = "README.md", "model_index.json", "scheduler"
#: Numbers of one image.
LARGEST = 1 << 28
_KEYS = (
    *("image_shape", "sigma_data", "condition_channels", "preconditioning", "backbone"),
    *("weights_sha256", "about"),
)


#: Words that earlier versions wrote, and today's.
_TODAY = {"ambient_official": "scaled_condition", "official_double": "double"}


@dataclass(frozen=True)
class PriorCard:
    """What ``prior.yaml`` says, every value of the type that it must have.

    Attributes:
        image_shape: Shape of one image, (channels, height, width).
        sigma_data: Standard deviation of the data, for the preconditioning.
        condition_channels: Channels of the condition.
        preconditioning: A word of :data:`cleanprior.diffusion.denoiser.PRECONDITIONINGS`.
        backbone: Configuration of an installed backbone.
        weights_sha256: Hash of the weights' file.
        about: Where the prior comes from.
    """

    image_shape: tuple[int, int, int]
    sigma_data: float
    condition_channels: int
    preconditioning: str
    backbone: dict[str, Any]
    weights_sha256: str
    about: dict[str, Any]

    def values(self, version: str) -> dict[str, Any]:
        """Return what is written.

        Raises:
            UserError: The backbone is that of no installed configuration: nobody could read it.
        """
        return {
            "format": FORMAT,
            "cleanprior": version,
            "image_shape": list(self.image_shape),
            "sigma_data": self.sigma_data,
            "condition_channels": self.condition_channels,
            "preconditioning": self.preconditioning,
            "backbone": named("backbone", self.backbone),
            "weights_sha256": self.weights_sha256,
            "about": plain(self.about),
        }


def check_complete(folder: Path) -> None:
    """Check that a folder holds the two files of a prior.

    Raises:
        UserError: One is missing, or is no file.
    """
    for name in (CARD, WEIGHTS):
        path = folder / name
        if not path.exists():
            raise UserError(
                f"'{folder}' is not a saved prior: '{name}' is missing; a prior folder holds "
                f"{CARD} and {WEIGHTS}"
            )
        check_regular(path)


def read_card(folder: Path) -> PriorCard:
    """Read the card of a prior.

    Raises:
        UserError: It is damaged, of a newer format, or names what is not installed.
    """
    try:
        found = read_yaml(folder / CARD)
    except UserError as error:
        raise UserError(f"'{folder}' is damaged: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"'{folder}' is damaged: {CARD} holds no keys")
    if (version := found.get("format")) not in FORMATS:
        known = " and ".join(map(str, FORMATS))
        shown = str(version)[:40]
        raise UserError(f"'{folder}' has format {shown}; this version reads formats {known}")
    if lacking := [k for k in _KEYS if k not in found]:
        raise UserError(f"'{folder}' is damaged: {CARD} lacks {', '.join(lacking)}")
    shape, sigma = found["image_shape"], found["sigma_data"]
    channels, about = found["condition_channels"], found["about"]
    faults = {
        f"its image_shape is {shape!r:.80}": not is_shape(shape),
        f"its sigma_data is {sigma!r:.80}": not _is_number(sigma) or not 0 < sigma < math.inf,
        f"its condition_channels is {channels!r:.80}": type(channels) is not int
        or not 0 <= channels <= LARGEST,
        "its preconditioning is no word": not isinstance(found["preconditioning"], str),
        "its weights_sha256 is no word": not isinstance(found["weights_sha256"], str),
        "what it says of its origin has no keys": not isinstance(about, dict)
        or not isinstance(about.get("config", {}), dict),
    }
    for text, is_fault in faults.items():
        if is_fault:
            raise UserError(f"'{folder}' is damaged: {text}")
    try:
        backbone = understood("backbone", found["backbone"])
    except UserError as error:
        raise UserError(f"'{folder}' cannot be read: {error}") from error
    if "gate" in backbone:
        backbone["gate"] = _TODAY.get(backbone["gate"], backbone["gate"])
    preconditioning = str(found["preconditioning"])
    if found.get(HASH, card_hash(found)) != card_hash(found):
        raise UserError(f"'{folder}' is damaged: the content of {CARD} has another hash")
    return PriorCard(
        image_shape=(shape[0], shape[1], shape[2]),
        sigma_data=float(sigma),
        condition_channels=channels,
        preconditioning=_TODAY.get(preconditioning, preconditioning),
        backbone=backbone,
        weights_sha256=found["weights_sha256"],
        about=about,
    )


def descriptions(card: PriorCard, version: str) -> dict[str, str]:
    """Return the files of a prior that describe it to people and to diffusers, by their names.

    diffusers' loop of ``scale_model_input``, network and ``step`` around an EDM scheduler is its
    ``ConsistencyModelPipeline``, which makes square images.
    """
    found = {README: model_card(card.about, card.image_shape, card.sigma_data, version)}
    if card.condition_channels == 0 and card.image_shape[1] == card.image_shape[2]:
        index = {
            "_class_name": "ConsistencyModelPipeline",
            "unet": ["cleanprior.diffusers", "PriorNetwork"],
            "scheduler": ["diffusers", "EDMEulerScheduler"],
        }
        scheduler = {"_class_name": "EDMEulerScheduler", "sigma_data": card.sigma_data}
        found[INDEX] = json.dumps(index, indent=1)
        found[f"{SCHEDULER}/scheduler_config.json"] = json.dumps(scheduler, indent=1)
    return found


def describe(folder: Path, about: Mapping[str, Any], version: str) -> None:
    """Write what a saved prior says of its origin again; its weights stay.

    Raises:
        UserError: The folder is no prior, or the disk refuses the write.
    """
    card = replace(read_card(folder), about=json.loads(json.dumps(about)))
    values = card.values(version)
    values[HASH] = card_hash(values)
    write_text(folder / CARD, yaml.safe_dump(values, sort_keys=False))
    for name, text in descriptions(card, version).items():
        write_text(folder / name, text)


def card_hash(values: Mapping[str, Any]) -> str:
    """Return the hash of what a card says; of its origin (``about``) anybody may say more."""
    return content_hash({k: v for k, v in values.items() if k != "about"})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_shape(shape: Any) -> bool:
    """Whether a value is (channels, height, width) of an image that a machine can hold."""
    if not isinstance(shape, list) or [type(n) for n in shape] != [int] * 3:
        return False
    return min(shape) > 0 and math.prod(shape) <= LARGEST


def check_weights(folder: Path, expected: str) -> None:
    """Check that the weights are those that the card was written with.

    Raises:
        UserError: Another sha256, or more bytes than this machine has memory.
    """
    path = folder / WEIGHTS
    digest = hashlib.sha256()
    try:
        if path.stat().st_size > total_bytes():
            raise UserError(f"'{path}' is larger than this machine's memory")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error}") from error
    if digest.hexdigest() != expected:
        raise UserError(f"'{path}' is damaged: its sha256 is not the one in {CARD}")


def check_replaceable(folder: Path) -> None:
    """Refuse to write a prior over a file, or over a folder that holds something else.

    Raises:
        UserError: Such a file or folder.
    """
    if folder.is_dir():
        others = {p.name for p in folder.iterdir()} - {CARD, WEIGHTS, README, INDEX, SCHEDULER}
        if not others:
            return
        raise UserError(f"'{folder}' holds other files ({min(others)}); name another folder")
    if folder.exists() or folder.is_symlink():
        raise UserError(f"'{folder}' is a file; name a folder for the prior")
