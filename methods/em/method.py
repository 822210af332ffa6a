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

Options that restore what the authors' code does: ``posterior.guidance=batch`` with
``posterior.cap=false`` (one residual norm over a chunk of images), ``handoff=minmax_png``
(stretched 8-bit restorations), ``lambda_schedule=[...]`` with ``scales=[]`` (a scale set by hand
for each round), ``posterior.iterations=1`` with ``posterior.solver=cg`` or ``gmres`` (Rozet et al.;
azula's default). There is no option for Bai et al.'s new noise in every round: it needs the clean
images to measure them again, and no clean image reaches a method.

The paper's rule "until the scale no longer falls" is ``stop``. The rounds and their budget are
fixed before training starts, so stopping does not shorten the training: the remaining rounds of
that phase train on the last restorations. Only the time of their E-steps is saved.

References:
    An Expectation-Maximization Algorithm for Training Clean Diffusion Models from Corrupted
    Observations (Bai et al., 2024), arXiv:2407.01014
    Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024),
    arXiv:2405.13712
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from typing_extensions import override

from cleanprior.config.checks import check_choice
from cleanprior.data import Batch, Images, TrainingSet
from cleanprior.diffusion.denoiser import Denoise, denoising_loss
from cleanprior.diffusion.posterior import DPS, GuidedSampler, PosteriorSampler
from cleanprior.gaussian.dense import MAX_PIXELS
from cleanprior.operators import Likelihood
from cleanprior.operators.symmetry import SYMMETRIES, transformed
from cleanprior.training import DenoiserMethod, Loss, Problem, Round, Session, Warning

from .start import GaussianStart
from .steps import (
    Kept,
    best_scale,
    blind,
    check_scales,
    check_shares,
    drift,
    fit_of,
    followed_covariance,
    has_stopped,
    is_capped,
    misfits_of,
    stretched,
    union,
    without_start,
)

CHOICES = {
    "start": ("clean", "gaussian", "prior"),
    "gaussian": ("auto", "dense", "low_rank"),
    "handoff": ("float", "minmax_png"),
    "resume": ("continue", "averaged"),
    "stop": ("none", "scale", "residual"),
}


@dataclass(kw_only=True)
class EM(DenoiserMethod):
    """EM over a diffusion prior.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        clean_images: Clean images of the initial fit; 0 with ``start=gaussian``.
        start: ``clean`` (denoiser fitted to them), ``gaussian`` (closed-form fit) or ``prior``
            (that of ``training.start`` draws in the first E-step).
        start_share: Share of the budget spent on the first fit, in (0, 1].
        resume_rounds: Rounds that go on from the round before.
        resume: What they go on with: ``continue`` (weights, optimiser and average; one decay of the
            learning rate over the first fit and all of them) or ``averaged`` (the averaged weights
            alone; every round has a decay of its own, as when a program is called once a round).
        narrow_rounds: Resume rounds, from the first, whose draws are narrow (ancestral steps of the
            same levels, which keep about 0.6 of the variance): they leave a poor start faster.
            Later rounds draw as ``posterior`` says.
        reset_rounds: Rounds, after those, that train from scratch.
        reset_share: Share of the budget spent on each reset round.
        pool: Share of the measurements restored in a resume round, drawn anew each time, in (0, 1].
        posterior: Posterior sampler of the E-step.
        scales: Multipliers of the last scale tried in each round, for guided samplers; empty for a
            fixed scale.
        scale_images: Training measurements used to choose the scale.
        gaussian: Covariance of the Gaussian start: ``dense`` (exact EM, at most 1,024 numbers an
            image), ``low_rank`` (Monte-Carlo EM, any size) or ``auto``
            (:func:`cleanprior.gaussian.low_rank.cheaper_fit`).
        gaussian_iterations: EM iterations of the dense Gaussian start.
        low_rank_iterations: Monte-Carlo EM iterations of the low-rank Gaussian start.
        rank: Rank of the low-rank Gaussian start.
        lambda_schedule: Guidance scale of each later round, without a search; empty for none.
        handoff: ``float`` or ``minmax_png``: what the M-step is given of a restoration.
        reuse: Whether measurements outside the pool keep their last restoration and are trained on
            too. False: the M-step trains on the pool alone.
        stop: ``none``, ``scale`` or ``residual``: when the remaining resume rounds skip their
            E-step (:func:`.em_steps.has_stopped`).
        patience: Rounds without progress before that, at least 1.
        sigma_floor: Noise level of the likelihood where sigma_y is 0 (Gaussian start, sampler).
        chunk: Measurements restored at a time; each chunk survives an interruption.
        invariance: Symmetries that the images are declared to have (``flip``, ``turn``,
            ``shift``): each M-step trains on transformed restorations, and a fixed operator shows
            what its transforms show. None for none.

    Raises:
        ValueError: An unknown start, shares that leave nothing for a round, a start without the
            clean images that it needs.
    """

    fits_images = True
    start: str
    start_share: float
    resume_rounds: int
    resume: str
    narrow_rounds: int
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
    lambda_schedule: Sequence[float]
    handoff: str
    reuse: bool
    stop: str
    patience: int
    sigma_floor: float
    chunk: int
    invariance: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            check_choice(key, getattr(self, key), allowed)
        if self.start == "gaussian" and (self.rank < 1 or self.low_rank_iterations < 1):
            found = f"rank={self.rank}, low_rank_iterations={self.low_rank_iterations}"
            raise ValueError(f"{found}; allowed: 1 or more")
        if self.start == "clean" and self.clean_images in (0, "0"):
            raise ValueError("start=clean needs clean_images above 0; start=gaussian needs none")
        if not 0 < self.pool <= 1:
            raise ValueError(f"pool={self.pool}; allowed: a share in (0, 1]")
        check_shares(self.start_share, self.resume_rounds, self.reset_rounds, self.reset_share)
        for symmetry in self.invariance or ():
            check_choice("invariance", symmetry, SYMMETRIES)
        self._check_scales()

    def _check_scales(self) -> None:
        planned = self.resume_rounds + self.reset_rounds
        is_guided = isinstance(self.posterior, DPS)
        check_scales(self.scales, self.lambda_schedule, planned, is_guided, self.stop)
        if not 0 <= self.narrow_rounds <= self.resume_rounds:
            raise ValueError(
                f"narrow_rounds={self.narrow_rounds}; allowed: 0 to resume_rounds, "
                f"{self.resume_rounds}"
            )
        if self.patience < 1:
            raise ValueError(f"patience={self.patience}; allowed: at least 1")

    @property
    @override
    def noise_floor(self) -> float:
        return self.sigma_floor

    @override
    def supports(self, problem: Problem) -> str | None:
        reason = super().supports(problem) or without_start(self.start, problem)
        size = math.prod(problem.image_shape)
        is_dense = self.start == "gaussian" and self.gaussian == "dense"
        if reason is None and is_dense and size > MAX_PIXELS:
            reason = (
                f"the dense Gaussian start takes images of at most {MAX_PIXELS} numbers; these "
                f"have {size}: use gaussian=low_rank"
            )
        return reason or blind(problem, self.invariance or (), self.posterior)

    @override
    def warnings(self, problem: Problem) -> list[Warning]:
        found = super().warnings(problem)
        if not self.invariance:
            return found
        text = f"the prior is invariant to {', '.join(self.invariance)}: wrong where images are not"
        return [w for w in found if w.code != "null"] + [Warning("invariant", text)]

    @override
    def rounds(self, budget: int) -> Sequence[Round]:
        reset = round(budget * self.reset_share)
        first = budget - self.reset_rounds * reset
        if self.resume_rounds:
            first = max(1, round(budget * self.start_share))
        left = budget - first - self.reset_rounds * reset
        each, more = divmod(left, max(1, self.resume_rounds))
        plan = [Round(f"round 0 ({self.start} start)", first)]
        for k in range(self.resume_rounds):
            plan.append(Round(f"round {k + 1}", each + (k < more), begin=self.resume))
        for k in range(self.reset_rounds):
            number = self.resume_rounds + k + 1
            plan.append(Round(f"round {number} (from scratch)", reset, begin="scratch"))
        return plan

    # -- E-step --------------------------------------------------------------------------------

    @override
    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:
        data = session.measurements
        if number == 0 and self.start == "clean":
            assert session.clean is not None, "the runner hands clean images to an entitled method"
            return Images(session.clean, data, torch.arange(len(session.clean)))
        kept = self._kept_of(session)
        is_resumed = 0 < number <= self.resume_rounds
        if is_resumed and self._has_stopped(number, session):
            last = kept.get(number - 1)
            session.log["skipped"] = [*session.log.get("skipped", []), number]
            kept.put(number, last)
            return Images(self._handed_over(last["x"]), data, last["index"])
        index = torch.arange(len(data))
        if is_resumed and self.pool < 1:
            count = max(1, int(self.pool * len(data)))
            order = torch.randperm(len(data), generator=session.generator("pool", round=number))
            index = order[:count].sort().values
        if number == 0 and self.start == "gaussian":
            restored = self._gaussian_draws(index, session)
        else:
            denoise = session.averaged["denoiser"]
            sampler = self._choose_scale(denoise, number, session)
            if 0 < number <= self.narrow_rounds and isinstance(sampler, GuidedSampler):
                sampler = replace(sampler, walk="ancestral")
            restored = self._draws(denoise, sampler, index, number, session)
        restored = restored.clamp(-1, 1)
        covariance = self._log_fit(number, index, restored, kept, session)
        if self.reuse and "x" in kept.get(number - 1):
            last = kept.get(number - 1)
            index, restored = union((last["index"], last["x"]), (index, restored))
        more = {"x": restored, "index": index} if self.reuse or self.stop != "none" else {}
        kept.put(number, {"covariance": covariance, **more})
        return Images(self._handed_over(restored), data, index)

    def _kept_of(self, session: Session) -> Kept:
        """Return what rounds of this run kept; a new run begins with nothing in memory."""
        if getattr(self, "_session", None) is not session:
            self._session, self._kept = session, Kept(session.store)
        return self._kept

    def _has_stopped(self, number: int, session: Session) -> bool:
        """Decide from the rounds before this one: a resumed round has logged its own already."""
        scales = session.log.get("scales", [])[: number - (self.start != "prior")]
        fits = session.log.get("residual", [])[: number - (self.start == "clean")]
        return has_stopped(self.stop, self.patience, scales, fits)

    def _handed_over(self, x: Tensor) -> Tensor:
        return x if self.handoff == "float" else stretched(x)

    def _log_fit(
        self, number: int, index: Tensor, x: Tensor, kept: Kept, session: Session
    ) -> Tensor:
        """Log how draws fit their measurements and how far their covariance moved; return it."""
        likelihood = Likelihood.of(self.problem.operator.to("cpu"), session.measurements)
        mean, ratio = fit_of(likelihood, index, x, self.sigma_floor, self.chunk)
        found = {"residual": mean, "residual_ratio": ratio}
        covariance = followed_covariance(x)
        before = kept.get(number - 1)
        if before:
            found["drift"] = drift(covariance, before["covariance"])
        for key, value in found.items():
            if value is not None:
                session.log[key] = [*session.log.get(key, []), value]
        return covariance

    def _gaussian_draws(self, index: Tensor, session: Session) -> Tensor:
        """Draw from the exact posterior under the Gaussian fitted to the measurements."""
        start = GaussianStart(
            self.gaussian,
            self.gaussian_iterations,
            self.low_rank_iterations,
            self.rank,
            self.sigma_floor,
            self.chunk,
        )
        return start.draws(self.problem.operator.to("cpu"), index, session)

    def _draws(
        self,
        denoise: Denoise,
        sampler: PosteriorSampler,
        index: Tensor,
        number: int,
        session: Session,
    ) -> Tensor:
        """Draw from p(x|y) for these measurements; a chunk on disk is not drawn again."""
        chunks = index.split(self.chunk)
        keys = [f"draws-{number:03d}-{k:05d}" for k in range(len(chunks))]

        def compute(k: int) -> tuple[dict[str, Tensor], dict[str, float]]:
            return self._draw_chunk(denoise, sampler, chunks[k], number, session)

        return session.gathered(f"E-step of round {number}", len(index), keys, compute)

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
        draw = sampler(denoise, Likelihood.of(self.problem.operator, batch), generators)
        costs = {
            "evaluations": float(draw.evaluations * len(part)),
            "backwards": float(draw.backwards * len(part)),
        }
        return {"x": draw.x.cpu()}, costs

    def _choose_scale(self, denoise: Denoise, number: int, session: Session) -> PosteriorSampler:
        """Choose the guidance scale on training measurements (Eq. 12), with common random numbers.

        The scale with the smallest :func:`misfit`; of those that nearly tie, the largest. Under a
        projection without noise (a mask) the cap of the sampler is the residual itself, and the
        largest scale of every search was the one chosen: it is taken without a search.
        """
        if self.lambda_schedule:
            return self._logged(float(self.lambda_schedule[max(0, number - 1)]), session)
        if not self.scales:
            return self.posterior
        assert isinstance(self.posterior, DPS)
        last = float(session.log.get("scales", [self.posterior.scale])[-1])
        if is_capped(self.posterior, self.problem.operator, session):
            return self._logged(last * max(self.scales), session)

        def compute() -> tuple[dict[str, Tensor], dict[str, float]]:
            tried = [last * multiplier for multiplier in self.scales]
            samplers = [self._with_scale(scale) for scale in tried]
            count, operator = self.scale_images, self.problem.operator
            misfits, costs = misfits_of(
                samplers, denoise, operator, count, self.chunk, number, session
            )
            best = best_scale(tried, misfits)
            return {"scale": torch.tensor(best, dtype=torch.float64)}, costs

        tensors, costs = session.store.once(f"scale-{number:03d}", compute)
        for name, amount in costs.items():
            session.count(name, amount)
        return self._logged(float(tensors["scale"]), session)

    def _logged(self, scale: float, session: Session) -> DPS:
        session.log["scales"] = [*session.log.get("scales", []), scale]
        return self._with_scale(scale)

    def _with_scale(self, scale: float) -> DPS:
        assert isinstance(self.posterior, DPS)
        return replace(self.posterior, scale=scale)

    # -- M-step --------------------------------------------------------------------------------

    @override
    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        assert batch.images is not None
        images = batch.images
        if self.invariance:
            images = transformed(images, self.invariance, generator)
        return Loss(denoising_loss(self.denoiser, images, generator))
