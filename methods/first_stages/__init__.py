r"""Self-supervised restorers, then a prior of what they return."""

from .multi_operator import MultiOperatorThenTrain
from .recorrupted import RecorruptThenTrain
from .splitting import EquivariantThenTrain, SplitThenTrain

__all__ = [
    "EquivariantThenTrain",
    "MultiOperatorThenTrain",
    "RecorruptThenTrain",
    "SplitThenTrain",
]
