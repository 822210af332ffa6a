"""A cell on disk: where its files lie, what identifies it, what its record says. No torch."""

from .folder import CellFiles, CellFolder
from .identity import Identity
from .record import Record, is_finished

__all__ = ["CellFiles", "CellFolder", "Identity", "Record", "is_finished"]
