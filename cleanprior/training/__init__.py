"""The one training loop, the interface of a method, and checkpoints."""

from .denoiser_method import DenoiserMethod
from .method import Loss, Method, Problem, Round, Session
from .one_step import OneStep
from .report import TrainingReport
from .route import Route
from .trainer import Trainer
from .view import View
from .warning import Warning

__all__ = [
    "DenoiserMethod",
    "Loss",
    "Method",
    "OneStep",
    "Problem",
    "Round",
    "Route",
    "Session",
    "Trainer",
    "TrainingReport",
    "View",
    "Warning",
]
