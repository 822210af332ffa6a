r"""The noise level of measurements, from their finest wavelet coefficients.

.. math:: \hat\sigma = \mathrm{median}(|d|) / 0.6745

where d are diagonal details, which smooth images hardly have: texture counts as noise, so that the
estimate is an upper bound on clean, detailed images.

References:
    Donoho and Johnstone, Ideal spatial adaptation by wavelet shrinkage (1994), section 4.2.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Median of |z| of a standard normal z.
MEDIAN = 0.6744897501960817
_ROOT = 3**0.5
#: High-pass filters of norm 1: Daubechies' of 4 taps, and Haar's, which fits between gaps.
FILTERS = (
    np.array([1 - _ROOT, _ROOT - 3, 3 + _ROOT, -1 - _ROOT]) / (4 * 2**0.5),
    np.array([1.0, -1.0]) / 2**0.5,
)
#: Coefficients below which nothing is said, and below which Haar's, of which there are more, are
#: taken: a thousand have an error of 4 %.
LEAST, ENOUGH = 200, 1000
#: Bins of brightness, and how much the noise of the brightest must exceed that of the darkest.
BINS, RATIO = 8, 1.5


@dataclass(frozen=True)
class Noise:
    """A noise level in the units of y.

    Attributes:
        sigma: Of all images together.
        spread: Its least and largest value of single images (5 and 95 %), where these are large
            enough to have one.
        gain: Where the noise grows with the signal: variance = gain * mean + ``offset``.
        offset: See ``gain``.
    """

    sigma: float
    spread: tuple[float, float] | None = None
    gain: float | None = None
    offset: float = 0.0


def noise_of(y: NDArray[Any], seen: NDArray[np.bool_] | None = None) -> Noise | None:
    """Estimate the noise of measurements on the pixels of images.

    Arguments:
        y: (n, c, h, w), real.
        seen: Which entries were measured, of the shape of y; None for all.

    Returns:
        None where too few coefficients lie between gaps.
    """
    whole = np.ones(y.shape, bool) if seen is None else np.broadcast_to(seen, y.shape)
    filled = np.where(whole, np.nan_to_num(y), 0.0).astype(np.float64)
    inside = np.zeros(0, bool)
    for taps in FILTERS:
        if min(y.shape[2:]) < len(taps):
            continue
        details = _filtered(filled, taps)
        inside = _filtered(whole.astype(np.float64), np.ones(len(taps))) > len(taps) ** 2 - 0.5
        if inside.sum() >= ENOUGH:
            break
    if inside.sum() < LEAST:
        return None
    sigma = _sigma(details[inside])
    each = [_sigma(d[i]) for d, i in zip(details, inside, strict=True) if i.sum() >= LEAST]
    spread = None
    if len(each) > 1:
        low, high = np.quantile(each, [0.05, 0.95])
        spread = float(low), float(high)
    gain = _gain(filled, whole)
    return Noise(sigma, spread, *(gain or ()))


def _sigma(details: NDArray[Any]) -> float:
    return float(np.median(np.abs(details)) / MEDIAN)


def _filtered(y: NDArray[Any], taps: NDArray[Any]) -> NDArray[Any]:
    """Filter rows and columns, and keep every second coefficient of each."""
    for axis in (-1, -2):
        y = np.moveaxis(y, axis, -1)
        count = (y.shape[-1] - len(taps)) // 2 + 1
        y = sum(t * y[..., k : k + 2 * count : 2][..., :count] for k, t in enumerate(taps))
        y = np.moveaxis(y, -1, axis)
    return y


def _gain(y: NDArray[Any], whole: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Return slope and offset of the variance against the mean, where it clearly grows with it."""
    inside = _filtered(whole.astype(np.float64), np.ones(2)) > 3.5
    details, means = _filtered(y, FILTERS[1])[inside], _filtered(y, np.full(2, 0.5))[inside]
    if len(details) < 4 * LEAST:
        return None
    edges = np.quantile(means, np.linspace(0, 1, BINS + 1))
    if len(np.unique(edges)) <= BINS:
        return None
    bins = np.clip(np.searchsorted(edges, means, side="right") - 1, 0, BINS - 1)
    level = np.array([means[bins == b].mean() for b in range(BINS)])
    variance = np.array([_sigma(details[bins == b]) ** 2 for b in range(BINS)])
    if variance[0] <= 0 or variance[-1] < RATIO**2 * variance[0]:
        return None
    slope, offset = np.polyfit(level, variance, 1)
    if np.corrcoef(level, variance)[0, 1] < 0.9 or slope <= 0:
        return None
    return float(slope), float(offset)
