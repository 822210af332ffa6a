"""How a cell ended: one word, and a sentence where there is a reason. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: What a word means; the first is the only one that counts as a result.
KINDS = {
    "done": "trained and evaluated",
    "diverged": "the loss was not finite",
    "failed": "something raised an error",
    "skipped": "the method may not be trained on the problem",
    "not run": "nobody trained it yet",
}


@dataclass(frozen=True)
class Status:
    """How a cell ended.

    Attributes:
        kind: A word of :data:`KINDS`; a newer version's records may hold others.
        reason: Why; empty where the word tells enough.
    """

    kind: str
    reason: str = ""

    def to_json(self) -> str:
        """Return what a record holds, e.g. ``skipped: blur is not a mask``."""
        return f"{self.kind}: {self.reason}" if self.reason else self.kind

    @classmethod
    def from_json(cls, text: str) -> "Status":
        """Read what :meth:`to_json` wrote."""
        kind, _, reason = text.partition(": ")
        return cls(kind, reason)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Status":
        """Return the status of a record."""
        return cls.from_json(str(record["status"]))

    @property
    def is_done(self) -> bool:
        """Whether it counts as a result."""
        return self.kind == "done"

    @property
    def was_trained(self) -> bool:
        """Whether somebody tried: it is neither refused nor still to do."""
        return self.kind not in ("skipped", "not run")

    @property
    def is_broken(self) -> bool:
        """Whether something went wrong that was not foreseen."""
        return self.kind in ("failed", "diverged")


__all__ = ["KINDS", "Status"]
