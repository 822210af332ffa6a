"""A part of the framework by its name in the configuration, without a whole cell. No torch."""

from typing import Any

from . import build, compose


def part(group: str, name: str | None = None, **changes: Any) -> Any:
    """Build what a configuration describes.

    Arguments:
        group: ``method``, ``posterior``, ``sampler``, ``data``, ...
        name: Its name in the group; None takes the default.
        changes: Keys of its YAML; values are checked against what the keys hold.

    Raises:
        UserError: No such name or key, or a value that the constructor refuses.
    """
    chosen = [] if name is None else [f"{group}={name}"]
    return build(compose(chosen, {group: changes})[group])
