r"""Groups that images are declared invariant to, and what they add to a fixed operator.

A fixed operator shows the same directions of every image, and nothing of the others. Where the law
of x does not change under T_g, each measurement counts as one of A T_g for every g, and the law is
identifiable where the stack of all A T_g has full column rank: that of a mask with shifts has, and
that of a blur, which commutes with them, has not.

References:
    Equivariant Imaging: Learning Beyond the Range Space (Chen et al., 2021), section 3,
    arXiv:2103.14756
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from ..seeding import generator_for
from .base import ImageShape, Operator

#: Left to right, quarter turns, shifts around the edges.
SYMMETRIES = ("flip", "turn", "shift")
#: Smallest eigenvalue, over the largest, below which a direction counts as never shown.
LEAST = 1e-3
#: Numbers of an image up to which the eigenvalues are exact, and elements of the group looked at.
DENSE, ELEMENTS = 1024, 256
#: Power iterations for larger images, and elements of the group in them.
STEPS, FEWER = 60, 32


def transformed(
    x: Float[Tensor, "b c h w"], symmetries: Sequence[str], generator: Generator
) -> Float[Tensor, "b c h w"]:
    """Apply one element of the group to each image, drawn uniformly.

    Arguments:
        x: Images; square ones for ``turn``.
        symmetries: Of :data:`SYMMETRIES`; the group is what they generate.
        generator: On the CPU.

    Raises:
        ValueError: ``turn`` on images that are not square.
    """
    b, _, h, w = x.shape
    return moved(x, draw_places(b, (h, w), symmetries, generator))


def moved(x: Float[Tensor, "b c h w"], places: Int[Tensor, "b hw"]) -> Float[Tensor, "b c h w"]:
    """Transform each image by its element of the group; ``places.argsort(1)`` undoes it.

    Arguments:
        x: Images.
        places: Of :func:`draw_places`.
    """
    flat, channels = x.flatten(2), x.shape[1]
    index = places.to(x.device)[:, None].expand(-1, channels, -1)
    return flat.gather(2, index).reshape(x.shape)


def draw_places(
    n: int, size: tuple[int, int], symmetries: Sequence[str], generator: Generator
) -> Int[Tensor, "n hw"]:
    """Draw elements of the group uniformly: which pixel of an image each of its transform shows.

    Arguments:
        n: How many.
        size: (height, width) of the images; equal for ``turn``.
        symmetries: Of :data:`SYMMETRIES`; the group is what they generate.
        generator: On the CPU.

    Raises:
        ValueError: ``turn`` on images that are not square.
    """
    h, w = size
    if "turn" in symmetries and h != w:
        raise ValueError(f"turn needs square images, these have {h}x{w}")
    turns, flips, down, right = (
        torch.randint(count, (n,), generator=generator) for count in (4, 2, h, w)
    )
    zero = torch.zeros(n, dtype=torch.long)
    return _places(
        size,
        turns if "turn" in symmetries else zero,
        flips if "flip" in symmetries else zero,
        *((down, right) if "shift" in symmetries else (zero, zero)),
    )


def _places(
    size: tuple[int, int], turns: Tensor, flips: Tensor, down: Tensor, right: Tensor
) -> Int[Tensor, "b hw"]:
    """Return which pixel of an image each pixel of its transform shows."""
    h, w = size
    grid = torch.arange(h * w).reshape(1, h, w).expand(len(turns), h, w)
    if turns.any():
        turned = [torch.rot90(g, int(k), (0, 1)) for g, k in zip(grid, turns, strict=True)]
        grid = torch.stack(turned)
    grid = torch.where(flips.bool()[:, None, None], grid.flip(2), grid)
    rows = (torch.arange(h) - down[:, None]) % h
    columns = (torch.arange(w) - right[:, None]) % w
    number = torch.arange(len(turns))[:, None, None]
    return grid[number, rows[:, :, None], columns[:, None, :]].flatten(1)


def unshown(operator: Operator, name: str, symmetries: Sequence[str], key: str) -> str | None:
    """Return why declared symmetries do not make up for what an operator hides, or None.

    Arguments:
        operator: The forward operator.
        name: Its name, for the sentence.
        symmetries: Of :data:`SYMMETRIES`.
        key: The method's key that declares them, for the sentence.
    """
    _, height, width = operator.image_shape
    if "turn" in symmetries and height != width:
        return f"{key}=[turn] needs square images; these have {height}x{width}"
    if "fixed" not in operator.capabilities:
        return None
    share = least_shown(operator.to("cpu"), symmetries)
    if share >= LEAST:
        return None
    return (
        f"{key}=[{','.join(symmetries)}]: {name} and its transforms show some direction in no "
        f"image (smallest eigenvalue {share:.1e} of the largest; needed {LEAST:g})"
    )


def least_shown(operator: Operator, symmetries: Sequence[str]) -> float:
    r"""Return the smallest eigenvalue of :math:`\sum_g T_g^\top A^\top A T_g` over the largest.

    Exact up to :data:`DENSE` numbers an image where the group has at most :data:`ELEMENTS`
    elements; otherwise of that many drawn ones, whose rank is at most the group's. Larger images
    get a power iteration, whose result is an upper bound: it finds the directions that are never
    shown, and may miss one of thousands that is only faintly shown.

    Arguments:
        operator: A fixed operator, on the CPU.
        symmetries: Of :data:`SYMMETRIES`; none asks for the operator alone.
    """
    places = elements(operator.image_shape, symmetries)
    d = int(np.prod(operator.image_shape))
    if d <= DENSE:
        gram = _normal(operator, torch.eye(d).reshape(d, *operator.image_shape)).flatten(1).double()
        whole = [_of_pixels(p, operator.image_shape) for p in places]
        mean = torch.stack([gram[p][:, p] for p in whole]).mean(0).numpy()
        found = np.linalg.eigvalsh((mean + mean.T) / 2)
        return float(max(found[0], 0) / found[-1])
    return _iterated(operator, places[:FEWER], d)


def _iterated(operator: Operator, places: Tensor, d: int) -> float:
    shape = operator.image_shape
    forth = torch.stack([_of_pixels(p, shape) for p in places])
    back = forth.argsort(1)

    def apply(x: Tensor) -> Tensor:
        moved = x[None].expand(len(forth), d).gather(1, back)
        pulled = _normal(operator, moved.reshape(-1, *shape)).flatten(1).gather(1, forth)
        return pulled.mean(0)

    def largest(apply: Callable[[Tensor], Tensor]) -> float:
        x = torch.randn(d, generator=generator_for(0, "probe"))
        for _ in range(STEPS):
            x = apply(x / x.norm())
        x = x / x.norm()
        return float(x @ apply(x))

    top = largest(apply)
    return max(0.0, 1 - largest(lambda x: x - apply(x) / top))


def _normal(operator: Operator, x: Tensor) -> Tensor:
    """Apply A^T A, some images at a time, all with the operator's one set of parameters."""
    one = operator.draw(1, generator_for(0, "rank"))
    parts = []
    for part in x.split(64):
        params = {k: v.expand(len(part), *v.shape[1:]) for k, v in one.items()}
        parts.append(operator.A_adjoint(operator.A(part, params), params))
    return torch.cat(parts)


def elements(shape: ImageShape, symmetries: Sequence[str]) -> Int[Tensor, "g hw"]:
    """Return elements of the group as places of pixels: all, or :data:`ELEMENTS` drawn ones."""
    _, h, w = shape
    ranges = (
        range(4 if "turn" in symmetries else 1),
        range(2 if "flip" in symmetries else 1),
        range(h if "shift" in symmetries else 1),
        range(w if "shift" in symmetries else 1),
    )
    every = torch.tensor(list(product(*ranges)))
    if len(every) > ELEMENTS:
        chosen = torch.randperm(len(every), generator=generator_for(0, "group"))[:ELEMENTS]
        every = every[chosen]
    return _places((h, w), *every.unbind(1))


def _of_pixels(place: Int[Tensor, " hw"], shape: ImageShape) -> Int[Tensor, " d"]:
    """Return places of one channel as those of all."""
    channels = torch.arange(shape[0])[:, None] * len(place)
    return (channels + place).flatten()
