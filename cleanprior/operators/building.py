"""An operator from its configuration: the same one however often it is built."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import build
from ..config.truth import KEY, SHIFT, true_operator
from ..errors import UserError
from ..seeding import scoped_rng, seed_for
from .base import ImageShape, Operator
from .truth import Truth


def build_operator(config: Mapping[str, Any], image_shape: ImageShape, data_seed: int) -> Operator:
    """Build the operator that a configuration describes.

    A constructor that draws random numbers (angles of a tomograph, a sensing matrix) draws them
    from the data seed: the operator of the training is the operator of the evaluation.

    Arguments:
        config: The group ``operator`` of a composed configuration.
        image_shape: Shape of an image, (channels, height, width).
        data_seed: The data seed.

    Raises:
        UserError: A value that the constructor refuses.
    """
    with scoped_rng(seed_for(data_seed, "operator-construction")):
        operator: Operator = build(config, image_shape=image_shape)
    return operator


def true_measuring(config: Mapping[str, Any], believed: Operator) -> Truth | None:
    """Return what really measures, or None where that is the operator that is believed to.

    Arguments:
        config: A composed configuration.
        believed: The operator that its group ``operator`` describes.

    Raises:
        UserError: Nobody could mistake one for the other, or the measurements are a user's.
    """
    described = true_operator(config)
    if described is None:
        return None
    if "no_clean" in config["data"].get("capabilities", ()):
        raise UserError("truth.*: how measurements are drawn; those of a file are drawn already")
    operator = build_operator(described, believed.image_shape, config["data_seed"])
    if believed.noise is not None:
        if operator.sigma:
            raise UserError("truth.sigma: noise.kind takes the place of the operator's own noise")
        operator = operator.with_instrument(believed.noise, operator.capabilities)
    truth = Truth(operator, int(config[KEY].get(SHIFT, 0)))
    truth.check(believed)
    return truth


def state_hash(operator: Operator) -> str:
    """Return the sha256 of all numbers that an operator holds, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    held = {k: v for k, v in vars(operator).items() if k != "config"}
    for name, value in _numbers("", held):
        array = np.ascontiguousarray(value)
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _numbers(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().resolve_conj()  # conjugates are lazy, and no view is real
        yield name, torch.view_as_real(plain) if plain.is_complex() else plain
    elif isinstance(value, np.ndarray | np.number | bool | int | float):
        yield name, np.asarray(value)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _numbers(f"{name}.{key}", value[key])
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _numbers(f"{name}.{i}", item)
    elif isinstance(value, nn.Module):
        # Its parameters, buffers and children are dictionaries among its attributes.
        yield from _numbers(name, vars(value))
