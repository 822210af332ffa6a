"""What a user's file holds, what measured it, and which methods may be trained on it."""

from .advice import Inspection
from .report import inspect

__all__ = ["Inspection", "inspect"]
