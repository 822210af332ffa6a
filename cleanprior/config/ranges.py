"""What a key of a configuration may hold, as its YAML says under ``ranges``. No torch.

``p: "[0, 1)"`` is an interval, ``device: "auto | cpu | cuda"`` a choice of words, and ``iterations:
"auto | [1, inf)"`` either. The constructors refuse the same values; this refuses them at once.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import UserError

#: The key of a YAML that holds them; no argument of a constructor.
KEY = "ranges"
_INTERVAL = re.compile(r"([\[(])\s*(\S+)\s*,\s*(\S+)\s*([\])])")


@dataclass(frozen=True)
class Interval:
    """An interval of numbers, its ends included or not."""

    low: float
    high: float
    has_low: bool
    has_high: bool

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.has_low else value > self.low
        return above and (value <= self.high if self.has_high else value < self.high)

    def __str__(self) -> str:
        if self.high == float("inf"):
            return f"{'at least' if self.has_low else 'above'} {self.low:g}"
        ends = "[" if self.has_low else "(", "]" if self.has_high else ")"
        return f"{ends[0]}{self.low:g}, {self.high:g}{ends[1]}"


@dataclass(frozen=True)
class Range:
    """What one key may hold: one of some words, or a number in an interval."""

    words: tuple[str, ...]
    interval: Interval | None

    def __contains__(self, value: Any) -> bool:
        if value is None:
            return True  # whether a key may be null is said by its type
        if isinstance(value, list | tuple):
            return all(v in self for v in value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value in self.words
        return self.interval is not None and value in self.interval

    def __str__(self) -> str:
        words = ", ".join(self.words)
        if self.interval is None:
            return words
        return f"{words}, or a number {self.interval}" if words else str(self.interval)


@lru_cache(maxsize=256)
def parse(text: str) -> Range:
    """Read a range, e.g. ``"auto | [1, inf)"``.

    Raises:
        ValueError: A text that is none.
    """
    words, intervals = [], []
    for part in (p.strip() for p in text.split("|")):
        found = _INTERVAL.fullmatch(part)
        if found is None and not re.fullmatch(r"\w+", part):
            raise ValueError(f"'{text}' is not a range; write e.g. [0, 1), (0, inf) or auto | cpu")
        if found is None:
            words.append(part)
        else:
            low, high = float(found[2]), float(found[3])
            intervals.append(Interval(low, high, found[1] == "[", found[4] == "]"))
    if len(intervals) > 1:
        raise ValueError(f"'{text}' has several intervals; one is read")
    return Range(tuple(words), intervals[0] if intervals else None)


def check(config: dict[str, Any]) -> None:
    """Check all values of a composed configuration, and take the ranges out of it.

    Raises:
        UserError: A value outside of its range, or a range that cannot be read.
    """
    for path, node in _nodes(config, ""):
        for key, text in (node.pop(KEY, None) or {}).items():
            try:
                allowed = parse(str(text))
            except ValueError as error:
                raise UserError(f"{path}{KEY}.{key}: {error}") from error
            if (value := node.get(key)) not in allowed:
                raise UserError(f"{path}{key}={_shown(value)}; allowed: {allowed}")


def _nodes(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every configured part with the path of its keys."""
    for key, value in list(node.items()):
        if isinstance(value, dict) and key != KEY:
            yield f"{path}{key}.", value
            yield from _nodes(value, f"{path}{key}.")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
