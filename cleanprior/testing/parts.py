"""Small parts that contract tests put together: images, an operator, a backbone."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..config import build, compose
from ..data.datasets import digits
from ..errors import UserError
from ..operators.base import ImageShape, Operator
from ..operators.building import build_operator
from ..seeding import generator_for

#: A backbone of a few thousand weights.
TINY: dict[str, Any] = {
    "_target_": "cleanprior.diffusion.backbones.UNet",
    "hid_channels": [8, 16],
    "hid_blocks": [1, 1],
    "mod_features": 16,
    "norm": "group",
    "dropout": 0.0,
}


def make_operator(name: str, image_shape: ImageShape, *overrides: str) -> Operator:
    """Build an operator from its own YAML: ``make_operator("inpainting", (1, 8, 8), "p=0.3")``."""
    keys = [f"operator.{override}" for override in overrides]
    config = compose(["method=naive", f"operator={name}", *keys])
    operator: Operator = build(config["operator"], image_shape=image_shape)
    return operator


def uniform(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Draw images in [-1, 1]."""
    return 2 * torch.rand(shape, generator=generator_for(seed, "x")) - 1


@cache
def _digits() -> Tensor:
    return digits().train


@cache
def channels_for(operator: str) -> int:
    """Return the fewest channels, up to three, of images that an operator takes; 8x8 pixels.

    Raises:
        UserError: It takes none of them.
    """
    config = compose(["method=naive", f"operator={operator}"])["operator"]
    for channels in (1, 2, 3):
        try:
            build_operator(config, (channels, 8, 8), 0)
        except UserError as error:
            refused = error
            continue
        return channels
    raise refused


def images_for(operator: str, n: int = 12) -> Tensor:
    """Return digits with as many channels as an operator takes, (n, c, 8, 8)."""
    x = _digits()[:n]
    return torch.cat([x, x.flip(0), x.roll(1, 0)][: channels_for(operator)], 1)


@contextmanager
def no_global_randomness() -> Iterator[None]:
    """Assert that what runs inside leaves torch's global generator as it was."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), (
        "randomness goes through the torch.Generator that is handed in; the global one was used"
    )
