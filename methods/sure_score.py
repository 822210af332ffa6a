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
- the score term has continuous noise levels (``levels=official``: a geometric series from the
  largest distance between two images to :math:`\sigma_y`, each lowered by :math:`\sigma_y`, so that
  the last ones are near 0; distances are between measurements, as clean images are out of reach);
- an operator other than the identity is refused (``operator_mode=ignore``: the measurement is taken
  for an image with noise ``assumed_sigma`` and the operator stays out of the loss, as third parties
  ran the method on masks and blur. Then f is nearly the identity and the prior that of y: the
  warning ``straw-man`` stands beside the row).

Without an option: the authors' ``stop=oracle``, the iterate of least error against the clean image,
as no method is given a clean image. The last iterate is kept.

Cost: a step sees each image three times. The budget counts one; f and its derivative are counted
as evaluations.

References:
    Solving Inverse Problems with Score-Based Generative Priors learned from Noisy Data (Aali et
    al., 2023), arXiv:2305.01166
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.config.checks import check_choice, check_positive
from cleanprior.data import Batch, TrainingSet
from cleanprior.diffusion.denoiser import SIGMA_MIN, Denoiser, draw_sigma, edm_weight, per_image
from cleanprior.diffusion.posterior import Draw
from cleanprior.training import (
    DenoiserMethod,
    Loss,
    OneStep,
    Problem,
    Round,
    Route,
    Session,
    Warning,
)
from cleanprior.training.stein import (
    PROBES,
    denoise_and_difference,
    denoise_and_divergence,
    draw_probe,
    stein_risk,
)

DIVERGENCES = ("jvp", "finite")
REDUCTIONS = ("mean", "official")
SCHEDULES = ("ramp", "constant", "epoch")
LEVELS = ("continuous", "official")
#: Measurements among which the largest distance is looked for.
COMPARED = 1024


def official_levels(
    images: Float[Tensor, "n c h w"], sigma_y: float, count: int
) -> Float[Tensor, " count"]:
    r"""Return the authors' noise levels: geometric, then lowered by :math:`\sigma_y`, descending.

    Arguments:
        images: Among these the largest Euclidean distance is the first level, before lowering.
        sigma_y: The last level before lowering, units of x, above 0.
        count: How many.

    References:
        Improved Techniques for Training Score-Based Generative Models (Song and Ermon, 2020),
        technique 1, for the first level, arXiv:2006.09011
    """
    flat = images.flatten(1)
    largest = max(float(torch.cdist(flat, flat).max()), sigma_y)
    powers = torch.linspace(0, 1, count, dtype=torch.float64)
    levels = largest * (sigma_y / largest) ** powers - sigma_y
    return levels.clamp_min(SIGMA_MIN).to(images.dtype)


@dataclass(kw_only=True)
class SureScore(DenoiserMethod):
    """One denoiser, fitted by Stein's risk at sigma_y and by score matching on its own outputs.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        probe: ``rademacher`` or ``gaussian``.
        divergence: ``jvp`` (the exact directional derivative) or ``finite`` (a difference).
        epsilon: Step of the finite difference, units of y, above 0.
        detach: Take f(y) as a constant in the score term.
        reduction: ``mean`` or ``official``.
        lambda_max: Weight of the score term, above 0.
        lambda_schedule: ``ramp``, ``constant`` or ``epoch`` (stage number times ``lambda_max``).
        stages: Equal parts of the budget, each with its own lambda, 1 or more.
        levels: ``continuous`` (EDM's law) or ``official``.
        level_count: Number of official levels, 2 or more.
        operator_mode: ``refuse`` or ``ignore`` operators other than the identity.
        assumed_sigma: Noise level that ``ignore`` assumes, units of x, above 0.

    Raises:
        ValueError: A value outside its range.
    """

    probe: str
    divergence: str
    epsilon: float
    detach: bool
    reduction: str
    lambda_max: float
    lambda_schedule: str
    stages: int
    levels: str
    level_count: int
    operator_mode: str
    assumed_sigma: float
    _levels: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("probe", self.probe, PROBES)
        check_choice("divergence", self.divergence, DIVERGENCES)
        check_choice("reduction", self.reduction, REDUCTIONS)
        check_choice("lambda_schedule", self.lambda_schedule, SCHEDULES)
        check_choice("levels", self.levels, LEVELS)
        check_choice("operator_mode", self.operator_mode, ("refuse", "ignore"))
        for key in ("epsilon", "lambda_max", "assumed_sigma"):
            check_positive(key, getattr(self, key))
        if self.stages < 1:
            raise ValueError(f"stages={self.stages}; allowed: 1 or more")
        if self.level_count < 2:
            raise ValueError(f"level_count={self.level_count}; allowed: 2 or more")

    @property
    def is_ignoring(self) -> bool:
        """Whether this problem's operator is left out of the loss."""
        return self.operator_mode == "ignore" and not is_identity(self.problem)

    @override
    def warnings(self, problem: Problem) -> list[Warning]:
        found = super().warnings(problem)
        if self.operator_mode == "ignore" and not is_identity(problem):
            text = "y was treated as a noisy image; the operator was not used"
            found.append(Warning("straw-man", text))
        return found

    def noisy_images(self, batch: Batch) -> Batch:
        """Return the batch as noisy images: as it is, or with the operator ignored."""
        if not self.is_ignoring:
            return batch
        images = self.problem.operator.lift(batch.y, batch.params)
        level = torch.full_like(batch.sigma_y, self.assumed_sigma)
        return replace(batch, y=images, sigma_y=level)

    @override
    def build(self) -> None:
        self.denoiser = self.problem.denoiser()
        if self.divergence == "finite":
            # A difference of 1e-3 drowns in the rounding of bf16.
            self.denoiser.autocast = None

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

    @override
    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        self._session, self._weight = session, self._weights[number]
        if self.levels == "official" and self._levels is None:
            self._levels = self._find_levels(session)
        return session.measurements

    def _find_levels(self, session: Session) -> Tensor:
        first = torch.arange(min(COMPARED, len(session.measurements)))
        batch = self.noisy_images(session.measurements.batch(first))
        sigma = max(float(batch.sigma_y.max()), SIGMA_MIN)
        return official_levels(batch.y, sigma, self.level_count).to(session.device)

    # -- loss ----------------------------------------------------------------------------------

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        batch = self.noisy_images(batch)
        probe = draw_probe(self.probe, batch.y, generator)
        given = (self.denoiser, batch.y, batch.sigma_y, probe)
        if self.divergence == "jvp":
            f, divergence = denoise_and_divergence(*given)
        else:
            f, divergence = denoise_and_difference(*given, self.epsilon, generator)
        risk = stein_risk(f, divergence, batch.y, batch.sigma_y).mean()
        score = self._score_term(f.detach() if self.detach else f, generator)
        self._session.count("evaluations", 2.0 * len(batch))
        parts = {"risk": risk, "divergence": divergence.mean(), "score": score}
        return Loss(risk + self._weight * score, {k: v.detach() for k, v in parts.items()})

    def _draw_sigma(self, n: int, generator: Generator, device: torch.device) -> Tensor:
        if self.levels == "continuous":
            return draw_sigma(n, generator, device)
        assert self._levels is not None, "begin_round() comes first"
        return self._levels[torch.randint(len(self._levels), (n,), generator=generator).to(device)]

    def _score_term(self, target: Tensor, generator: Generator) -> Tensor:
        sigma = self._draw_sigma(len(target), generator, target.device)
        noise = torch.randn(target.shape, generator=generator).to(target.device)
        error = (self.denoiser(target + per_image(sigma) * noise, sigma) - target) ** 2
        if self.reduction == "official":
            return 0.5 * (error.flatten(1).sum(1) / sigma**2).mean()
        return (edm_weight(sigma, self.denoiser.sigma_data) * error).mean()

    # -- result --------------------------------------------------------------------------------

    def routes(self, averaged: Mapping[str, nn.Module]) -> Sequence[Route]:
        """Restoration by f(y), one evaluation."""
        denoiser = averaged["denoiser"]
        assert isinstance(denoiser, Denoiser)
        one_step = OneStep(denoiser)

        def restore(batch: Batch, generators: list[Generator]) -> Draw:
            return one_step(self.noisy_images(batch), generators)

        return [Route("f(y), one step", restore=restore, kind="point")]


def is_identity(problem: Problem) -> bool:
    """Whether measurements are noisy images."""
    return "identity" in problem.operator.capabilities
