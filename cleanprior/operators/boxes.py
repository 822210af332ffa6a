r"""Box masks: one square of each image is missing, its place drawn once for each image."""

import torch
from deepinv.physics import Inpainting
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from typing_extensions import override

from ..mapped import blocks
from .base import ImageShape, Operator, Params


class BoxInpainting(Operator):
    r"""One missing square an image, at a uniformly drawn place, the same in all channels.

    The box hides ``side**2`` of the ``height * width`` pixels: side 3 of 8x8 is 14 % of the area.
    Further corruption hides a second box. The two never overlap: a pixel that both hide would be
    hidden by every operator compatible with A-tilde, and Ambient's theorem would fail there.

    Arguments:
        image_shape: Shape of an image, (channels, height, width).
        side: Side of the box in pixels. Two boxes must fit wherever the first one lies, which is so
            from ``3 * side - 1`` rows or columns on.
        overlap: Let the second box lie anywhere, as in the authors' code.
        sigma: Noise level on observed pixels, in units of x, at least 0.

    Raises:
        ValueError: ``side`` that leaves no room for a second box, or (with ``overlap``) pixels that
            every box hides.

    References:
        Ambient Diffusion (Daras et al., 2023), section 3.1, arXiv:2305.19256
    """

    has_parts = True

    def __init__(self, image_shape: ImageShape, side: int, overlap: bool, sigma: float) -> None:
        _, height, width = image_shape
        longest = max(height, width)
        limit = min(height, width, longest // 2 if overlap else (longest + 1) // 3)
        if not 1 <= side <= limit:
            raise ValueError(
                f"side={side} does not leave room for a second box on images of {height}x{width}; "
                f"allowed: 1 to {limit}"
            )
        super().__init__(Inpainting(img_size=tuple(image_shape)), image_shape, sigma)
        self.side = side
        self.overlap = overlap
        rows, columns = torch.arange(height - side + 1), torch.arange(width - side + 1)
        self._corners = torch.cartesian_prod(rows, columns)

    @property
    @override
    def name(self) -> str:
        return "box"

    def _allowed(self, place: Int[Tensor, " n"]) -> Bool[Tensor, "n k"]:
        """Return which places a second box may take beside a first one."""
        distance = (self._corners[place][:, None] - self._corners).abs().amax(2)
        return distance >= (0 if self.overlap else self.side)

    def _mask(self, place: Int[Tensor, " n"]) -> Float[Tensor, "n 1 h w"]:
        """Return the masks that hide the box at these places, 1 = seen."""
        _, height, width = self.image_shape
        top, left = self._corners[place].T[..., None]
        rows = (torch.arange(height) >= top) & (torch.arange(height) < top + self.side)
        columns = (torch.arange(width) >= left) & (torch.arange(width) < left + self.side)
        return 1 - (rows[:, None, :, None] & columns[:, None, None, :]).float()

    def _places(self, mask: Float[Tensor, "n 1 h w"]) -> Int[Tensor, "n 2"]:
        """Find the first and the last box of each mask; equal where there is one box.

        In reading order, the first hidden pixel is the upper left corner of a box and the last one
        the lower right corner of a box, whether boxes overlap or not.
        """
        _, height, width = self.image_shape
        hidden = (mask == 0).flatten(1).int().cpu()
        first = hidden.argmax(1)
        last = height * width - 1 - hidden.flip(1).argmax(1) - (self.side - 1) * (width + 1)
        corner = torch.stack([first, last], 1)
        return (corner // width) * (width - self.side + 1) + corner % width

    @override
    def draw(self, n: int, generator: Generator) -> Params:
        place = torch.randint(len(self._corners), (n,), generator=generator)
        return {"mask": self._mask(place)}

    def mismatch(self, params: Params) -> str | None:
        """Compare each mask with a box of ``side`` pixels."""
        mask = params["mask"]
        hidden = torch.cat([(part == 0).flatten(1).sum(1) for part in blocks(mask)])
        sides = (hidden.double() ** 0.5).round()
        odd = (sides**2 != hidden).nonzero()
        if len(odd):
            return f"the mask of image {int(odd[0])} hides {int(hidden[odd[0]])} pixels: no square"
        low, high = int(sides.min()), int(sides.max())
        if (low, high) != (self.side, self.side):
            found = f"{low}" if low == high else f"{low} to {high}"
            advice = f"; set operator.side={low}" if low == high > 0 else ""
            return f"the boxes have sides of {found} and operator.side is {self.side}{advice}"
        first = 0
        for part in blocks(mask):
            corners = self._places(part)[:, 0].clamp(0, len(self._corners) - 1)
            odd = (self._mask(corners) != part).flatten(1).any(1).nonzero()
            if len(odd):
                number = first + int(odd[0])
                return f"what the mask of image {number} hides is no square of {self.side} pixels"
            first += len(part)
        return None

    @override
    def observed(self, y: Float[Tensor, "b ..."], params: Params) -> Float[Tensor, "b ..."]:
        return params["mask"].expand_as(y)

    def further(self, params: Params, delta: float, generator: Generator) -> Params:
        r"""Hide a second box, at a place drawn among those allowed; ``delta`` has no part in it."""
        mask = params["mask"]
        allowed = self._allowed(self._places(mask)[:, 0])
        place = torch.multinomial(allowed.float(), 1, generator=generator)[:, 0]
        return {"mask": mask * self._mask(place).to(mask.device)}

    def supervision(self, further: Params, delta: float) -> Float[Tensor, "n d"]:
        """Return how probable it is that A shows each pixel, given the two boxes of A-tilde.

        Either box may be that of A, in proportion to 1 over the places that it leaves.
        """
        mask = further["mask"]
        places = self._places(mask)
        free = [self._allowed(places[:, i]).sum(1) for i in range(2)]
        weight = 1 / torch.stack(free, 1).double()
        weight = weight / weight.sum(1, keepdim=True)
        shown = sum(weight[:, i, None, None, None] * self._mask(places[:, i]) for i in range(2))
        assert isinstance(shown, Tensor)
        return shown.expand(len(mask), *self.image_shape).flatten(1).to(mask.device)

    @override
    def describe(self, params: Params, n: int) -> Float[Tensor, "n c h w"]:
        return params["mask"]

    @property
    @override
    def description_channels(self) -> int:
        return 1

    @override
    def matrix(self, params: Params, n: int) -> Float[Tensor, "n m d"]:
        return torch.diag_embed(params["mask"].expand(n, *self.image_shape).flatten(1).double())
