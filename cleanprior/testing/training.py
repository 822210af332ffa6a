"""Short trainings on few images, for contract tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import build, compose
from ..data.measurements import Measurements
from ..training.method import Method, Problem
from ..training.report import TrainingReport
from ..training.trainer import Trainer
from .parts import TINY, images_for, make_operator

#: What a method is trained on: the method, the problem, its measurements, clean images or None.
Setting = tuple[Method, Problem, Measurements, Tensor | None]
IMAGES = 48
BATCH = 8
STEPS = 20
#: Problems that are tried in turn: the first that a method supports.
PROBLEMS = (("inpainting", "0"), ("inpainting", "0.1"), ("denoising", "0.3"))


def make_trainer(steps: int = STEPS, batch: int = BATCH, **changes: Any) -> Trainer:
    """Return a trainer of a few steps on the CPU."""
    values: dict[str, Any] = {
        "budget": steps * batch,
        "batch": batch,
        "lr": 2e-3,
        "weight_decay": 0.0,
        "warmup": 2,
        "final_lr": 0.05,
        "ema": 0.9,
        "clip": 1.0,
        "precision": "fp32",
        "device": "cpu",
        "sigma_data": 0.5,
        "checkpoint_seconds": 1e9,
        "log_every": 1,
    }
    return Trainer(**(values | changes))


def make_setting(
    name: str, overrides: tuple[str, ...] = (), seed: int = 0, x: Tensor | None = None
) -> Setting:
    """Return what training a method needs, on the first problem that it supports.

    Arguments:
        name: The method.
        overrides: Its keys, e.g. ``("method.steps=3",)``.
        seed: Training seed.
        x: Clean images, (n, 1, 8, 8); default: digits.

    Raises:
        AssertionError: It supports none of the problems.
    """
    config = compose([f"method={name}", *overrides])
    for operator_name, sigma in PROBLEMS:
        method: Method = build(config["method"])
        operator = make_operator(operator_name, (1, 8, 8), f"sigma={sigma}")
        problem = Problem(operator, operator.name, dict(TINY), 0.5, operator.sigma, None, seed)
        if method.supports(problem) is None:
            break
    else:
        raise AssertionError(f"{name} supports none of the problems that are tried")
    x = images_for("inpainting", IMAGES).clone() if x is None else x
    data = Measurements.draw(x, operator, 0, "train")
    wanted = method.clean_images
    entitled = len(x) if wanted == "all" else int(wanted)
    clean = x[: min(entitled, 10)].clone() if entitled else None
    return method, problem, data, clean


def fit(
    setting: Setting, seed: int = 0, folder: Path | None = None, trainer: Trainer | None = None
) -> tuple[dict[str, nn.Module], TrainingReport]:
    """Train a method; return its averaged networks and the report."""
    method, problem, data, clean = setting
    return (trainer or make_trainer()).fit(method, problem, data, seed, folder, clean)


def weights(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return a copy of all weights by name."""
    return {f"{n}.{k}": v.clone() for n, m in networks.items() for k, v in m.state_dict().items()}


def assert_same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Assert that weights are the same, bit by bit."""
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), f"{key} differs"
