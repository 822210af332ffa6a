r"""The Gaussian start of EM: fitted to the measurements, drawn from exactly."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleanprior.gaussian.dense import GaussianPrior, fit_gaussian
from cleanprior.gaussian.low_rank import LowRankGaussian, cheaper_fit, fit_low_rank
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


@dataclass(frozen=True)
class GaussianStart:
    """The first restorations: draws from the exact posterior under a Gaussian fit.

    Arguments:
        kind: ``dense``, ``low_rank`` or ``auto``, the cheaper one
            (:func:`cleanprior.gaussian.low_rank.cheaper_fit`).
        iterations: EM iterations of the dense fit.
        low_rank_iterations: Monte-Carlo EM iterations of the low-rank fit.
        rank: Rank of the low-rank fit.
        sigma_floor: Noise level of the likelihood where sigma_y is 0.
        chunk: Measurements restored at a time.
    """

    kind: str
    iterations: int
    low_rank_iterations: int
    rank: int
    sigma_floor: float
    chunk: int

    def draws(
        self, operator: Operator, index: Int[Tensor, " n"], session: Session
    ) -> Float[Tensor, "n c h w"]:
        """Draw one image for each of these measurements, once a run; log the kind of the fit.

        Arguments:
            operator: The forward operator, on the CPU.
            index: Which measurements.
            session: The run.
        """
        kind, floor = self.kind, self.sigma_floor
        if kind == "auto":
            kind = cheaper_fit(session.measurements, operator)
        iterations = self.iterations if kind == "dense" else self.low_rank_iterations

        def compute() -> tuple[dict[str, Tensor], dict[str, float]]:
            prior = fit_start(kind, operator, session, floor, iterations, self.rank)
            return {"x": exact_draws(prior, operator, session, index, floor, self.chunk)}, {}

        session.log["gaussian"] = kind
        return session.store.once("gaussian-draws", compute)[0]["x"]
