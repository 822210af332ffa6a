"""The one training loop, the interface of a method, and checkpoints."""

from .denoiser_method import DenoiserMethod
from .method import Loss, Method, Problem, Round, Session, Way
from .one_step import OneStep
from .report import TrainingReport
from .trainer import Trainer

__all__ = [
    "DenoiserMethod",
    "Loss",
    "Method",
    "OneStep",
    "Problem",
    "Round",
    "Session",
    "Trainer",
    "TrainingReport",
    "Way",
]
