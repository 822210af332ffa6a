"""Which positions of k-space are measured: the centre always, others at random."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ..mapped import blocks
from .base import distinct
from .base import mean as mean_of

#: Masks from a file may measure another number than the law by this share of it: published line
#: masks are drawn line by line, so that their number varies.
SLACK = 0.05


class Sampling:
    """Lines of k-space, or single points of it, of which the middle ones are always measured.

    Arguments:
        size: Rows and columns of a mask: (1, width) for lines, (height, width) for points.
        count: Positions that are measured.
        centre: Rows and columns of the block in the middle that is always measured.
        further: Positions outside the centre that further corruption drops.
    """

    def __init__(
        self, size: tuple[int, int], count: int, centre: tuple[int, int], further: int
    ) -> None:
        self.size, self.count, self.further_count = size, count, further
        middle = torch.zeros(size)
        top, left = (n // 2 - c // 2 for n, c in zip(size, centre, strict=True))
        middle[top : top + centre[0], left : left + centre[1]] = 1
        self.centre = middle
        self.centre_count = centre[0] * centre[1]

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n 1 a w"]:
        """Draw masks, 1 = measured."""
        middle = self.centre.flatten()
        count = self.count - self.centre_count
        mask = middle.repeat(n, 1)
        if count:
            chosen = torch.multinomial((1 - middle).expand(n, -1), count, generator=generator)
            mask = mask.scatter(1, chosen, 1.0)
        return mask.reshape(n, 1, *self.size)

    def drop(
        self, mask: Float[Tensor, "n 1 a w"], generator: Generator
    ) -> Float[Tensor, "n 1 a w"]:
        """Drop measured positions outside the centre.

        Raises:
            ValueError: A mask that measures fewer of them.
        """
        free = mask.flatten(1).cpu() * (1 - self.centre.flatten())
        if (least := int(free.sum(1).min())) < self.further_count:
            raise ValueError(
                f"further corruption drops {self.further_count} measured positions outside the "
                f"centre and a mask has {least}; set operator.further_lines={least}"
            )
        dropped = torch.multinomial(free, self.further_count, generator=generator)
        flat = mask.flatten(1).scatter(1, dropped.to(mask.device), 0.0)
        return flat.reshape(mask.shape)

    def shown(self, further: Float[Tensor, "n 1 a w"]) -> Float[Tensor, "n 1 a w"]:
        """Return how probable it is that a position is measured, given what is left of a mask.

        Any of the hidden positions may be those that were dropped.
        """
        hidden = self.centre.numel() - self.count + self.further_count
        mask = further.double()
        return mask + (1 - mask) * self.further_count / hidden

    def mismatch(self, mask: Float[Tensor, "n 1 a w"], what: str) -> str | None:
        """Return how masks from a file contradict the law, or None.

        Arguments:
            mask: Their masks.
            what: Plural of what is counted, ``lines`` or ``points``.
        """
        total = self.centre.numel()
        mean = mean_of(mask) * mask[0].numel()
        if abs(mean - self.count) > max(1.0, SLACK * self.count):
            return (
                f"the masks measure {mean:.4g} of {total} {what} and operator.acceleration means "
                f"{self.count}; set operator.acceleration={total / max(mean, 1):.3g}"
            )
        always = torch.stack([part.amin(0)[0] for part in blocks(mask)]).amin(0)
        if (always < self.centre).any():
            return (
                f"the middle {what} are not measured in all images, as operator.centre_lines "
                f"says; the masks have {self.width_of_centre(always)} of them"
            )
        wide = self.width_of_centre(always)
        share = (self.count - self.centre_count) / max(total - self.centre_count, 1)
        more = int((always * (1 - self.centre)).sum())
        is_wider = self.size[0] == 1 and wide > self.centre_count
        if is_wider and (different := distinct(mask)) > 1 and share ** (different * more) < 1e-6:
            return (
                f"{wide} middle lines are measured in every image and operator.centre_lines is "
                f"{self.centre_count}; set operator.centre_lines={wide}"
            )
        return None

    def width_of_centre(self, always: Float[Tensor, "a w"]) -> int:
        """Return the side of the largest middle block that is measured everywhere."""
        rows, columns = self.size
        for side in range(columns, 0, -1):
            high = min(side, rows)
            top, left = rows // 2 - high // 2, columns // 2 - side // 2
            if always[top : top + high, left : left + side].all():
                return side
        return 0


__all__ = ["Sampling"]
