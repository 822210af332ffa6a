"""The weights that a training begins with are those of another prior."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..diffusion.backbones import build_backbone
from ..diffusion.denoiser import Denoiser
from ..diffusion.limits import at_most, check_finite, shapes_of, without_memory
from ..errors import UserError
from ..seeding import scoped_rng
from ..starts import Start, read_start
from .method import Method, Problem

#: Layers of attention by their names in networks that early versions of diffusers saved.
_TODAY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def begun_from(given: str | None) -> dict[str, Any] | None:
    """Return what a record says of the start of a training, or None for a training without one."""
    return None if given is None else read_start(given).seen


def start_fault(given: str, method: Method, problem: Problem) -> str | None:
    """Return why a method cannot begin from a start, or None; no weight is read.

    Arguments:
        given: ``training.start``.
        method: The method; its networks are built here.
        problem: The problem.
    """
    start = read_start(given)
    shape = problem.image_shape
    if start.channels != shape[0] or start.image_shape not in (None, shape):
        theirs = start.image_shape or f"of {start.channels} channels"
        return f"the start makes images {theirs}; the measurements are of images {shape}"
    if start.image_shape is None and (fault := _uneven(start, shape)):
        return fault
    if (fault := _too_large(start, problem)) is not None:
        return fault
    method.setup(problem, torch.device("cpu"))
    networks = method.networks()
    if not networks:
        return None  # nothing is trained
    denoiser = networks.get(method.begun)
    if not isinstance(denoiser, Denoiser):
        return f"{method.name} learns no denoiser that could begin from a prior"
    return _fault(start, denoiser, method.name)


def _too_large(start: Start, problem: Problem) -> str | None:
    """Return why the network that a start describes is not one of its weights, or None.

    A few words can ask for a network that no memory holds.
    """
    channels = problem.image_shape[0]
    numbers = sum(map(math.prod, _shapes(start).values()))
    try:
        with at_most(numbers), without_memory(), scoped_rng(0):
            build_backbone(problem.backbone, channels, channels, start.condition_channels)
    except UserError as error:
        return f"nothing can begin from the start: {error}"
    return None


def _uneven(start: Start, shape: tuple[int, int, int]) -> str | None:
    """Return why a UNet2DModel cannot halve images as often as it does, or None."""
    depth = len(start.backbone["unet"].get("down_block_types", range(4)))
    factor = 1 << (depth - 1)
    if shape[1] % factor == 0 and shape[2] % factor == 0:
        return None
    return (
        f"the start halves images {depth - 1} times: it takes sides that are multiples of {factor},"
        f" and the measurements are of images {shape}"
    )


def _fault(start: Start, denoiser: Denoiser, name: str) -> str | None:
    """Return why weights do not fit a denoiser, or None."""
    more = denoiser.condition_channels - start.condition_channels
    if start.condition_channels and more:
        return (
            f"the start's network is told {start.condition_channels} channels beside the image, "
            f"and that of {name} {denoiser.condition_channels}"
        )
    if start.condition_channels and start.preconditioning != denoiser.preconditioning:
        return (
            f"the start's preconditioning is {start.preconditioning}, and that of {name} "
            f"{denoiser.preconditioning}"
        )
    if start.sigma_data is not None and start.sigma_data != denoiser.sigma_data:
        return f"the start has sigma_data={start.sigma_data:g}; this is {denoiser.sigma_data:g}"
    shapes = {_ours(start, k): v for k, v in _shapes(start).items()}
    wanted = {k: tuple(v.shape) for k, v in denoiser.state_dict().items()}
    for key in sorted(wanted.keys() | shapes.keys()):
        ours, theirs = wanted.get(key), shapes.get(key)
        if ours != theirs and not _is_wider(ours, theirs, more):
            return (
                f"the start's network is not that of {name}: its '{key}' is {theirs}, where "
                f"{ours} is needed"
            )
    return None


def _ours(start: Start, key: str) -> str:
    """Return what a tensor of a start is called in a denoiser."""
    if not start.prefix:
        return key
    *above, name, last = key.split(".")
    return start.prefix + ".".join([*above, _TODAY.get(name, name), last])


def _shapes(start: Start) -> dict[str, tuple[int, ...]]:
    try:
        return shapes_of(start.weights)
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{start.weights}' is damaged: {error}") from error


def _is_wider(ours: tuple[int, ...] | None, theirs: tuple[int, ...] | None, more: int) -> bool:
    """Whether a weight is one that takes ``more`` further input channels, and no other."""
    if ours is None or theirs is None or more <= 0 or len(ours) != 4 or len(theirs) != 4:
        return False
    return ours == (theirs[0], theirs[1] + more, *theirs[2:])


@torch.no_grad()
def begin_from(given: str, method: Method, networks: Mapping[str, nn.Module]) -> None:
    """Give a network the weights of a start (:attr:`.method.Method.begun`).

    Weights of input channels that the start does not know, those of a mask, are 0: the network
    begins as the start, whatever it is told.

    Raises:
        UserError: The weights do not fit, or hold NaN.
    """
    start = read_start(given)
    denoiser = networks[method.begun]
    assert isinstance(denoiser, Denoiser)
    if (fault := _fault(start, denoiser, method.name)) is not None:
        raise UserError(fault)
    tensors = {_ours(start, k): v for k, v in load_file(start.weights).items()}
    check_finite(tensors)
    for key, own in denoiser.state_dict().items():
        value = tensors[key].to(own)
        if value.shape != own.shape:
            own.zero_()
            own[:, : value.shape[1]] = value
        else:
            own.copy_(value)


__all__ = ["begin_from", "begun_from", "start_fault"]
