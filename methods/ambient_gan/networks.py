r"""Generator and critic of AmbientGAN: small residual networks that follow the image's size.

Both halve (or double) the image while its sides are even and above 4. Neither holds a running
state: the generator normalises within an image, and the critic divides each weight by its exact
largest singular value. The same weights therefore give the same numbers in training, after an
interruption, and in any batch.

References:
    Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018),
    arXiv:1802.05957
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

from cleanprior.operators.base import ImageShape

#: Channels that group normalisation handles together.
GROUP = 8


def halvings(image_shape: ImageShape) -> int:
    """Return how often an image can be halved while its sides are even and above 4."""
    _, height, width = image_shape
    count = 0
    while height % 2 == width % 2 == 0 and min(height, width) > 4:
        height, width, count = height // 2, width // 2, count + 1
    return count


class SpectralNorm(nn.Module):
    """Divide a weight, seen as a matrix of output rows, by its largest singular value.

    torch's own ``spectral_norm`` estimates it by one power iteration a forward pass, a state that
    advances with every call; here it is exact, from the Gram matrix of the rows.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with spectral norm 1."""
        rows = weight.flatten(1)
        if len(rows) > rows.shape[1]:
            rows = rows.mT
        with torch.no_grad():
            vector = torch.linalg.eigh(rows @ rows.mT).eigenvectors[:, -1]
        # The gradient of a singular value is that of u'Wv with u and v held: no gradient through
        # the decomposition, which would be infinite where two singular values meet.
        right = F.normalize(rows.detach().mT @ vector, dim=0)
        return weight / (vector @ rows @ right).clamp_min(1e-12)


def _spectral(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    register_parametrization(layer, "weight", SpectralNorm())
    return layer


class UpBlock(nn.Module):
    """A residual block of the generator, with or without doubling."""

    def __init__(self, channels: int, is_doubling: bool) -> None:
        super().__init__()
        self.is_doubling = is_doubling
        self.norms = nn.ModuleList(nn.GroupNorm(channels // GROUP, channels) for _ in range(2))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)
        )

    def forward(self, h: Tensor) -> Tensor:
        """Apply the block."""
        first, second = self.convolutions
        # The first convolution before doubling: a quarter of the work.
        r = first(F.silu(self.norms[0](h)))
        if self.is_doubling:
            h, r = (F.interpolate(t, scale_factor=2, mode="nearest") for t in (h, r))
        return h + second(F.silu(self.norms[1](r)))


class Generator(nn.Module):
    """Map a latent vector to an image in [-1, 1].

    Arguments:
        image_shape: (channels, height, width).
        latent: Numbers in a latent vector.
        width: Channels of every feature map, a multiple of 8.
    """

    def __init__(self, image_shape: ImageShape, latent: int, width: int) -> None:
        super().__init__()
        self.latent = latent
        times = halvings(image_shape)
        self.start = (width, image_shape[1] >> times, image_shape[2] >> times)
        self.linear = nn.Linear(latent, width * self.start[1] * self.start[2])
        blocks = [UpBlock(width, is_doubling=False)]
        blocks += [UpBlock(width, is_doubling=True) for _ in range(times)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.GroupNorm(width // GROUP, width)
        self.last = nn.Conv2d(width, image_shape[0], 3, padding=1)

    def forward(self, z: Float[Tensor, "b k"]) -> Float[Tensor, "b c h w"]:
        """Return the images of latent vectors."""
        h = self.blocks(self.linear(z).unflatten(1, self.start))
        return self.last(F.silu(self.norm(h))).tanh()


class DownBlock(nn.Module):
    """A residual block of the critic, with or without halving."""

    def __init__(self, channels: int, is_halving: bool) -> None:
        super().__init__()
        self.is_halving = is_halving
        self.convolutions = nn.ModuleList(
            _spectral(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2)
        )

    def forward(self, h: Tensor) -> Tensor:
        """Apply the block."""
        first, second = self.convolutions
        if self.is_halving:
            # Before the convolutions and not after: a quarter of the work.
            h = F.avg_pool2d(h, 2)
        return h + second(F.leaky_relu(first(F.leaky_relu(h, 0.2)), 0.2))


class Critic(nn.Module):
    """Score a measurement, lifted to an image, with the description of its operator.

    Arguments:
        image_shape: (channels, height, width).
        description: Channels that describe the operator; 0 for none.
        width: Channels of every feature map.
    """

    def __init__(self, image_shape: ImageShape, description: int, width: int) -> None:
        super().__init__()
        channels, height, side = image_shape
        times = halvings(image_shape)
        self.first = _spectral(nn.Conv2d(channels + description, width, 3, padding=1))
        blocks = [DownBlock(width, is_halving=True) for _ in range(times)]
        blocks += [DownBlock(width, is_halving=False)]
        self.blocks = nn.Sequential(*blocks)
        self.last = _spectral(nn.Linear(width * (height >> times) * (side >> times), 1))

    def forward(self, u: Float[Tensor, "b k h w"]) -> Float[Tensor, " b"]:
        """Return the score of each image."""
        h = F.leaky_relu(self.blocks(self.first(u)), 0.2)
        return self.last(h.flatten(1))[:, 0]
