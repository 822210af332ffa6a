"""What a training run spent and how it ended; a checkpoint and a record hold it."""

from dataclasses import dataclass, field
from typing import Any

from ..costs import clocks


@dataclass
class TrainingReport:
    """What a training run spent and how it ended.

    Attributes:
        status: ``done`` or ``diverged``.
        seconds: Wall time of each phase, by name; resumed runs add up.
        steps: Optimiser steps of each network.
        images: Images seen by the budgeted network.
        memory_mb: Peak memory of the process (``cpu``) and of the GPU (``gpu``), None if unknown.
        energy_j: Joules of the same phases, by ``cpu`` and ``gpu``, of whole packages and cards,
            whatever else ran on them; None without a counter.
        cpu_seconds: Seconds of CPU that the process itself took, all its threads, by phase.
        passes: Images through each network, by network and kind (:class:`cleanprior.passes.Meter`).
        pass_flops: FLOPs of one of them, by network and kind.
        uncounted: Why a network has no FLOPs, by network.
        costs: Further counts: network evaluations in E-steps, ...
        history: One entry per logging interval: round, step, losses.
        log: What the method wants recorded (chosen scales, floors, ...).
    """

    status: str = "done"
    seconds: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    images: int = 0
    memory_mb: dict[str, float | None] = field(default_factory=dict)
    energy_j: dict[str, float | None] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    passes: dict[str, dict[str, float]] = field(default_factory=dict)
    pass_flops: dict[str, dict[str, float]] = field(default_factory=dict)
    uncounted: dict[str, str] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float | str]] = field(default_factory=list)
    log: dict[str, Any] = field(default_factory=dict)

    def add_time(self, phase: str, since: tuple[float, float]) -> tuple[float, float]:
        """Add what :func:`cleanprior.costs.clocks` went on to a phase; return them as they are."""
        now = clocks()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now[0] - since[0]
        self.cpu_seconds[phase] = self.cpu_seconds.get(phase, 0.0) + now[1] - since[1]
        return now
