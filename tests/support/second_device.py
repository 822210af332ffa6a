"""A second device that computes, where there is no GPU.

torch's ``meta`` device is legal everywhere and holds no values. Here each tensor on it carries a
tensor of the CPU, on which everything is computed: results are those of the CPU, and mixing the two
devices raises as it does on CUDA. What is refused is what CUDA refuses:

- tensors of the CPU beside those of the device; allowed are numbers (0-dimensional) in pointwise
  operations, indices, and copies;
- a generator of the CPU for numbers drawn on the device;
- ``.numpy()`` and anything else that reads memory.

It cannot show what a GPU's own kernels do: rounding, bf16, memory, speed, operations that a GPU
lacks.
"""

import contextlib
from collections.abc import Iterator
from importlib import import_module
from threading import Thread
from typing import Any
from unittest.mock import patch

import torch
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")
aten = torch.ops.aten
#: Operations whose further tensors may lie on the CPU, as on CUDA: indices, and what is copied.
CROSSING = {
    aten.copy_.default,
    aten._to_copy.default,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._unsafe_index.Tensor,
}
#: Functions that read Python values; torch makes them without values on ``meta``.
FROM_VALUES = {torch.tensor, torch.as_tensor, torch.asarray}


AUTOCAST, RUN = torch.autocast, Thread.run
OPTIMISER = import_module("torch.optim.optimizer")
FUSED = OPTIMISER._get_fused_kernels_supported_devices


class MixedDevices(RuntimeError):
    """Tensors or generators of two devices met."""


class Held(Tensor):
    """A tensor of the second device.

    Attributes:
        held: Its values, on the CPU.
    """

    held: Tensor
    # ``load_state_dict`` and others take a short cut for tensors without values.
    is_meta = False

    @staticmethod
    def __new__(cls, held: Tensor) -> "Held":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"Held({self.held!r})"

    def tolist(self) -> Any:
        """Return plain values, as every device does."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation of torch, on the CPU's values; refuse mixed devices."""
    asked = kwargs.get("device")
    flat = tree_flatten((args, kwargs))[0]
    held = any(isinstance(a, Held) for a in flat)
    if not held and (asked is None or torch.device(asked).type != DEVICE.type):
        return func(*args, **kwargs)
    if held and func in CROSSING:
        _check_crossing(func, args)
    elif held:
        _check_tensors(func, [a for a in flat if isinstance(a, Tensor)])
    is_result_held = held if asked is None else torch.device(asked).type == DEVICE.type
    if is_result_held and any(isinstance(a, Generator) for a in flat):
        # All generators of a process without GPU are the CPU's.
        raise MixedDevices(f"{func}: a generator of the CPU draws numbers on the second device")
    plain_args, plain_kwargs = tree_map_only(Held, lambda t: t.held, (args, kwargs))
    if asked is not None:
        plain_kwargs["device"] = torch.device("cpu")
    if func is aten._efficientzerotensor.default:
        # Of forward-mode derivatives; torch finds the shape of their products on ``meta``.
        func = aten.zeros.default
    out = func(*plain_args, **plain_kwargs)
    if func is aten.copy_.default and not isinstance(args[0], Held):
        return args[0]
    if not is_result_held:
        return out
    if torch.Tag.inplace_view in func.tags:
        _reshape(func, args, kwargs)
    written = _written(func, args, kwargs)
    return tree_map_only(Tensor, Held, out) if written is None else written


def _reshape(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Change the shape of the tensor itself, as an operation such as ``squeeze_`` does."""
    with no_dispatch():
        before = torch._C._meta_in_tls_dispatch_include()
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            func(*args, **kwargs)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what an operation in place returns: the tensors that it was given."""
    schema = func._schema
    if not any(r.alias_info is not None and r.alias_info.is_write for r in schema.returns):
        return None
    given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    written = [
        given[a.name]
        for a in schema.arguments
        if a.alias_info is not None and a.alias_info.is_write and a.name in given
    ]
    return written[0] if len(schema.returns) == 1 else tuple(written)


def _check_tensors(func: Any, tensors: list[Tensor]) -> None:
    numbers_pass = torch.Tag.pointwise in func.tags
    for t in tensors:
        if not isinstance(t, Held) and not (numbers_pass and t.dim() == 0):
            raise MixedDevices(
                f"{func}: expected all tensors on one device, found the second device and "
                f"{t.device} ({tuple(t.shape)})"
            )


def _check_crossing(func: Any, args: Any) -> None:
    """Refuse a tensor of the CPU with indices of the device, and values of the other device."""
    if "index" not in str(func):
        return
    indices = [i for i in args[1] if i is not None]
    if not isinstance(args[0], Held) and any(isinstance(i, Held) for i in indices):
        raise MixedDevices(f"{func}: indices of the second device for a tensor of the CPU")
    if len(args) > 2:
        _check_tensors(func, [args[0], *(v for v in args[2:3] if v.dim() > 0)])


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class _Values(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in FROM_VALUES:
            place = kwargs.pop("device", None)
            if isinstance(args[0], (list, tuple)):
                args = tree_map_only(Held, lambda t: t.held, args)
            made = func(*args, **kwargs)
            return made if place is None else made.to(place)
        return func(*args, **kwargs)


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    """Return torch's autocast, but nothing on the second device, which has none."""
    if device_type == DEVICE.type:
        return contextlib.nullcontext()
    return AUTOCAST(device_type, *args, **kwargs)


def _run(thread: Thread) -> None:
    with _Values(), _Operations():
        RUN(thread)


@contextlib.contextmanager
def second_device() -> Iterator[torch.device]:
    """Make the device; tensors go there by ``.to(device)`` as to a GPU."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch("torch.autocast", _autocast))
        supported = [*FUSED(), DEVICE.type]
        stack.enter_context(patch.object(OPTIMISER, FUSED.__name__, lambda: supported))
        # Modes belong to a thread; a device belongs to all.
        stack.enter_context(patch.object(Thread, "run", _run))
        stack.enter_context(_Values())
        stack.enter_context(_Operations())
        yield DEVICE
