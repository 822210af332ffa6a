r"""Is every direction of x supervised? The eigenvalues of :math:`E[A^\top A \mid \tilde A]`.

References:
    Ambient Diffusion (Daras et al., 2023), Theorem 4.1, arXiv:2305.19256
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from cleanprior.operators import Operator, Params
from cleanprior.operators.base import take

#: Dense matrices of 4,096 draws stay below 150 MB up to here.
LIMIT = 64


def conditional_gram(
    operator: Operator, delta: float, draws: int, least: int, generator: Generator
) -> list[tuple[Params, Float[Tensor, "d d"]]]:
    r"""Estimate :math:`E[A^\top A \mid \tilde A]` by averaging over draws with equal A-tilde.

    Arguments:
        operator: A family with random parameters and further corruption.
        delta: Passed to its further corruption.
        draws: How many pairs of A and A-tilde are drawn.
        least: Draws that an A-tilde must have to be listed.
        generator: Source of randomness.

    Returns:
        A-tilde's parameters (one image) and the average, for each A-tilde drawn often enough; none
        where A-tilde is continuous or has too many values.
    """
    params = operator.draw(draws, generator)
    further = operator.further(params, delta, generator)
    groups: dict[bytes, list[int]] = {}
    for i in range(draws):
        key = b"".join(v[i].numpy().tobytes() for _, v in sorted(further.items()))
        groups.setdefault(key, []).append(i)
    found = []
    for members in groups.values():
        if len(members) >= least:
            a = operator.matrix(take(params, torch.tensor(members)), len(members))
            found.append((take(further, slice(members[0], members[0] + 1)), (a.mT @ a).mean(0)))
    return found


def weakest(
    operator: Operator, delta: float, generator: Generator, images: int = 64
) -> tuple[float, Params] | None:
    r"""Return the smallest eigenvalue of :math:`E[A^\top A \mid \tilde A]` over drawn A-tilde.

    From the family's closed form where it has one, else by Monte Carlo on images of at most 64
    entries (4,096 draws, A-tilde that came up 32 times).

    Returns:
        The eigenvalue and the parameters of its A-tilde (one image); None where neither way works.
    """
    further = operator.further(operator.draw(images, generator), delta, generator)
    values = operator.supervision(further, delta)
    if values is not None:
        smallest = values.amin(1)
        worst = int(smallest.argmin())
        return float(smallest[worst]), take(further, slice(worst, worst + 1))
    channels, height, width = operator.image_shape
    if channels * height * width > LIMIT:
        return None
    averages = conditional_gram(operator, delta, 4096, 32, generator)
    pairs = [(float(torch.linalg.eigvalsh(gram)[0]), params) for params, gram in averages]
    return min(pairs, key=lambda pair: pair[0], default=None)
