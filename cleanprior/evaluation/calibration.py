r"""Calibration of posterior samples: whether their spread tells their error.

Of a calibrated sampler the truth and k samples of p(x|y) are k + 1 exchangeable draws, so that for
each pixel, over images:

.. math:: \mathbb{E}(\bar x - x)^2 = \Big(1 + \frac1k\Big)\, \mathbb{E}\, s^2

with the samples' mean and unbiased variance. Only pixels that the measurement leaves open count.

References:
    Why Should Ensemble Spread Match the RMSE of the Ensemble Mean? (Fortin et al., 2014)
    Interpretation of Rank Histograms for Verifying Ensemble Forecasts (Hamill, 2001)
"""

from dataclasses import dataclass
from math import nan

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from ..operators.likelihood import Likelihood
from ..seeding import randn_like


@dataclass(frozen=True)
class Calibration:
    """What k samples say about the truth.

    Attributes:
        spread_ratio: Root of corrected spread over error; 1 is calibrated, below 1 too sure.
        spread_ratio_se: Its standard error over images; NaN for one image.
        coverage: Share of open pixels inside their 90 % interval.
        ranks: Share of open pixels whose truth has rank 0 ... k among the samples; flat where the
            sampler is calibrated, U-shaped where it is too sure.
        rank_deviation: Total variation distance of ``ranks`` from flat, in [0, 1).
        images: Images with an open pixel.
    """

    spread_ratio: float
    spread_ratio_se: float
    coverage: float
    ranks: list[float]
    rank_deviation: float
    images: int


def open_pixels(likelihood: Likelihood, generator: Generator) -> Bool[Tensor, "n c h w"]:
    r"""Return which pixels the measurement leaves open: all under noise, else those A hides.

    A pixel of a noise-free measurement is determined where :math:`A^+ A z` returns it; random
    images tell, for masks as for blurs.

    Arguments:
        likelihood: The n measurements with their operator.
        generator: Draws the random images.
    """
    operator, params = likelihood.operator, likelihood.params
    noisy = likelihood.column(likelihood.sigma_y) > 0
    if not (operator.is_image(likelihood.y) and operator.capabilities & {"mask", "identity"}):
        noisy = noisy.flatten(1).any(1)[:, None, None, None]
    is_open = noisy.expand(len(likelihood), *operator.image_shape)
    # Two images: one alone is returned by chance, within rounding, in one pixel of ten thousand.
    for _ in range(2):
        z = randn_like(torch.empty(len(likelihood), *operator.image_shape), generator)
        seen = operator.A_dagger(operator.A(z, params), params)
        is_open = is_open | ((z - seen).abs() > 1e-4)
    return is_open


def calibrate(
    samples: Float[Tensor, "k n c h w"],
    truth: Float[Tensor, "n c h w"],
    is_open: Bool[Tensor, "n c h w"],
    chunk: int = 64,
) -> Calibration:
    """Compare the spread of samples with their error.

    Intervals are Student's prediction intervals with k - 1 degrees of freedom: 90 % of Gaussian
    draws lie inside for every k, whereas the range of 8 samples covers 78 %.

    Arguments:
        samples: k samples of p(x|y) for each of n measurements, k at least 2; not clipped.
        truth: The images.
        is_open: From :func:`open_pixels`.
        chunk: Images at a time.

    Raises:
        ValueError: Fewer than 2 samples, no open pixel, samples that are all alike (a point
            estimate has no spread), or samples that all equal the truth.
    """
    from scipy.stats import t as student

    k = len(samples)
    if k < 2:
        raise ValueError(f"{k} samples have no spread; needed: at least 2")
    if not is_open.any():
        raise ValueError("the measurements leave no pixel open")
    half = float(student.ppf(0.95, k - 1))
    inside, ranks = 0.0, torch.zeros(k + 1).double()
    # Pixels of an image go together, so images are what the delta method counts.
    expected, error = (torch.zeros(len(truth)).double() for _ in range(2))
    for part in torch.arange(len(truth)).split(chunk):
        mask = is_open[part]
        drawn, x = samples[:, part][:, mask].double(), truth[part][mask].double()
        image = part[mask.nonzero()[:, 0]]
        mean, variance = drawn.mean(0), (1 + 1 / k) * drawn.var(0)
        expected.index_add_(0, image, variance)
        error.index_add_(0, image, (mean - x).square())
        inside += ((mean - x).abs() <= half * variance.sqrt()).double().sum().item()
        ranks += _ranks(drawn, x)
    if expected.sum() == 0:
        raise ValueError("its draws are all alike: a point estimate, without a spread")
    if error.sum() == 0:
        raise ValueError("its draws have no error")
    squared = expected.sum() / error.sum()
    residual = expected - squared * error
    n = int(is_open.flatten(1).any(1).sum())
    variance_of_squared = residual.square().sum() * n / (n - 1) / error.sum() ** 2 if n > 1 else nan
    ranks /= is_open.sum()
    return Calibration(
        spread_ratio=squared.sqrt().item(),
        spread_ratio_se=float((variance_of_squared / squared) ** 0.5 / 2),
        coverage=inside / int(is_open.sum()),
        ranks=ranks.tolist(),
        rank_deviation=0.5 * (ranks - 1 / (k + 1)).abs().sum().item(),
        images=n,
    )


def _ranks(drawn: Float[Tensor, "k m"], x: Float[Tensor, " m"]) -> Float[Tensor, " r"]:
    """Return the count of each rank; where samples equal the truth, it is split among the ranks."""
    k = len(drawn)
    below, equal = (drawn < x).sum(0), (drawn == x).sum(0)
    rank = torch.arange(k + 1)[:, None]
    holds = (rank >= below) & (rank <= below + equal)
    return (holds.double() / (equal + 1)).sum(1)
