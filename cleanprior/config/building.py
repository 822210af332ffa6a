"""Parts built as a configuration says: what its YAML names is called with its values. No torch."""

from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from . import nested, ranges, registry
from .signatures import arguments as declared
from .soundness import locate

#: Keys that describe a part to the checks and tables; they are not constructor arguments.
DESCRIPTIONS = ("capabilities", "unless", "about", ranges.KEY, nested.KEY)


def build(config: Mapping[str, Any], **arguments: Any) -> Any:
    """Construct what a group configures: ``_target_`` called with its keys and ``arguments``.

    Values are handed over as they are: a text that looks like a reference stays a text.

    Raises:
        UserError: The constructor refuses a value; its own message.
    """
    from ..defaults import plain_tensors

    with plain_tensors():
        return construct(config, **arguments)


def construct(config: Mapping[str, Any], **arguments: Any) -> Any:
    """Construct a part as :func:`build` does, where it has nothing to do with tensors. No torch."""
    plain = {k: v for k, v in config.items() if k not in (*DESCRIPTIONS, "name")}
    try:
        return _told(_made(plain, arguments), config)
    except (ValueError, TypeError, OSError, ArithmeticError, LookupError, RuntimeError) as error:
        raise UserError(f"{_called(config)}: {error}") from error
    except Exception as error:
        if str(plain.get("_target_")).split(".")[0] == registry.OWN:
            raise  # an invariant of ours
        told = f"{_called(config)}: {type(error).__name__}: {error}"
        raise UserError(told) from error


def _told(made: Any, config: Mapping[str, Any]) -> Any:
    """Tell a part what its YAML says of it, which is no argument of its constructor."""
    for key, kind in (("capabilities", frozenset), ("unless", dict)):
        own = getattr(type(made), key, None)
        if key in config and own is not None and not isinstance(own, property):
            setattr(made, key, kind(config[key]))
    return made


def _called(config: Mapping[str, Any]) -> str:
    """Return how a part is called in an error: its name, or its group where that is no name."""
    name = config.get("name", "configuration")
    room = str(config.get("_target_", "")).split(".")[1:2]
    return room[0] if name == "default" and room else name


def _made(node: Any, arguments: Mapping[str, Any]) -> Any:
    """Return a node with its parts constructed, the innermost first."""
    if isinstance(node, list):
        return [_made(v, {}) for v in node]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {k: _made(v, {}) for k, v in node.items()}
    target = node["_target_"]
    no_argument = {"_target_", *DESCRIPTIONS, *({"name"} - declared(target).keys())}
    given = {k: _made(v, {}) for k, v in node.items() if k not in no_argument}
    return _told(locate(target)(**given, **arguments), node)
