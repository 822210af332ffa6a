"""Two devices beside the CPU that a test may ask for: a stand-in, and CUDA where it is there."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache

import pytest
import torch
from second_device import second_device

from cleanprior.config import compose as compose_anew

CPU = torch.device("cpu")
NO_CUDA = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"
)


BATCH = 3


@contextmanager
def cuda_device() -> Iterator[torch.device]:
    yield torch.device("cuda", 0)


over_devices = pytest.mark.parametrize(
    "make_device",
    [
        pytest.param(second_device, id="second"),
        pytest.param(cuda_device, id="cuda", marks=NO_CUDA),
    ],
)


@cache
def composed(keys):
    return compose_anew(list(keys))


def compose(keys):
    """Compose a configuration once for all tests."""
    return deepcopy(composed(tuple(keys)))


def images(digits_data, operator_name: str) -> torch.Tensor:
    x = digits_data.train[:6].clone()
    return torch.cat([x, x.flip(0)], 1) if operator_name.startswith("mri") else x


def assert_alike(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        given = torch.as_tensor(value)
        assert given.device == CPU, key
        # Rounding moves where an iterative solve stops, to a relative residual of 1e-3.
        assert torch.allclose(given, torch.as_tensor(b[key]), rtol=1e-2, atol=2e-3), key
