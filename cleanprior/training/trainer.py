"""The one way to train: a budget that is the same for every method, optimiser, precision."""

import shutil
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from .. import stopping
from ..cells.folder import TrainingFiles
from ..config import Config
from ..config.checks import check_choice, check_positive
from ..data.measurements import Measurements
from ..defaults import plain_tensors
from ..diffusion.backbones import autocast_dtype
from ..environment import hidden_from_accelerate
from ..errors import UserError
from ..hashed import Damaged
from ..notices import Notice, tell
from ..operators.base import Operator
from ..progress import Progress
from ..seeding import scoped_rng, seed_for
from .method import Method, Problem
from .report import TrainingReport
from .run import Run
from .tracking import TRACKERS, Tracking, check_installed


class Trainer:
    """Trains any method under one budget.

    Arguments:
        budget: Images seen by the budgeted network, the same for every method.
        batch: Images in a batch of one process.
        lr: Peak learning rate of AdamW.
        weight_decay: AdamW's decoupled weight decay.
        warmup: Steps of linear warm-up at the beginning of each round with a fresh optimiser.
        final_lr: Share of the peak rate reached at the end of the cosine decay, in (0, 1].
        ema: Decay of the weight average a step, in [0, 1).
        clip: Largest gradient norm.
        precision: ``auto``, ``fp32`` or ``bf16``: dtype inside the backbone while training.
        device: ``auto`` (a CUDA device where there is one), ``cpu`` or ``cuda``.
        sigma_data: Standard deviation of the data for EDM preconditioning.
        checkpoint_seconds: Least time between two checkpoints of a round.
        log_every: Steps between entries of the history.
        accumulate: Batches of a process in one step. Two of one process are the same training as
            one of two processes.
        processes: How many train together; None takes those that a launcher has started. To build
            a trainer in one process is no mistake (another judges what they have trained), to
            train in it is.
        snapshots: Averaged weights kept while training goes on, evenly spaced; 0 keeps none.
        tracker: Where the training is logged: ``none``, ``tensorboard``, ``wandb`` or ``mlflow``.
        start: A prior, or a ``UNet2DModel`` of diffusers (:mod:`cleanprior.starts`), whose weights
            the training begins with; None for fresh ones.

    Raises:
        ValueError: A value outside its range.
    """

    def __init__(
        self,
        budget: int,
        batch: int,
        lr: float,
        weight_decay: float,
        warmup: int,
        final_lr: float,
        ema: float,
        clip: float,
        precision: str,
        device: str,
        sigma_data: float,
        checkpoint_seconds: float,
        log_every: int,
        snapshots: int = 0,
        accumulate: int = 1,
        tracker: str = "none",
        processes: int | None = None,
        start: str | None = None,
    ) -> None:
        if batch < 1 or budget < batch:
            raise ValueError(f"budget={budget}, batch={batch}; needed: 1 <= batch <= budget")
        check_positive("lr", lr)
        if not 0 <= ema < 1:
            raise ValueError(f"ema={ema}; allowed: [0, 1)")
        if not 0 < final_lr <= 1:
            raise ValueError(f"final_lr={final_lr}; allowed: (0, 1]")
        check_choice("tracker", tracker, TRACKERS)
        check_installed(tracker)
        check_choice("device", device, ("auto", "cpu", "cuda"))
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device=cuda, and torch finds no CUDA device; use device=cpu")
        for name, value, least in (
            ("snapshots", snapshots, 0),
            ("warmup", warmup, 0),
            ("weight_decay", weight_decay, 0),
            ("checkpoint_seconds", checkpoint_seconds, 0),
            ("log_every", log_every, 1),
            ("accumulate", accumulate, 1),
            ("processes", 1 if processes is None else processes, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value}; allowed: at least {least}")
        check_positive("clip", clip)
        check_positive("sigma_data", sigma_data)
        self.snapshots, self.tracker, self.start = snapshots, tracker, start
        self.batch, self.accumulate = batch, accumulate
        self.lr, self.weight_decay, self.warmup, self.final_lr = lr, weight_decay, warmup, final_lr
        self.ema, self.clip = ema, clip
        self.sigma_data = sigma_data
        self.checkpoint_seconds, self.log_every = checkpoint_seconds, log_every
        # Left to itself, accelerate takes any other device too: Apple's has no float64.
        is_cpu = device == "cpu" or not torch.cuda.is_available()
        with hidden_from_accelerate():
            # The plugin, because accelerate prefers a variable to the number.
            self.accelerator = Accelerator(
                cpu=is_cpu,
                mixed_precision="no",  # precision is the backbone's own
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                # The others wait while the first one evaluates.
                kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))],
            )
        self.device = self.accelerator.device
        started = self.accelerator.num_processes
        self.processes = started if processes is None else processes
        if started not in (1, self.processes):
            raise ValueError(f"processes={processes}, and a launcher has started {started}")
        # Every process takes its batches in each step; together they see the budget.
        self.steps = max(1, budget // (batch * accumulate * self.processes))
        self.autocast = autocast_dtype(precision, self.device)

    def problem(self, operator: Operator, config: Config) -> Problem:
        """Return the problem that a configuration poses to a method.

        Arguments:
            operator: The forward operator.
            config: A composed configuration; its operator's name, backbone and seed are taken.
        """
        backbone = {k: v for k, v in config["backbone"].items() if k != "about"}
        return Problem(
            operator=operator,
            operator_name=config["operator"]["name"],
            backbone=backbone,
            sigma_data=self.sigma_data,
            sigma_y=operator.sigma,
            autocast=self.autocast,
            seed=config["seed"],
            has_start=self.start is not None,
        )

    @plain_tensors()
    def fit(
        self,
        method: Method,
        problem: Problem,
        measurements: Measurements,
        seed: int,
        folder: Path | None = None,
        clean: Tensor | None = None,
        progress: Progress | None = None,
        identity: str = "",
    ) -> tuple[dict[str, nn.Module], TrainingReport]:
        """Train a method; resume where an interrupted run of the same folder stopped.

        A checkpoint that is damaged, or another training's, is told and not used: the training
        begins again.

        Arguments:
            method: The method; :meth:`Method.setup` is called here.
            problem: The problem.
            measurements: What the method may see.
            seed: Training seed.
            folder: Where checkpoints go; None for none.
            clean: The clean images that the method is entitled to, exactly that many.
            progress: Where to show progress.
            identity: What else defines the training: a checkpoint of another one is not used.

        Returns:
            The averaged networks and the report.

        Raises:
            UserError: It is to be trained by more processes than there are.
        """
        started = self.accelerator.num_processes
        if self.processes != started:
            raise UserError(
                f"processes={self.processes}, and there is {started}; start it with torchrun, or "
                "with cleanprior train or bench"
            )
        shown = progress or Progress()
        given = (self, method, problem, measurements, seed, folder, clean, shown, identity)
        try:
            return self._fit(Run(*given))
        except Damaged as error:
            if folder is None:
                raise
            tell([Notice(f"{error}; the training begins again", is_warning=True)])
            self._forget(TrainingFiles(folder))
        return self._fit(Run(*given))

    def _fit(self, run: Run) -> tuple[dict[str, nn.Module], TrainingReport]:
        with scoped_rng(seed_for(run.seed, "global")), stopping.orderly():
            return run.fit()

    def _forget(self, files: TrainingFiles) -> None:
        """Remove what a training has computed so far."""
        if self.accelerator.is_main_process:
            files.checkpoint.unlink(missing_ok=True)
            files.first_stage.unlink(missing_ok=True)
            for left in (files.rounds, files.snapshots, files.tracked):
                shutil.rmtree(left, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def log_metrics(self, files: TrainingFiles, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log what a finished training's evaluation has found to its run.

        Arguments:
            files: Of the training's folder.
            rows: Of its record.
        """
        found = {row["way"]: row["metrics"] for row in rows}
        with Tracking(self.tracker, self.accelerator, files).running() as tracking:
            tracking.log(found, self.steps)

    @plain_tensors()
    def trained(
        self,
        method: Method,
        problem: Problem,
        measurements: Measurements,
        seed: int,
        folder: Path,
        identity: str = "",
    ) -> dict[str, nn.Module] | None:
        """Return the averaged networks of a training that is finished; None where it is not.

        Arguments:
            method: The method; :meth:`Method.setup` is called here.
            problem: The problem.
            measurements: What the method has seen.
            seed: Training seed.
            folder: Where its checkpoint lies.
            identity: That which :meth:`fit` was given.
        """
        shown = Progress()
        run = Run(self, method, problem, measurements, seed, folder, None, shown, identity)
        with scoped_rng(seed_for(seed, "global")):
            try:
                return run.finished()
            except Damaged as error:
                tell([Notice(str(error), is_warning=True)])
                return None
