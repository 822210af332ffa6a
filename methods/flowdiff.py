r"""FlowDiff: a conditional flow proposes clean images, a diffusion prior judges and learns them.

Objective (derived; the paper's own equations were not available to us). With
:math:`x = G_\phi(u; y, A)`, :math:`u \sim N(0, I)` and d numbers in an image,

.. math::
    L_\phi = \frac1d\, \mathbb E\Big[\frac{\|y - A x\|^2}{2 s^2} - w\, b_\theta(x)
             - \log\Big|\det\frac{\partial x}{\partial u}\Big|\Big],
    \qquad
    -b_\theta(x) = R\, \mathbb E_{\sigma, n}
        \frac{\|x - D_\theta(x + \sigma n, \sigma)\|^2}{\sigma^2}
        + \mathrm{KL}(q(x_T|x)\,\|\,p_T) + \frac d2 \log(2\pi e\,\sigma_{\min}^2)

:math:`\log\sigma` uniform over a range of length R, :math:`s = \max(\sigma_y, \mathrm{floor})`, and
:math:`b_\theta \le \log p_\theta`: with w = 1 this is the evidence bound of p(y). :math:`D_\theta`
is fitted by denoising score matching to detached draws of the flow. Stages: a Gaussian prior by EM,
whose exact posterior the flow starts from; theta alone on draws of it; a ramp from the Gaussian
prior to the diffusion prior; both in turn; theta alone on a fixed set of draws.

Differences from the paper and its relatives, each with its option:

- no official code was found: network, schedule and weights are ours, and no published number is
  claimed;
- ``prior_weight`` above 1 tempers the prior: a departure from the bound, recorded in the run's log.
  At 1 the pair hardly leaves the Gaussian solution;
- the prior term has the bound's weighting :math:`1/\sigma^2` (the "simple" weighting of relatives
  is no bound), one noise level an image, stratified over the batch;
- alternating steps, phi against averaged theta (relatives step both from one backward pass);
- the law of :math:`x_T` is the Gaussian prior blurred, not N(0, sigma_max^2 I): a tighter bound;
- noise-free masks: the likelihood uses ``sigma_floor``, and observed pixels of what theta is
  trained on are overwritten by y (``project``); y itself is never altered.

References:
    Integrating Amortized Inference with Diffusion Models for Learning Clean Distribution from
    Corrupted Images (Wang et al., 2024), arXiv:2407.11162
    Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021),
    arXiv:2101.09258
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from cleanprior.data import Batch, Images, Measurements, TrainingSet
from cleanprior.diffusion.denoiser import Denoise, Denoiser, denoising_loss, per_image
from cleanprior.diffusion.gaussian import MAX_PIXELS, GaussianPrior, fit_gaussian
from cleanprior.operators import Operator
from cleanprior.operators.base import likelihood_sigma
from cleanprior.prior import Prior
from cleanprior.seeding import randn_like
from cleanprior.training import Loss, Method, Problem, Round, Session, Way

from .flow import Base, PosteriorFlow, feature_count, gaussian_base

#: Shares of the diffusion prior during the ramp; the rest is the Gaussian prior's.
RAMP = (0.2, 0.4, 0.6, 0.8)
#: Roots of the whole training set are kept when they hold at most this many numbers (256 MB).
CACHE_NUMBERS = 2**26


def stratified_sigma(
    n: int, low: float, high: float, generator: Generator, device: torch.device
) -> Float[Tensor, " n"]:
    """Draw n noise levels, log-uniform on [low, high], one from each n-th part of the range."""
    place = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return (low * (place * math.log(high / low)).exp()).to(device)


def diffusion_term(
    denoise: Denoise,
    x: Float[Tensor, "b c h w"],
    sigma: Float[Tensor, " b"],
    noise: Float[Tensor, "b c h w"],
    log_range: float,
) -> Float[Tensor, " b"]:
    r"""Return one draw of the bound's integral, :math:`R\,\|x - D(x + \sigma n)\|^2/\sigma^2`."""
    error = (x - denoise(x + per_image(sigma) * noise, sigma)).flatten(1)
    return log_range * (error**2).sum(1) / sigma**2


class Ends:
    r"""The closed-form terms of the bound: the last noise level's law and the decoder.

    .. math:: \mathrm{KL}\big(N(x, \sigma_{\max}^2 I)\,\|\,N(\mu, C + \sigma_{\max}^2 I)\big)
        + \tfrac d2 \log(2\pi e\,\sigma_{\min}^2)

    Together with :func:`diffusion_term` and the exact denoiser of :math:`N(\mu, C)` they add up to
    :math:`\tfrac12 (x-\mu)^\top (C + \sigma_{\min}^2 I)^{-1} (x-\mu)` and a constant, at any
    sigma_max.

    Arguments:
        prior: :math:`N(\mu, C)`.
        sigma_min: Least noise level, above 0.
        sigma_max: Largest noise level.
    """

    def __init__(self, prior: GaussianPrior, sigma_min: float, sigma_max: float) -> None:
        d = len(prior.mean)
        eye = torch.eye(d, dtype=torch.float64)
        total = prior.covariance + sigma_max**2 * eye
        precision = torch.linalg.inv(total)
        self.mean, self.precision = prior.mean, precision
        self.constant = float(
            0.5 * (sigma_max**2 * precision.trace() - d)
            + 0.5 * (torch.linalg.slogdet(total)[1] - 2 * d * math.log(sigma_max))
            + 0.5 * d * math.log(2 * math.pi * math.e * sigma_min**2)
        )

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """Return the terms of each image, in nats."""
        return self.constant + quadratic(x, self.mean, self.precision)


def quadratic(
    x: Float[Tensor, "b c h w"], mean: Float[Tensor, " d"], precision: Float[Tensor, "d d"]
) -> Float[Tensor, " b"]:
    r"""Return :math:`\tfrac12 (x-\mu)^\top P (x-\mu)` of each image."""
    r = x.flatten(1) - mean.to(x)
    return 0.5 * ((r @ precision.to(x)) * r).sum(1)


@dataclass(kw_only=True)
class FlowDiff(Method):
    """Joint training of a conditional flow and a diffusion prior on measurements.

    Arguments:
        needs: See :class:`cleanprior.training.Method`.
        sigma_floor: Noise level of the likelihood where sigma_y is 0, units of x; 0 refuses
            noise-free measurements. It never alters y.
        sigma_min: Least noise level of the bound, above 0: the prior is seen blurred by it.
        sigma_max: Largest noise level of the bound.
        prior_weight: w where y is noise-free, above 0; 1 is the bound, above 1 tempers the prior.
        prior_weight_noisy: w where y is noisy; a weight that suits noise-free y narrows the draws
            of noisy ones.
        pretrain: Share of the budget for theta on draws of the Gaussian posterior.
        ramp: Share of the budget for the ramp.
        joint: Share of the budget for joint training; what is left goes to the final stage.
        denoiser_steps: Steps of theta for each step of phi in ramp and joint stage.
        flow_lr: Peak learning rate of phi.
        gaussian_iterations: EM iterations of the Gaussian fit.
        couplings: Couplings of the flow.
        hidden: Width of their subnets.
        context: Size of the context.
        final_draws: Draws of the flow for each y that the final stage trains on.
        project: Overwrite observed pixels by y in what theta is trained on, where y is noise-free.
        mean_draws: Draws in the restoration by the flow's mean.
    """

    needs: Sequence[str] = ("SIGMA0", "GAUSS")
    sigma_floor: float
    sigma_min: float
    sigma_max: float
    prior_weight: float
    prior_weight_noisy: float
    pretrain: float
    ramp: float
    joint: float
    denoiser_steps: int
    flow_lr: float
    gaussian_iterations: int
    couplings: int
    hidden: int
    context: int
    final_draws: int
    project: bool
    mean_draws: int

    def __post_init__(self) -> None:
        if self.sigma_floor < 0:
            raise ValueError(f"sigma_floor={self.sigma_floor}; allowed: 0 (none) or above")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}; needed: "
                "0 < sigma_min < sigma_max"
            )
        for key in ("prior_weight", "prior_weight_noisy"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}={getattr(self, key)}; allowed: above 0 (1 is the bound)")
        shares = (self.pretrain, self.ramp, self.joint)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                f"pretrain={self.pretrain}, ramp={self.ramp}, joint={self.joint}; needed: shares "
                "of the budget that add up to at most 1"
            )
        counts = ("denoiser_steps", "gaussian_iterations", "couplings", "final_draws", "mean_draws")
        for key in counts:
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}; allowed: 1 or more")

    def supports(self, problem: Problem) -> str | None:
        """Refuse what the dense Gaussian base cannot hold."""
        size = math.prod(problem.image_shape)
        if size > MAX_PIXELS:
            return (
                f"{self.name} starts from a dense Gaussian posterior, for images of at most "
                f"{MAX_PIXELS} numbers; these have {size}"
            )
        return super().supports(problem)

    def build(self) -> None:  # noqa: D102
        self.learning_rates = {"flow": self.flow_lr}
        self.denoiser = self.problem.denoiser()
        # Own copies: closed forms need the physics on the CPU, the likelihood on the device, and
        # deepinv's objects hold state.
        self._cpu_operator: Operator = copy.deepcopy(self.problem.operator).to("cpu")
        self._operator: Operator = copy.deepcopy(self.problem.operator).to(self.device)
        self.flow = PosteriorFlow(
            self.problem.image_shape,
            feature_count(self._cpu_operator),
            self.couplings,
            self.hidden,
            self.context,
        )
        self._cache: Base | None = None

    def networks(self) -> Mapping[str, nn.Module]:  # noqa: D102
        return {"denoiser": self.denoiser, "flow": self.flow}

    # -- stages --------------------------------------------------------------------------------

    def rounds(self, budget: int) -> Sequence[Round]:
        """Plan pre-training, ramp, joint and final stage; a stage without steps is left out."""
        turns = ("flow", *("denoiser",) * self.denoiser_steps)
        alone = round(self.pretrain * budget)
        ramp = int(self.ramp * budget / len(RAMP)) // self.denoiser_steps
        both = int(self.joint * budget) // self.denoiser_steps
        left = budget - alone - (len(RAMP) * ramp + both) * self.denoiser_steps
        plan = [
            Round("pre-train", alone),
            *(Round(f"ramp {share:g}", ramp, turns) for share in RAMP),
            Round("joint", both, turns),
            Round("final", left),
        ]
        return [r for r in plan if r.steps > 0]

    def begin_round(self, number: int, round: Round, session: Session) -> TrainingSet:  # noqa: D102
        self._session = session
        if number == 0:
            self._fit_gaussian(session)
            noisy = bool((session.measurements.sigma_y > 0).any())
            session.log["prior_weight"] = self.prior_weight_noisy if noisy else self.prior_weight
        self._prepare(session.measurements)
        self._share = {f"ramp {share:g}": share for share in RAMP}.get(round.name, 1.0)
        if round.name != "final":
            return session.measurements
        return self._final_set(session)

    def _fit_gaussian(self, session: Session) -> None:
        """Fit the Gaussian prior once and keep it in the flow, which checkpoints hold."""

        def compute() -> tuple[dict[str, Tensor], dict[str, float]]:
            with session.progress.task("Gaussian fit", self.gaussian_iterations) as task:
                prior = fit_gaussian(
                    session.measurements,
                    self._cpu_operator,
                    self.sigma_floor,
                    self.gaussian_iterations,
                    session.generator("gaussian"),
                    advance=task.advance,
                )
            values, vectors = torch.linalg.eigh(prior.covariance)
            # The bound sees the prior blurred by sigma_min; narrower directions only make the
            # start stiff.
            covariance = (vectors * values.clamp_min(self.sigma_min**2)) @ vectors.T
            return {"mean": prior.mean, "covariance": covariance}, {}

        fitted, _ = session.store.once("gaussian", compute)
        for flow in (self.flow, session.averaged["flow"]):
            assert isinstance(flow, PosteriorFlow)
            flow.set_gaussian(fitted["mean"], fitted["covariance"])

    def _prepare(self, measurements: Measurements) -> None:
        """Compute what follows from the Gaussian prior; anew in every process, about 1 s."""
        if self._cache is not None:
            return
        prior = self.flow.gaussian
        self._ends = Ends(prior, self.sigma_min, self.sigma_max)
        self._precision = torch.linalg.inv(prior.covariance)
        roots = len(measurements) if measurements.params else 1
        if roots * self.flow.size**2 <= CACHE_NUMBERS:
            parts = torch.arange(len(measurements)).split(256)
            bases = [self._base(self.flow, measurements.batch(i), None) for i in parts]
            self._cache = Base.concatenate(bases).to(self.device)

    def _base(self, flow: PosteriorFlow, batch: Batch, cache: Base | None) -> Base:
        """Return the Gaussian posterior of a batch, from the cache where there is one."""
        if cache is not None:
            return cache.take(batch.index)
        base = gaussian_base(flow.gaussian, batch.to("cpu"), self._cpu_operator, self.sigma_floor)
        return base.to(self.device)

    def _final_set(self, session: Session) -> Images:
        """Draw the fixed set that the final stage trains on."""
        flow = session.averaged["flow"]
        assert isinstance(flow, PosteriorFlow)
        index = torch.arange(len(session.measurements)).repeat_interleave(self.final_draws)
        images = []
        for i, part in enumerate(index.split(1024)):

            def compute(
                i: int = i, part: Tensor = part
            ) -> tuple[dict[str, Tensor], dict[str, float]]:
                batch = session.measurements.batch(part).to(self.device)
                generator = session.generator("final", chunk=i)
                return {"x": self._draw(flow, batch, generator).cpu()}, {}

            images.append(session.store.once(f"final-{i}", compute)[0]["x"])
        return Images(torch.cat(images), session.measurements, index)

    # -- losses --------------------------------------------------------------------------------

    @torch.no_grad()
    def _draw(self, flow: PosteriorFlow, batch: Batch, generator: Generator) -> Tensor:
        """Draw what theta is trained on: one detached image for each measurement."""
        base = self._base(flow, batch, self._cache)
        x, _ = flow(randn_like(base.mean, generator), base)
        return self._projected(x, batch)

    def _projected(self, x: Tensor, batch: Batch) -> Tensor:
        """Overwrite observed pixels by y where y is noise-free; only masks know such pixels."""
        if not self.project or "mask" not in self._operator.capabilities:
            return x
        known = self._operator.observed(batch.y, batch.params).bool()
        known = known & (per_image(batch.sigma_y) == 0)
        return torch.where(known, batch.y, x)

    def loss(self, batch: Batch, generator: Generator, turn: str) -> Loss:
        """Score matching on images for theta; the bound of the evidence for phi."""
        if turn == "flow":
            return self._flow_loss(batch, generator)
        x = batch.images
        if x is None:
            x = self._draw(self.flow, batch, generator)
        return Loss(denoising_loss(self.denoiser, x, generator))

    def _flow_loss(self, batch: Batch, generator: Generator) -> Loss:
        denoiser = self._session.averaged["denoiser"]
        assert isinstance(denoiser, Denoiser)
        base = self._base(self.flow, batch, self._cache)
        x, log_det = self.flow(randn_like(base.mean, generator), base)
        level = likelihood_sigma(batch.sigma_y, self.sigma_floor)
        residual = (batch.y - self._operator.A(x, batch.params)).flatten(1)
        data = (residual**2).sum(1) / (2 * level**2)
        sigma = stratified_sigma(len(x), self.sigma_min, self.sigma_max, generator, x.device)
        noise = randn_like(x, generator)
        log_range = math.log(self.sigma_max / self.sigma_min)
        bound = diffusion_term(denoiser, x, sigma, noise, log_range) + self._ends(x)
        self._session.count("evaluations", len(x))
        self._session.count("backwards", len(x))
        weight = torch.where(batch.sigma_y > 0, self.prior_weight_noisy, self.prior_weight)
        prior = self._share * weight * bound
        if self._share < 1:
            gaussian = quadratic(x, self.flow.gaussian_mean, self._precision)
            prior = prior + (1 - self._share) * gaussian
        d = self.flow.size
        parts = {"data": data, "prior": bound, "log_det": log_det}
        return Loss(
            (data + prior - log_det).mean() / d,
            {k: v.detach().mean() / d for k, v in parts.items()},
        )

    # -- results -------------------------------------------------------------------------------

    def prior(self, averaged: Mapping[str, nn.Module]) -> Prior | None:  # noqa: D102
        return self.make_prior(averaged["denoiser"])

    def ways(self, averaged: Mapping[str, nn.Module]) -> Sequence[Way]:
        """One draw of the flow, and the mean of several; no denoiser is evaluated."""
        flow = averaged["flow"]
        assert isinstance(flow, PosteriorFlow)

        @torch.no_grad()
        def restore(batch: Batch, generators: list[Generator], draws: int) -> Tensor:
            rows = []
            for part in torch.arange(len(batch)).split(64):
                base = self._base(flow, _select(batch, part), None)
                total = torch.zeros_like(base.mean).reshape(len(part), *flow.image_shape)
                for _ in range(draws):
                    noise = randn_like(base.mean, [generators[int(i)] for i in part])
                    total += flow(noise, base)[0]
                rows.append(total / draws)
            return torch.cat(rows).to(batch.y.device)

        n = self.mean_draws
        return [
            Way("flow sample", lambda b, g: (restore(b, g, 1), 0)),
            Way(f"flow mean of {n}", lambda b, g: (restore(b, g, n), 0)),
        ]


def _select(batch: Batch, index: Tensor) -> Batch:
    """Return some rows of a batch."""
    index = index.to(batch.y.device)
    params = {k: v[index] for k, v in batch.params.items()}
    return Batch(batch.y[index], params, batch.sigma_y[index], batch.index[index])
