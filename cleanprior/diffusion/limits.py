"""Networks that a file describes: no larger than the weights that come with it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from ..errors import UserError
from ..memory import total_bytes

#: Networks may set a parameter several times while they are built.
SLACK = 4


@contextmanager
def at_most(numbers: int) -> Iterator[None]:
    """Refuse to build networks of (about) more weights than ``numbers`` inside the block.

    A description of a few bytes can ask for layers that no memory holds.

    Raises:
        UserError: Inside the block, at the first layer that is too many.
    """
    counted = 0

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal counted
        counted += 0 if parameter is None else parameter.numel()
        if counted > SLACK * numbers + 1000:
            raise UserError(f"its networks are larger than its {numbers:,} weights")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


class _Meta(TorchFunctionMode):
    """Puts on ``meta`` what a constructor puts on a device of its own choice."""

    def __torch_function__(  # noqa: D105
        self, function: Any, types: Any, given: Any = (), named: Any = None
    ) -> Any:
        named = dict(named or {})
        if "device" in named:
            named["device"] = "meta"
        return function(*given, **named)


@contextmanager
def without_memory() -> Iterator[None]:
    """Build networks of shapes alone inside the block: no weight takes memory."""
    with torch.device("meta"), _Meta():
        yield


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file's tensors; only its header is read.

    Raises:
        UserError: More bytes than this machine has memory.
    """
    with safe_open(path, framework="pt") as file:
        found = {
            key: tuple(file.get_slice(key).get_shape())
            for key in file.keys()  # noqa: SIM118
        }
    if path.stat().st_size > total_bytes():
        raise UserError(f"'{path}' is larger than this machine's memory")
    return found


def check_weight_shapes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that weights are those of a network, before any of them is read.

    Raises:
        UserError: A weight that is missing, too many, or of another shape.
    """
    wanted: dict[str, Any] = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    for name in sorted(wanted.keys() | shapes.keys()):
        if wanted.get(name) != shapes.get(name):
            raise UserError(
                f"its weights are not those of its network: '{name}' is {shapes.get(name)}, and "
                f"the network's is {wanted.get(name)}"
            )


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that weights are numbers.

    Raises:
        UserError: NaN or infinity.
    """
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"its weights hold NaN or infinity in '{name}'")
