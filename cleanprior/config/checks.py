"""Values of a configuration that a constructor refuses, in one wording. No torch."""

from collections.abc import Sequence
from typing import Any

from ..errors import UserError


def check_share(name: str, value: float, allowed: str) -> None:
    """Raise a :class:`ValueError` unless ``value`` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}; allowed: {allowed}")


def check_positive(name: str, value: float) -> None:
    """Raise a :class:`ValueError` unless ``value`` is above 0."""
    if not value > 0:
        raise ValueError(f"{name}={value}; allowed: above 0")


def check_iterations(value: int) -> None:
    """Raise a :class:`ValueError` unless a solver may take at least one iteration."""
    if value < 1:
        raise ValueError(f"iterations={value}; allowed: at least 1")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise a :class:`ValueError` unless ``value`` is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}; allowed: {', '.join(allowed)}")


def check_seed(value: int) -> int:
    """Raise a :class:`ValueError` unless ``value`` is a seed; return it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"seed={value}; allowed: a whole number from 0")
    return value


def check_kind(name: str, value: Any, kind: type) -> None:
    """Raise a :class:`TypeError` unless ``value`` is a ``kind``."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}; needed: {kind.__name__}")
