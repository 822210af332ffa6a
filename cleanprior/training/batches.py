"""Which images a batch holds: every image once an epoch, the same after an interruption."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from ..seeding import generator_for


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, number: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=generator_for(seed, "order", round=number, epoch=epoch))


def batch_index(
    n: int, batch: int, k: int, seed: int, number: int, rank: int = 0, ranks: int = 1
) -> Tensor:
    """Return the images of batch ``k``: consecutive parts of one permutation an epoch.

    Arguments:
        n: Images in the training set.
        batch: Images in a batch of one process.
        k: Number of the batch in its round.
        seed: Training seed.
        number: Number of the round.
        rank: This process.
        ranks: Processes; each takes its own part.
    """

    def positions() -> Iterator[Tensor]:
        position, left = (k * ranks + rank) * batch, batch
        while left:
            epoch, offset = divmod(position, n)
            part = _permutation(n, seed, number, epoch)[offset : offset + left]
            yield part
            position, left = position + len(part), left - len(part)

    return torch.cat(list(positions()))
