"""The one training loop, the interface of a method, and checkpoints."""

from .method import Loss, Method, Problem, Round, Session, Way
from .trainer import Trainer, TrainingReport

__all__ = [
    "Loss",
    "Method",
    "Problem",
    "Round",
    "Session",
    "Trainer",
    "TrainingReport",
    "Way",
]
