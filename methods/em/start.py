r"""The Gaussian start of EM: fitted to the measurements, drawn from exactly."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleanprior.gaussian.dense import GaussianPrior, fit_gaussian
from cleanprior.gaussian.low_rank import LowRankGaussian, fit_low_rank
from cleanprior.operators import Likelihood, Operator
from cleanprior.training import Session


def fit_start(
    kind: str,
    operator: Operator,
    session: Session,
    sigma_floor: float,
    iterations: int,
    rank: int,
) -> GaussianPrior | LowRankGaussian:
    """Fit a Gaussian to the measurements of a run.

    Arguments:
        kind: ``dense`` (exact EM) or ``low_rank`` (Monte-Carlo EM).
        operator: The forward operator, on the CPU.
        session: The run.
        sigma_floor: Noise level of the likelihood where sigma_y is 0.
        iterations: EM iterations.
        rank: Rank of the low-rank fit.
    """
    data, generator = session.measurements, session.generator("gaussian")
    with session.progress.task("Gaussian fit", iterations) as task:
        told = task.advance
        if kind == "dense":
            return fit_gaussian(data, operator, sigma_floor, iterations, generator, advance=told)
        return fit_low_rank(data, operator, sigma_floor, iterations, rank, generator, advance=told)


def exact_draws(
    prior: GaussianPrior | LowRankGaussian,
    operator: Operator,
    session: Session,
    index: Int[Tensor, " n"],
    sigma_floor: float,
    chunk: int,
) -> Float[Tensor, "n c h w"]:
    """Draw one image from the exact posterior of each of these measurements."""
    draws = []
    likelihood = Likelihood.of(operator, session.measurements).with_floor(sigma_floor)
    for k, part in enumerate(index.split(chunk)):
        generator = session.generator("gaussian-draw", chunk=k)
        draws.append(prior.draw(likelihood.take(part), generator))
    return torch.cat(draws)
