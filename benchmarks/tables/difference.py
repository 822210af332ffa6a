r"""How large a difference between rows is against its noise: variances, p-values, Holm. No torch.

A row is trained ``S`` times and restores the same ``N`` test images each time. Its mean differs
from what the method would reach on endless runs and images by two independent parts: that of its
runs, variance :math:`s^2 / S` with few degrees of freedom, and that of the images, which all rows
share, so that only the variance of image-wise differences counts, :math:`v / N` with many.

A difference :math:`d` of two rows is at level :math:`\alpha` where

.. math:: d^2 > t_\nu(\alpha)^2 \, (s_a^2 / S_a + s_b^2 / S_b) + t_{N-1}(\alpha)^2 \, v_{ab} / N

with :math:`\nu` from Welch and Satterthwaite: exact where one part alone counts, a little careful
in between. A single t on the sum, with Satterthwaite's degrees of freedom, is not careful enough in
the tails that Holm's correction asks for (:mod:`cleanprior.benchmarks.null` simulates both).

Two or three runs say little about their own variance, so it borrows from the other rows of the
table (:func:`moderate`). Runs of two methods are independent, also where their seeds have equal
numbers: the number fixes first weights and order of images, which are no repeated condition such as
a test image is. Where it makes runs alike after all, tests of independent runs are careful. Two
ways of one method use the same trained networks: those are compared run by run.

References:
    The Generalization of 'Student's' Problem (Welch, 1947)
    Linear Models and Empirical Bayes Methods for Assessing Differential Expression (Smyth, 2004)
    A Simple Sequentially Rejective Multiple Test Procedure (Holm, 1979)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, digamma, gammaincinv, ndtri, polygamma, stdtr

LEVEL = 0.05
#: Fewer training runs do not hold the level where rows differ in their spread.
SEEDS_FOR_T = 3
#: Of a difference that seeds are counted for.
POWER = 0.8
#: Halvings in the search for a p-value; its logarithm is then exact to a thousandth.
STEPS = 20
#: Quantile of the spread of variances between rows that :func:`moderate` takes for the truth.
CAUTION = 0.75

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """The noise of differences, any shape.

    Attributes:
        runs: Variance that comes from training runs.
        freedom: Its degrees of freedom.
        images: Variance that comes from test images.
        images_freedom: Its degrees of freedom.
    """

    runs: Array
    freedom: Array
    images: Array
    images_freedom: float


def moderate(variance: Array, freedom: Array) -> tuple[Array, Array]:
    r"""Let the variances of rows borrow from each other.

    .. math:: \tilde s^2 = \max(s^2, (\nu_0 s_0^2 + \nu s^2) / (\nu_0 + \nu))

    :math:`\nu_0` and :math:`s_0^2` are those of the F law of the rows' variances, by the moments of
    their logarithms. Differs from Smyth's estimate in two ways, each so that rows of unequal spread
    do not become evidence: the spread of the logarithms is taken at its upper quartile, so few rows
    borrow little, and no row is taken for steadier than it was seen to be.

    Arguments:
        variance: (..., rows), of a single run; 0 for a row without randomness and NaN for one with
            a single run take no part.
        freedom: (rows,), runs less one.

    Returns:
        Variances, and their degrees of freedom, (..., rows).
    """
    known = (variance > 0) & (freedom > 0)
    count = known.sum(-1, keepdims=True)
    safe = np.where(known, variance, 1.0)
    half = np.where(known, freedom / 2, 1.0)
    z = np.where(known, np.log(safe) - digamma(half) + np.log(half), 0.0)
    mean = z.sum(-1, keepdims=True) / np.maximum(count, 1)
    seen = np.where(known, (z - mean) ** 2, 0.0).sum(-1, keepdims=True)
    # The quantile of chi-squared; scipy.stats has it too, and takes half a second to load.
    spread = seen / (2 * gammaincinv(np.maximum(count - 1, 1) / 2, 1 - CAUTION))
    by_chance = np.where(known, polygamma(1, half), 0.0).sum(-1, keepdims=True)
    spread = spread - by_chance / np.maximum(count, 1)
    prior = np.where(spread > 0, 2 * _trigamma_inverse(np.where(spread > 0, spread, 1.0)), np.inf)
    # All rows together know no more than their own runs do.
    others = np.where(known, freedom, 0.0).sum(-1, keepdims=True) - freedom
    prior = np.clip(prior, 1e-8, np.maximum(others, 1e-8))
    common = np.exp(mean + digamma(prior / 2) - np.log(prior / 2))
    shrunk = (prior * common + freedom * variance) / (prior + freedom)
    is_helped = known & (count > 1)
    return (
        np.where(is_helped, np.maximum(shrunk, variance), variance),
        np.where(is_helped, freedom + prior, np.broadcast_to(freedom, variance.shape)),
    )


def _trigamma_inverse(y: Array) -> Array:
    """Return x with trigamma(x) = y, by Newton's steps on 1 / trigamma, which is nearly linear."""
    x = 0.5 + 1 / y
    for _ in range(30):
        value = polygamma(1, x)
        x = np.maximum(x + value * (1 - value / y) / polygamma(2, x), 1e-8)
    return x


def between(
    variance: Array, freedom: Array, seeds: Array, a: Array, b: Array
) -> tuple[Array, Array]:
    """Return the variance of differences of independent rows, with Welch's degrees of freedom.

    Arguments:
        variance: (..., rows), of a single run.
        freedom: (..., rows).
        seeds: (rows,), number of runs.
        a: (pairs,), row numbers.
        b: (pairs,), row numbers.
    """
    parts = variance / seeds
    of_a, of_b = parts[..., a], parts[..., b]
    total = of_a + of_b
    with np.errstate(invalid="ignore", divide="ignore"):
        welch = total**2 / (of_a**2 / freedom[..., a] + of_b**2 / freedom[..., b])
    return total, np.where(total > 0, welch, 1.0)


def of_images(means: Array, a: Array, b: Array) -> Array:
    """Return the variance of mean differences over test images, which rows share.

    Arguments:
        means: (..., rows, images), each image's mean over runs.
        a: (pairs,), row numbers.
        b: (pairs,), row numbers.

    Returns:
        (..., pairs); NaN for a single image.
    """
    n = means.shape[-1]
    if n < 2:
        return np.full((*means.shape[:-2], len(a)), math.nan)
    centred = means - means.mean(-1, keepdims=True)
    covariance = centred @ centred.swapaxes(-1, -2)
    own = np.diagonal(covariance, axis1=-2, axis2=-1)
    both = own[..., a] + own[..., b]
    left = both - 2 * covariance[..., a, b]
    # Rows that differ by a constant leave what rounding makes of nothing.
    return np.where(left > 1e-12 * both, left, 0.0) / ((n - 1) * n)


def _squared_t(freedom: Array | float, level: Array | float) -> Array:
    """Return the square of the two-sided critical value of t; accurate in far tails."""
    x = betaincinv(np.asarray(freedom) / 2, 0.5, level)
    return np.asarray(freedom) * (1 / np.maximum(x, 1e-300) - 1)


def half_width(noise: Noise, level: float = LEVEL) -> Array:
    """Return half the length of the two-sided interval at ``1 - level``; NaN without a variance."""
    return np.sqrt(
        _squared_t(noise.freedom, level) * noise.runs
        + _squared_t(noise.images_freedom, level) * noise.images
    )


def p_values(difference: Array, noise: Noise) -> Array:
    """Return two-sided p-values: the level at which the interval just holds zero.

    They have no floor but that of floating point. Without any noise: 1 for no difference, else NaN,
    since nothing says how it would vary.
    """
    total = noise.runs + noise.images
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = -np.abs(difference) / np.sqrt(total)
    few = np.minimum(noise.freedom, noise.images_freedom)
    many = np.maximum(noise.freedom, noise.images_freedom)
    # The level lies between those of a single t with either number of degrees of freedom.
    low = np.log(np.maximum(2 * stdtr(many, ratio), 1e-300))
    high = np.log(np.maximum(2 * stdtr(few, ratio), 1e-300))
    for _ in range(STEPS):
        middle = (low + high) / 2
        is_inside = half_width(noise, np.exp(middle)) > np.abs(difference)
        low = np.where(is_inside, middle, low)
        high = np.where(is_inside, high, middle)
    p = np.exp((low + high) / 2)
    p = np.where(np.isfinite(difference) & np.isfinite(total) & (total > 0), p, math.nan)
    return np.where((total == 0) & (difference == 0), 1.0, p)


def seeds_needed(
    difference: float, run_variance: float, image_variance: float, images: int
) -> int | None:
    """Return how many training runs of each show a difference, at :data:`LEVEL`.

    Arguments:
        difference: The true difference.
        run_variance: Of a single run of either row.
        image_variance: Of the difference in one image.
        images: Number of test images.

    Returns:
        The least number, from :data:`SEEDS_FOR_T` on, with a power of :data:`POWER` in an
        uncorrected comparison; None where a thousand would not do, since images alone leave too
        much noise.
    """
    seeds = np.arange(SEEDS_FOR_T, 1001.0)
    constant = np.full(seeds.shape, image_variance / images)
    noise = Noise(2 * run_variance / seeds, 2 * (seeds - 1), constant, images - 1)
    least = half_width(noise) + ndtri(POWER) * np.sqrt(noise.runs + noise.images)
    enough = seeds[least <= difference]
    return int(enough[0]) if len(enough) else None


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values; NaN stays NaN and does not count as a comparison."""
    values = np.asarray(p, float)
    adjusted = np.full(len(values), math.nan)
    order = [i for i in np.argsort(values) if not math.isnan(values[i])]
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * values[i]))
        adjusted[i] = running
    return adjusted.tolist()
