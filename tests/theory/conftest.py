"""Noisy Gaussian images of two pixels, shared by the methods that learn from noise."""

from collections.abc import Callable

import pytest
import torch
from pair import SHAPE, SIGMA, C
from torch import Tensor, nn

from cleanprior.config import build, compose
from cleanprior.data import Batch, Measurements
from cleanprior.operators import Operator
from cleanprior.operators.base import ImageShape
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for
from cleanprior.training import Method, Session
from cleanprior.training.checkpoint import Store


@pytest.fixture(scope="session")
def draw() -> Callable[..., tuple[Tensor, Tensor]]:
    """``draw(n)``: n clean images and their noisy copies."""

    def make(n: int, seed: int = 0, sigma: float = SIGMA) -> tuple[Tensor, Tensor]:
        root = torch.linalg.cholesky(C).float()
        x = torch.randn((n, 2), generator=generator_for(seed, "x")) @ root.T
        noise = torch.randn((n, 2), generator=generator_for(seed, "noise"))
        x = x.reshape(n, *SHAPE)
        return x, x + sigma * noise.reshape(n, *SHAPE)

    return make


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., Batch]:
    """``batch_of(y)``: a batch of noisy images, numbered from 0."""

    def make(y: Tensor, sigma: float = SIGMA) -> Batch:
        return Batch(y, {}, torch.as_tensor(sigma).expand(len(y)), torch.arange(len(y)))

    return make


@pytest.fixture
def make_denoising(make_operator, make_problem) -> Callable[..., Method]:
    """``make_denoising("sure_score", denoiser, "detach=false")``: a method inside a session."""

    def make(name: str, denoiser: nn.Module | None, *overrides: str) -> Method:
        keys = [f"method.{o}" for o in overrides]
        method = build(compose([f"method={name}", "operator=denoising", *keys])["method"])
        method.denoiser, method.device = denoiser, torch.device("cpu")
        method.problem = make_problem(make_operator("denoising", SHAPE, f"sigma={SIGMA}"))
        data = Measurements(torch.zeros(1, *SHAPE), {}, torch.full((1,), SIGMA))
        method._session = Session(data, None, {}, torch.device("cpu"), Store(None), Progress(), 0)
        return method

    return make


@pytest.fixture
def ambient_on(make_operator, make_problem) -> Callable[..., tuple[Method, Operator]]:
    """``ambient_on("mri", (2, 8, 8), "sigma=0", gate="single")``: operator and method keys."""

    def make(name: str, shape: ImageShape, *overrides: str, **changes: object):
        keys = [f"method.{k}={v}" for k, v in changes.items()]
        method = build(compose(["method=ambient", *keys])["method"])
        operator = make_operator(name, shape, *overrides)
        method.setup(make_problem(operator), torch.device("cpu"))
        return method, operator

    return make


@pytest.fixture
def ambient_on_digits(ambient_on, digits_data) -> Callable[..., tuple]:
    """Method, operator, 16 digits and their measurements under random masks."""

    def make(p: float = 0.4, **changes: object):
        method, operator = ambient_on("inpainting", (1, 8, 8), f"p={p}", **changes)
        x = digits_data.train[:16]
        batch = Measurements.draw(x, operator, 0, "train").batch(torch.arange(16))
        return method, operator, x, batch

    return make


@pytest.fixture
def make_tweedie(make_denoising):
    def make(denoiser, *overrides, is_consistent=False):
        method = make_denoising("ambient_tweedie", denoiser, *overrides)
        method._is_consistent = is_consistent
        return method

    return make
