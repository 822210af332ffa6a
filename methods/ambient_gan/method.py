r"""AmbientGAN: a critic compares measurements with simulated measurements of generated images.

Objective (section 4 of the paper, with any quality function q; the default here is the hinge):

.. math::
    \min_G \max_D\; \mathbb E_{y, A}\big[q(D(y, A))\big]
        + \mathbb E_{z, A', w}\big[q\big(1 - D(A' G(z) + \sigma_y w,\, A')\big)\big]

At the optimum :math:`A' G(z) + \sigma_y w` has the law of y; then G(z) has the law of x if that is
determined by the law of the measurements. The penalty is :math:`\tfrac{\gamma f}{2}\,
\mathbb E\|\nabla_y D(y, A)\|^2` over observed entries, f their share (R1).

For a generated image, A' is the operator of a training image chosen at random. ``operator.draw``
is not used: it would need a simulator, and a critic that sees operators could tell new ones from
those of the training set. Real and generated measurements reach the critic through the same
operator object and the same function (:meth:`AmbientGAN.view`). The noise of a generated
measurement is drawn again in each turn, at the level that belongs to A'; an instrument's
(``noise.as=none``) is drawn as the instrument does, if that has a gradient in the image. A fixed
operator with a null space (a blur) says nothing about that null space; what the generator makes
there comes from its initial weights, and the row carries the warning ``null``.

Differences from the authors' code:

- measurements are fixed. Theirs masks a real image anew each time it is used, which shows every
  pixel of every image in the course of training (``remeasure_real``): that needs clean images,
  which cannot reach a method;
- unconditional (theirs is class-conditional on CIFAR-10; measurements carry no labels here);
- the critic is shown the operator (``critic_sees_params: false`` hides it);
- hinge loss and R1. The paper uses WGAN-GP with 5 critic steps on CIFAR-10 (``loss_function:
  wgan_gp, critic_steps: 5``) and the DCGAN loss on CelebA (``loss_function: dcgan``; two generator
  steps for each critic step, as in the paper, are not offered);
- measurements are not scaled by 1/(1 - p) (``scale: inverse_keep`` scales what the critic sees);
- small residual networks of :mod:`cleanprior.methods.ambient_gan.networks`, AdamW with the
  Trainer's schedule and gradient clipping, samples from the Trainer's weight average of G. Joint
  flips of (y, A) are not used: a mirrored digit is not a digit.

A generator has no denoiser: it samples and does not restore. The shared budget counts its batches;
critic steps are counted beside it (``critic_evaluations``).

References:
    AmbientGAN: Generative Models from Lossy Measurements (Bora et al., 2018), ICLR 2018
    Which Training Methods for GANs do actually Converge? (Mescheder et al., 2018),
    arXiv:1801.04406 (R1)
    Improved Training of Wasserstein GANs (Gulrajani et al., 2017), arXiv:1704.00028 (``wgan_gp``)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator as Random
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from typing_extensions import override

from cleanprior.config.checks import check_positive
from cleanprior.data import Batch, Measurements, TrainingSet
from cleanprior.operators.base import Params
from cleanprior.operators.like import measured_like
from cleanprior.prior import Prior
from cleanprior.training import Loss, Method, Round, Route, Session

from .networks import Critic, Generator

LOSSES = ("hinge", "wgan_gp", "dcgan")
SCALES = ("none", "inverse_keep")
#: Measurements whose seen entries are counted at a time.
COUNTED = 512


class Fake(NamedTuple):
    """Generated images and their simulated measurements."""

    x: Tensor
    y: Tensor
    params: Params


def critic_loss(loss: str, real: Float[Tensor, " b"], fake: Float[Tensor, " k"]) -> Tensor:
    """Return what the critic minimises, without its penalty.

    Arguments:
        loss: One of :data:`LOSSES`.
        real: Scores of real measurements.
        fake: Scores of simulated ones.
    """
    if loss == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if loss == "wgan_gp":
        return fake.mean() - real.mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(loss: str, fake: Float[Tensor, " b"]) -> Tensor:
    """Return what the generator minimises: ``dcgan`` is the non-saturating form."""
    return F.softplus(-fake).mean() if loss == "dcgan" else -fake.mean()


@dataclass(kw_only=True)
class AmbientGAN(Method):
    """A generator of clean images, trained against a critic of measurements.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        loss_function: ``hinge`` (with R1), ``wgan_gp`` (penalty on interpolates), ``dcgan`` (with
            R1 unless gamma is 0).
        gamma: Weight of the gradient penalty, at least 0.
        critic_steps: Critic steps before each generator step.
        critic_sees_params: Show the operator's description to the critic.
        scale: ``none``, or ``inverse_keep``: the critic sees measurements divided by the share of
            observed entries.
        dequantisation: Width of uniform noise on the observed entries that the critic sees, real
            and fake alike, in units of x; for measurements that were stored in few levels.
        generator_lr: Peak learning rate of G.
        critic_lr: Peak learning rate of D.
        beta1: Adam's decay of the mean gradient, in [0, 1), for both networks.
        beta2: Adam's decay of the mean squared gradient, in [0, 1).
        latent: Numbers in a latent vector.
        generator_width: Channels of G, a multiple of 8.
        critic_width: Channels of D.
    """

    loss_function: str
    gamma: float
    critic_steps: int
    critic_sees_params: bool
    scale: str
    dequantisation: float
    generator_lr: float
    critic_lr: float
    beta1: float
    beta2: float
    latent: int
    generator_width: int
    critic_width: int

    budgeted = "generator"

    def __post_init__(self) -> None:
        for key, allowed in (("loss_function", LOSSES), ("scale", SCALES)):
            if getattr(self, key) not in allowed:
                given = getattr(self, key)
                raise ValueError(f"{key}={given!r}; allowed: {', '.join(allowed)}")
        for key in ("gamma", "dequantisation"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key}={getattr(self, key)}; allowed: 0 (none) or above")
        for key in ("generator_lr", "critic_lr"):
            check_positive(key, getattr(self, key))
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}; allowed: [0, 1)")
        for key in ("critic_steps", "latent", "critic_width"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}; allowed: 1 or more")
        if self.generator_width < 8 or self.generator_width % 8:
            raise ValueError(f"generator_width={self.generator_width}; allowed: multiples of 8")

    @override
    def build(self) -> None:
        self.learning_rates = {"generator": self.generator_lr, "critic": self.critic_lr}
        self.betas = dict.fromkeys(("generator", "critic"), (self.beta1, self.beta2))
        shape = self.problem.image_shape
        shown = self.problem.operator.description_channels if self.critic_sees_params else 0
        self.generator: nn.Module = Generator(shape, self.latent, self.generator_width)
        self.critic: nn.Module = Critic(shape, shown, self.critic_width)

    @override
    def networks(self) -> Mapping[str, nn.Module]:
        return {"generator": self.generator, "critic": self.critic}

    def rounds(self, budget: int) -> Sequence[Round]:
        """Plan one round: critic steps, then one generator step."""
        return [Round("train", budget, ("critic",) * self.critic_steps + ("generator",))]

    @override
    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        self._session = session
        self._measurements: Measurements = session.measurements
        data = session.measurements
        self._keep = self._share_seen(data)
        self._parts: dict[str, Tensor] = {}
        return session.measurements

    # -- measurements --------------------------------------------------------------------------

    def _share_seen(self, data: Measurements) -> float:
        """Return the share of entries of y that were measured, by an exact count."""
        seen = entries = 0
        for part in torch.arange(len(data)).split(COUNTED):
            batch = data.batch(part)
            observed = self.problem.operator.observed(batch.y, batch.params)
            seen += int(observed.sum(dtype=torch.float64))
            entries += observed.numel()
        return float(torch.tensor(float(seen)) / entries)

    def simulate(self, n: int, random: Random) -> Fake:
        """Generate n images and measure them as other training images were measured."""
        z = torch.randn((n, self.latent), generator=random).to(self.device)
        index = torch.randint(len(self._measurements), (n,), generator=random)
        other = self._measurements.batch(index).to(self.device)
        x = self.generator(z)
        return Fake(x, self.measure(x, other, random), other.params)

    def measure(self, x: Float[Tensor, "b c h w"], like: Batch, random: Random) -> Tensor:
        """Measure images as ``like`` was measured, with fresh noise; differentiable in ``x``."""
        return measured_like(self.problem.operator, x, like.params, like.sigma_y, random)

    def view(self, y: Float[Tensor, "b ..."], params: Params, random: Random) -> Tensor:
        """Return what the critic sees of measurements, real or fake: an image and the operator."""
        operator = self.problem.operator
        if self.dequantisation > 0:
            level = torch.rand(y.shape, generator=random).to(y.device) - 0.5
            y = y + self.dequantisation * level * operator.observed(y, params)
        if self.scale == "inverse_keep":
            y = y / self._keep
        u = operator.lift(y, params)
        shown = operator.describe(params, len(y)) if self.critic_sees_params else None
        if shown is None:
            return u
        return torch.cat([u, shown.to(u).expand(len(u), -1, -1, -1)], 1)

    # -- losses --------------------------------------------------------------------------------

    def loss(self, batch: Batch, generator: Random, turn: str) -> Loss:
        """Return the loss of the critic, with its penalty, or of the generator."""
        # Each network's gradient only in its own turn: a third of the work less.
        self.critic.requires_grad_(turn == "critic")
        self.generator.requires_grad_(turn == "generator")
        with parametrize.cached():
            if turn == "generator":
                fake = self.simulate(len(batch), generator)
                score = self.critic(self.view(fake.y, fake.params, generator))
                self._session.count("critic_evaluations", len(batch))
                # The history keeps the last turn of a step: this one tells of the critic's too.
                return Loss(generator_loss(self.loss_function, score), self._parts)
            return self._critic_turn(batch, generator)

    def _critic_turn(self, batch: Batch, random: Random) -> Loss:
        with torch.no_grad():
            fake = self.simulate(len(batch), random)
        y = batch.y.clone().requires_grad_(self.loss_function != "wgan_gp" and self.gamma > 0)
        real_score = self.critic(self.view(y, batch.params, random))
        fake_score = self.critic(self.view(fake.y, fake.params, random))
        self._session.count("critic_evaluations", 2 * len(batch))
        self._session.count("generator_evaluations", len(batch))
        total = critic_loss(self.loss_function, real_score, fake_score)
        self._parts = {
            "critic": total.detach(),
            "accuracy": ((real_score > 0).float().mean() + (fake_score < 0).float().mean()) / 2,
        }
        if self.gamma > 0:
            if self.loss_function == "wgan_gp":
                penalty = self.gamma * self._interpolated(batch, fake.x, random)
            else:
                # Few observed entries carry small gradients of the loss: so the weight falls too.
                penalty = 0.5 * self.gamma * self._keep * self._slope(y, real_score, batch).mean()
            self._parts["penalty"] = penalty.detach()
            total = total + penalty
        return Loss(total, self._parts)

    def _slope(self, y: Tensor, score: Tensor, batch: Batch) -> Float[Tensor, " b"]:
        """Return the squared gradient of each score over observed entries of its measurement."""
        (gradient,) = torch.autograd.grad(score.sum(), y, create_graph=True)
        seen = self.problem.operator.observed(gradient, batch.params)
        return (gradient * seen).flatten(1).square().sum(1)

    def _interpolated(self, batch: Batch, x: Tensor, random: Random) -> Tensor:
        """Return WGAN-GP's penalty between measurements of one operator, real and fake."""
        fake = self.measure(x, batch, random)
        share = _column(torch.rand(len(x), generator=random).to(x.device), fake)
        y = (share * batch.y + (1 - share) * fake).requires_grad_()
        score = self.critic(self.view(y, batch.params, random))
        return (self._slope(y, score, batch).clamp_min(1e-12).sqrt() - 1).square().mean()

    # -- results -------------------------------------------------------------------------------

    def prior(self, averaged: Mapping[str, nn.Module]) -> Prior | None:
        """Return None: a generator has no score."""
        return None

    def routes(self, averaged: Mapping[str, nn.Module]) -> Sequence[Route]:
        """Sample by one pass of the averaged generator."""
        network = averaged["generator"]

        @torch.no_grad()
        def sample(n: int, generator: Random) -> Tensor:
            z = torch.randn((n, self.latent), generator=generator).to(self.device)
            return torch.cat([network(part) for part in z.split(256)]).cpu()

        reason = "no denoiser: a generator only samples"
        return [Route(samples_by="generator", sample=sample, reason=reason)]


def _column(values: Float[Tensor, " b"], y: Tensor) -> Tensor:
    """Give one number an image the dimensions of its measurement."""
    return values.reshape(-1, *[1] * (y.dim() - 1))
