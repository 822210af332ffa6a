"""Configurations: composed by Hydra from YAML, checked before any compute, hashed. No torch."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import __version__, registry
from .errors import UserError, did_you_mean, unknown
from .fingerprint import fingerprint

Config = dict[str, Any]

GROUPS = (
    "data",
    "operator",
    "method",
    "backbone",
    "training",
    "sampler",
    "posterior",
    "evaluation",
)
# Keys that describe a part to the checks and tables; they are not constructor arguments.
DESCRIPTIONS = ("capabilities", "about")
# What decides a cell's numbers. `training.device` and the like decide only where it runs.
_IDENTITY = (*GROUPS, "seed", "data_seed")
_EVALUATION = ("sampler", "posterior", "evaluation")
_NOT_IDENTITY = ("device", "checkpoint_seconds", "snapshots")
# Where a data set lies is not what it is.
_PLACE = ("path", "download")


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose the configuration of one cell.

    Arguments:
        overrides: ``group=name`` and ``key=value``, as on the command line.

    Returns:
        Plain nested dictionaries; each group also holds its chosen name under ``name``.

    Raises:
        UserError: An override that is not ``key=value``, an unknown option, key or value.
    """
    chosen = _check(overrides)

    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    plugins = [f"file://{root}" for root in registry.config_roots()[1:]]
    search = [f"hydra.searchpath=[{','.join(plugins)}]"] if plugins else []
    try:
        with initialize_config_module("cleanprior.configs", version_base="1.3"):
            composed = hydra_compose("config", overrides=[*overrides, *search])
        config: Config = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, overrides)) from error
    for group in GROUPS:
        config[group]["name"] = chosen[group]
    return config


def _check(overrides: Sequence[str]) -> dict[str, str]:
    """Check the shape and group choices of overrides; return the chosen name of each group."""
    chosen = {g: n for d in registry_defaults() for g, n in d.items()}
    for override in overrides:
        if "=" not in override:
            raise UserError(
                f"'{override}' is not an override; write key=value, e.g. operator.p=0.3"
            )
        key, value = override.lstrip("+~").split("=", 1)
        if key in GROUPS:
            registry.read(key, value)
            chosen[key] = value
    return chosen


def registry_defaults() -> list[dict[str, str]]:
    """Return the ``defaults`` list of the root configuration: one ``{group: name}`` each."""
    import yaml

    root = registry.config_roots()[0] / "config.yaml"
    return [d for d in yaml.safe_load(root.read_text())["defaults"] if isinstance(d, dict)]


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """Turn Hydra's message into: what was given, what is allowed, the nearest spelling."""
    text = str(error.__cause__ or error)
    match = re.search(r"Key '([^']+)' is not in struct", text) or re.search(
        r"Could not override '([^']+)'", str(error)
    )
    if match is None:
        return f"configuration refused: {text.splitlines()[0]}"
    last = match[1].split(".")[-1]
    given = next(
        (o.split("=")[0] for o in overrides if o.split("=")[0].split(".")[-1] == last), match[1]
    )
    parent = given.rpartition(".")[0]
    groups = [o for o in overrides if o.split("=")[0] in GROUPS]
    keys = list(_keys(compose(groups)))
    siblings = [k for k in keys if k.rpartition(".")[0] == parent and not k.endswith("_target_")]
    allowed = ", ".join(k.rpartition(".")[2] for k in siblings) or ", ".join(GROUPS)
    return f"unknown key '{given}'; allowed here: {allowed}.{did_you_mean(given, keys)}"


def build(config: Mapping[str, Any], **arguments: Any) -> Any:
    """Construct what a group configures: ``_target_`` called with its keys and ``arguments``.

    Raises:
        UserError: The constructor refuses a value; its own message, without Hydra's frames.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    plain = {k: v for k, v in config.items() if k not in (*DESCRIPTIONS, "name")}
    try:
        # Arguments bypass Hydra, which would turn a tuple into a list.
        return instantiate(plain, _convert_="all", _partial_=True)(**arguments)
    except (InstantiationException, ValueError, TypeError, OSError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, (ValueError, TypeError, OSError)):
            raise UserError(f"{config.get('name', 'configuration')}: {cause}") from cause
        raise


def placeless(data: Mapping[str, Any]) -> Config:
    """Return a data configuration without its place: a moved folder is the same data set.

    Where the files are the user's own (``own_files``) their content takes the place of the path. A
    published data set is known by its name.
    """
    kept = {k: v for k, v in data.items() if k not in _PLACE}
    if "own_files" in data.get("capabilities", ()) and data.get("path") is not None:
        kept["content"] = fingerprint(data["path"])
    return kept


def identity(config: Config, is_training: bool = False) -> str:
    """Return the hash of what defines a cell's numbers, 16 hexadecimal digits.

    Arguments:
        config: A composed configuration.
        is_training: Leave out what only evaluates: another posterior sampler trains nothing again.
    """

    def strip(node: Any) -> Any:
        if isinstance(node, Mapping):
            skip = (*_NOT_IDENTITY, "about")
            return {k: strip(v) for k, v in sorted(node.items()) if k not in skip}
        return node

    keys = [k for k in _IDENTITY if not (is_training and k in _EVALUATION)]
    parts = {**config, "data": placeless(config["data"])}
    text = json.dumps([__version__, {k: strip(parts[k]) for k in keys}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_method(name: str) -> None:
    """Raise a helpful :class:`UserError` unless ``name`` is an installed, configured method."""
    registry.read("method", name)


def check_name(kind: str, name: str, choices: Sequence[str]) -> None:
    """Raise a helpful :class:`UserError` unless ``name`` is one of ``choices``."""
    if name not in choices:
        raise unknown(kind, name, choices)
