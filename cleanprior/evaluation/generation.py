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


def kernel_distance(a: Array, b: Array, subsets: int, size: int, generator: Generator) -> MeanStd:
    r"""Return the kernel (Inception) distance: the unbiased squared MMD of a cubic kernel.

    .. math:: k(u, v) = (u^\top v / d + 1)^3

    Unlike a Frechet distance it does not grow with fewer samples; it can be below 0.

    Arguments:
        a: Features, (n, d).
        b: Features, (m, d).
        subsets: Random subsets averaged over.
        size: Features of each side in a subset; at most half of the smaller set is drawn, since
            subsets that share most of their members would say nothing about the spread.
        generator: Draws the subsets.

    Raises:
        ValueError: Fewer than 4 features on a side, or no subset.

    References:
        Demystifying MMD GANs (Binkowski et al., 2018), arXiv:1801.01401
    """
    from torchmetrics.image.kid import poly_mmd

    size = min(size, len(a) // 2, len(b) // 2)
    if size < 2 or subsets < 1:
        raise ValueError(f"a kernel distance needs 4 features a side; got {len(a)}, {len(b)}")
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    values = [
        poly_mmd(_subset(x, size, generator), _subset(y, size, generator)).item()
        for _ in range(subsets)
    ]
    return MeanStd(float(np.mean(values)), float(np.std(values)))


def _subset(x: Tensor, size: int, generator: Generator) -> Tensor:
    return x[torch.randperm(len(x), generator=generator)[:size]]


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
