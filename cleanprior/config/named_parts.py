"""Parts as files name them: a registered name with plain values. No torch.

A prior or a record may be a stranger's. What is called is said by the YAML of an installed part
alone; the file gives that part's name and values of its keys, each of the type that the key has.
"""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import UserError, did_you_mean, unknown
from . import ranges, registry
from .signatures import arguments
from .values import ANY, Kind, kind_of

Config = dict[str, Any]
#: Keys of a YAML that are no values of a part.
_SAID = ("_target_", "name", "about", "capabilities", "unless", ranges.KEY)
#: Keys that a part may have beside those of its YAML, by group.
FURTHER: dict[str, dict[str, Kind]] = {"backbone": {"gate": Kind(frozenset({"str"}))}}


def plain(config: Any) -> Any:
    """Return a configuration as a file holds it: without what is called, at any depth."""
    if isinstance(config, Mapping):
        return {k: plain(v) for k, v in config.items() if k not in ("_target_", "capabilities")}
    return [plain(v) for v in config] if isinstance(config, list | tuple) else config


def named(group: str, config: Mapping[str, Any]) -> Config:
    """Return a part's configuration as a file holds it: its name and its values.

    Raises:
        UserError: Nothing that is installed calls what it calls, so that nobody could read it.
    """
    name = config.get("name")
    if not isinstance(name, str) or name not in registry.options(group):
        name = _name_of(group, config)
    return {"name": name, **plain({k: v for k, v in config.items() if k not in _SAID})}


def _name_of(group: str, config: Mapping[str, Any]) -> str:
    """Return the installed part of a target, the one whose values are nearest."""
    target = config.get("_target_")
    cards = registry.readable(group)
    near = {
        name: sum(card.get(k) != v for k, v in config.items())
        for name, card in cards.items()
        if isinstance(target, str) and card["_target_"] == target
    }
    if not near:
        raise UserError(
            f"the {group} '{target}' is that of no installed configuration; known: "
            f"{', '.join(sorted({str(c['_target_']) for c in cards.values()}))}"
        )
    return min(near, key=lambda name: (near[name], name))


def understood(group: str, given: Any) -> Config:
    """Return the configuration that a file names, checked against the YAML of that name.

    Files of format 1 say ``_target_`` in the place of the name; those that an installed part has
    are known.

    Arguments:
        group: ``backbone``, ``operator``, ...
        given: What the file holds.

    Returns:
        The configuration with its ``_target_`` and its ``name``; keys that the file lacks are those
        of the YAML.

    Raises:
        UserError: A name, a key or a value that is none of an installed part.
    """
    if not isinstance(given, Mapping) or not all(isinstance(k, str) for k in given):
        raise UserError(f"its {group} is no name with values")
    name = given.get("name")
    if "_target_" in given:
        name = _name_of(group, given)
    if not isinstance(name, str):
        raise UserError(f"its {group} has no name")
    if name not in registry.options(group):
        raise unknown(group, name, registry.options(group))
    card = registry.read(group, name)
    found = _checked(f"{group}.", card, given, FURTHER.get(group, {}))
    return {**found, "name": name}


def _checked(
    path: str, card: Mapping[str, Any], given: Mapping[str, Any], further: Mapping[str, Kind]
) -> Config:
    """Return the values of a part, those that are given in the place of its YAML's."""
    target = str(card["_target_"])
    annotations = arguments(target)
    found = {k: v for k, v in card.items() if k not in _SAID}
    for key, value in given.items():
        if key in _SAID:
            continue
        if key not in found and key not in further:
            raise UserError(
                f"unknown key '{path}{key}'; allowed: {', '.join(found)}.{did_you_mean(key, found)}"
            )
        default = found.get(key)
        if isinstance(default, Mapping) and "_target_" in default:
            if not isinstance(value, Mapping):
                raise UserError(f"{path}{key} is {_short(value)}; it has keys of its own")
            found[key] = _checked(f"{path}{key}.", default, value, {})
            continue
        kind = further.get(key) or kind_of(annotations.get(key), default)
        if not fits(value, kind):
            words = ", ".join(sorted(kind.types)) or "plain values"
            raise UserError(f"{path}{key} is {_short(value)}; allowed: {words}")
        found[key] = value
    for key, text in (card.get(ranges.KEY) or {}).items():
        if found.get(key) not in ranges.parse(str(text)):
            raise UserError(f"{path}{key} is {_short(found.get(key))}; allowed: {text}")
    if lacking := [k for k, v in found.items() if not fits(v, ANY) and not isinstance(v, Mapping)]:
        raise UserError(f"{path}{lacking[0]} is not given")
    return {"_target_": target, **found}


def fits(value: Any, kind: Kind) -> bool:
    """Whether a value of a file is plain and of a kind: no reference, no call, no NaN."""
    if isinstance(value, Mapping):
        return "dict" in kind.types and all(
            isinstance(k, str) and k != "_target_" and fits(v, ANY) for k, v in value.items()
        )
    if isinstance(value, list):
        return "list" in kind.types and all(fits(v, kind.element or ANY) for v in value)
    if isinstance(value, str):
        return "str" in kind.types and "${" not in value
    if value is None or isinstance(value, bool):
        return ("null" if value is None else "bool") in kind.types
    if isinstance(value, int):
        return bool({"int", "float"} & kind.types) and abs(value) < 2**63
    return isinstance(value, float) and "float" in kind.types and math.isfinite(value)


def _short(value: Any) -> str:
    """Return a value as an error shows it; it may be anything."""
    text = repr(value)
    return text if len(text) < 80 else f"{text[:76]} ..."


__all__ = ["fits", "named", "plain", "understood"]
