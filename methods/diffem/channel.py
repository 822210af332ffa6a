r"""What a conditional network is told of a measurement, and how new measurements are simulated."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from cleanprior.data import Batch, Measurements
from cleanprior.operators import Operator, Params
from cleanprior.operators.levels import column, is_white, root_mean_square
from cleanprior.operators.like import measured_like

CONDITIONS = ("all", "y")
NOISE_SHAPES = ("y", "mask")


@dataclass(frozen=True)
class Channel:
    r"""The channel :math:`y \sim Q(\cdot \mid x)` as a method that only simulates it sees it.

    Arguments:
        operator: The forward operator, on the device of the batches.
        sigma_data: Standard deviation of images, which the condition is measured in.
        condition: ``all``: :meth:`told` is the lifted y, the operator's description and the noise
            level; ``y``: the lifted y alone.
        noise_shape: ``y``: noise of its own on every entry; ``mask``: one value for all channels of
            a pixel, which is another channel than that of the data.
    """

    operator: Operator
    sigma_data: float
    condition: str
    noise_shape: str

    @property
    def _has_map(self) -> bool:
        """Whether levels differ between pixels: then the network is told a map of them."""
        able = self.operator.capabilities
        return {"local_noise", "same_shape"} <= able and "fourier" not in able

    @property
    def channels(self) -> int:
        """Number of channels of :meth:`told`."""
        own = self.operator.image_shape[0]
        if self.condition == "y":
            return own
        return own + self.operator.description_channels + (own if self._has_map else 1)

    def told(
        self, y: Float[Tensor, "b ..."], params: Params, sigma_y: Float[Tensor, "b ..."]
    ) -> Float[Tensor, "b k h w"]:
        r"""Return what the network is told of measurements: image-shaped channels at unit scale.

        y and its levels are divided by :math:`\sigma_d`, as EDM's input scaling divides a clean
        image. What an array holds where nothing was measured is not shown.
        """
        operator, shape = self.operator, self.operator.image_shape
        seen = operator.observed(y, params)
        u = operator.lift(y * seen, params) / self.sigma_data
        if self.condition == "y":
            return u
        if self._has_map:
            level = (column(sigma_y, y) * seen).expand(len(y), *shape)
        else:
            level = root_mean_square(sigma_y, seen).reshape(-1, 1, 1, 1)
            level = level.expand(-1, 1, *shape[1:])
        parts = [u, level / self.sigma_data]
        described = operator.describe(params, len(y))
        if described is not None:
            parts.append(described.to(u).expand(len(y), -1, -1, -1))
        return torch.cat(parts, 1)

    def simulate(self, x: Float[Tensor, "b c h w"], like: Batch, generator: Generator) -> Batch:
        """Measure images as other measurements were: their operators and levels, fresh noise.

        Arguments:
            x: Images, in the place of those that ``like`` was measured of.
            like: On the device of ``x``.
            generator: The only source of randomness.

        Returns:
            ``like`` with the new measurements, the levels that an instrument would tell of them,
            and ``x`` as its images.
        """
        operator, params = self.operator, like.params
        if self.noise_shape == "mask":
            y = measured_like(operator, x, params, torch.zeros_like(like.sigma_y), generator)
            one = torch.randn((len(x), 1, *x.shape[2:]), generator=generator).to(y)
            y = y + column(like.sigma_y, y) * one * operator.observed(y, params)
        else:
            y = measured_like(operator, x, params, like.sigma_y, generator)
        return replace(like, y=y, sigma_y=self._levels(y, like), images=x)

    def _levels(self, y: Float[Tensor, "b ..."], like: Batch) -> Float[Tensor, "b ..."]:
        """Return the levels of new measurements: a map that an instrument tells of what it records.

        One level for all is that of ``like``, and so is a map that came with the measurements.
        """
        noise = self.operator.noise
        if noise is None or is_white(like.sigma_y):
            return like.sigma_y
        params = {k: v.cpu() for k, v in like.params.items()}
        return noise.levels(self.operator.to("cpu"), y.cpu(), params).to(y.device)


@dataclass(frozen=True)
class Fresh:
    """Images, and the measurements that tell how each may be measured.

    Attributes:
        images: Restorations, (n, c, h, w).
        measurements: All measurements of the run.
    """

    images: Tensor
    measurements: Measurements

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> Batch:
        """Return images beside measurements of others; a loss measures them anew."""
        own = self.measurements.batch(index % len(self.measurements))
        return replace(own, images=self.images[index])


@dataclass(frozen=True)
class Pairs:
    """Images with simulated measurements that stay the same for a whole round.

    Attributes:
        all: Images and measurements of every image, on the CPU.
    """

    all: Batch

    def __len__(self) -> int:
        return len(self.all)

    def batch(self, index: Tensor) -> Batch:
        """Return the pairs at these positions."""
        images, whole = self.all.images, self.all
        assert images is not None
        params = {k: v[index] for k, v in whole.params.items()}
        return Batch(
            whole.y[index], params, whole.sigma_y[index], whole.index[index], images[index]
        )


def drawn_like(data: Measurements, n: int, generator: Generator) -> Batch:
    """Return measurements at n random positions: the operators and levels to simulate with."""
    return data.batch(torch.randint(len(data), (n,), generator=generator))


def joined(parts: list[Batch]) -> Batch:
    """Return batches with images as one."""
    images = [p.images for p in parts if p.images is not None]
    return Batch(
        torch.cat([p.y for p in parts]),
        {k: torch.cat([p.params[k] for p in parts]) for k in parts[0].params},
        torch.cat([p.sigma_y for p in parts]),
        torch.cat([p.index for p in parts]),
        torch.cat(images),
    )


__all__ = ["CONDITIONS", "NOISE_SHAPES", "Channel", "Fresh", "Pairs", "drawn_like", "joined"]
