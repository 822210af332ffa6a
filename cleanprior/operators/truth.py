"""Measurements by one operator that are believed to be another's."""

from dataclasses import dataclass

import torch
from torch import Generator

from ..errors import UserError
from .base import Operator, Params, take


@dataclass(frozen=True)
class Truth:
    """What really measured.

    Attributes:
        operator: The operator that measures; its parameters are drawn from the same stream as those
            of the believed one, and are the same where the laws are.
        shift: Pixels by which its parameters of an image (masks, coil maps) lie to the right of the
            believed ones, around the edge.
    """

    operator: Operator
    shift: int = 0

    def draw(self, n: int, generator: Generator) -> Params:
        """Draw the true parameters of n images."""
        params = self.operator.draw(n, generator)
        if self.shift == 0:
            return params
        width = self.operator.image_shape[-1]
        return {
            k: torch.roll(v, self.shift, -1) if _lies_on_pixels(v.shape, width) else v
            for k, v in params.items()
        }

    def check(self, believed: Operator) -> None:
        """Check that somebody could mistake one operator for the other.

        Raises:
            UserError: Their measurements have different shapes, or a shift that moves nothing.
        """
        shapes = []
        for operator in (believed, self.operator):
            params = operator.draw(2, Generator().manual_seed(0))
            one = torch.zeros(1, *operator.image_shape)
            shapes.append(tuple(operator.A(one, take(params, slice(0, 1))).shape[1:]))
        if shapes[0] != shapes[1]:
            raise UserError(
                f"truth: measurements have the shape {shapes[1]}, and those of the operator "
                f"{shapes[0]}; give a truth that could be mistaken for it"
            )
        width = believed.image_shape[-1]
        if self.shift and not any(_lies_on_pixels(v.shape, width) for v in params.values()):
            raise UserError(
                f"truth.shift={self.shift}: {believed.name} has no parameters of an image (masks) "
                "that could be shifted"
            )


def _lies_on_pixels(shape: torch.Size, width: int) -> bool:
    return len(shape) >= 3 and shape[-1] == width
