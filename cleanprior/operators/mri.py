r"""Single-coil Cartesian MRI: some lines of the Fourier transform, drawn once for each image."""

import torch
from deepinv.physics import MRI
from jaxtyping import Float
from torch import Generator, Tensor
from typing_extensions import override

from ..mapped import blocks
from .base import ImageShape, Operator, Params, distinct


class CartesianMRI(Operator):
    r"""Columns of the k-space of a complex image: the centre always, others at random.

    Images have 2 channels, real and imaginary part. y has the shape of an image but lies in k-space
    (orthonormal transform, zero frequency in the middle), 0 on lines that were not measured.

    Arguments:
        image_shape: Shape of an image, (2, height, width).
        acceleration: R; ``width // R`` lines are measured.
        centre_lines: How many of them are the middle ones, at least 1.
        further_lines: Lines outside the centre that further corruption drops, at least 1.
        sigma: Noise level of the real and imaginary parts measured, units of x, at least 0.

    Raises:
        ValueError: Images that have not 2 channels, or line numbers that do not fit the width.

    References:
        Ambient Diffusion Posterior Sampling (Aali et al., 2024), section 4, arXiv:2403.08728
    """

    has_parts = True

    def __init__(
        self,
        image_shape: ImageShape,
        acceleration: int,
        centre_lines: int,
        further_lines: int,
        sigma: float,
    ) -> None:
        channels, height, width = image_shape
        if channels != 2:
            raise ValueError(
                f"mri needs complex images, real and imaginary part as channels; the images have "
                f"{channels} channel(s), allowed: 2"
            )
        if acceleration < 1:
            raise ValueError(f"acceleration={acceleration}; allowed: at least 1")
        lines = width // acceleration
        if centre_lines < 1 or further_lines < 1 or centre_lines + further_lines > lines:
            raise ValueError(
                f"centre_lines={centre_lines} and further_lines={further_lines} do not fit the "
                f"{lines} lines of width {width} at acceleration={acceleration}; allowed: both at "
                f"least 1, together at most {lines}"
            )
        physics = MRI(img_size=(2, height, width))
        super().__init__(physics, image_shape, sigma)
        self.acceleration = acceleration
        self.centre_lines = centre_lines
        self.further_lines = further_lines
        self.lines = lines
        start = width // 2 - centre_lines // 2
        self._centre = torch.zeros(width)
        self._centre[start : start + centre_lines] = 1

    @property
    @override
    def name(self) -> str:
        return "mri"

    def draw(self, n: int, generator: Generator) -> Params:
        """Draw the measured lines, (n, 1, 1, width), 1 = measured."""
        outside = (1 - self._centre).expand(n, -1)
        count = self.lines - self.centre_lines
        chosen = torch.multinomial(outside, count, generator=generator)
        mask = self._centre.repeat(n, 1).scatter(1, chosen, 1.0)
        return {"mask": mask[:, None, None, :]}

    def mismatch(self, params: Params) -> str | None:
        """Compare the number of lines and those of the centre with what is assumed."""
        mask = params["mask"]
        width = self.image_shape[2]
        counts = torch.cat([part[:, 0, 0].sum(1) for part in blocks(mask)])
        low, high = (int(v) for v in counts.aminmax())
        if (low, high) != (self.lines, self.lines):
            found = f"{low}" if low == high else f"{low} to {high}"
            fitting = width // low if low == high and low > 0 else 0
            advice = f"; set operator.acceleration={fitting}" if fitting else ""
            return (
                f"the masks measure {found} of {width} lines and operator.acceleration="
                f"{self.acceleration} means {self.lines}{advice}"
            )
        always = torch.stack([part[:, 0, 0].amin(0) for part in blocks(mask)]).amin(0)
        if (always < self._centre).any():
            centre = width // 2
            count = self.centre_lines
            while count and (always[centre - count // 2 : centre - count // 2 + count] == 0).any():
                count -= 1
            return (
                f"the {self.centre_lines} middle lines are not measured in all images, as "
                f"operator.centre_lines says; the masks have {count}"
            )
        start = int(self._centre.nonzero()[0])
        end = start + self.centre_lines
        wider = always.clone()
        wider[start:end] = 1
        run = int(self.width_of_run(wider, start))
        share = (self.lines - self.centre_lines) / max(width - self.centre_lines, 1)
        different = distinct(mask)
        chance = share ** (different * (run - self.centre_lines))
        if run > self.centre_lines and different > 1 and chance < 1e-6:
            return (
                f"{run} middle lines are measured in every image and operator.centre_lines is "
                f"{self.centre_lines}; set operator.centre_lines={run}"
            )
        return None

    @staticmethod
    def width_of_run(always: Float[Tensor, " w"], start: int) -> int:
        """Return how many neighbours of line ``start``, itself included, are always measured."""
        ends = (always == 0).nonzero()[:, 0]
        left = int(ends[ends < start].max()) if (ends < start).any() else -1
        right = int(ends[ends > start].min()) if (ends > start).any() else len(always)
        return right - left - 1

    @override
    def observed(self, y: Float[Tensor, "b ..."], params: Params) -> Float[Tensor, "b ..."]:
        return params["mask"].expand_as(y)

    def further(self, params: Params, delta: float, generator: Generator) -> Params:
        r"""Drop ``further_lines`` measured lines outside the centre, whatever ``delta``."""
        mask = params["mask"]
        free = mask[:, 0, 0].cpu() * (1 - self._centre)
        dropped = torch.multinomial(free, self.further_lines, generator=generator).to(mask.device)
        return {"mask": mask[:, 0, 0].scatter(1, dropped, 0.0)[:, None, None, :]}

    def supervision(self, further: Params, delta: float) -> Float[Tensor, "n d"]:
        """Return how probable it is that A measures each entry of k-space, given A-tilde.

        Any ``further_lines`` of the hidden lines may be those of A.
        """
        hidden = self.image_shape[2] - self.lines + self.further_lines
        mask = further["mask"].double()
        shown = mask + (1 - mask) * self.further_lines / hidden
        return shown.expand(len(mask), *self.image_shape).flatten(1)

    def describe(self, params: Params, n: int) -> Float[Tensor, "n c h w"]:
        """Return the measured lines of k-space as one channel."""
        return params["mask"].expand(n, 1, *self.image_shape[1:])

    @property
    @override
    def description_channels(self) -> int:
        return 1
