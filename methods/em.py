r"""Expectation-maximisation with a diffusion prior: restore every measurement, refit, repeat.

Objective (Bai et al., Eq. 7; Rozet et al., section 3): maximise the likelihood of y by alternating

- E-step: one draw :math:`\hat x_i \sim p_\theta(x \mid y_i)` for each measurement, by a posterior
  sampler with the averaged denoiser of the last round;
- M-step: denoising score matching on :math:`\{\hat x_i\}`.

Two published methods are this class by configuration:

- ``em`` (EMDiffusion, Bai et al. 2024): starts from a denoiser fitted to a few clean images, draws
  by guided sampling (DPS) whose scale is chosen anew in each round on training measurements
  (Eq. 12), fine-tunes for some rounds and then trains from scratch on restorations of everything,
  because resumed networks remember poor early restorations;
- ``em_mmps`` (Rozet et al. 2024): starts from a Gaussian fitted in closed form, needs no clean
  image, and draws by moment matching.

Differences from the authors' code: measurements and their noise are drawn once and reused in every
round; restorations stay float tensors (no 8-bit pictures, no contrast stretch); guidance norms are
per image and a guidance step never exceeds the residual (the paper's 1,000 steps do not need that);
the search for the scale is automatic and logged; the network is averaged and in eval mode in every
E-step; the conjugate-gradient solve is guarded and uses more than one iteration.

References:
    An Expectation-Maximization Algorithm for Training Clean Diffusion Models from Corrupted
    Observations (Bai et al., 2024), arXiv:2407.01014
    Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024),
    arXiv:2405.13712
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from cleanprior.data import Batch, Images, Measurements, TrainingSet
from cleanprior.diffusion.denoiser import Denoise, denoising_loss
from cleanprior.diffusion.gaussian import MAX_PIXELS, GaussianPrior, fit_gaussian
from cleanprior.diffusion.low_rank import LowRankGaussian, cheaper_fit, fit_low_rank
from cleanprior.diffusion.posterior import DPS, PosteriorSampler, draw_in_chunks
from cleanprior.operators.base import likelihood_sigma
from cleanprior.prior import Prior
from cleanprior.training import Loss, Method, Problem, Round, Session

# Mean squared residuals within this factor are a tie: a factor of 1.4 in the residual itself.
TIE = 2.0


@dataclass(kw_only=True)
class EM(Method):
    """EM over a diffusion prior.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        clean_images: Clean images of the initial fit; 0 with ``start=gaussian``.
        start: ``clean`` (denoiser fitted to the clean images) or ``gaussian`` (closed-form fit).
        start_share: Share of the budget spent on the first fit, in (0, 1].
        resume_rounds: Rounds that continue from the last round's averaged weights.
        reset_rounds: Rounds, after those, that train from scratch.
        reset_share: Share of the budget spent on each reset round.
        pool: Share of the measurements restored in a resume round, drawn anew each time, in (0, 1].
        posterior: Posterior sampler of the E-step.
        scales: Multipliers of the last scale tried in each round, for guided samplers; empty for a
            fixed scale.
        scale_images: Training measurements used to choose the scale.
        gaussian: Covariance of the Gaussian start: ``dense`` (exact EM, at most 1,024 numbers an
            image), ``low_rank`` (Monte-Carlo EM, any size) or ``auto``
            (:func:`cleanprior.diffusion.low_rank.cheaper_fit`).
        gaussian_iterations: EM iterations of the dense Gaussian start.
        low_rank_iterations: Monte-Carlo EM iterations of the low-rank Gaussian start.
        rank: Rank of the low-rank Gaussian start.
        sigma_floor: Noise level of the likelihood where sigma_y is 0 (Gaussian start, sampler).
        chunk: Measurements restored at a time; each chunk survives an interruption.

    Raises:
        ValueError: An unknown start, shares that leave nothing for a round, a start without the
            clean images that it needs.
    """

    needs: Sequence[str] = ("GAUSS",)
    start: str
    start_share: float
    resume_rounds: int
    reset_rounds: int
    reset_share: float
    pool: float
    posterior: PosteriorSampler
    scales: Sequence[float]
    scale_images: int
    gaussian: str
    gaussian_iterations: int
    low_rank_iterations: int
    rank: int
    sigma_floor: float
    chunk: int

    def __post_init__(self) -> None:
        if self.start not in ("clean", "gaussian"):
            raise ValueError(f"start={self.start!r}; allowed: clean, gaussian")
        if self.gaussian not in ("auto", "dense", "low_rank"):
            raise ValueError(f"gaussian={self.gaussian!r}; allowed: auto, dense, low_rank")
        if self.start == "gaussian" and (self.rank < 1 or self.low_rank_iterations < 1):
            raise ValueError(
                f"rank={self.rank}, low_rank_iterations={self.low_rank_iterations}; allowed: 1 or "
                "more"
            )
        if self.start == "clean" and self.clean_images in (0, "0"):
            raise ValueError("start=clean needs clean_images above 0; start=gaussian needs none")
        if not 0 < self.pool <= 1:
            raise ValueError(f"pool={self.pool}; allowed: a share in (0, 1]")
        left = 1 - self.start_share - self.reset_rounds * self.reset_share
        if not 0 < self.start_share <= 1 or left < 0 or (self.resume_rounds > 0 and left <= 0):
            raise ValueError(
                f"start_share={self.start_share} and {self.reset_rounds} reset rounds of "
                f"{self.reset_share} leave {left:.2f} of the budget for {self.resume_rounds} "
                "resume rounds; needed: shares that add up to at most 1"
            )
        if self.scales and not isinstance(self.posterior, DPS):
            raise ValueError("scales are for a guided E-step sampler (DPS); set scales=[]")

    def supports(self, problem: Problem) -> str | None:  # noqa: D102
        reason = super().supports(problem)
        size = math.prod(problem.image_shape)
        if reason is None and self._starts_dense and size > MAX_PIXELS:
            reason = (
                f"the dense Gaussian start takes images of at most {MAX_PIXELS} numbers; these "
                f"have {size}: use gaussian=low_rank"
            )
        return reason

    @property
    def _starts_dense(self) -> bool:
        return self.start == "gaussian" and self.gaussian == "dense"

    def build(self) -> None:  # noqa: D102
        self.denoiser = self.problem.denoiser()

    def networks(self) -> Mapping[str, nn.Module]:  # noqa: D102
        return {"denoiser": self.denoiser}

    def rounds(self, budget: int) -> Sequence[Round]:  # noqa: D102
        reset = round(budget * self.reset_share)
        first = budget - self.reset_rounds * reset
        if self.resume_rounds:
            first = max(1, round(budget * self.start_share))
        left = budget - first - self.reset_rounds * reset
        each, more = divmod(left, max(1, self.resume_rounds))
        plan = [Round(f"round 0 ({self.start} start)", first)]
        for k in range(self.resume_rounds):
            plan.append(Round(f"round {k + 1}", each + (k < more), begin="averaged"))
        for k in range(self.reset_rounds):
            number = self.resume_rounds + k + 1
            plan.append(Round(f"round {number} (from scratch)", reset, begin="scratch"))
        return plan

    # -- E-step --------------------------------------------------------------------------------

    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:  # noqa: D102
        data = session.measurements
        if number == 0 and self.start == "clean":
            assert session.clean is not None, "the runner hands clean images to an entitled method"
            return Images(session.clean, data, torch.arange(len(session.clean)))
        index = torch.arange(len(data))
        if round.begin == "averaged" and self.pool < 1:
            kept = max(1, int(self.pool * len(data)))
            order = torch.randperm(len(data), generator=session.generator("pool", round=number))
            index = order[:kept].sort().values
        if number == 0:
            restored = self._gaussian_draws(index, session)
        else:
            denoise = session.averaged["denoiser"]
            sampler = self._choose_scale(denoise, number, session)
            restored = self._draws(denoise, sampler, index, number, session)
        return Images(restored.clamp(-1, 1), data, index)

    def _gaussian_draws(self, index: Tensor, session: Session) -> Tensor:
        """Draw from the exact posterior under the Gaussian fitted to the measurements."""
        data, kind = session.measurements, self.gaussian
        if kind == "auto":
            kind = cheaper_fit(data, self.problem.operator)

        def compute() -> tuple[dict[str, Tensor], dict[str, float]]:
            prior = self._fit_gaussian(kind, data, session)
            return {"x": self._exact_draws(prior, data, index, session)}, {}

        session.log["gaussian"] = kind
        return session.store.once("gaussian-draws", compute)[0]["x"]

    def _fit_gaussian(
        self, kind: str, data: Measurements, session: Session
    ) -> GaussianPrior | LowRankGaussian:
        """Fit the start: ``dense`` or ``low_rank``."""
        operator, floor = self.problem.operator, self.sigma_floor
        generator = session.generator("gaussian")
        iterations = self.gaussian_iterations if kind == "dense" else self.low_rank_iterations
        with session.progress.task("Gaussian fit", iterations) as task:
            if kind == "dense":
                return fit_gaussian(
                    data, operator, floor, iterations, generator, advance=task.advance
                )
            return fit_low_rank(
                data, operator, floor, iterations, self.rank, generator, advance=task.advance
            )

    def _exact_draws(
        self,
        prior: GaussianPrior | LowRankGaussian,
        data: Measurements,
        index: Tensor,
        session: Session,
    ) -> Tensor:
        operator = self.problem.operator
        draws = []
        for k, part in enumerate(index.split(self.chunk)):
            b = data.batch(part)
            sigma = likelihood_sigma(b.sigma_y, self.sigma_floor)
            generator = session.generator("gaussian-draw", chunk=k)
            draws.append(prior.draw(b.y, b.params, sigma, operator, generator))
        return torch.cat(draws)

    def _draws(
        self,
        denoise: Denoise,
        sampler: PosteriorSampler,
        index: Tensor,
        number: int,
        session: Session,
    ) -> Tensor:
        """Draw from p(x|y) for these measurements; a chunk on disk is not drawn again."""
        parts = []
        with session.progress.task(f"E-step of round {number}", len(index)) as task:
            for k, part in enumerate(index.split(self.chunk)):

                def compute(part: Tensor = part) -> tuple[dict[str, Tensor], dict[str, float]]:
                    return self._draw_chunk(denoise, sampler, part, number, session)

                tensors, costs = session.store.once(f"draws-{number:03d}-{k:05d}", compute)
                for name, amount in costs.items():
                    session.count(name, amount)
                parts.append(tensors["x"])
                task.advance(len(part))
        return torch.cat(parts)

    def _draw_chunk(
        self,
        denoise: Denoise,
        sampler: PosteriorSampler,
        part: Tensor,
        number: int,
        session: Session,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        batch = session.measurements.batch(part).to(session.device)
        generators = session.generators("posterior", part.tolist(), round=number)
        operator = self.problem.operator
        draw = sampler(denoise, batch.y, batch.params, batch.sigma_y, operator, generators)
        costs = {
            "evaluations": float(draw.evaluations * len(part)),
            "backwards": float(draw.backwards * len(part)),
        }
        return {"x": draw.x.cpu()}, costs

    def _choose_scale(self, denoise: Denoise, number: int, session: Session) -> PosteriorSampler:
        """Choose the guidance scale on training measurements (Eq. 12), with common random numbers.

        Without noise: the smallest mean residual. With noise: the residual nearest to its expected
        value (discrepancy principle; the smallest one would reproduce the noise). Of scales whose
        misfit is within :data:`TIE` of the best, the largest: the cap of the sampler makes large
        scales fit alike, and on 8x8 digits guidance at 0.6 restores 1.9 dB worse than at 2.8.
        """
        if not self.scales:
            return self.posterior
        assert isinstance(self.posterior, DPS)
        last = float(session.log.get("scales", [self.posterior.scale])[-1])

        def compute() -> tuple[dict[str, Tensor], dict[str, float]]:
            data = session.measurements
            generator = session.generator("scale-images", round=number)
            index = torch.randperm(len(data), generator=generator)[: self.scale_images]
            batch = data.batch(index).to(session.device)
            misfits, evaluations, backwards = [], 0.0, 0.0
            for multiplier in self.scales:
                draw = draw_in_chunks(
                    self._with_scale(last * multiplier),
                    denoise,
                    batch.y,
                    batch.params,
                    batch.sigma_y,
                    self.problem.operator,
                    session.generators("scale", index.tolist(), round=number),
                    self.chunk,
                )
                misfits.append(self._misfit(batch, draw.x))
                evaluations += draw.evaluations * len(index)
                backwards += draw.backwards * len(index)
            limit = TIE * min(misfits)
            best = max(
                (i for i, m in enumerate(misfits) if m <= limit), key=lambda i: self.scales[i]
            )
            costs = {"evaluations": evaluations, "backwards": backwards}
            return {"scale": torch.tensor(last * self.scales[best], dtype=torch.float64)}, costs

        tensors, costs = session.store.once(f"scale-{number:03d}", compute)
        for name, amount in costs.items():
            session.count(name, amount)
        scale = float(tensors["scale"])
        session.log["scales"] = [*session.log.get("scales", []), scale]
        return self._with_scale(scale)

    def _with_scale(self, scale: float) -> DPS:
        sampler = copy.copy(self.posterior)
        assert isinstance(sampler, DPS)
        sampler.scale = scale
        return sampler

    def _misfit(self, batch: Batch, x: Tensor) -> float:
        """Return what the scale is chosen to make small; infinity for a draw that is not finite."""
        operator = self.problem.operator
        seen = operator.observed(batch.y, batch.params)
        residual = ((batch.y - operator.A(x, batch.params)) * seen).flatten(1).square().sum(1)
        expected = batch.sigma_y**2 * seen.flatten(1).sum(1)
        value = (residual.mean() - expected.mean()).abs().item()
        return value if math.isfinite(value) else math.inf

    # -- M-step --------------------------------------------------------------------------------

    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:  # noqa: D102
        assert batch.images is not None
        return Loss(denoising_loss(self.denoiser, batch.images, generator))

    def prior(self, averaged: Mapping[str, nn.Module]) -> Prior | None:  # noqa: D102
        return self.make_prior(averaged["denoiser"])
