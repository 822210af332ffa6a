"""Processes that train together: who is who, and gradients that all of them share."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from .. import stopping
from ..errors import PeerLost

#: Numbers in one exchange: large enough for the network, small enough for memory.
BUCKET = 6_000_000


@dataclass(frozen=True)
class Ranks:
    """The processes of one training.

    Attributes:
        index: Which of them this is.
        count: How many there are.

    All that is exchanged raises :class:`cleanprior.errors.PeerLost` where another one is gone, and
    :class:`cleanprior.stopping.Stopped` where this one was asked to end as well.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, accelerator: Accelerator) -> "Ranks":
        """Return the processes that a launcher has started."""
        return cls(accelerator.process_index, accelerator.num_processes)

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all of them share."""
        return self.index == 0

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.count > 1:
            with _exchange():
                dist.barrier()

    def agree(self, network: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.count > 1:
            with _exchange():
                for tensor in [*network.parameters(), *network.buffers()]:
                    dist.broadcast(tensor.data, 0)

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Put the mean over all processes in the place of each process's gradients."""
        if self.count == 1:
            return
        for bucket in _buckets(gradients):
            flat = torch.cat([g.flatten() for g in bucket])
            with _exchange():
                dist.all_reduce(flat)
            flat /= self.count
            for gradient, mean in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def largest(self, values: Tensor) -> Tensor:
        """Put the largest of all processes' values in the place of each process's."""
        if self.count > 1:
            with _exchange():
                dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def total(self, counts: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """Return the sums of what all processes have counted."""
        if self.count == 1:
            return counts
        gathered: list[Any] = [None] * self.count
        with _exchange():
            dist.all_gather_object(gathered, counts)
        found: dict[str, dict[str, float]] = {}
        for one in gathered:
            for name, kinds in one.items():
                sums = found.setdefault(name, {})
                for kind, count in kinds.items():
                    sums[kind] = sums.get(kind, 0) + count
        return found

    def told(self, text: str) -> str:
        """Return the text that the first process holds."""
        if self.count == 1:
            return text
        shared: list[str] = [text]
        with _exchange():
            dist.broadcast_object_list(shared, 0)
        return shared[0]


@contextmanager
def _exchange() -> Iterator[None]:
    """Say in our words that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        stopping.check()  # all were asked to end, and another one was faster
        raise PeerLost(f"a process that it trains with is gone: {error}") from error


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients of one type in groups of about :data:`BUCKET` numbers."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.numel() > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket
