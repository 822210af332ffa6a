"""Configurations as their packages wrote them, and what is wrong with one. No torch.

A stranger's file is checked before it is shown or composed: what is wrong with it costs its own
row and one line.
"""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, did_you_mean
from . import ranges
from .capabilities import CAPABILITIES, DATA, EARLIER, NEEDS
from .signatures import arguments
from .values import declared, of_default

Card = dict[str, Any]
#: Characters of a file that libyaml may parse.
SHORT = 2**14
#: Groups whose files describe no constructor.
WITHOUT_TARGET = ("bench", "table")
_KNOWN = {
    *("None", "bool", "int", "float", "str", "Sequence", "list", "tuple", "List", "Tuple", "set"),
    *("Iterable", "frozenset", "Mapping", "dict", "Dict", "Optional", "Union", "Literal", "Any"),
}


def _parsed(text: str) -> Any:
    """Return what a YAML says, by libyaml where it is there and takes the text.

    Both parsers make plain values alone, no object and no call. libyaml's is eight times as fast,
    refuses some texts that the other takes (``{a:1}``), and calls itself for each depth, which a
    short text does not drive too far.
    """
    if len(text) < SHORT and hasattr(yaml, "CSafeLoader"):
        try:
            return yaml.load(text, Loader=yaml.CSafeLoader)  # noqa: S506
        except yaml.YAMLError:
            pass  # read again, for the other parser's result or its sentence
    return yaml.safe_load(text)


def read_card(path: Path) -> Card:
    """Return a configuration as plain values.

    Raises:
        UserError: The file cannot be read, or is no YAML of keys with values.
    """
    try:
        found = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"it cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"it is not YAML: {' '.join(str(error).split())}") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UserError("it is not a YAML of keys with values such as 'sigma: 0.1'")
    return found


def fault(group: str, card: Card) -> str | None:
    """Return what is wrong with a configuration, or None.

    Arguments:
        group: ``operator``, ``method``, ...
        card: What :func:`read_card` returned.
    """
    if group in WITHOUT_TARGET:
        return None
    target = card.get("_target_")
    if not isinstance(target, str) or "." not in target:
        return f"_target_ is {target!r}; it must name the code, e.g. my_package.module.Name"
    checks = {"operator": _operator_fault, "method": _method_fault}
    words = {"operator": CAPABILITIES, "data": DATA}
    return (
        _word_fault("capabilities", card, words.get(group))
        or (checks[group](card) if group in checks else None)
        or _value_fault("", card)
    )


def _operator_fault(card: Card) -> str | None:
    sigma = card.get("sigma", 0)
    if not _is_number(sigma) or sigma < 0:
        return f"sigma is {sigma!r}; it must be a number from 0"
    return None


def _method_fault(card: Card) -> str | None:
    clean = card.get("clean_images", 0)
    if clean not in ("all", "0") and (type(clean) is not int or clean < 0):
        return f"clean_images is {clean!r}; it must be a count or 'all'"
    return _word_fault("needs", card, NEEDS, EARLIER.values()) or _waiver_fault(card.get("unless"))


def _waiver_fault(given: Any) -> str | None:
    """Return why what waives needs cannot be read."""
    if given is None:
        return None
    if not isinstance(given, dict):
        return f"unless is {given!r}; it must be needs with key=range, e.g. LEVEL: floor=(0, inf)"
    for need, text in given.items():
        if need not in NEEDS:
            return f"unknown need '{need}' under unless; allowed: {', '.join(NEEDS)}"
        try:
            ranges.parse(str(text).partition("=")[2].strip())
        except ValueError as error:
            return f"unless.{need} is {text!r}: {error}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _word_fault(
    key: str, card: Card, allowed: Mapping[str, Any] | None, also: Iterable[str] = ()
) -> str | None:
    """Return why a key is not a list of words that are allowed."""
    given = card.get(key)
    if given is None and key not in card:
        return None
    if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
        return f"{key} is {given!r}; it must be a list of words"
    for word in given:
        if allowed is not None and word not in allowed and word not in also:
            kind = {"needs": "need", "capabilities": "capability"}[key]
            known = ", ".join(allowed)
            return f"unknown {kind} '{word}'; allowed: {known}.{did_you_mean(word, allowed)}"
    return None


def _value_fault(prefix: str, card: Mapping[str, Any]) -> str | None:
    """Return which value is none of what its argument's annotation allows."""
    annotations = arguments(str(card.get("_target_", "")))
    for key, value in card.items():
        if isinstance(value, Mapping) and "_target_" in value:
            if (found := _value_fault(f"{prefix}{key}.", value)) is not None:
                return found
        elif not _is_allowed(annotations.get(key), value):
            return f"{prefix}{key} is {value!r}; its argument is a {annotations[key]}"
    return None


def _is_allowed(annotation: str | None, value: Any) -> bool:
    """Whether a value is what an annotation allows, where all of it is plain values."""
    if annotation is None or (isinstance(value, str) and value.startswith("${")):
        return True
    kind = declared(annotation)
    if not kind.types or not _is_plain(annotation):
        return True
    shown = of_default(value).types
    return shown <= kind.types or (shown == {"int"} and "float" in kind.types)


def _is_plain(annotation: str) -> bool:
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(ast.parse(annotation, mode="eval"))
        if isinstance(node, (ast.Name, ast.Attribute))
    }
    return "Any" not in names and names <= _KNOWN | {"typing", "t", "collections", "abc"}


__all__ = ["Card", "fault", "read_card"]
