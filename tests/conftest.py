"""Fixtures of all tests. Shape annotations of the core are executed while tests run."""

import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# A shell lets what it starts in the background ignore Ctrl-C, and its children with it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
CORE = (
    "cleanprior.config",
    "cleanprior.data",
    "cleanprior.diffusion",
    "cleanprior.gaussian",
    "cleanprior.operators",
    "cleanprior.prior",
    "cleanprior.seeding",
    "cleanprior.training",
)
# An int is a float, as PEP 484 has it; the hook finds its checker by name.
checker = ModuleType("annotation_checker")
checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))
sys.modules[checker.__name__] = checker
install_import_hook(CORE, "annotation_checker.check")
# Networks here are tiny: two threads are no faster, and wait for each other on a busy machine.
torch.set_num_threads(1)
# A benchmark of a few steps is done in this process; tests/integration/test_jobs.py has others.
os.environ.setdefault("CLEANPRIOR_JOBS", "0")

from cleanprior.config import build, compose  # noqa: E402
from cleanprior.data import CleanData, digits  # noqa: E402
from cleanprior.gaussian.dense import GaussianPrior  # noqa: E402
from cleanprior.operators import Operator  # noqa: E402
from cleanprior.seeding import scoped_rng  # noqa: E402
from cleanprior.testing.parts import TINY  # noqa: E402
from cleanprior.training import Problem  # noqa: E402


@pytest.fixture(scope="session")
def digits_data() -> CleanData:
    return digits()


@pytest.fixture
def tiny_backbone() -> dict[str, Any]:
    """A backbone of a few thousand weights."""
    return dict(TINY)


@pytest.fixture(scope="session")
def make_operator() -> Callable[..., Operator]:
    """``make_operator("inpainting", (1, 8, 8), "p=0.3")``: an operator from its own YAML."""

    def make(name: str, image_shape: tuple[int, int, int], *overrides: str) -> Operator:
        keys = [f"operator.{o}" for o in overrides]
        config = compose(["method=naive", f"operator={name}", *keys])
        return build(config["operator"], image_shape=image_shape)

    return make


@pytest.fixture
def make_problem(tiny_backbone: dict[str, Any]) -> Callable[..., Problem]:
    def make(operator: Operator, seed: int = 0) -> Problem:
        return Problem(operator, operator.name, tiny_backbone, 0.5, operator.sigma, None, seed)

    return make


@pytest.fixture(scope="session")
def gaussian() -> GaussianPrior:
    """A correlated Gaussian of six pixels, with a mean, inside the range of images."""
    with scoped_rng(5):
        root = torch.randn(6, 6, dtype=torch.float64) / 6**0.5
        mean = 0.2 * torch.randn(6, dtype=torch.float64)
    covariance = 0.25 * (root @ root.T) + 0.05 * torch.eye(6, dtype=torch.float64)
    return GaussianPrior(mean, covariance, (1, 2, 3))
