"""What every configuration promises."""

import inspect
from collections.abc import Collection
from typing import Any

from ..config import DESCRIPTIONS, GROUPS, Config, compose, registry
from ..config.soundness import locate


def composed(group: str, name: str) -> Config:
    """Return a configuration as a cell has it."""
    overrides = [f"{group}={name}"] if group == "method" else ["method=naive", f"{group}={name}"]
    part: Config = compose(overrides)[group]
    return part


def check_card(group: str, name: str, handed: Collection[str] = ()) -> dict[str, Any]:
    """Check that a YAML has a key for every argument of what it names, and no other.

    Arguments:
        group: ``operator``, ``method``, ...
        name: The configuration.
        handed: Arguments that the software itself hands to the constructor.

    Returns:
        The configuration.
    """
    told = [line for line in registry.remarks() if f"'{name}'" in line]
    assert not told, told[0]
    card = composed(group, name) if group in GROUPS else registry.read(group, name)
    target = locate(card["_target_"])
    parameters = inspect.signature(target).parameters
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    free = [p for p in parameters.values() if p.kind in kinds]
    assert not free, f"{target.__name__} takes any argument: a mistyped key would be no mistake"
    keys = set(card) - {"_target_", "name", *DESCRIPTIONS}
    expected = set(parameters) - set(handed)
    lacking, extra = sorted(expected - keys), sorted(keys - expected)
    assert not lacking, f"configs/{group}/{name}.yaml lacks {lacking}: it holds every default"
    assert not extra, f"configs/{group}/{name}.yaml has {extra}, which are no arguments"
    return card
