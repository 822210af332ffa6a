r"""SURE-Score: Stein's risk at the noise level of the data, score matching on what was denoised.

Objective (:math:`f(y) = D(y, \sigma_y)`, both terms a mean over pixels):

.. math::
    \|f(y) - y\|^2 + 2\sigma_y^2\,\mathrm{div} f(y) - \sigma_y^2
    + \lambda\, w(\sigma)\,\|D(f(y) + \sigma n, \sigma) - f(y)\|^2

The first three terms are, in expectation, the risk :math:`\|f(y) - x\|^2` (Stein). The last one
fits the law of :math:`E[x \mid y]` and not that of x: samples are too smooth by construction. For
Gaussian images of covariance C they have :math:`C (C + \sigma_y^2 I)^{-1} C`.

Differences from the paper and the authors' code, each with its option:

- EDM's denoiser, noise levels and weight instead of a discrete list of scores;
- f(y) is a constant in the score term (``detach=false``: its gradient reaches f, which can then
  lower the loss by flattening the images);
- both terms are means over pixels (``reduction=official``: the score term is half the sum over
  pixels with weight :math:`1/\sigma^2`, so that the balance depends on the resolution);
- lambda rises to ``lambda_max`` over the first half of training and stays there
  (``lambda_schedule=epoch``: it grows without bound); it changes between rounds only, so that a
  resumed run is the uninterrupted one;
- the divergence has Rademacher probes and an exact directional derivative (``probe=gaussian`` and
  ``divergence=finite``);
- the last iterate is kept (the authors stop at the least error against the clean image).

Cost: a step sees each image three times. The budget counts one; f and its derivative are counted
as evaluations.

References:
    Solving Inverse Problems with Score-Based Generative Priors learned from Noisy Data (Aali et
    al., 2023), arXiv:2305.01166
    Estimation of the Mean of a Multivariate Normal Distribution (Stein, 1981)
    Monte-Carlo SURE (Ramani et al., 2008): the probe of the divergence
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.autograd import forward_ad

from cleanprior.data import Batch, TrainingSet
from cleanprior.diffusion.denoiser import Denoiser, draw_sigma, edm_weight, per_image
from cleanprior.prior import Prior
from cleanprior.seeding import scoped_rng
from cleanprior.training import Loss, Method, Round, Session, Way

PROBES = ("rademacher", "gaussian")
DIVERGENCES = ("jvp", "finite")
REDUCTIONS = ("mean", "official")
SCHEDULES = ("ramp", "constant", "epoch")
#: Least noise level at which a denoiser is asked, EDM's own; only clean images are below it.
SIGMA_MIN = 0.002


def one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a value that is not among the allowed ones.

    Raises:
        ValueError: ``value`` is not allowed.
    """
    if value not in allowed:
        raise ValueError(f"{key}={value!r}; allowed: {', '.join(allowed)}")


def draw_probe(
    kind: str, y: Float[Tensor, "b c h w"], generator: Generator
) -> Float[Tensor, "b c h w"]:
    """Draw b with E[b b^T] = I: signs (``rademacher``) or normal numbers (``gaussian``)."""
    if kind == "gaussian":
        return torch.randn(y.shape, generator=generator).to(y)
    return (2.0 * torch.randint(2, y.shape, generator=generator) - 1).to(y)


def denoise_and_divergence(
    denoiser: Denoiser,
    y: Float[Tensor, "b c h w"],
    sigma_y: Float[Tensor, " b"],
    probe: Float[Tensor, "b c h w"],
    epsilon: float,
    generator: Generator,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
    r"""Return :math:`f(y)` and an estimate of :math:`\mathrm{div} f(y)` a pixel.

    .. math:: \mathrm{div} f = E_b[b^\top J_f b], \quad
        J_f b \approx (f(y + \epsilon b) - f(y)) / \epsilon

    Arguments:
        denoiser: D.
        y: Noisy images.
        sigma_y: Their noise levels, units of y.
        probe: b.
        epsilon: Step of the finite difference, units of y; 0 for the exact derivative.
        generator: Seeds dropout, which must be the same in both calls of a finite difference.
    """
    level = sigma_y.clamp_min(SIGMA_MIN)
    if epsilon == 0:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(y, probe)
            f, slope = forward_ad.unpack_dual(denoiser(dual, level))
            assert slope is not None
    else:
        seed = int(torch.randint(2**31, (), generator=generator))
        with scoped_rng(seed):
            f = denoiser(y, level)
        with scoped_rng(seed):
            slope = (denoiser(y + epsilon * probe, level) - f) / epsilon
    return f, (probe * slope).flatten(1).mean(1)


def stein_risk(
    f: Float[Tensor, "b c h w"],
    divergence: Float[Tensor, " b"],
    y: Float[Tensor, "b c h w"],
    sigma_y: Float[Tensor, " b"],
) -> Float[Tensor, " b"]:
    r"""Return an unbiased estimate of :math:`\|f(y) - x\|^2` a pixel, without x.

    Arguments:
        f: f(y).
        divergence: :math:`\mathrm{div} f(y)` a pixel.
        y: :math:`x + \sigma_y z`.
        sigma_y: Noise levels.
    """
    variance = sigma_y**2
    return ((f - y) ** 2).flatten(1).mean(1) + 2 * variance * divergence - variance


@dataclass(kw_only=True)
class SureScore(Method):
    """One denoiser, fitted by Stein's risk at sigma_y and by score matching on its own outputs.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        probe: ``rademacher`` or ``gaussian``.
        divergence: ``jvp`` (exact directional derivative) or ``finite`` (difference).
        epsilon: Step of the finite difference, units of y, above 0.
        detach: Take f(y) as a constant in the score term.
        reduction: ``mean`` or ``official``.
        lambda_max: Weight of the score term, above 0.
        lambda_schedule: ``ramp``, ``constant`` or ``epoch`` (stage number times ``lambda_max``).
        stages: Equal parts of the budget, each with its own lambda, 1 or more.

    Raises:
        ValueError: A value outside its range.
    """

    needs: Sequence[str] = ("IDENTITY", "GAUSS", "NOISY")
    probe: str
    divergence: str
    epsilon: float
    detach: bool
    reduction: str
    lambda_max: float
    lambda_schedule: str
    stages: int

    def __post_init__(self) -> None:
        one_of("probe", self.probe, PROBES)
        one_of("divergence", self.divergence, DIVERGENCES)
        one_of("reduction", self.reduction, REDUCTIONS)
        one_of("lambda_schedule", self.lambda_schedule, SCHEDULES)
        for key in ("epsilon", "lambda_max"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}={getattr(self, key)}; allowed: above 0")
        if self.stages < 1:
            raise ValueError(f"stages={self.stages}; allowed: 1 or more")

    def build(self) -> None:  # noqa: D102
        self.denoiser = self.problem.denoiser()
        if self.divergence == "finite":
            # A difference of 1e-3 drowns in the rounding of bf16.
            self.denoiser.autocast = None

    def networks(self) -> Mapping[str, nn.Module]:  # noqa: D102
        return {"denoiser": self.denoiser}

    # -- stages --------------------------------------------------------------------------------

    def stage_weight(self, stage: int) -> float:
        """Return lambda in a stage; the ramp takes its middle, and ends after half the stages."""
        if self.lambda_schedule == "constant":
            return self.lambda_max
        if self.lambda_schedule == "epoch":
            return self.lambda_max * stage
        return self.lambda_max * min(1.0, (stage + 0.5) / (self.stages / 2))

    def rounds(self, budget: int) -> Sequence[Round]:
        """Plan one round a stage; a stage without steps is left out."""
        edges = [budget * k // self.stages for k in range(self.stages + 1)]
        steps = [b - a for a, b in zip(edges, edges[1:], strict=False)]
        weights = [self.stage_weight(k) for k, n in enumerate(steps) if n > 0]
        self._weights = weights
        return [
            Round(f"lambda {w:.3g}", n)
            for w, n in zip(weights, (n for n in steps if n > 0), strict=True)
        ]

    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:  # noqa: D102
        self._session, self._weight = session, self._weights[number]
        return session.measurements

    # -- loss ----------------------------------------------------------------------------------

    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:  # noqa: D102
        probe = draw_probe(self.probe, batch.y, generator)
        epsilon = 0.0 if self.divergence == "jvp" else self.epsilon
        f, divergence = denoise_and_divergence(
            self.denoiser, batch.y, batch.sigma_y, probe, epsilon, generator
        )
        risk = stein_risk(f, divergence, batch.y, batch.sigma_y).mean()
        score = self._score_term(f.detach() if self.detach else f, generator)
        self._session.count("evaluations", 2.0 * len(batch))
        parts = {"risk": risk, "divergence": divergence.mean(), "score": score}
        return Loss(risk + self._weight * score, {k: v.detach() for k, v in parts.items()})

    def _score_term(self, target: Tensor, generator: Generator) -> Tensor:
        sigma = draw_sigma(len(target), generator, target.device)
        noise = torch.randn(target.shape, generator=generator).to(target.device)
        error = (self.denoiser(target + per_image(sigma) * noise, sigma) - target) ** 2
        if self.reduction == "official":
            return 0.5 * (error.flatten(1).sum(1) / sigma**2).mean()
        return (edm_weight(sigma, self.denoiser.sigma_data) * error).mean()

    # -- result --------------------------------------------------------------------------------

    def prior(self, averaged: Mapping[str, nn.Module]) -> Prior | None:  # noqa: D102
        return self.make_prior(averaged["denoiser"])

    def ways(self, averaged: Mapping[str, nn.Module]) -> Sequence[Way]:
        """Restoration by f(y), one evaluation."""
        denoiser = averaged["denoiser"]
        assert isinstance(denoiser, Denoiser)
        return [Way("f(y), one step", OneStep(denoiser))]


@dataclass(frozen=True)
class OneStep:
    r"""Restores by :math:`D(y, \sigma_y) \approx E[x \mid y]`, one evaluation an image."""

    denoiser: Denoiser

    @torch.no_grad()
    def __call__(  # noqa: D102
        self, batch: Batch, generators: list[Generator]
    ) -> tuple[Float[Tensor, "b c h w"], int]:
        return self.denoiser(batch.y, batch.sigma_y.clamp_min(SIGMA_MIN)), 1
