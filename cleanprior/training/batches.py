"""Which images a batch holds: every image once an epoch, the same after an interruption."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from ..seeding import generator_for, seed_for

#: Images beyond which an epoch's order is computed place by place: as a list, that of 10^8 images
#: is larger than most networks.
LISTED = 1 << 22
#: Rounds of the cipher that is such an order.
ROUNDS = 6


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, number: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=generator_for(seed, "order", round=number, epoch=epoch))


def _places(n: int, places: Tensor, seed: int, number: int, epoch: int) -> Tensor:
    """Return which images stand at some places of an epoch's order, without the whole of it.

    A Feistel cipher permutes the numbers of an even count of bits, at most four times n of them;
    one that is no image is permuted again until it is (cycle walking), which permutes the images.
    """
    bits = max(1, -(-(n - 1).bit_length() // 2))
    low = (1 << bits) - 1
    keys = [
        seed_for(seed, "order", round=number, epoch=epoch, cipher=k) & 0x7FFFFFFF
        for k in range(ROUNDS)
    ]
    found, is_open = places.clone(), torch.ones(len(places), dtype=torch.bool)
    while is_open.any():
        left, right = found >> bits, found & low
        for key in keys:
            # Below 2^63 all the way: the mixer's numbers have 31 bits.
            mixed = (right ^ key) * 0x45D9F3B & 0x7FFFFFFF
            mixed = (mixed ^ mixed >> 15) * 0x119DE1F3 & 0x7FFFFFFF
            left, right = right, left ^ ((mixed ^ mixed >> 16) & low)
        found = torch.where(is_open, left << bits | right, found)
        is_open = found >= n
    return found


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
            if n <= LISTED:
                part = _permutation(n, seed, number, epoch)[offset : offset + left]
            else:
                places = torch.arange(offset, min(offset + left, n))
                part = _places(n, places, seed, number, epoch)
            yield part
            position, left = position + len(part), left - len(part)

    return torch.cat(list(positions()))
