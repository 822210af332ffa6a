"""Parts of a part that are chosen by name: a method that begins with another method. No torch.

A YAML says ``parts: {teacher: method}`` and ``teacher: ambient``: the key holds the whole
configuration of that name. ``method.teacher=NAME`` chooses another, ``method.teacher.KEY=value``
sets a key of it.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UserError

#: The key of a YAML that holds, for each such key, the group that its name is of.
KEY = "parts"
#: Joins the name of a method and that of a second stage: ``ambient+distill``.
JOIN = "+"
Read = Callable[[str, str], Mapping[str, Any]]


def declared(card: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys of a card that name a part, with the group of each."""
    found = card.get(KEY)
    return dict(found) if isinstance(found, Mapping) else {}


def first_stage(method: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the configuration of the method that a configured method begins with, or None."""
    found = (v for v in method.values() if isinstance(v, Mapping) and "needs" in v)
    return next((dict(part) for part in found), None)


def expanded(group: str, card: dict[str, Any], read: Read) -> dict[str, Any]:
    """Return a card with the cards of its parts, and what it takes from their keys.

    Arguments:
        group: Its group.
        card: What its YAML says.
        read: Reads a card by group and name.

    Raises:
        UserError: A part is no installed one, or has such parts itself.
    """
    found = dict(card)
    for key, inner in declared(card).items():
        if not isinstance(name := card.get(key), str):
            continue
        part = dict(read(inner, name))
        check_single(f"{group}.{key}={name}", part)
        found[key] = {**part, "name": name}
        taken = re.compile(rf"\$\{{{group}\.{key}\.(\w+)\}}")
        for own, value in card.items():
            if isinstance(value, str) and (other := taken.fullmatch(value)):
                found[own] = part.get(other[1])
    return found


def check_single(shown: str, part: Mapping[str, Any]) -> None:
    """Raise a :class:`UserError` if a part is chosen that has such parts itself."""
    if declared(part):
        held = ", ".join(declared(part))
        raise UserError(f"{shown}: it begins with another one itself ({held}); choose one without")


def moved(node: Any, group: str, path: str) -> Any:
    """Return a configuration whose references to its own group lead to where it lies now.

    Arguments:
        node: What was composed as the group.
        group: The group.
        path: Where it is put, e.g. ``method.teacher``.
    """
    if isinstance(node, dict):
        return {k: moved(v, group, path) for k, v in node.items()}
    if isinstance(node, list):
        return [moved(v, group, path) for v in node]
    return node.replace(f"${{{group}.", f"${{{path}.") if isinstance(node, str) else node


def put(
    tree: dict[str, Any],
    group: str,
    settings: list[tuple[str, str]],
    kept: dict[str, Any],
    composed: Callable[[str, str], dict[str, Any]],
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Put the chosen configurations of a group's parts in the places of their names.

    Arguments:
        tree: What was composed; changed here.
        group: The group.
        settings: ``(key, text)`` that somebody gave; of two of a key the later one counts.
        kept: Values by group that a file remembers; a name that it holds is taken out of it.
        composed: Composes a configuration by group and name.

    Returns:
        The other settings, and the name of each part by its key.

    Raises:
        UserError: A part is no installed one, or has such parts itself.
    """
    node, names = tree[group], {}
    for key, inner in declared(node).items():
        path, name = f"{group}.{key}", str(node[key])
        remembered = kept.get(group, {}).get(key)
        if isinstance(remembered, str):
            name = remembered
            kept[group] = {k: v for k, v in kept[group].items() if k != key}
        elif isinstance(remembered, Mapping):
            name = str(remembered.get("name", name))
        for given, text in settings:
            name = text if given == path else name
        settings = [setting for setting in settings if setting[0] != path]
        node[key] = moved(composed(inner, name), inner, path)
        check_single(f"{path}={name}", node[key])
        names[key] = name
    node.pop(KEY, None)
    return settings, names


__all__ = ["JOIN", "KEY", "check_single", "declared", "expanded", "first_stage", "moved", "put"]
