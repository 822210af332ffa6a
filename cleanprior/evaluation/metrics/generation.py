"""Metrics of generated samples on feature sets: KID, precision and recall, Inception score."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MeanStd:
    """A mean and its standard deviation over subsets."""

    mean: float
    std: float


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance and its variance, by the set whose draws it comes from.

    Attributes:
        value: The distance.
        sampled: Variance over draws of the first set.
        reference: Variance over draws of the second set.
    """

    value: float
    sampled: float
    reference: float


def kernel_scale(features: str, reference: Array) -> float:
    r"""Return what features are divided by before a kernel distance.

    The cubic kernel is made for features whose products :math:`u^\top v / d` are about 1, as those
    of Inception are: they stay as they are, so that distances compare with published ones. Others
    are divided by the root mean square of the reference's: a classifier's logits, ten times as
    large, would leave the third power alone.
    """
    return 1.0 if features == "inception" else float(np.sqrt(np.mean(reference**2))) or 1.0


def kernel_distance(a: Array, b: Array, limit: int, generator: Generator) -> KernelDistance:
    r"""Return the kernel (Inception) distance: the unbiased squared MMD of a cubic kernel.

    .. math:: k(u, v) = (u^\top v / d + 1)^3

    Unlike a Frechet distance it does not grow with fewer samples; it can be below 0. The variance
    is that of a U-statistic, first and second order of Hoeffding's decomposition: the second counts
    where both laws are alike.

    Arguments:
        a: Features, (n, d).
        b: Features, (m, d).
        limit: Features of each side that are used, at most: the cost grows with their square.
        generator: Chooses them.

    Raises:
        ValueError: Fewer than 4 features on a side.

    References:
        Demystifying MMD GANs (Binkowski et al., 2018), arXiv:1801.01401
        Unbiased estimators for the variance of MMD estimators (Sutherland and Deka, 2019),
            arXiv:1906.02104
    """
    if min(len(a), len(b)) < 4:
        raise ValueError(f"a kernel distance needs 4 features a side; got {len(a)}, {len(b)}")
    x, y = (_subset(torch.from_numpy(f), limit, generator) for f in (a, b))
    n, m = len(x), len(y)
    xx, yy, xy = _Kernel.of(x, x), _Kernel.of(y, y), _Kernel.of(x, y)
    value = xx.mean + yy.mean - 2 * xy.mean
    # First order: what one member adds, less the noise of its means; second: what is left of the
    # kernel without that.
    first_x = (xx.rows - xy.rows).var().item() - xx.rest / (n - 1) - xy.rest / m
    first_y = (yy.rows - xy.columns).var().item() - yy.rest / (m - 1) - xy.rest / n
    cross = 2 * xy.rest / (n * m)
    return KernelDistance(
        value,
        4 * max(0.0, first_x) / n + 2 * xx.rest / (n * (n - 1)) + cross,
        4 * max(0.0, first_y) / m + 2 * yy.rest / (m * (m - 1)) + cross,
    )


def _subset(x: Tensor, size: int, generator: Generator) -> Tensor:
    return x[torch.randperm(len(x), generator=generator)[:size]]


@dataclass(frozen=True)
class _Kernel:
    """Means of a kernel matrix; of one set with itself, without its diagonal.

    Attributes:
        mean: Of all entries.
        rows: Of each row.
        columns: Of each column.
        rest: Mean square of what row and column means leave.
    """

    mean: float
    rows: Tensor
    columns: Tensor
    rest: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, chunk: int = 2048) -> "_Kernel":
        is_same = x is y
        rows, columns, squares = [], torch.zeros(len(y), dtype=x.dtype), 0.0
        for start in range(0, len(x), chunk):
            k = (x[start : start + chunk] @ y.T / x.shape[1] + 1) ** 3
            if is_same:
                k.diagonal(start).zero_()
            rows.append(k.sum(1))
            columns += k.sum(0)
            squares += k.square().sum().item()
        by_row = torch.cat(rows) / (len(y) - is_same)
        by_column = columns / (len(x) - is_same)
        mean = by_row.mean()
        square = squares / (len(x) * (len(y) - is_same))
        rest = square - by_row.square().mean() - by_column.square().mean() + mean**2
        return cls(mean.item(), by_row, by_column, max(0.0, float(rest)))


def precision_recall(
    generated: Array, reference: Array, k: int = 3, chunk: int = 2048
) -> tuple[float, float]:
    """Return which share of each set lies inside the other's manifold.

    A manifold is the union of balls around a set's members, each reaching to its k-th nearest
    neighbour. Precision: samples inside the reference's manifold. Recall: reference images inside
    the samples' manifold; it falls with under-dispersion, which a Frechet distance hides.

    Arguments:
        generated: Features of samples, (n, d).
        reference: Features of clean images, (m, d); both values depend on n and m, so compare equal
            sizes.
        k: Neighbours.
        chunk: Rows of a distance matrix at a time.

    Raises:
        ValueError: A set with k members or fewer.

    References:
        Improved Precision and Recall Metric for Assessing Generative Models (Kynkaanniemi et al.,
            2019), arXiv:1904.06991
    """
    if min(len(generated), len(reference)) <= k:
        raise ValueError(f"k={k} neighbours need more features than k on each side")
    x, y = torch.from_numpy(generated), torch.from_numpy(reference)
    return _inside(x, y, k, chunk), _inside(y, x, k, chunk)


def _inside(points: Tensor, centres: Tensor, k: int, chunk: int) -> float:
    """Return the share of points inside any ball of the centres' manifold."""
    # The nearest of all is the centre itself.
    radii = [torch.cdist(part, centres).kthvalue(k + 1).values for part in centres.split(chunk)]
    reach = torch.cat(radii)
    inside = [(torch.cdist(part, centres) <= reach).any(1) for part in points.split(chunk)]
    return torch.cat(inside).double().mean().item()


def class_score(logits: Tensor, splits: int, seed: int) -> MeanStd:
    r"""Return the Inception score from class scores: of Inception-v3, or of any classifier.

    .. math:: \exp \mathbb{E}_x\, \mathrm{KL}\big(p(c|x) \,\|\, p(c)\big)

    Between 1 and the number of classes; higher is sharper and more varied. Scores of different
    classifiers are different metrics.

    Arguments:
        logits: (n, classes).
        splits: Parts that the samples are shuffled into; mean and std are over them.
        seed: Of the shuffle.

    Raises:
        ValueError: Fewer samples than splits.

    References:
        Improved Techniques for Training GANs (Salimans et al., 2016), arXiv:1606.03498
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    if not 1 <= splits <= len(logits):
        raise ValueError(f"is_splits={splits}; allowed: 1 to the number of samples, {len(logits)}")
    found = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed)
    return MeanStd(found["inception_score_mean"], found["inception_score_std"])
