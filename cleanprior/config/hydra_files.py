"""What Hydra makes of the configurations in files, before anybody's values. No torch."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from ..errors import UserError
from . import registry
from .cards import read_card

Config = dict[str, Any]


@lru_cache(maxsize=1)
def default_groups() -> Mapping[str, str]:
    """Return what the root configuration chooses of each group: the group and a name."""
    listed = read_card(registry.config_roots()[0] / "config.yaml")["defaults"]
    return {
        group: name for each in listed if isinstance(each, dict) for group, name in each.items()
    }


def composed(groups: Mapping[str, str]) -> Config:
    """Return what Hydra composes of a choice of groups, references to other keys unresolved.

    It composes the defaults once and then each other choice alone (:func:`alone`), which is a
    ninth of the work for each further method of a benchmark. With a stranger's file, which may set
    keys of other groups, it composes all at once.
    """
    if any(registry.package_of(group, name) != registry.OWN for group, name in groups.items()):
        return by_hydra("config", *(f"{group}={_quoted(name)}" for group, name in groups.items()))
    defaults = default_groups()
    chosen = {group: name for group, name in groups.items() if name != defaults[group]}
    tree = dict(by_hydra("config"))
    for group, name in chosen.items():
        tree = {**tree, group: alone(group, name)}
    return tree


@lru_cache(maxsize=256)
def alone(group: str, name: str) -> Config:
    """Return one of our own configurations; Hydra composes it where it begins from another one.

    A file without a list of defaults composes to what it holds, for which Hydra takes a hundred
    times as long as OmegaConf, by which it reads files.
    """
    from omegaconf import OmegaConf

    path = registry.path_of(group, name)
    if "defaults" in read_card(path):
        found: Config = by_hydra(f"{group}/{name}")[group]
        return found
    with _refusals():
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)  # type: ignore[return-value]


def one(group: str, name: str) -> Config:
    """Return what Hydra composes of one configuration, references to other keys unresolved."""
    registry.read(group, name)
    if registry.package_of(group, name) == registry.OWN:
        return copy.deepcopy(alone(group, name))
    return copy.deepcopy(by_hydra("config", f"{group}={_quoted(name)}")[group])


@lru_cache(maxsize=256)
def by_hydra(name: str, *chosen: str) -> Config:
    """Return what Hydra composes of one file, those that it begins from, and those chosen."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    plugins = [_quoted(f"file://{root}") for root in registry.config_roots()[1:]]
    search = [f"hydra.searchpath=[{','.join(plugins)}]"] if plugins else []
    # Somebody's own @hydra.main stays as it is.
    own = GlobalHydra.instance()
    outer, own.hydra = own.hydra, None
    try:
        with (
            _refusals(),
            warnings.catch_warnings(),
            initialize_config_module("cleanprior.configs", version_base="1.3"),
        ):
            # A file's own keys come after those that it begins from, said (`_self_`) or not.
            warnings.filterwarnings("ignore", message=".*Defaults list is missing `_self_`")
            composed = hydra_compose(name, overrides=[*chosen, *search])
        return OmegaConf.to_container(composed, resolve=False)  # type: ignore[return-value]
    finally:
        own.hydra = outer
        GlobalHydra.set_instance(own)  # Hydra has put a copy in its place


@contextmanager
def _refusals() -> Iterator[None]:
    """Tell a file that cannot be composed in one line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        text = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"configuration refused: {text}") from error


def _quoted(text: str) -> str:
    """Return a text that Hydra's grammar reads as itself."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${")
    return f"'{escaped}'"


def resolved(tree: Config) -> Config:
    """Return a tree with its references to other keys (``${group.key}``) resolved."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(tree), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(f"configuration refused: {str(error).splitlines()[0]}") from error
