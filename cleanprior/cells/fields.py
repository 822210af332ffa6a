"""What a record holds, key by key: plain values, as its JSON file has them. No torch.

A record of a cell that was not trained holds ``status`` and the names of the cell alone, and one of
an earlier version lacks keys that came later. ``cells/reading.py`` checks what a file holds.
"""

from collections.abc import Mapping
from typing import Any, TypedDict


class NamesOf(TypedDict):
    """The names of a cell's configurations."""

    method: str
    operator: str
    data: str


class CodeOf(TypedDict, total=False):
    """What a cell was computed by.

    Attributes:
        cleanprior: The version of the package, for a reader; it decides nothing.
        method: The hash of the method's sources.
        stages: The number of each stage of the core.
    """

    cleanprior: str
    method: str
    stages: dict[str, int]


class TrainingOf(TypedDict, total=False):
    """What a training spent, from :class:`cleanprior.training.TrainingReport`.

    Attributes:
        seconds: Wall seconds of each phase.
        cpu_seconds: Seconds of this process's cores, by phase.
        steps: Optimiser steps of each network.
        images: Images that the denoiser saw: the budget.
        memory_mb: Peak of the process (``cpu``) and of the GPU (``gpu``), in MB.
        energy_j: Joules, where the machine counts them.
        passes: Passes of each network, by kind.
        pass_flops: FLOPs of one pass, by network and kind.
        uncounted: Operations whose FLOPs nobody knows.
        costs: What a method counts beside its budget: ``evaluations`` of E-steps.
        history: The loss and its parts, a line every ``log_every`` steps.
        log: What a method noted of its rounds.
    """

    status: str
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    steps: dict[str, int]
    images: int
    memory_mb: dict[str, float | None]
    energy_j: dict[str, float | None]
    passes: dict[str, dict[str, float]]
    pass_flops: dict[str, dict[str, float]]
    uncounted: list[str]
    costs: dict[str, float]
    history: list[dict[str, Any]]
    log: dict[str, Any]


class RowOf(TypedDict, total=False):
    """One way of restoring and sampling: :class:`cleanprior.evaluation.Row` with its costs."""

    way: str
    is_own: bool
    restores_by: str
    samples_by: str
    draws: int
    samples: int
    metrics: dict[str, float]
    per_image: dict[str, list[float]]
    seconds: dict[str, float]
    evaluations: int
    backwards: int
    curves: dict[str, list[float]]
    missing: dict[str, str]
    marks: list[str]
    marked: dict[str, str]
    costs: dict[str, Any]


class Record(TypedDict, total=False):
    """One cell: what it was, what it was made by, how it ended, what was measured, what it cost.

    Attributes:
        cell: Identity of the evaluation, 16 hexadecimal digits.
        method: Name of the configuration; so ``operator`` and ``data``.
        seed: Training seed.
        data_seed: Seed of the measurements.
        config: The composed configuration.
        status: As :class:`cleanprior.cells.status.Status` writes it.
        warning: Codes of the method's warnings, ``null+shift``.
        warned: The sentence of each code.
        clean_images: Clean images that the method was handed.
        clean_ids_sha256: The hash of which they were.
        start: What the training began from (:class:`cleanprior.starts.Start`): ``hash``, ``said``,
            ``is_clean``, ``costs``; absent where it began from fresh weights.
        image_shape: (channels, height, width).
        train_images: Measurements that it was trained on.
        data_notices: What a user should know of the data.
        measurements_sha256: The hash of the bytes that it was trained on.
        operator_sha256: The hash of the operator as it was built.
        parameters: Weights of each network.
        costs: FLOPs and passes of training, of one restoration, of one sample.
        evaluation: What the metrics were computed with.
    """

    cell: str
    method: str
    operator: str
    data: str
    seed: int
    data_seed: int
    config: dict[str, Any]
    status: str
    warning: str | None
    warned: dict[str, str] | None
    clean_images: int
    clean_ids_sha256: str
    start: dict[str, Any]
    image_shape: list[int]
    train_images: int
    data_notices: list[str] | None
    measurements_sha256: str
    operator_sha256: str
    code: CodeOf
    libraries: Mapping[str, str]
    environment: dict[str, str]
    device: str
    precision: str
    processes: int
    machine: str
    python: str
    time: str
    training: TrainingOf
    parameters: dict[str, int]
    costs: dict[str, Any]
    rows: list[RowOf]
    evaluation: dict[str, Any]


__all__ = ["CodeOf", "NamesOf", "Record", "RowOf", "TrainingOf"]
