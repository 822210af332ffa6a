r"""What a distance of samples is to be read against, computed once for a problem.

A Frechet distance of n samples is above 0 by chance alone. Beside it stand the distance of n draws
of a Gaussian with exactly the reference's moments, that of random splits of the clean images, and
for measurements that of n of them, drawn with replacement. With more samples it falls as 1/n, so
that a line through distances of parts of the samples tells what infinitely many would have:

.. math:: \mathrm{FD}_n \approx \mathrm{FD}_\infty + c / n.

References:
    Effectively Unbiased FID and Inception Score and Where to Find Them (Chong and Forsyth, 2020),
    arXiv:1911.07023
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ..cells.reading import read_sealed, sealed
from ..files import write_text
from ..hashed import OF, Damaged
from ..mapped import blocks, bytes_of, rows
from ..notices import Notice, tell
from ..progress import Progress
from ..seeding import generator_for
from .metrics.generation import MeanStd
from .metrics.restoration import Moments

Array = NDArray[np.float64]
#: Samples below which a distance says nothing.
LEAST = 50
#: Random repetitions, and the number for features of more than :data:`MANY` dimensions.
REPEATS, FEW, MANY = 20, 5, 512
#: Sizes of the line that is extrapolated, from a quarter of the samples to all.
SIZES = 12
#: Kept values of other code are not read.
VERSION = 1


def repeats(features: Array | Tensor) -> int:
    """Return how often a random value is drawn for features of this width."""
    return FEW if features.shape[1] > MANY else REPEATS


def remembered(
    cache: Path | None,
    what: str,
    inputs: list[Array | Tensor | str],
    compute: Callable[[], MeanStd],
) -> MeanStd:
    """Return a value of the cache, or compute and keep it.

    Arguments:
        cache: Folder, or None for none.
        what: What it is, for the file's name.
        inputs: All that the value depends on; the file is named by their hash.
        compute: Computes it.
    """
    if cache is None:
        return compute()
    digest = hashlib.sha256(f"{VERSION},{what}".encode())
    for part in inputs:
        if isinstance(part, str):
            digest.update(f"{part}|".encode())
            continue
        digest.update(f"{tuple(part.shape)}|".encode())
        for block in blocks(torch.as_tensor(part)):
            digest.update(bytes_of(block.contiguous()))
    path = cache / f"{what}-{digest.hexdigest()[:16]}.json"
    if path.exists():
        try:
            found = read_sealed(path)
            if found.get(OF, path.stem) == path.stem:
                return MeanStd(float(found["mean"]), float(found["std"]))
            reason = f"'{path}' belongs to something else"
        except (Damaged, KeyError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, Damaged) else f"'{path}' is damaged: {error}"
        tell([Notice(f"{reason}; computed again", is_warning=True)])
    value = compute()
    write_text(path, sealed({**asdict(value), OF: path.stem}))
    return value


def exact_distance(moments: Moments, n: int, times: int, seed: int, progress: Progress) -> MeanStd:
    """Return the Frechet distance of n draws of a Gaussian with exactly the reference's moments.

    Arguments:
        moments: The reference's.
        n: Draws, at least 2.
        times: Repetitions; mean and standard deviation are over them.
        seed: Evaluation seed.
        progress: Where to show it.
    """
    values = []
    with progress.task(f"distance of {n} exact samples", times) as task:
        for number in range(times):
            generator = generator_for(seed, "exact-samples", number=number)
            z = _normal(n, len(moments.mean), generator)
            values.append(moments.distance(moments.mean + z @ moments.root))
            task.advance()
    return _mean_std(values)


def _normal(n: int, d: int, generator: Generator) -> Array:
    return torch.randn(n, d, generator=generator, dtype=torch.float64).numpy()


def split_distance(
    features: Array, size: int, times: int, seed: int, progress: Progress
) -> MeanStd:
    """Return the Frechet distance of random parts of a set to the rest of it.

    Arguments:
        features: All of the set, (n, d).
        size: Members of a part, at least 2 and at most n - 2.
        times: Random parts; mean and standard deviation are over them.
        seed: Evaluation seed.
        progress: Where to show it.
    """
    values = []
    with progress.task(f"distance of random splits of {size}", times) as task:
        for number in range(times):
            generator = generator_for(seed, "random-split", number=number)
            order = torch.randperm(len(features), generator=generator).numpy()
            rest = Moments.of(features[order[size:]])
            values.append(rest.distance(features[order[:size]]))
            task.advance()
    return _mean_std(values)


def resampled_distance(
    features: Array | Tensor, n: int, times: int, seed: int, progress: Progress
) -> MeanStd:
    """Return the Frechet distance to a set of n of its own members, drawn with replacement.

    Arguments:
        features: The set, (m, d).
        n: Draws, at least 2.
        times: Repetitions; mean and standard deviation are over them.
        seed: Evaluation seed.
        progress: Where to show it.
    """
    moments, members, values = Moments.of(features), torch.as_tensor(features), list[float]()
    with progress.task(f"distance of {n} members to their set", times) as task:
        for number in range(times):
            generator = generator_for(seed, "resampled", number=number)
            chosen = torch.randint(len(members), (n,), generator=generator)
            values.append(moments.distance(rows(members, chosen).numpy()))
            task.advance()
    return _mean_std(values)


def extrapolated(moments: Moments, features: Array, generator: Generator) -> float:
    """Return the Frechet distance of infinitely many samples, from a line over 1/n.

    Arguments:
        moments: The reference's.
        features: Of the samples, (n, d).
        generator: Chooses parts of the samples.

    Raises:
        ValueError: Fewer than 4 d samples: the smaller parts would not fill their covariances.
    """
    n, d = features.shape
    least = max(n // 4, 2 * d)
    if n < 2 * least:
        raise ValueError(f"an extrapolation from {d} features needs {4 * d} samples; got {n}")
    sizes = np.unique((1 / np.linspace(1 / least, 1 / n, SIZES)).round().astype(int))
    values = []
    for size in sizes:
        order = torch.randperm(n, generator=generator).numpy()
        values.append(moments.distance(features[order[:size]]))
    return float(np.polyfit(1 / sizes, values, 1)[1])


def _mean_std(values: list[float]) -> MeanStd:
    return MeanStd(
        float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    )
