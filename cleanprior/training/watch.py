"""The losses of the step before: reading a number of a GPU waits for it, and so it is read late."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .. import stopping
from .ranks import Ranks


class Diverged(Exception):
    """A loss, or a gradient's norm, that is not finite."""


class Watch:
    """Reads what steps found, and stops a training that diverges, in all processes that train it.

    Arguments:
        is_late: Read a step's numbers in the next one, so that the device never waits for this
            process. A step that diverges changes no weight either way.
        ranks: The processes that train together.

    Attributes:
        last: The losses of the last step that was read, by name.
        asked: The signal by which any of the processes was asked to end, by the last step that was
            read; 0 for none.
    """

    def __init__(self, is_late: bool, ranks: Ranks | None = None) -> None:
        self.is_late, self._ranks = is_late, ranks or Ranks()
        self.last: dict[str, float] = {}
        self.asked = 0
        self._waiting: tuple[list[str], Tensor, torch.cuda.Event | None] | None = None

    def see(self, losses: Sequence[Mapping[str, Tensor]], norm: Tensor) -> Tensor:
        """Take note of a step before its weights change.

        Arguments:
            losses: Of each of the step's batches, by name, the first one ``loss``.
            norm: Of the gradient.

        Returns:
            Whether the step diverges in any process, 0 or 1, on the device of the norm.

        Raises:
            Diverged: This step does, or a late one of before.
            PeerLost: A process that trains with this one is gone.
        """
        self.settle()
        means = [torch.stack([part[k] for part in losses]).mean() for k in losses[0]]
        judged = torch.stack([means[0], norm.detach().to(means[0])])
        diverges = (~judged.isfinite().all()).to(judged)
        # Filled, not copied: a copy of a number to a GPU waits for it.
        asked = torch.full_like(diverges, stopping.asked())
        shared = self._ranks.largest(torch.stack([diverges, asked]))
        self._waiting = (list(losses[0]), *_to_host(torch.cat([torch.stack(means), shared])))
        if not self.is_late:
            self.settle()
        return shared[0].float()

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
        *found, diverges, asked = values.tolist()
        self.last, self.asked = dict(zip(names, found, strict=True)), int(asked)
        if diverges:
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
