"""Texts of the command line as values of the type that a key has. No torch.

A text never reaches Hydra's grammar: what a person writes for a path, a name or a word is taken
literally, whatever characters it holds.
"""

import ast
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UserError
from ..outside import parse_yaml

#: Keys whose text is a place on disk: ``~`` is the home folder there.
PLACES = ("path", "repository", "mask")
_BOOLS = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_WHOLE = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_NUMBER = re.compile(r"[+-]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SHARE = re.compile(r"\s*[+-]?[0-9]{1,9}\s*/\s*[0-9]{1,9}\s*")


@dataclass(frozen=True)
class Kind:
    """What a key may hold.

    Attributes:
        types: Of ``null``, ``bool``, ``int``, ``float``, ``str``, ``list``, ``dict``.
        element: What a list holds; None where that is not known.
    """

    types: frozenset[str] = frozenset()
    element: "Kind | None" = None

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(self.types | other.types, self.element or other.element)


ANY = Kind(frozenset({"null", "bool", "int", "float", "list", "dict", "str"}))
_NAMES = {"None": "null", "bool": "bool", "int": "int", "float": "float", "str": "str"}
_LISTS = ("Sequence", "list", "tuple", "List", "Tuple", "Iterable", "set", "frozenset")
_DICTS = ("Mapping", "dict", "Dict")


def declared(annotation: str | None) -> Kind:
    """Return what an annotation allows; a kind without types where it says nothing of values."""
    if annotation is None:
        return Kind()
    try:
        return _declared(ast.parse(annotation, mode="eval").body)
    except SyntaxError:
        return Kind()


def _declared(node: ast.expr) -> Kind:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):  # a forward reference
            return declared(node.value)
        return Kind(frozenset({"null"})) if node.value is None else Kind()
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _declared(node.left) | _declared(node.right)
    if isinstance(node, ast.Subscript):
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _subscript(_name(node.value), inside)
    name = _name(node)
    if name in _LISTS:
        return Kind(frozenset({"list"}))
    if name in _DICTS:
        return Kind(frozenset({"dict"}))
    return Kind(frozenset({_NAMES[name]}) if name in _NAMES else frozenset())


def _subscript(outside: str, inside: list[ast.expr]) -> Kind:
    if outside == "Optional":
        return _declared(inside[0]) | Kind(frozenset({"null"}))
    if outside == "Union":
        found = Kind()
        for part in inside:
            found |= _declared(part)
        return found
    if outside == "Literal":
        found = Kind()
        for part in inside:
            found |= of_default(part.value if isinstance(part, ast.Constant) else None)
        return found
    if outside == "Annotated":
        return _declared(inside[0])
    if outside in _LISTS:
        element = _declared(inside[0])
        return Kind(frozenset({"list"}), element if element.types else None)
    return Kind(frozenset({"dict"}) if outside in _DICTS else frozenset())


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def of_default(default: Any) -> Kind:
    """Return what a default value shows of its key."""
    if isinstance(default, str) and default.startswith("${"):
        return Kind()  # it follows another key
    if isinstance(default, list):
        return Kind(frozenset({"list"}), of_default(default[0]) if default else None)
    for type_, name in ((bool, "bool"), (int, "int"), (float, "float"), (str, "str")):
        if isinstance(default, type_):
            return Kind(frozenset({name}))
    return Kind(frozenset({"dict" if isinstance(default, Mapping) else "null"}))


def kind_of(annotation: str | None, default: Any) -> Kind:
    """Return what a key may hold, from its argument's annotation and its default in YAML."""
    said = declared(annotation)
    shown = of_default(default)
    if not said.types:
        return ANY if shown.types <= {"null"} else shown
    # A whole number in YAML may stand for a number.
    return said if "float" in said.types and shown.types == {"int"} else said | shown


def read(key: str, text: str, kind: Kind, default: Any = None) -> Any:
    """Return a text as the value of a key.

    Arguments:
        key: Its full name, for the error.
        text: What was given.
        kind: What the key may hold.
        default: Its value in YAML, kept where the text says the same.

    Raises:
        UserError: The text is none of what the key may hold: what was given, what is allowed.
    """
    if text == "" and default != "":
        raise UserError(f"{key}= has no value; allowed: {_allowed(key, kind)}")
    try:
        value = _value(text, kind)
    except ValueError as error:
        told = f"{key}={text}; allowed: {_allowed(key, kind)}{_hint(text, kind)}"
        raise UserError(told) from error
    last = key.rpartition(".")[2]
    if last.endswith(("seed", "seeds")) and _has_negative(value):
        raise UserError(f"{key}={text}; allowed: {_allowed(key, kind)}")
    if last in PLACES and isinstance(value, str):
        value = os.path.expanduser(value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and not isinstance(default, bool) and value == default:
        return default  # 2.0 for 2 is no other cell
    return value


def conform(key: str, value: Any, kind: Kind, default: Any = None) -> Any:
    """Return a value that was read from a file, as :func:`read` would from a text.

    Raises:
        UserError: It is none of what the key may hold.
    """
    if isinstance(value, str) and "str" in kind.types:
        return value
    if isinstance(value, (list, tuple)) and "list" in kind.types:
        return [conform(key, v, kind.element or ANY) for v in value]
    if isinstance(value, Mapping) and "dict" in kind.types:
        return {str(k): conform(f"{key}.{k}", v, ANY) for k, v in value.items()}
    written = {None: "null", True: "true", False: "false"}
    is_word = value is None or isinstance(value, bool)
    return read(key, written[value] if is_word else str(value), kind, default)


def _has_negative(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return any(isinstance(n, (int, float)) and n < 0 for n in numbers)


def _value(text: str, kind: Kind) -> Any:
    """Return the value, or raise ValueError."""
    types, bare = kind.types, text.strip()
    if "null" in types and bare == "null":
        return None
    # 0 and 1 are numbers where a key may hold one.
    if "bool" in types and bare.lower() in _BOOLS and not (types & {"int", "float"}):
        return _BOOLS[bare.lower()]
    if "bool" in types and bare.lower() in ("true", "false"):
        return bare.lower() == "true"
    if types & {"int", "float"} and (number := _number(bare, types)) is not None:
        return number
    if "list" in types and bare.startswith("["):
        return [_element(v, kind.element or ANY) for v in _parsed(bare, list)]
    if "dict" in types and bare.startswith("{"):
        return dict(_items(_parsed(bare, dict)))
    if "str" in types:
        return text
    raise ValueError(text)


def _number(text: str, types: Iterable[str]) -> int | float | None:
    if _WHOLE.fullmatch(text) and "int" in types:
        whole = int(text) if len(text) < 24 else 2**63
        if abs(whole) >= 2**63:
            raise ValueError(text)
        return whole
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    if "float" in types:
        return number
    return int(number) if number.is_integer() and abs(number) < 2**53 else None


def _parsed(text: str, wanted: type) -> Any:
    found = parse_yaml(text, is_plain=True)
    if not isinstance(found, wanted):
        raise ValueError(text)
    return found


def _element(given: Any, kind: Kind) -> Any:
    if isinstance(given, list) and "list" in kind.types:
        return [_element(v, kind.element or ANY) for v in given]
    if isinstance(given, dict) and "dict" in kind.types:
        return dict(_items(given))
    if not isinstance(given, str) or given == "":
        raise ValueError(given)
    return _value(given, kind)


def _items(given: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in given.items():
        if value == "" and ":" in key:  # {a:1} is one word in YAML
            key, _, value = key.partition(":")
        yield key, _element(value, ANY)


def _allowed(key: str, kind: Kind) -> str:
    whole = "a whole number from 0" if key.endswith("seed") else "a whole number"
    words = {
        "bool": "true or false",
        "float": "a finite number",
        "int": whole,
        "str": "a path" if key.rpartition(".")[2] in PLACES else "a word",
        "list": "a list such as [0,1]",
        "dict": "keys with values such as {a: 1}",
        "null": "null",
    }
    if kind.element is not None and kind.element.types == {"str"}:
        words["list"] = "a list such as [a,b]"
    shown = [w for t, w in words.items() if t in kind.types]
    if "float" in kind.types and "int" in kind.types:
        shown.remove(whole)
    return " or ".join(shown)


def _hint(text: str, kind: Kind) -> str:
    """Return the number that a share such as 1/2 means."""
    if _SHARE.fullmatch(text) and "float" in kind.types:
        above, _, below = text.partition("/")
        return f". Did you mean {int(above) / int(below):g}?" if int(below) else ""
    single = replace(kind, types=kind.types - {"list"})
    if "list" in kind.types and not single.types - {"null"} and not text.startswith("["):
        return f". Did you mean [{text}]?"
    return ""


__all__ = ["ANY", "PLACES", "Kind", "conform", "declared", "kind_of", "of_default", "read"]
