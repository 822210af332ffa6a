r"""Steps around the E-step of EM: check the fit of draws, their change, and keep restorations."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleanprior.diffusion.denoiser import Denoise
from cleanprior.diffusion.posterior import DPS, PosteriorSampler, draw_in_chunks
from cleanprior.operators import PROJECTIONS, Likelihood, Operator
from cleanprior.operators.symmetry import unshown
from cleanprior.training import Problem, Session
from cleanprior.training.checkpoint import Store

# Mean squared residuals within this factor are a tie: a factor of 1.4 in the residual itself.
TIE = 2.0
# A residual that changes by less than this share of itself stands still.
PLATEAU = 0.02
# Entries of an image whose covariance is followed from round to round: all of 16x16, else a grid.
FOLLOWED = 256


def squared_residuals(
    likelihood: Likelihood, x: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    r"""Return :math:`\|y - A x\|^2` over observed entries, and their number m, of each image."""
    r = likelihood.residual(x).flatten(1)
    return r.square().sum(1), likelihood.observed.flatten(1).sum(1)


def misfit(likelihood: Likelihood, x: Float[Tensor, "b c h w"]) -> float:
    r"""Return :math:`|\overline{\|r\|^2} - \overline{m \sigma_y^2}|`; infinity if not finite.

    Without noise that is the mean squared residual; with noise, the distance from its expected
    value (discrepancy principle; the smallest residual would reproduce the noise).
    """
    squared, entries = squared_residuals(likelihood, x)
    value = (squared.mean() - (likelihood.level**2 * entries).mean()).abs().item()
    return value if math.isfinite(value) else math.inf


def check_scales(
    scales: Sequence[float],
    schedule: Sequence[float],
    rounds: int,
    is_guided: bool,
    stop: str,
) -> None:
    """Refuse guidance scales that no round would use.

    Arguments:
        scales: Multipliers that a search tries.
        schedule: Scales by hand, one a round.
        rounds: Rounds after the first.
        is_guided: Whether the E-step's sampler has a scale.
        stop: When the E-steps end.

    Raises:
        ValueError: Scales without guidance, both ways at once, another number of scales than of
            rounds, or a rule that follows a search that there is not.
    """
    if (scales or schedule) and not is_guided:
        raise ValueError(
            "scales and lambda_schedule are for a guided E-step sampler (DPS); set both to []"
        )
    if scales and schedule:
        raise ValueError("lambda_schedule replaces the search for a scale; set scales=[]")
    if schedule and len(schedule) != rounds:
        raise ValueError(
            f"lambda_schedule has {len(schedule)} scales; needed: one for each of the {rounds} "
            "rounds after the first"
        )
    if stop == "scale" and not scales:
        raise ValueError("stop=scale follows the search for a scale, and scales=[]; use none")


def check_shares(first: float, resumed: int, resets: int, share: float) -> None:
    """Refuse shares of the budget that leave nothing for a round.

    Arguments:
        first: Share of the first fit.
        resumed: Rounds that go on.
        resets: Rounds that train from scratch.
        share: Share of each of those.

    Raises:
        ValueError: They do.
    """
    left = 1 - first - resets * share
    if not 0 < first <= 1 or left < 0 or (resumed > 0 and left <= 0):
        raise ValueError(
            f"start_share={first} and {resets} reset rounds of {share} leave {left:.2f} of the "
            f"budget for {resumed} resume rounds; needed: shares that add up to at most 1"
        )


def misfits_of(
    samplers: Sequence[DPS],
    denoise: Denoise,
    operator: Operator,
    images: int,
    chunk: int,
    number: int,
    session: Session,
) -> tuple[list[float], dict[str, float]]:
    """Restore the same training measurements by several samplers, with common random numbers.

    Arguments:
        samplers: One a scale.
        denoise: The denoiser.
        operator: The forward operator, on the session's device.
        images: Training measurements that are restored, drawn anew in each round.
        chunk: Measurements at a time.
        number: The round.
        session: The run.

    Returns:
        The misfit of each, and network evaluations and backward passes.
    """
    data = session.measurements
    order = torch.randperm(len(data), generator=session.generator("scale-images", round=number))
    index = order[:images]
    likelihood = Likelihood.of(operator, data.batch(index).to(session.device))
    misfits, costs = [], {"evaluations": 0.0, "backwards": 0.0}
    for sampler in samplers:
        generators = session.generators("scale", index.tolist(), round=number)
        draw = draw_in_chunks(sampler, denoise, likelihood, generators, chunk)
        misfits.append(misfit(likelihood, draw.x))
        costs["evaluations"] += draw.evaluations * len(index)
        costs["backwards"] += draw.backwards * len(index)
    return misfits, costs


def is_capped(posterior: DPS, operator: Operator, session: Session) -> bool:
    """Whether the sampler's cap is the residual itself, so that a larger scale fits better."""
    is_projection = bool(PROJECTIONS & operator.capabilities)
    has_cap = posterior.cap and posterior.guidance == "norm"
    return is_projection and has_cap and not session.measurements.sigma_y.any()


def best_scale(scales: Sequence[float], misfits: Sequence[float]) -> float:
    """Return the largest of the scales whose misfit is within :data:`TIE` of the smallest.

    The cap of the sampler makes large scales fit alike, and on 8x8 digits guidance at 0.6 restores
    1.9 dB worse than at 2.8.
    """
    limit = TIE * min(misfits)
    return max(s for s, m in zip(scales, misfits, strict=True) if m <= limit)


def fit_of(
    likelihood: Likelihood,
    index: Int[Tensor, " n"],
    x: Float[Tensor, "n c h w"],
    sigma_floor: float,
    chunk: int,
) -> tuple[float, float | None]:
    r"""Return how draws fit their measurements, all on the CPU.

    Arguments:
        likelihood: All measurements with their operator.
        index: Which of them the draws belong to.
        x: The draws.
        sigma_floor: Noise level of the likelihood where sigma_y is 0.
        chunk: Draws at a time.

    Returns:
        The mean of :math:`\|r\|^2 / m`, units of x squared, and of :math:`\|r\|^2 / m \sigma^2`
        with the level of the likelihood (the floor where there is no noise); None where that is 0.
    """
    means, levels = [], []
    floored = likelihood.with_floor(sigma_floor)
    for part, images in zip(index.split(chunk), x.split(chunk), strict=True):
        squared, entries = squared_residuals(likelihood.take(part), images)
        means.append((squared / entries.clamp_min(1)).double())
        levels.append(floored.take(part).level)
    mean = torch.cat(means)
    level = torch.cat(levels).double()
    ratio = (mean / level**2).mean().item() if (level > 0).all() else None
    return mean.mean().item(), ratio


def followed_covariance(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "k k"]:
    """Return the covariance of :data:`FOLLOWED` entries of the images, evenly spread."""
    flat = x.flatten(1)
    d = flat.shape[1]
    entries = torch.linspace(0, d - 1, min(d, FOLLOWED)).round().long()
    chosen = flat[:, entries].double()
    centred = chosen - chosen.mean(0)
    return centred.T @ centred / len(x)


def drift(now: Float[Tensor, "k k"], before: Float[Tensor, "k k"]) -> float:
    r"""Return :math:`\|C_k - C_{k-1}\|_F / \|C_{k-1}\|_F`."""
    return ((now - before).norm() / before.norm().clamp_min(1e-300)).item()


def stretched(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Stretch each image to the whole range and round it to 8 bits, as a picture file would.

    The hand-over of the authors of EMDiffusion: it changes the contrast of every image. An image
    of one value becomes -1.
    """
    low, high = x.flatten(1).aminmax(dim=1)
    shape = (-1, 1, 1, 1)
    span = (high - low).reshape(shape)
    share = torch.where(span > 0, (x - low.reshape(shape)) / span, 0.0)
    return (share * 255).round() / 127.5 - 1


def has_stopped(rule: str, patience: int, scales: Sequence[float], fits: Sequence[float]) -> bool:
    """Whether the rounds so far say that another E-step would change nothing.

    Arguments:
        rule: ``none``; ``scale``: the guidance scale has not fallen below its former least value
            for ``patience`` rounds; ``residual``: the residual has changed by less than
            :data:`PLATEAU` of itself in each of the last ``patience`` rounds.
        patience: Rounds.
        scales: Chosen guidance scales, one a round.
        fits: Mean squared residuals, one a round.
    """
    if rule == "scale":
        return len(scales) > patience and min(scales[-patience:]) >= min(scales[:-patience])
    if rule == "residual":
        last = fits[-patience - 1 :]
        pairs = list(zip(last, last[1:], strict=False))
        return len(pairs) == patience and all(abs(b - a) <= PLATEAU * a for a, b in pairs)
    return False


def union(
    old: tuple[Int[Tensor, " m"], Tensor], new: tuple[Int[Tensor, " n"], Tensor]
) -> tuple[Int[Tensor, " k"], Tensor]:
    """Join restorations by the number of their measurement; the new one counts where both exist."""
    outside = ~torch.isin(old[0], new[0])
    index = torch.cat([old[0][outside], new[0]])
    x = torch.cat([old[1][outside], new[1]])
    order = index.argsort()
    return index[order], x[order]


def without_start(start: str, problem: Problem) -> str | None:
    """Return why there is no prior to draw the first restorations by, or None."""
    if start != "prior" or problem.has_start:
        return None
    return "start=prior draws by the prior of training.start, which is not set"


def blind(problem: Problem, symmetries: Sequence[str], posterior: PosteriorSampler) -> str | None:
    """Return why a sampler does not know the noise, or symmetries what is hidden; or None."""
    if "local_noise" in problem.operator.capabilities and not posterior.takes_maps:
        return (
            f"method.posterior: {type(posterior).__name__} takes one noise level an image, and "
            "here it differs between entries of y"
        )
    if not symmetries:
        return None
    return unshown(problem.operator, problem.operator_name, symmetries, "invariance")


class Kept:
    """What rounds keep for the next one, beside the results that the end of a round removes.

    Arguments:
        store: The store of the run.
    """

    def __init__(self, store: Store) -> None:
        self._store = store.lasting()
        self._memory: dict[int, dict[str, Tensor]] = {}

    def put(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Keep the tensors of a round; forget the rounds before the last one."""
        self._store.once(_key(number), lambda: (tensors, {}))
        self._memory = {k: v for k, v in self._memory.items() if k == number - 1}
        self._memory[number] = tensors
        if number > 1:
            self._store.forget(_key(number - 2))

    def get(self, number: int) -> dict[str, Tensor]:
        """Return the tensors of a round; empty where it kept none."""
        if number not in self._memory:
            tensors = self._store.read(_key(number))
            if tensors is not None:
                self._memory[number] = tensors
        return self._memory.get(number, {})


def _key(number: int) -> str:
    return f"round-{number:03d}"
