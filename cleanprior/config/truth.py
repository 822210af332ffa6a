"""What really measured, where the operator is believed to be another: ``truth.sigma=1``. No torch.

``operator`` is what methods, restorations and metrics know. Keys of ``truth`` are those of the same
operator with the values that the measurements are drawn by, and ``shift``, in pixels. No key, no
difference: such a configuration is what it was without them.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from . import ranges

KEY = "truth"
#: How far the true parameters of an image lie to the right of the believed ones.
SHIFT = "shift"
_NO_KEYS = ("about", "capabilities", "name")


def is_given(keys: Iterable[str], kept: Mapping[str, Any]) -> bool:
    """Whether somebody gives a truth: a key of it, or a file that remembers one."""
    return bool(kept.get(KEY)) or any(key.startswith(f"{KEY}.") for key in keys)


def tree(operator: Mapping[str, Any]) -> dict[str, Any]:
    """Return all keys that a truth may have, with the values of the operator's own YAML."""
    keys = copy.deepcopy({k: v for k, v in operator.items() if k not in _NO_KEYS})
    allowed = {**keys.get(ranges.KEY, {}), SHIFT: "(-inf, inf)"}
    return {**keys, SHIFT: 0, ranges.KEY: allowed}


def chosen(found: Mapping[str, Any], operator: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a truth that differ from what is believed, sorted."""
    believed = {**operator, SHIFT: 0}
    return {k: v for k, v in sorted(found.items()) if k in believed and v != believed[k]}


def true_operator(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the configuration of the operator that measures; None where it is the believed one."""
    if not config.get(KEY):
        return None
    changed = {k: v for k, v in config[KEY].items() if k != SHIFT}
    return {**config["operator"], **changed}
