"""Evaluation: the only room that compares with clean images (of a test split)."""

from .protocol import Protocol
from .rows import Row

__all__ = ["Protocol", "Row"]
