r"""DiffEM: EM whose posterior is a conditional diffusion network.

Objective (Hosseintabar et al. 2025). The channel :math:`y \sim Q(\cdot|x)` is known and can be
simulated; nothing else is asked of it. With one restoration :math:`x_i \sim q_k(\cdot|y_i)` of each
measurement (E-step), the M-step fits the conditional denoiser of the model's joint law,

.. math:: \theta_{k+1} = \arg\min_\theta \mathbb E_{x \sim X,\, y' \sim Q(\cdot|x),\, \sigma, n}\,
    w(\sigma)\, \|D_\theta(x + \sigma n, \sigma \mid y') - x\|^2

whose minimiser samples the exact posterior of the current prior: an exact EM step, under which the
likelihood of the measurements does not fall. No gradient of A, no likelihood and no linear solve is
in it; one network evaluation a level restores. At the end an unconditional denoiser is fitted to
restorations by the last conditional network: it is the prior. The conditional network is tied to
the channel that it was trained on, and is a row of its own.

What the network is told: the lifted y, the operator's description, the noise level
(:mod:`.channel`), concatenated after EDM's input scaling. y' is drawn with the operator and level
of a random training measurement, so that no law of operators is needed.

The first restorations (``start``) are exact draws under the Gaussian fit of
:mod:`cleanprior.methods.em`. That needs Gaussian noise; under any other channel the lifted y are
taken for the first images, so that the first network is one of pairs (lifted y, their measurement):
ours, and the row says so (``lift``).

Differences from the authors' code, each with its option:

- y' is drawn anew in every step (``recorrupt=per_round``: once a round, fifty thousand fixed pairs
  for 256 epochs);
- noise of y' is drawn for every entry (``noise_shape=mask``: one value for all channels of a
  pixel, another channel than the data's);
- the network is told operator and level (``condition=y``: y alone, where a hidden pixel is grey);
- no augmentation, or mirrored images (``augment=flip``; ``color``: hue and saturation of x and y'
  together, which is no measurement of the changed x);
- EDM's levels and one decay of the learning rate over all rounds (``levels=beta``,
  ``resume=averaged``: new optimiser and average in each round);
- an exponential walk of tens of levels (``posterior.walk=ancestral``, 256 steps);
- a share of the budget for the start, equal rounds, and a share for the prior, in place of a number
  of epochs; ``final_draws`` restorations of each measurement for the prior, which begins with the
  conditional network's weights (``prior_begin=fresh``).

Not offered: their validation loop takes optimiser steps on restorations of **test** measurements.
Restorations are not clamped: that would bias saturated images from round to round.

References:
    DiffEM: Learning from Corrupted Data with Diffusion Models via Expectation Maximization
    (Hosseintabar et al., 2025), arXiv:2510.12691
    Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024),
    arXiv:2405.13712, for the Gaussian start
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from typing_extensions import override

from cleanprior.config.checks import check_choice
from cleanprior.data import Batch, Images, TrainingSet
from cleanprior.diffusion.denoiser import Denoiser, denoising_loss, edm_weight, per_image
from cleanprior.diffusion.posterior import Draw
from cleanprior.operators import Likelihood
from cleanprior.seeding import randn_like
from cleanprior.training import DenoiserMethod, Loss, Problem, Round, Route, Session, Warning

from ..em.start import GaussianStart
from .channel import CONDITIONS, NOISE_SHAPES, Channel, Fresh, Pairs, drawn_like, joined
from .levels import AUGMENTS, LEVELS, colour_changes, draw_levels, flipped, recoloured
from .monitor import log_restorations
from .walk import ConditionalWalk

CHOICES = {
    "start": ("auto", "gaussian", "lift"),
    "gaussian": ("auto", "dense", "low_rank"),
    "resume": ("continue", "averaged"),
    "prior_begin": ("conditional", "fresh"),
    "levels": LEVELS,
    "recorrupt": ("per_step", "per_round"),
    "condition": CONDITIONS,
    "noise_shape": NOISE_SHAPES,
    "augment": AUGMENTS,
}
LIFTED = (
    "the noise is not Gaussian, so there is no Gaussian fit to start from: the first restorations "
    "are the measurements themselves"
)
#: The round that fits the prior.
PRIOR = "prior"


@torch.no_grad()
def take_over(conditional: nn.Module, denoiser: nn.Module) -> None:
    """Give a denoiser the weights of a conditional one, but for those of the condition.

    The condition comes after the image among the input channels: at a condition of 0 both networks
    are the same.
    """
    theirs = conditional.state_dict()
    for key, own in denoiser.state_dict().items():
        value = theirs[key]
        own.copy_(value if value.shape == own.shape else value[:, : own.shape[1]])


@dataclass(kw_only=True)
class DiffEM(DenoiserMethod):
    """EM whose E-step is a conditional diffusion network.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        start: The first restorations: ``gaussian`` (exact draws under a Gaussian fit), ``lift``
            (the lifted y) or ``auto``: the former where the noise is Gaussian.
        start_share: Share of the budget spent on the first conditional network, in (0, 1).
        resume_rounds: Rounds after it, each with an E-step before; they share what is left.
        resume: What they go on with: ``continue`` (weights, optimiser and average) or ``averaged``
            (the averaged weights alone, new optimiser and average).
        prior_share: Share of the budget spent on the unconditional denoiser, at the end, in (0, 1).
        prior_begin: What that one begins with: ``conditional``: the averaged weights of the last
            conditional network, without those of its condition; ``fresh``: weights of its own, or
            those of ``training.start``, which it takes in any case.
        final_draws: Restorations of each measurement that it is fitted to.
        posterior: The walk of the E-step and of restoration.
        levels: Noise levels of the conditional network: ``edm`` or ``beta``.
        recorrupt: y' drawn ``per_step`` or ``per_round``.
        condition: What the network is told: ``all`` or ``y``.
        noise_shape: Noise of y': ``y``, or ``mask``: one value for all channels of a pixel.
        augment: ``none``, ``flip`` (images are declared to be mirrored as often as not) or
            ``color`` (images of three channels whose y is an image; of grey ones nothing changes).
        gaussian: Covariance of the start: ``dense``, ``low_rank`` or ``auto``.
        gaussian_iterations: EM iterations of the dense fit.
        low_rank_iterations: Monte-Carlo EM iterations of the low-rank fit.
        rank: Rank of the low-rank fit.
        sigma_floor: Noise level of the start's likelihood where sigma_y is 0.
        chunk: Measurements restored at a time; each chunk survives an interruption.

    Raises:
        ValueError: A value outside its range.
    """

    fits_images = True
    also_budgeted: ClassVar[tuple[str, ...]] = ("conditional",)

    start: str
    start_share: float
    resume_rounds: int
    resume: str
    prior_share: float
    prior_begin: str
    final_draws: int
    posterior: ConditionalWalk
    levels: str
    recorrupt: str
    condition: str
    noise_shape: str
    augment: str
    gaussian: str
    gaussian_iterations: int
    low_rank_iterations: int
    rank: int
    sigma_floor: float
    chunk: int

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            check_choice(key, getattr(self, key), allowed)
        for key in ("final_draws", "gaussian_iterations", "low_rank_iterations", "rank", "chunk"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}; allowed: 1 or more")
        if not isinstance(self.posterior, ConditionalWalk):
            raise ValueError(
                f"posterior={type(self.posterior).__name__} is a sampler under a prior; the "
                "conditional network has its own, ConditionalWalk"
            )
        if self.resume_rounds < 0:
            raise ValueError(f"resume_rounds={self.resume_rounds}; allowed: 0 or more")
        left = 1 - self.start_share - self.prior_share
        if (
            min(self.start_share, self.prior_share) <= 0
            or left < 0
            or self.resume_rounds * left < 0
        ):
            raise ValueError(
                f"start_share={self.start_share}, prior_share={self.prior_share}; needed: both "
                "above 0, and at most 1 together"
            )

    @override
    def supports(self, problem: Problem) -> str | None:
        reason = super().supports(problem)
        able, channels = problem.operator.capabilities, problem.image_shape[0]
        is_picture = "same_shape" in able and "fourier" not in able
        if (
            reason is None
            and self.noise_shape == "mask"
            and not (is_picture and "gaussian" in able)
        ):
            return (
                "noise_shape=mask is one value of Gaussian noise for all channels of a pixel, and "
                f"{problem.operator_name} measures no pixels so; set method.noise_shape=y"
            )
        if reason is not None and self.start == "gaussian" and "gaussian" not in able:
            return f"{reason}: set method.start=auto, which begins with y itself"
        if reason is None and self.augment == "color" and channels == 3 and not is_picture:
            return (
                f"augment=color changes the colours of y, and that of {problem.operator_name} has "
                "none; set method.augment=none"
            )
        return reason

    @override
    def warnings(self, problem: Problem) -> list[Warning]:
        found = super().warnings(problem)
        if self._starts_by(problem) == "lift":
            text = "the first restorations are the measurements themselves (method.start=lift)"
            is_forced = "gaussian" not in problem.operator.capabilities
            found.append(Warning("lift", LIFTED if is_forced else text))
        return found

    def _starts_by(self, problem: Problem) -> str:
        if self.start != "auto":
            return self.start
        return "gaussian" if "gaussian" in problem.operator.capabilities else "lift"

    # -- networks and rounds -------------------------------------------------------------------

    @override
    def build(self) -> None:
        """Make the prior's denoiser and the conditional network, alike but for its condition."""
        super().build()
        self.channel = Channel(
            self.problem.operator, self.problem.sigma_data, self.condition, self.noise_shape
        )
        self.conditional = self.problem.denoiser(self.channel.channels)

    @override
    def networks(self) -> Mapping[str, nn.Module]:
        return {"conditional": self.conditional, "denoiser": self.denoiser}

    def rounds(self, budget: int) -> Sequence[Round]:
        """Plan the conditional network's rounds and that of the prior; none without steps."""
        last = min(budget, max(1, round(budget * self.prior_share)))
        first = budget - last
        if self.resume_rounds:
            first = min(first, max(1, round(budget * self.start_share)))
        each, more = divmod(budget - last - first, max(1, self.resume_rounds))
        turns = ("conditional",)
        plan = [Round(f"round 0 (start={self.start})", first, turns)]
        for k in range(self.resume_rounds):
            plan.append(Round(f"round {k + 1}", each + (k < more), turns, begin=self.resume))
        plan.append(Round(PRIOR, last, begin="averaged"))
        return [r for r in plan if r.steps > 0]

    # -- E-step --------------------------------------------------------------------------------

    @override
    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        self._session, data = session, session.measurements
        if number == 0:
            x = self._first(session)
        else:
            draws = self.final_draws if round.name == PRIOR else 1
            x = self._restored(number, draws, session)
        log_restorations(self.channel, number, x[: len(data)], self.chunk, session)
        if round.name == PRIOR:
            if self.prior_begin == "conditional" and not self.problem.has_start:
                take_over(session.averaged["conditional"], session.averaged["denoiser"])
            return Images(x, data, torch.arange(len(x)) % len(data))
        if self.recorrupt == "per_step":
            return Fresh(x, data)
        return self._pairs(x, number, session)

    def _first(self, session: Session) -> Tensor:
        """Return the first restorations, one of each measurement."""
        data, operator = session.measurements, self.problem.operator.to("cpu")
        index = torch.arange(len(data))
        session.log["start"] = self._starts_by(self.problem)
        if session.log["start"] == "lift":
            parts = [data.batch(part) for part in index.split(self.chunk)]
            return torch.cat([operator.lift(b.y, b.params) for b in parts])
        start = GaussianStart(
            self.gaussian,
            self.gaussian_iterations,
            self.low_rank_iterations,
            self.rank,
            self.sigma_floor,
            self.chunk,
        )
        return start.draws(operator, index, session)

    def _restored(self, number: int, draws: int, session: Session) -> Tensor:
        """Draw restorations of every measurement; a chunk on disk is not drawn again.

        Arguments:
            number: The round.
            draws: Of each; the first of all come first.
            session: The run.
        """
        network, data = session.averaged["conditional"], session.measurements
        parts = [(k, p) for k in range(draws) for p in torch.arange(len(data)).split(self.chunk)]
        keys = [f"draws-{number:03d}-{i:05d}" for i in range(len(parts))]

        def compute(i: int) -> tuple[dict[str, Tensor], dict[str, float]]:
            k, part = parts[i]
            generators = session.generators("conditional", part.tolist(), round=number, draw=k)
            drawn = self._draw(network, data.batch(part).to(session.device), generators)
            return {"x": drawn.x.cpu()}, {"evaluations": float(drawn.evaluations * len(part))}

        return session.gathered(f"E-step of round {number}", draws * len(data), keys, compute)

    @torch.no_grad()
    def _draw(self, network: nn.Module, batch: Batch, generators: Sequence[Generator]) -> Draw:
        """Draw one image from the conditional network for each measurement."""
        told = self.channel.told(batch.y, batch.params, batch.sigma_y)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return network(x, sigma, told)

        return self.posterior(denoise, Likelihood.of(self.problem.operator, batch), generators)

    def _pairs(self, x: Tensor, number: int, session: Session) -> Pairs:
        """Measure all restorations once, for a whole round."""
        parts = []
        for k, part in enumerate(x.split(self.chunk)):
            generator = session.generator("recorrupt", round=number, chunk=k)
            parts.append(self._measured(part.to(self.device), generator)[1].to("cpu"))
        return Pairs(joined(parts))

    # -- M-step --------------------------------------------------------------------------------

    def _measured(self, x: Tensor, generator: Generator) -> tuple[Tensor, Batch]:
        """Return images and measurements of them, as random training images were measured."""
        if self.augment == "flip":
            x = flipped(x, generator)
        like = drawn_like(self._session.measurements, len(x), generator)
        return x, self.channel.simulate(x, like.to(x.device), generator)

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        x = batch.images
        assert x is not None
        if turn == "denoiser":
            if self.augment == "flip":
                x = flipped(x, generator)
            if change := self._change(x, generator):
                x = change(x)
            return Loss(denoising_loss(self.denoiser, x, generator))
        if self.recorrupt == "per_step":
            x, batch = self._measured(x, generator)
        y = batch.y
        if change := self._change(x, generator):
            x, y = change(x), change(y)
        told = self.channel.told(y, batch.params, batch.sigma_y)
        sigma = draw_levels(self.levels, len(x), generator, x.device)
        noisy = x + per_image(sigma) * randn_like(x, generator)
        error = (self.conditional(noisy, sigma, told) - x) ** 2
        return Loss((edm_weight(sigma, self.conditional.sigma_data) * error).mean())

    def _change(self, x: Tensor, generator: Generator) -> Callable[[Tensor], Tensor] | None:
        """Return how the colours of images, and of their measurements, are changed, if at all."""
        if self.augment != "color" or x.shape[1] != 3:
            return None
        return partial(recoloured, change=colour_changes(len(x), generator))

    # -- results -------------------------------------------------------------------------------

    def routes(self, averaged: Mapping[str, nn.Module]) -> Sequence[Route]:
        """Restoration by the conditional network; the prior restores by the shared samplers."""
        network = averaged["conditional"]
        assert isinstance(network, Denoiser)

        def restore(batch: Batch, generators: list[Generator]) -> Draw:
            return self._draw(network, batch, generators)

        return [Route("conditional network", restore=restore)]
