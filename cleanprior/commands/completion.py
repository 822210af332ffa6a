"""What a shell offers after a TAB: names and keys of what is installed. No torch, no Hydra."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer

from ..config import DESCRIPTIONS, GROUPS, ranges, registry
from ..config.hydra_files import default_groups
from ..errors import UserError

Offer = Callable[[str], list[str]]
#: Keys of a cell outside of its groups.
_SEEDS = ("seed", "data_seed")


def _names(group: str) -> list[str]:
    try:
        return sorted(registry.methods() if group == "method" else registry.options(group))
    except UserError:
        return []


def one_of(group: str) -> Offer:
    """Return what completes one name of a group, e.g. ``operator``."""
    return lambda incomplete: [n for n in _names(group) if n.startswith(incomplete)]


def several_of(group: str) -> Offer:
    """Return what completes the last of several names with commas between."""

    def offer(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        rest = [n for n in _names(group) if n not in given and n.startswith(last)]
        return [f"{before}{comma}{name}" for name in rest]

    return offer


def words(*allowed: str) -> Offer:
    """Return what completes one of some words."""
    return lambda incomplete: [word for word in allowed if word.startswith(incomplete)]


def overrides(context: typer.Context, incomplete: str) -> list[str]:
    """Complete ``group=name`` and ``key=value``.

    Keys are those of what the command line has chosen so far, else of the defaults. A shell that
    breaks words at ``=`` (bash) is answered with the value alone.
    """
    given = [str(v) for v in context.params.get("overrides") or ()]
    if len(given) > 1 and given[-1] == "=":
        return list(_values(given[-2], incomplete, _chosen(context)))
    key, equals, value = incomplete.partition("=")
    chosen = _chosen(context)
    if equals:
        return [f"{key}={found}" for found in _values(key, value, chosen)]
    keys = [*GROUPS, *_SEEDS]
    for group, name in chosen.items():
        if incomplete.startswith(f"{group}."):
            keys += [f"{group}.{k}" for k in _keys(_card(group, name))]
    # Of a group that is written so far, its keys; before, the group alone.
    found = [f"{k}=" for k in keys if k.startswith(incomplete)]
    return found + [f"{g}." for g in GROUPS if g.startswith(incomplete) and "." not in incomplete]


def _chosen(context: typer.Context) -> dict[str, str]:
    """Return the configuration of each group, as far as the command line says."""
    found = dict(default_groups())
    for key in ("operator", "data"):
        if isinstance(name := context.params.get(key), str):
            found[key] = name.split(",")[0]
    for text in context.params.get("overrides") or ():
        group, equals, name = str(text).partition("=")
        if equals and group in GROUPS:
            found[group] = name
    return found


def _card(group: str, name: str) -> dict[str, Any]:
    try:
        return registry.read(group, name)
    except UserError:
        return {}


def _keys(card: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in card.items():
        if key in (*DESCRIPTIONS, "_target_", "defaults"):
            continue
        if isinstance(value, Mapping):
            yield from _keys(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def _values(key: str, value: str, chosen: Mapping[str, str]) -> Iterator[str]:
    """Yield the values of a key that are words: names, choices, true and false."""
    if key in GROUPS:
        yield from one_of(key)(value)
        return
    group, _, inside = key.partition(".")
    card: Any = _card(group, chosen.get(group, ""))
    *parents, last = inside.split(".")
    for parent in parents:
        card = card.get(parent) if isinstance(card, Mapping) else None
    if not isinstance(card, Mapping):
        return
    allowed: tuple[str, ...] = ()
    if isinstance(card.get(last), bool):
        allowed = ("true", "false")
    elif (text := (card.get(ranges.KEY) or {}).get(last)) is not None:
        allowed = ranges.parse(str(text)).words
    yield from words(*allowed)(value)


def lists() -> Offer:
    """Return what completes what can be listed."""
    from .listing import KINDS, METRICS

    return words(*KINDS, METRICS)


def kinds() -> Offer:
    """Return what completes a kind of package that can be written."""
    from .scaffold import KINDS

    return words(*KINDS)


__all__ = ["kinds", "lists", "one_of", "overrides", "several_of", "words"]
