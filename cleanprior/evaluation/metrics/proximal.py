r"""Proximal Frechet distance: whether samples, corrupted again, are distributed as y.

.. math:: \mathrm{FD}\big(\{A'\hat x + \sigma_y z\}, \{y\}\big)

with fresh parameters and fresh noise, both sides lifted to images and clipped alike. No clean image
is needed, so it may choose checkpoints and settings where a distance to clean images may not. It is
blind to what the operator hides from everybody (the null space of a fixed operator), and large
noise or masks compress differences: read it between its floor and its ceiling.

Features that were learned from clean images of the data would break that promise: pixels, or a
network of other photographs.

References:
    Score Distillation Beyond Acceleration: Generative Modeling from Corrupted Data (Zhang et al.,
        2025), arXiv:2505.13377
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ...data.measurements import Measurements
from ...mapped import LARGE, rows
from ...operators.base import Operator, take
from ...operators.levels import column
from ...progress import Progress
from ...seeding import generator_for, randn_like
from ..references import remembered, repeats, resampled_distance
from .features import SHOWN, SILENT, Features, compute, features_of_parts
from .generation import MeanStd
from .restoration import Moments


def corrupt(
    x: Float[Tensor, "n c h w"],
    operator: Operator,
    generator: Generator,
    like: Measurements | None = None,
) -> Float[Tensor, "n c h w"]:
    """Measure images with fresh parameters and noise, and lift the measurements to images.

    Arguments:
        x: Images.
        operator: Its parameter law is used.
        generator: Source of parameters and noise.
        like: Draw parameters and noise levels from these measurements, with replacement, in place
            of the operator's own law: for measurements that were not simulated.
    """
    if like is None:
        params = operator.draw(len(x), generator)
        return operator.lift(operator.measure(x, params, generator), params)
    chosen = torch.randint(len(like), (len(x),), generator=generator)
    params = take(like.params, chosen)
    y = operator.A(x, params)
    level = column(rows(like.sigma_y, chosen), y)
    y = y + level * randn_like(y, generator) * operator.observed(y, params)
    return operator.lift(y, params)


#: Bytes of lifted measurements in memory, where they are many.
BLOCK = 16 << 20


@dataclass(frozen=True)
class Proximal:
    """The reference side of the distance: features of the training measurements.

    Arguments:
        features: Applied to lifted images, clipped to [-1, 1].
        operator: Corrupts samples.
        measured: The training measurements.
        seed: Evaluation seed.
        is_simulated: Whether ``operator`` drew the measurements; else their own parameters and
            noise levels are drawn from again.
        cache: Folder where a slow network's features of the measurements are kept.
        progress: Where to show a slow network at work.
    """

    features: Features
    operator: Operator
    measured: Measurements
    seed: int
    is_simulated: bool = True
    cache: Path | None = None
    progress: Progress = SILENT

    _reference: Tensor = field(init=False, repr=False)
    _moments: Moments = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found = features_of_parts(
            self.features, self._lifted, len(self.measured), self.cache, self.progress
        )
        object.__setattr__(self, "_reference", found)
        object.__setattr__(self, "_moments", Moments.of(found))

    def _lifted(self) -> Iterator[Tensor]:
        """Yield the measurements lifted to images; where they are many, in parts."""
        size = 4 * math.prod(self.operator.image_shape)
        # Parts of what a slow network takes at a time.
        count = SHOWN * max(1, BLOCK // (SHOWN * size))
        is_small = len(self.measured) * size <= LARGE
        for index in torch.arange(len(self.measured)).split(
            len(self.measured) if is_small else count
        ):
            yield self.operator.lift(
                rows(self.measured.y, index), take(self.measured.params, index)
            )

    def __call__(self, x: Float[Tensor, "n c h w"], number: int = 0) -> float:
        """Return the distance of samples.

        Arguments:
            x: The samples.
            number: Of the draws that corrupt them; the same number corrupts alike.
        """
        like = None if self.is_simulated else self.measured
        keys = {"number": number} if number else {}
        lifted = corrupt(x, self.operator, generator_for(self.seed, "proximal", **keys), like)
        found, _ = compute(self.features, lifted, self.progress)
        return self._moments.distance(found)

    def floor(self, n: int) -> MeanStd:
        """Return the distance of n measurements, drawn with replacement, to all measurements.

        A Frechet distance grows with fewer samples, so the floor belongs to n: samples of the very
        law of the measurements have it on average, and whatever else has more.
        """
        times = repeats(self._reference)
        return remembered(
            self.cache,
            "floor",
            [self._reference, f"{n},{times},{self.seed}"],
            lambda: resampled_distance(self._reference, n, times, self.seed, self.progress),
        )

    def ceiling(self, n: int) -> float:
        """Return the distance of n corrupted images that are 0 everywhere."""
        return self(torch.zeros(n, *self.operator.image_shape))
