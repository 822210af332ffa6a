"""What a user's file holds, what measured it, and which methods may be trained on it."""

from .report import Inspection, inspect

__all__ = ["Inspection", "inspect"]
