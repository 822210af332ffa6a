"""Patches of large images: where they lie, and that none is in both splits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..memory import total_bytes
from ..seeding import generator_for
from .splits import held_out

#: Where images are too few to hold some out, blocks of up to this many patches a side are.
BLOCK = 4
#: Images from which whole ones are held out.
LEAST_IMAGES = 3


@dataclass(frozen=True)
class Patches:
    """Squares that are cut from images.

    Arguments:
        side: Their side in pixels.
        stride: Pixels from one to the next; None is ``side``, a grid without overlap; 1 is every
            position. Held-out patches always lie on the grid without overlap.

    Raises:
        UserError: No pixels, or a stride beyond the side, which would leave pixels out.
    """

    side: int
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.side < 1:
            raise UserError(f"patch={self.side} is not a size; allowed: at least 1 pixel")
        if self.stride is not None and not 1 <= self.stride <= self.side:
            raise UserError(f"stride={self.stride}; allowed: from 1 to patch={self.side}")

    def corners(self, height: int, width: int, stride: int) -> Int[Tensor, "m 2"]:
        """Return the upper left corners of patches within an image, row by row."""
        rows, columns = (torch.arange(0, n - self.side + 1, stride) for n in (height, width))
        return torch.cartesian_prod(rows, columns).reshape(-1, 2)

    def split(
        self,
        names: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        share: float,
        is_test: Sequence[bool] | None = None,
    ) -> tuple[Int[Tensor, "m 3"], Int[Tensor, "k 3"], str]:
        """Return the places of training patches and of held-out ones, and how they were split.

        A place is the number of the image, the row and the column of the corner. Whole images are
        held out; of one or two images, blocks are, and training patches that touch one are left
        out. No pixel is in both splits.

        Arguments:
            names: A name or hash of each image, by which it is held out.
            sizes: Height and width of each image.
            share: Share of images (blocks) that are held out.
            is_test: Which images are held out, where that is known.

        Raises:
            UserError: An image smaller than a patch, or too few of them.
        """
        for name, (height, width) in zip(names, sizes, strict=True):
            if min(height, width) < self.side:
                raise UserError(
                    f"patch={self.side} is larger than image '{name[:60]}' of {height}x{width}"
                )
        if is_test is not None or len(set(names)) >= LEAST_IMAGES:
            chosen = held_out(names, share).tolist() if is_test is None else is_test
            parts = [self._whole(i, sizes[i], is_test) for i, is_test in enumerate(chosen)]
            train = [p for p, is_test in zip(parts, chosen, strict=True) if not is_test]
            test = [p for p, is_test in zip(parts, chosen, strict=True) if is_test]
            how = f"of {len(train)} and {len(test)} images"
        else:
            both = [self._blocks(i, names[i], sizes[i], share) for i in range(len(names))]
            train, test = [b[0] for b in both], [b[1] for b in both]
            how = f"of different blocks of {len(names)} image{'s' * (len(names) > 1)}"
        return torch.cat(train), torch.cat(test), how

    def _whole(self, number: int, size: tuple[int, int], is_test: bool) -> Tensor:
        stride = self.side if is_test or self.stride is None else self.stride
        return _numbered(number, self.corners(*size, stride))

    def _blocks(
        self, number: int, name: str, size: tuple[int, int], share: float
    ) -> tuple[Tensor, Tensor]:
        """Return the places within blocks for training, and those within blocks held out."""
        fitting = min(size) // self.side
        side = self.side * max(1, min(BLOCK, fitting // BLOCK))
        rows, columns = (math.ceil(n / side) for n in size)
        keys = [f"{name}#{r},{c}" for r in range(rows) for c in range(columns)]
        is_test = held_out(keys, share).reshape(rows, columns)

        def ends(stride: int) -> tuple[Tensor, Tensor, Tensor]:
            """Rows and columns, and which of four corners lie in a block that is held out."""
            last = self.side - 1
            r, c = (torch.arange(0, n - last, stride) for n in size)
            found = [is_test[(r + i) // side][:, (c + j) // side] for i in (0, last)
                     for j in (0, last)]  # fmt: skip
            return r, c, torch.stack(found)

        r, c, inside = ends(self.stride or self.side)
        train = _corners(r, c, ~inside.any(0))
        r, c, inside = ends(self.side)
        test = _corners(r, c, inside.all(0))
        if len(train) == 0 or len(test) < 2:
            raise UserError(
                f"one image of {size[0]}x{size[1]} has too few patches of {self.side} pixels to "
                "hold two out; give more images or a smaller patch"
            )
        return _numbered(number, train), _numbered(number, test)

    def draw(
        self, places: Int[Tensor, "m 3"], limit: int | None, channels: int, split: str
    ) -> Int[Tensor, "k 3"]:
        """Return at most ``limit`` places, drawn evenly, in an order of their own.

        Arguments:
            places: All of them.
            limit: How many, or None for all.
            channels: Of the patches, which are to be in memory; 0 where they are not.
            split: ``train`` or ``test``.

        Raises:
            UserError: More patches than fit in half of this machine's memory.
        """
        generator = generator_for(0, "patches", split=split)
        order = torch.randperm(len(places), generator=generator)[:limit]
        each = 4 * channels * self.side**2
        if each and (most := total_bytes() // (2 * each)) < len(order):
            raise UserError(
                f"{len(order):,} patches of {self.side} pixels need more than half of this "
                f"machine's memory; set data.limit to at most {most:,}, or a larger data.stride"
            )
        return places[order]

    def cut(
        self, images: Sequence[Tensor] | Tensor, places: Int[Tensor, "m 3"]
    ) -> Float[Tensor, "m c s t"]:
        """Return the patches at these places of images (c, h, w), which may differ in size."""
        first = images[0]
        found = torch.empty(len(places), len(first), self.side, self.side, dtype=first.dtype)
        for i, (number, row, column) in enumerate(places.tolist()):
            found[i] = images[number][:, row : row + self.side, column : column + self.side]
        return found


def _corners(rows: Tensor, columns: Tensor, chosen: Tensor) -> Tensor:
    found = chosen.nonzero()
    return torch.stack([rows[found[:, 0]], columns[found[:, 1]]], 1)


def _numbered(number: int, corners: Tensor) -> Tensor:
    return torch.cat([torch.full((len(corners), 1), number), corners], 1)
