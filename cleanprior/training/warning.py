"""What a method says of its own results: a code beside the row, a sentence under the table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Warning:
    """Something that a reader must know before he believes a row.

    Attributes:
        code: A word beside the row, e.g. ``shift``; without ``+`` and blanks.
        sentence: What it means, for the notes under the table.

    Raises:
        ValueError: A code that cannot stand beside a row.
    """

    code: str
    sentence: str

    def __post_init__(self) -> None:
        if not self.code or any(mark in self.code for mark in "+[] "):
            raise ValueError(f"the warning '{self.code}' is no word: it must be one, without +[]")


def codes(warnings: Iterable[Warning]) -> str:
    """Return the codes as a record holds them: ``null+shift``."""
    return "+".join(warning.code for warning in warnings)


def start_warnings(start: Mapping[str, Any] | None) -> list[Warning]:
    """Return what a reader must know of a training that began from another prior.

    Arguments:
        start: What a record says of it, or None.
    """
    if start is None:
        return []
    known = ", ".join(start["costs"])
    text = f"the training began from {start['said']}"
    text += f"; of its cost {known} are part of what is shown" if known else "; its cost is unknown"
    return [Warning("start", text)]


__all__ = ["Warning", "codes", "start_warnings"]
