"""Passes of networks and their FLOPs, counted where they happen: no other process disturbs them.

A forward hook on each network counts the images that go through it, and a hook on its output those
whose gradient comes back. Copies of a network (averages, teachers) are counted with it. What one
pass of one image costs is found once for each network and kind of pass, between the rounds: its
first call is repeated on a copy with two of its images, under torch's own FLOP counter. Neither
draws from a global generator nor changes a weight, a buffer or a gradient.

FLOPs are those of matrix products, convolutions and attention, two for a multiply-add, as torch's
counter has them; element-wise work, FFTs and operators are not counted. A gradient that is itself
differentiated (a penalty on a gradient, a divergence) counts as one backward pass more.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

#: Kinds of passes. ``vjp`` is a backward pass to the input alone: the network's weights are fixed.
KINDS = ("forward", "backward", "vjp")
#: Images in the repeated call: layers that normalise over the batch refuse one.
PROBE = 2

Counts = dict[str, dict[str, float]]


class Meter:
    """Counts of passes by network and kind, in images, and what one pass costs.

    Attributes:
        passes: Images, by network and by kind of :data:`KINDS`.
        flops: FLOPs of one image's pass, by network and kind; complete after :meth:`price`.
        uncounted: Why a network's passes have no FLOPs, by network.
        is_on: Whether passes are counted now.
    """

    def __init__(self) -> None:
        self.passes: Counts = {}
        self.flops: Counts = {}
        self.uncounted: dict[str, str] = {}
        self.is_on = True
        self._calls: dict[tuple[str, str], tuple[nn.Module, Any]] = {}

    def watch(self, networks: Mapping[str, nn.Module]) -> list[Callable[[], None]]:
        """Count the passes of these networks from now on; copies made later are counted too.

        Returns:
            Functions that end it for the networks themselves. :attr:`is_on` ends it for copies.
        """
        return [
            network.register_forward_hook(_Hook(self, name), with_kwargs=True).remove
            for name, network in networks.items()
        ]

    @contextmanager
    def watching(self, networks: Mapping[str, nn.Module]) -> Iterator[None]:
        """Count the passes of these networks inside the block."""
        ends = self.watch(networks)
        try:
            yield
        finally:
            for end in ends:
                end()

    def add(self, passes: Counts) -> None:
        """Add counts that were made elsewhere."""
        for name, kinds in passes.items():
            for kind, images in kinds.items():
                self._count(name, kind, images)

    def restore(self, passes: Counts, flops: Counts, uncounted: dict[str, str]) -> None:
        """Go on from the counts of an interrupted run."""
        self.passes, self.flops, self.uncounted = passes, flops, uncounted

    def so_far(self) -> Counts:
        """Return a copy of the counts."""
        return copy.deepcopy(self.passes)

    def since(self, before: Counts) -> Counts:
        """Return what was counted since :meth:`so_far` returned ``before``."""
        found: Counts = {}
        for name, kinds in self.passes.items():
            for kind, images in kinds.items():
                if more := images - before.get(name, {}).get(kind, 0.0):
                    found.setdefault(name, {})[kind] = more
        return found

    def _count(self, name: str, kind: str, images: float) -> None:
        kinds = self.passes.setdefault(name, {})
        kinds[kind] = kinds.get(kind, 0.0) + images

    def _see(self, name: str, network: nn.Module, inputs: tuple[Any, Any], output: Any) -> None:
        """Count a call, and its gradient when that comes."""
        if not self.is_on:
            return
        found = list(_tensors(output))
        images = len(found[0]) if found and found[0].dim() else 1
        self._count(name, "forward", images)
        differentiable = [t for t in found if t.requires_grad]
        if not differentiable:
            self._remember(name, "forward", network, inputs, images)
            return
        first = next(network.parameters(), None)
        kind = "backward" if first is not None and first.requires_grad else "vjp"
        self._remember(name, kind, network, inputs, images)

        def came_back(_: Any) -> None:
            if self.is_on:  # the engine's grad mode is on where this gradient has a graph
                self._count(name, kind, images * (2 if torch.is_grad_enabled() else 1))

        register_multi_grad_hook(differentiable, came_back, mode="any")

    def _remember(
        self, name: str, kind: str, network: nn.Module, inputs: tuple[Any, Any], images: int
    ) -> None:
        """Keep some images of the first call of a kind; it may stand inside a caller's context."""
        is_known = kind in self.flops.get(name, {}) or name in self.uncounted
        if not is_known and (name, kind) not in self._calls:
            self._calls[name, kind] = (network, _some(inputs, images))

    def price(self) -> None:
        """Find what the passes met so far cost."""
        calls, self._calls = self._calls, {}
        was_on, self.is_on = self.is_on, False
        for (name, kind), (network, inputs) in calls.items():
            try:
                found = _repeat(network, inputs, kind)
                if found["forward"]:
                    self.flops.setdefault(name, {}).update(found)
                else:
                    self.uncounted[name] = "none of its operations has a FLOP formula"
            except Exception as error:  # a stranger's network may refuse a copy or another batch
                self.uncounted[name] = f"a call on {PROBE} images failed: {error}".splitlines()[0]
        self.is_on = was_on

    def total(self, *kinds: str) -> float:
        """Return images through all networks, of these kinds of passes."""
        return sum(p.get(kind, 0.0) for p in self.passes.values() for kind in kinds)

    def total_flops(self) -> float | None:
        """Return FLOPs of all passes; None where some pass of a network cannot be counted."""
        self.price()
        total = 0.0
        for name, kinds in self.passes.items():
            for kind, images in kinds.items():
                price = self.flops.get(name, {}).get(kind)
                if price is None or name in self.uncounted:
                    return None
                total += price * images
        return total


class _Hook:
    """A forward hook that stays the same object when its network is copied."""

    def __init__(self, meter: Meter, name: str) -> None:
        self.meter, self.name = meter, name

    def __call__(
        self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        self.meter._see(self.name, network, (args, kwargs), output)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Hook":
        return self


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a network returned."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _some(value: Any, images: int) -> Any:
    """Return the first images of whatever a network was called with, without its graph."""
    if isinstance(value, Tensor):
        value = torch.autograd.forward_ad.unpack_dual(value).primal
        rows = value[:PROBE] if value.dim() and len(value) == images else value
        return rows.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        return {k: _some(v, images) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_some(v, images) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {f.name: _some(getattr(value, f.name), images) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **found)
    return value


def _repeat(network: nn.Module, inputs: tuple[Any, Any], kind: str) -> dict[str, float]:
    """Return the FLOPs of one image, forward and back, from the same call on a copy."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cards), torch.inference_mode(False), torch.enable_grad():
        clone = copy.deepcopy(network).requires_grad_(kind == "backward")
        with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
            output = list(_tensors(clone(*inputs[0], **inputs[1])))
        rows = len(output[0]) if output[0].dim() else 1
        found = {"forward": counter.get_total_flops() / rows}
        if kind != "forward":
            tensors = [t for t in output if t.requires_grad]
            with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
                torch.autograd.backward(tensors, [torch.ones_like(t) for t in tensors])
            found[kind] = counter.get_total_flops() / rows
        return found


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_back(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


_ATEN = torch.ops.aten
# torch's registry lacks the CPU's kernel of attention: without it a CPU would look cheaper.
_FORMULAS = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
}
