r"""A conditional normalizing flow that starts as an exact Gaussian posterior.

.. math:: x = m(y) + V(y)^{1/2}\, g_\phi(u; c), \quad u \sim N(0, I)

:math:`m, V` are mean and covariance of p(x|y) under a Gaussian prior, :math:`V^{1/2}` the symmetric
root, and :math:`g_\phi` a stack of affine couplings whose last layers start at zero: at step 0 the
flow *is* the Gaussian posterior. The context c holds :math:`A^\top y`, the description of A, m, the
marginal deviations of V and the noise level.

Built on ``normflows``' flow interface (``forward`` and ``inverse`` return the new value and the
log-determinant); its own couplings take no context, so ours pass it as a second argument.

References:
    Density Estimation Using Real NVP (Dinh et al., 2017), arXiv:1605.08803
"""

from dataclasses import dataclass

import normflows as nf
import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from cleanprior.gaussian.dense import GaussianPrior
from cleanprior.operators import Likelihood, Operator
from cleanprior.operators.base import ImageShape
from cleanprior.operators.levels import flat, is_white


def _subnet(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return a two-layer network whose output is zero at the start."""
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last
    )


class ConditionalCoupling(nf.flows.Flow):  # type: ignore[misc]
    r"""Scale and shift one part of z by functions of the other part and of the context.

    .. math:: z_2 \mapsto z_2 e^{s} + t, \quad (s, t) = f_\phi(z_1, c), \quad s \in (-k, k)

    Arguments:
        kept: The part that stays, (d,) booleans; at least one entry of each kind.
        context: Size of the context.
        hidden: Width of the subnet.
        limit: Bound k of the log-scale, above 0.
    """

    kept: Tensor
    changed: Tensor

    def __init__(self, kept: Bool[Tensor, " d"], context: int, hidden: int, limit: float) -> None:
        super().__init__()
        if kept.all() or not kept.any():
            raise ValueError("a coupling must keep some entries and change others")
        self.register_buffer("kept", kept.nonzero()[:, 0])
        self.register_buffer("changed", (~kept).nonzero()[:, 0])
        self.limit = limit
        self.subnet = _subnet(len(self.kept) + context, hidden, 2 * len(self.changed))

    def _scale_shift(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.subnet(torch.cat([z[:, self.kept], context], 1)).chunk(2, 1)
        return self.limit * torch.tanh(s / self.limit), t

    def forward(
        self, z: Float[Tensor, "b d"], context: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, " b"]]:
        """Return the new value and the log-determinant of the map."""
        s, t = self._scale_shift(z, context)
        return z.index_copy(1, self.changed, z[:, self.changed] * s.exp() + t), s.sum(1)

    def inverse(
        self, z: Float[Tensor, "b d"], context: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, " b"]]:
        """Undo :meth:`forward`; the log-determinant is that of the inverse."""
        s, t = self._scale_shift(z, context)
        return z.index_copy(1, self.changed, (z[:, self.changed] - t) * (-s).exp()), -s.sum(1)


class ConditionalAffine(nf.flows.Flow):  # type: ignore[misc]
    r"""Scale and shift every entry by functions of the context: :math:`z e^{s(c)} + t(c)`.

    Arguments:
        size: Entries d of z.
        context: Size of the context.
        hidden: Width of the subnet.
        limit: Bound of the log-scale, above 0.
    """

    def __init__(self, size: int, context: int, hidden: int, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.subnet = _subnet(context, hidden, 2 * size)

    def _scale_shift(self, context: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.subnet(context).chunk(2, 1)
        return self.limit * torch.tanh(s / self.limit), t

    def forward(
        self, z: Float[Tensor, "b d"], context: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, " b"]]:
        """Return the new value and the log-determinant of the map."""
        s, t = self._scale_shift(context)
        return z * s.exp() + t, s.sum(1)

    def inverse(
        self, z: Float[Tensor, "b d"], context: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, " b"]]:
        """Undo :meth:`forward`; the log-determinant is that of the inverse."""
        s, t = self._scale_shift(context)
        return (z - t) * (-s).exp(), -s.sum(1)


@dataclass(frozen=True)
class Base:
    """The Gaussian posterior of some measurements, and what the couplings may look at.

    Attributes:
        mean: Posterior mean, (b, d).
        root: Symmetric root of the posterior covariance, (b, d, d); (1, d, d) where all share it.
        log_det: log |det root|, (b,).
        features: Input of the context network, (b, f).
    """

    mean: Float[Tensor, "b d"]
    root: Float[Tensor, "r d d"]
    log_det: Float[Tensor, " b"]
    features: Float[Tensor, "b f"]

    def __len__(self) -> int:
        return len(self.mean)

    def to(self, target: torch.device | torch.dtype) -> "Base":
        """Return the base on a device, or in another precision."""
        parts = (self.mean, self.root, self.log_det, self.features)
        return Base(*(p.to(target) for p in parts))

    def take(self, index: Tensor) -> "Base":
        """Select some measurements."""
        root = self.root if len(self.root) == 1 else self.root[index]
        return Base(self.mean[index], root, self.log_det[index], self.features[index])

    @classmethod
    def concatenate(cls, parts: list["Base"]) -> "Base":
        """Join bases of consecutive measurements."""
        shared = all(len(p.root) == 1 and len(p) > 1 for p in parts)
        root = parts[0].root if shared else torch.cat([p.root for p in parts])
        return cls(
            torch.cat([p.mean for p in parts]),
            root,
            torch.cat([p.log_det for p in parts]),
            torch.cat([p.features for p in parts]),
        )


def feature_count(operator: Operator) -> int:
    """Return the number of context features of one measurement."""
    channels, height, width = operator.image_shape
    return (3 * channels + operator.description_channels) * height * width + 1


def gaussian_base(prior: GaussianPrior, likelihood: Likelihood) -> Base:
    r"""Compute the Gaussian posterior of each measurement, in float64 on the CPU.

    With one operator and one noise level for the whole batch there is one covariance, and the
    means follow from it by :math:`m = \mu + V A^\top S^{-1} (y - A\mu)`.

    Arguments:
        prior: The Gaussian prior.
        likelihood: The measurements, on the CPU; noise levels above 0.

    Returns:
        The base, in float32.
    """
    operator, params, level = likelihood.operator, likelihood.params, likelihood.level
    n = len(likelihood)
    shared = n > 1 and likelihood.is_shared
    k = 1 if shared else n
    mean, covariance = prior.posterior(likelihood.take(slice(0, k)))
    if shared:
        a = operator.matrix({}, 1)[0]
        residual = likelihood.y.flatten(1).double() - a @ prior.mean
        if is_white(likelihood.sigma_y):
            mean = prior.mean + residual @ a @ covariance[0] / level[0].double() ** 2
        else:
            weighted = residual / flat(likelihood.sigma_y[:1].double(), likelihood.y[:1]) ** 2
            mean = prior.mean + weighted @ a @ covariance[0]
    values, vectors = torch.linalg.eigh(covariance)
    # Rounding leaves eigenvalues of about -1e-17 where the measurement says everything.
    values = values.clamp_min(1e-12)
    root = (vectors * values.sqrt()[:, None, :]) @ vectors.mT
    spread = covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt().expand(n, -1)
    features = [likelihood.A_adjoint(likelihood.y).flatten(1), mean, spread]
    description = operator.describe(params, n)
    if description is not None:
        features.append(description.flatten(1))
    features.append(level[:, None].log())
    return Base(
        mean.float(),
        root.float(),
        (0.5 * values.log().sum(1)).float().expand(n),
        torch.cat([f.float() for f in features], 1),
    )


def splits(shape: ImageShape, count: int) -> list[Tensor]:
    """Return which entries each coupling keeps: checkerboards and random halves in turn.

    Each split is followed by its complement, so that two couplings change everything. The random
    halves come from a generator of their own: they are architecture, the same for every seed.
    """
    channels, height, width = shape
    axes = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    checkerboard = (torch.stack(axes).sum(0) % 2 == 0).flatten()
    d = channels * height * width
    generator = Generator().manual_seed(0)
    chosen: list[Tensor] = []
    for i in range(0, count, 2):
        half = checkerboard if i % 4 == 0 else torch.randperm(d, generator=generator) < d // 2
        chosen += [half, ~half]
    return chosen[:count]


class PosteriorFlow(nn.Module):
    """The flow x = G(u; y, A), with the Gaussian prior that its base is computed from.

    Arguments:
        image_shape: Shape of one image, (channels, height, width); at least two numbers.
        features: Size of :attr:`Base.features`.
        couplings: Number of couplings.
        hidden: Width of their subnets.
        context: Size of the context that every coupling sees.

    Attributes:
        gaussian_mean: (d,) float64, of the Gaussian prior.
        gaussian_covariance: (d, d) float64; the identity before :meth:`set_gaussian`.
    """

    gaussian_mean: Tensor
    gaussian_covariance: Tensor

    def __init__(
        self, image_shape: ImageShape, features: int, couplings: int, hidden: int, context: int
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        d = image_shape[0] * image_shape[1] * image_shape[2]
        self.context = nn.Sequential(
            nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, context), nn.SiLU()
        )
        # Bounds of the log-scales: values that worked in the study on 8x8 digits.
        self.layers = nn.ModuleList(
            [
                ConditionalCoupling(kept, context, hidden, 1.5)
                for kept in splits(image_shape, couplings)
            ]
        )
        self.layers.append(ConditionalAffine(d, context, hidden, 2.0))
        self.register_buffer("gaussian_mean", torch.zeros(d, dtype=torch.float64))
        self.register_buffer("gaussian_covariance", torch.eye(d, dtype=torch.float64))

    @property
    def size(self) -> int:
        """Numbers in an image."""
        return len(self.gaussian_mean)

    @property
    def gaussian(self) -> GaussianPrior:
        """The Gaussian prior, on the CPU."""
        return GaussianPrior(
            self.gaussian_mean.double().cpu(),
            self.gaussian_covariance.double().cpu(),
            self.image_shape,
        )

    def set_gaussian(self, mean: Tensor, covariance: Tensor) -> None:
        """Store the Gaussian prior in the buffers, so that checkpoints hold it."""
        self.gaussian_mean.copy_(mean)
        self.gaussian_covariance.copy_(covariance)

    def forward(
        self, noise: Float[Tensor, "b d"], base: Base
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        r"""Return x and :math:`\log|\det \partial x / \partial u|`."""
        context = self.context(base.features)
        u, log_det = noise, base.log_det
        for layer in self.layers:
            u, step = layer(u, context)
            log_det = log_det + step
        x = base.mean + (base.root @ u[:, :, None])[:, :, 0]
        return x.reshape(len(x), *self.image_shape), log_det

    def inverse(
        self, x: Float[Tensor, "b c h w"], base: Base
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, " b"]]:
        r"""Return u and :math:`\log|\det \partial u / \partial x|`."""
        context = self.context(base.features)
        centred = (x.flatten(1) - base.mean).double()[:, :, None]
        # float64: the root's condition number reaches 1e3 where most pixels were seen.
        u = torch.linalg.solve(base.root.double(), centred)[:, :, 0].to(x.dtype)
        log_det = -base.log_det
        for layer in list(self.layers)[::-1]:
            assert isinstance(layer, (ConditionalCoupling, ConditionalAffine))
            u, step = layer.inverse(u, context)
            log_det = log_det + step
        return u, log_det
