"""Whether clean images can be reached from what a method holds."""

import gc
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..data.measurements import TrainingSet
from ..training.method import Round, Session
from .training import Setting, fit

OPAQUE = (
    type,
    types.ModuleType,
    types.FrameType,
    types.CodeType,
    str,
    bytes,
    int,
    float,
    type(None),
)


def tensors_reachable(*roots: Any) -> Iterator[Tensor]:
    """Yield every tensor that attributes, containers and closures of the roots lead to."""
    seen, queue = set(), list(roots)
    while queue:
        node = queue.pop()
        if id(node) in seen or isinstance(node, OPAQUE):
            continue
        seen.add(id(node))
        if isinstance(node, Tensor):
            yield node
            if node._base is not None:
                queue.append(node._base)
        elif isinstance(node, types.FunctionType):
            queue.extend(gc.get_referents(*(node.__closure__ or ())))
            queue.extend(node.__defaults__ or ())
        else:
            queue.extend(gc.get_referents(node))


def holds_a_clean_image(tensor: Tensor, clean_rows: set[bytes], size: int) -> bool:
    """Whether a whole clean image stands anywhere in a tensor's memory, also outside its view.

    Arguments:
        tensor: Any tensor.
        clean_rows: The bytes of each clean image in float32.
        size: Numbers of an image.
    """
    if tensor.dtype not in (torch.float32, torch.float64):
        return False
    whole = torch.tensor([], dtype=tensor.dtype).set_(tensor.detach().cpu().untyped_storage())
    if len(whole) % size:
        return False
    return any(row.tobytes() in clean_rows for row in whole.reshape(-1, size).float().numpy())


def check_clean_images_are_out_of_reach(setting: Setting, x: Tensor) -> None:
    """Train, then search everything that the method was handed and kept for the clean images.

    Arguments:
        setting: What is trained on.
        x: The clean images that it was measured from.
    """
    method, problem, data, clean = setting
    sessions: list[Any] = []
    begin = method.begin_round

    def begin_round(number: int, round: Round, session: Session) -> TrainingSet:
        training_set = begin(number, round, session)
        sessions.extend([session, training_set])
        return training_set

    method.begin_round = begin_round  # type: ignore[method-assign]
    networks, report = fit(setting)
    size = x[0].numel()
    rows = {row.tobytes() for row in x.flatten(1).numpy()}
    found = list(tensors_reachable(method, sessions, problem, data, networks, report))
    assert any(t is data.y for t in found), "the walk reaches the measurements"
    holders = [t.shape for t in found if holds_a_clean_image(t, rows, size)]
    if clean is None:
        assert not holders, f"clean images are reached, in tensors of shapes {holders}"
    else:
        assert holders, "the walk finds the clean images where a method is entitled to them"
        assert len(sessions[0].clean) == len(clean), "as many as the method is entitled to"
