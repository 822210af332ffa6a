"""The losses of the step before: reading a number of a GPU waits for it, and so it is read late."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Diverged(Exception):
    """A loss, or a gradient's norm, that is not finite."""


class Watch:
    """Reads what steps found, and stops a training that diverges.

    Arguments:
        is_late: Read a step's numbers in the next one, so that the device never waits for this
            process. A step that diverges changes no weight either way (:meth:`skip`).

    Attributes:
        last: The losses of the last step that was read, by name.
    """

    def __init__(self, is_late: bool) -> None:
        self.is_late = is_late
        self.last: dict[str, float] = {}
        self._waiting: tuple[list[str], Tensor, torch.cuda.Event | None] | None = None

    def see(self, losses: Sequence[Mapping[str, Tensor]], norm: Tensor) -> Tensor:
        """Take note of a step before its weights change.

        Arguments:
            losses: Of each of the step's batches, by name, the first one ``loss``.
            norm: Of the gradient.

        Returns:
            Whether the step diverges, 0 or 1, on the device of the norm.

        Raises:
            Diverged: This step does, or a late one of before.
        """
        self.settle()
        means = [torch.stack([part[k] for part in losses]).mean() for k in losses[0]]
        values = torch.stack([*means, norm.detach().to(means[0])])
        self._waiting = ([*losses[0], ""], *_to_host(values))
        if not self.is_late:
            self.settle()
        return (~values[[0, -1]].isfinite().all()).float()

    def settle(self) -> None:
        """Read what was seen.

        Raises:
            Diverged: A loss or a norm is not finite.
        """
        if self._waiting is None:
            return
        (names, values, event), self._waiting = self._waiting, None
        if event is not None:
            event.synchronize()
        found = dict(zip(names, values.tolist(), strict=True))
        norm = found.pop("")
        self.last = found
        if not (math.isfinite(norm) and math.isfinite(found["loss"])):
            raise Diverged


def _to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Copy numbers to this process without waiting for them."""
    if values.device.type != "cuda":
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event
