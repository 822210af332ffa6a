r"""A convolutional conditional flow for images too large for a dense Gaussian posterior.

.. math:: x = m(y) + s(y) \odot g_\phi\big((x_0 - m(y)) / s(y); c\big), \quad x_0 \sim q_0(x|y)

:math:`q_0` is the posterior under a low-rank Gaussian prior, drawn exactly for any operator, m its
mean and s a diagonal scale that only sets units. The last layers start at zero, where g is the
identity: at step 0 the flow *is* the Gaussian posterior, at any size. Its density is
:math:`\log q(x|y) = \log q_0(x_0|y) - \log|\det \partial x / \partial x_0|`; the first term does
not depend on phi, so that the bound needs the determinant alone.

g is an invertible U: an orthonormal 2x2 Haar transform (squeeze), couplings over the four bands,
the coarse band through the next level, couplings again, Haar's inverse; at the end an affine map of
every pixel. Fine bands are what a level splits off. All parts see a pyramid of context features:
:math:`A^\top y`, m, s, the description of A and the noise level.

Differences from Glow and from normflows' multiscale network (which passes no context):

- 1x1 convolutions rotate the bands between couplings; the last of a block starts as the inverse of
  the others' product, so that the block starts as the identity;
- no ActNorm: its first batch would move the flow off its start, and s has set the units;
- a quarter of the channels goes on to the next level (the coarse band), not half.

References:
    Glow (Kingma & Dhariwal, 2018), arXiv:1807.03039
    Wavelet Flow (Yu et al., 2020), arXiv:2010.13821
"""

import math
from dataclasses import dataclass

import normflows as nf
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cleanprior.gaussian.low_rank import LowRankGaussian
from cleanprior.operators.base import ImageShape

#: Bound of the log-scale of couplings, and of the last affine map: those of the dense flow.
COUPLING_LIMIT, AFFINE_LIMIT = 1.5, 2.0
#: Halvings of the image at most: 64x64 ends at 4x4, whose 3x3 convolutions see nearly all of it.
MAX_LEVELS = 4


def count_levels(shape: ImageShape) -> int:
    """Return how often images of this shape can be halved: the levels of the flow.

    Raises:
        ValueError: Sides that cannot be halved at least once, or less than 4 pixels.
    """
    _, height, width = shape
    levels = 0
    while levels < MAX_LEVELS and height % 2 == width % 2 == 0 and min(height, width) >= 4:
        height, width, levels = height // 2, width // 2, levels + 1
    if levels == 0:
        raise ValueError(
            f"images of {shape[1]}x{shape[2]} pixels; the convolutional flow halves them: even "
            "sides of at least 4 are allowed, best multiples of 8 or 16"
        )
    return levels


def _haar(z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 4*c h/2 w/2"]:
    """Squeeze 2x2 blocks to their orthonormal Haar bands; the c coarse channels come first."""
    b, c, h, w = z.shape
    parts = F.pixel_unshuffle(z, 2).reshape(b, c, 4, h // 2, w // 2)
    return torch.einsum("ij,bcjhw->bichw", _hadamard(z), parts).reshape(b, 4 * c, h // 2, w // 2)


def _haar_inverse(z: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k/4 2*h 2*w"]:
    """Undo :func:`_haar`."""
    b, k, h, w = z.shape
    bands = z.reshape(b, 4, k // 4, h, w)
    parts = torch.einsum("ij,bichw->bcjhw", _hadamard(z), bands)
    return F.pixel_shuffle(parts.reshape(b, k, h, w), 2)


def _hadamard(z: Tensor) -> Float[Tensor, "4 4"]:
    """Return the orthonormal matrix from a 2x2 block to its four bands."""
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    return 0.5 * signs.to(z)


class ContextFree(nf.flows.Flow):  # type: ignore[misc]
    """A layer of normflows that looks at no context, called like those that do.

    Arguments:
        layer: Maps z to (z, log-determinant); the latter one number for all images.
    """

    def __init__(self, layer: nf.flows.Flow) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, z: Float[Tensor, "b c h w"], context: Tensor
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """Apply the layer."""
        z, log_det = self.layer(z)
        return z, log_det.expand(len(z))

    def inverse(
        self, z: Float[Tensor, "b c h w"], context: Tensor
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """Undo :meth:`forward`; the log-determinant is that of the inverse."""
        z, log_det = self.layer.inverse(z)
        return z, log_det.expand(len(z))


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Set a last layer to zero, so that its map starts as the identity."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class ConvCoupling(nf.flows.Flow):  # type: ignore[misc]
    r"""Scale and shift half of the channels by functions of the others and of the context.

    .. math:: z_2 \mapsto z_2 e^{s} + t, \quad (s, t) = f_\phi(z_1, c), \quad s \in (-k, k)

    Arguments:
        channels: Channels of z, even.
        context: Channels of the context, on the grid of z.
        hidden: Channels inside the subnet.
    """

    def __init__(self, channels: int, context: int, hidden: int) -> None:
        super().__init__()
        self.subnet = nn.Sequential(
            nn.Conv2d(channels // 2 + context, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.SiLU(),
            _zeroed(nn.Conv2d(hidden, channels, 3, padding=1)),
        )

    def _parts(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kept, changed = z.chunk(2, 1)
        s, t = self.subnet(torch.cat([kept, context], 1)).chunk(2, 1)
        return kept, changed, COUPLING_LIMIT * torch.tanh(s / COUPLING_LIMIT), t

    def forward(
        self, z: Float[Tensor, "b c h w"], context: Float[Tensor, "b k h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """Return the new value and the log-determinant of the map."""
        kept, changed, s, t = self._parts(z, context)
        return torch.cat([kept, changed * s.exp() + t], 1), s.flatten(1).sum(1)

    def inverse(
        self, z: Float[Tensor, "b c h w"], context: Float[Tensor, "b k h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """Undo :meth:`forward`; the log-determinant is that of the inverse."""
        kept, changed, s, t = self._parts(z, context)
        return torch.cat([kept, (changed - t) * (-s).exp()], 1), -s.flatten(1).sum(1)


class PixelAffine(nf.flows.Flow):  # type: ignore[misc]
    r"""Scale and shift every pixel by functions of the context: :math:`z e^{s(c)} + t(c)`.

    Arguments:
        channels: Channels of z.
        context: Channels of the context, on the grid of z.
    """

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.subnet = _zeroed(nn.Conv2d(context, 2 * channels, 3, padding=1))

    def _scale_shift(self, context: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.subnet(context).chunk(2, 1)
        return AFFINE_LIMIT * torch.tanh(s / AFFINE_LIMIT), t

    def forward(
        self, z: Float[Tensor, "b c h w"], context: Float[Tensor, "b k h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """Return the new value and the log-determinant of the map."""
        s, t = self._scale_shift(context)
        return z * s.exp() + t, s.flatten(1).sum(1)

    def inverse(
        self, z: Float[Tensor, "b c h w"], context: Float[Tensor, "b k h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """Undo :meth:`forward`; the log-determinant is that of the inverse."""
        s, t = self._scale_shift(context)
        return (z - t) * (-s).exp(), -s.flatten(1).sum(1)


class Block(nn.ModuleList):
    """Couplings with a rotation of the channels before each; the identity at the start.

    Arguments:
        channels: Channels of z, even.
        context: Channels of the context.
        hidden: Channels inside the couplings.
        couplings: Number of couplings.
    """

    def __init__(self, channels: int, context: int, hidden: int, couplings: int) -> None:
        super().__init__()
        product = torch.eye(channels)
        for _ in range(couplings):
            rotation = nf.flows.Invertible1x1Conv(channels)
            # QR leaves columns in memory; the fused optimiser pairs numbers by place in memory, so
            # state that a checkpoint restores row by row would meet other weights.
            rotation.W.data = rotation.W.data.contiguous()
            product = product @ rotation.W.detach()
            self.append(ContextFree(rotation))
            self.append(ConvCoupling(channels, context, hidden))
        back = nf.flows.Invertible1x1Conv(channels)
        # Orthogonal, and forward applies the inverse of W: the transpose undoes the others.
        back.W.data = product.T.contiguous()
        self.append(ContextFree(back))

    def apply_all(
        self, z: Float[Tensor, "b c h w"], context: Tensor, reverse: bool
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """Apply all layers, or undo them from last to first."""
        total = z.new_zeros(len(z))
        for layer in list(self)[::-1] if reverse else self:
            assert isinstance(layer, (ContextFree, ConvCoupling))
            z, log_det = layer.inverse(z, context) if reverse else layer(z, context)
            total = total + log_det
        return z, total


class Level(nn.Module):
    """One level of the U: couplings over the bands, the coarse band deeper, couplings again.

    Arguments:
        levels: Levels from here on, at least 1.
        channels: Channels of the image that comes in.
        context: Channels of the context.
        hidden: Channels inside the couplings.
        couplings: Couplings of each level; half of them before the deeper level.
    """

    def __init__(
        self, levels: int, channels: int, context: int, hidden: int, couplings: int
    ) -> None:
        super().__init__()
        self.channels = channels
        self.before = Block(4 * channels, context, hidden, couplings - couplings // 2)
        self.after = Block(4 * channels, context, hidden, couplings // 2)
        self.deeper = (
            Level(levels - 1, channels, context, hidden, couplings) if levels > 1 else None
        )

    def forward(
        self, z: Float[Tensor, "b c h w"], pyramid: list[Tensor], reverse: bool = False
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """Transform an image, or undo that.

        Arguments:
            z: The image.
            pyramid: Context of this level (on half the grid of z) and of those below.
            reverse: Undo.
        """
        first, last = (self.after, self.before) if reverse else (self.before, self.after)
        z, total = first.apply_all(_haar(z), pyramid[0], reverse)
        if self.deeper is not None:
            coarse, log_det = self.deeper(z[:, : self.channels], pyramid[1:], reverse)
            z, total = torch.cat([coarse, z[:, self.channels :]], 1), total + log_det
        z, log_det = last.apply_all(z, pyramid[0], reverse)
        return _haar_inverse(z), total + log_det


class Pyramid(nn.Module):
    """Context features on every grid: down by strided convolutions, and up again.

    Arguments:
        features: Channels of the input.
        context: Channels on every grid.
        levels: Halvings.
    """

    def __init__(self, features: int, context: int, levels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(features, context, 3, padding=1)
        self.down = nn.ModuleList(
            [nn.Conv2d(context, context, 3, stride=2, padding=1) for _ in range(levels)]
        )
        self.up = nn.ModuleList([nn.Conv2d(context, context, 1) for _ in range(levels)])

    def forward(self, features: Float[Tensor, "b k h w"]) -> list[Tensor]:
        """Return features on the image's grid, on half of it, and so on."""
        grids = [F.silu(self.stem(features))]
        for layer in self.down:
            grids.append(F.silu(layer(grids[-1])))
        for i in range(len(grids) - 1, 0, -1):
            coarse = F.interpolate(self.up[i - 1](grids[i]), scale_factor=2)
            grids[i - 1] = grids[i - 1] + coarse
        return grids


@dataclass(frozen=True)
class ConvBase:
    """What the flow is told about some measurements.

    Attributes:
        mean: Posterior mean m under the Gaussian prior.
        spread: Scale s of each pixel, above 0.
        features: Input of the pyramid: mean and spread among them.
    """

    mean: Float[Tensor, "b c h w"]
    spread: Float[Tensor, "b c h w"]
    features: Float[Tensor, "b k h w"]

    def __len__(self) -> int:
        return len(self.mean)

    def take(self, index: Tensor) -> "ConvBase":
        """Select some measurements."""
        return ConvBase(self.mean[index], self.spread[index], self.features[index])

    @classmethod
    def concatenate(cls, parts: list["ConvBase"]) -> "ConvBase":
        """Join bases of consecutive measurements."""
        return cls(
            torch.cat([p.mean for p in parts]),
            torch.cat([p.spread for p in parts]),
            torch.cat([p.features for p in parts]),
        )


class ConvFlow(nn.Module):
    """The map x = G(x_0; y, A) on images, with the Gaussian prior that x_0 is drawn from.

    Arguments:
        image_shape: Shape of one image, (channels, height, width).
        features: Channels of :attr:`ConvBase.features`.
        couplings: Couplings of each level, at least 2.
        hidden: Channels inside them.
        context: Channels of the context on every grid.
        rank: Rank of the Gaussian prior.

    Raises:
        ValueError: Sides that cannot be halved; see :func:`count_levels`.
    """

    gaussian_mean: Tensor
    gaussian_factor: Tensor
    gaussian_isotropic: Tensor

    def __init__(
        self,
        image_shape: ImageShape,
        features: int,
        couplings: int,
        hidden: int,
        context: int,
        rank: int,
    ) -> None:
        super().__init__()
        levels, d = count_levels(image_shape), math.prod(image_shape)
        self.image_shape, self.features = image_shape, features
        self.pyramid = Pyramid(features, context, levels)
        self.levels = Level(levels, image_shape[0], context, hidden, couplings)
        self.last = PixelAffine(image_shape[0], context)
        self.register_buffer("gaussian_mean", torch.zeros(d, dtype=torch.float64))
        self.register_buffer("gaussian_factor", torch.zeros(d, rank, dtype=torch.float64))
        self.register_buffer("gaussian_isotropic", torch.ones((), dtype=torch.float64))

    @property
    def gaussian(self) -> LowRankGaussian:
        """The Gaussian prior, on the flow's device; N(0, I) before :meth:`set_gaussian`."""
        return LowRankGaussian(
            self.gaussian_mean,
            self.gaussian_factor,
            float(self.gaussian_isotropic),
            self.image_shape,
        )

    def set_gaussian(self, mean: Tensor, factor: Tensor, isotropic: Tensor) -> None:
        """Store the Gaussian prior in the buffers, so that checkpoints hold it."""
        self.gaussian_mean.copy_(mean)
        self.gaussian_factor.copy_(factor)
        self.gaussian_isotropic.copy_(isotropic)

    def forward(
        self, x_0: Float[Tensor, "b c h w"], base: ConvBase
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        r"""Return x and :math:`\log|\det \partial x / \partial x_0|`."""
        pyramid = self.pyramid(base.features)
        z, total = self.levels((x_0 - base.mean) / base.spread, pyramid[1:])
        z, log_det = self.last(z, pyramid[0])
        return base.mean + base.spread * z, total + log_det

    def inverse(
        self, x: Float[Tensor, "b c h w"], base: ConvBase
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        r"""Return :math:`x_0` and :math:`\log|\det \partial x_0 / \partial x|`."""
        pyramid = self.pyramid(base.features)
        z, total = self.last.inverse((x - base.mean) / base.spread, pyramid[0])
        z, log_det = self.levels(z, pyramid[1:], reverse=True)
        return base.mean + base.spread * z, total + log_det
