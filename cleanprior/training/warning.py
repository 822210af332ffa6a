"""What a method says of its own results: a code beside the row, a sentence under the table."""

from collections.abc import Iterable
from dataclasses import dataclass


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


__all__ = ["Warning", "codes"]
