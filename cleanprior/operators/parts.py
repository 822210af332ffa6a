"""Measuring in parts: the bytes of one call, in the memory of a part.

Normal numbers of one generator, drawn in several calls, are those of one call where each call fills
whole vectors of :data:`VECTOR` numbers, so a part has a multiple of that many images. And A of some
images must be some rows of A of all: a class of operators says that of itself
(:attr:`cleanprior.operators.base.Operator.has_parts`). Any other operator measures all at once.
"""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Generator, Tensor

from ..mapped import BLOCK
from .base import Operator, Params, take

#: Numbers that torch's CPU generator makes at a time.
VECTOR = 16
#: Bytes of the images of a part, about.
PART = BLOCK


def measure_parts(
    operator: Operator, x: Tensor, params: Params, generator: Generator
) -> Iterator[Tensor]:
    """Yield y of consecutive images; together they are ``operator.measure(x, params, generator)``.

    Arguments:
        operator: The forward operator, on the CPU.
        x: Images, (n, c, h, w).
        params: Their parameters.
        generator: Source of the noise.
    """
    if not (vars(type(operator)).get("has_parts", False) and _draws_in_parts()):
        yield operator.measure(x, params, generator)
        return
    count = max(1, PART // (VECTOR * x[:1].nbytes)) * VECTOR
    first = 0
    while first < len(x):
        # The rest is added to the last part: less than a vector is drawn in another way.
        last = first + count if len(x) - first - count >= VECTOR else len(x)
        part = slice(first, last)
        yield operator.measure(x[part], take(params, part), generator)
        first = last


@cache
def _draws_in_parts() -> bool:
    """Whether this version of torch draws what the module says of it."""
    numbers = (3 * VECTOR, VECTOR, 5 * VECTOR + 3)
    whole = torch.randn(sum(numbers), generator=Generator().manual_seed(0))
    generator = Generator().manual_seed(0)
    return torch.equal(whole, torch.cat([torch.randn(n, generator=generator) for n in numbers]))


__all__ = ["measure_parts"]
