"""The judge of samples: distances to clean training images and to training measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.datasets import CleanData
from ..data.measurements import Measurements
from ..operators.base import Operator
from ..progress import Progress
from ..seeding import generator_for
from .marks import out_of_range
from .metrics.features import SILENT, Features, choose, choose_all, compute, reference_features
from .metrics.generation import (
    MeanStd,
    class_score,
    kernel_distance,
    kernel_scale,
    precision_recall,
)
from .metrics.memorisation import memorisation, threshold
from .metrics.networks import Unavailable
from .metrics.proximal import Proximal
from .metrics.restoration import Moments
from .references import LEAST, exact_distance, extrapolated, remembered, repeats, split_distance
from .rows import Findings

#: Metrics that each features give.
DISTRIBUTION = ("fd", "fd_inf", "kid", "precision", "recall")
#: Samples that are looked up among the training images, at most.
LOOKED_UP = 10_000
#: Most held-out images used to compute the threshold of memorisation. More would cost about 0.1 s
#: each on one core with a network for photographs.
HELD_OUT = 2_000


@dataclass(frozen=True)
class SampleOptions:
    """How samples are compared.

    Attributes:
        features: One name or several; the first stands in tables.
        proximal_features: Features of lifted measurements.
        kid_size: Features of each side of the kernel distance, at most.
        is_splits: Splits of the Inception score.
        neighbours: Neighbours of precision and recall.
        manifold: Members of each manifold, at most.
        grid: How many of the most similar pairs are drawn.
        is_downloading: Whether absent weights may be fetched.
        seed: Evaluation seed.
    """

    features: str | Sequence[str]
    proximal_features: str
    kid_size: int
    is_splits: int
    neighbours: int
    manifold: int
    grid: int
    is_downloading: bool
    seed: int


@dataclass(frozen=True)
class _Reference:
    """Features of clean images.

    Attributes:
        features: The features.
        suffix: Of the metrics' keys: nothing for the first features of a list.
        train: Of the training split.
        test: Of the test split.
        moments: Of ``train``.
    """

    features: Features
    suffix: str
    train: NDArray[np.float64]
    test: NDArray[np.float64]
    moments: Moments


class SampleJudge:
    """Compares samples with clean training images and with training measurements.

    Arguments:
        options: Features and numbers.
        data: Clean images, or None: then there is only the proximal distance.
        measured: Measurements of the training split, or None: then there is none.
        operator: Their operator.
        cache: Folder of feature networks and of values of the reference.
        progress: Where to show slow ones.
    """

    def __init__(
        self,
        options: SampleOptions,
        data: CleanData | None,
        measured: Measurements | None,
        operator: Operator,
        cache: Path | None,
        progress: Progress = SILENT,
    ) -> None:
        self.options, self.data, self.cache, self.progress = options, data, cache, progress
        self.missing: dict[str, str] = {}
        self.references: list[_Reference] = []
        self.proximal: Proximal | None = None
        if data is not None and len(data.train) < LEAST:
            reason = f"the training split holds {len(data.train)} images; a distance needs {LEAST}"
            self.missing |= dict.fromkeys(
                ("fd", "kid", "precision", "recall", "memorised", "inception_score"), reason
            )
        elif data is not None:
            self._refer(data)
        if measured is None:
            self.missing["proximal_fd"] = "no training measurements were given"
        elif len(measured) < LEAST:
            self.missing["proximal_fd"] = (
                f"{len(measured)} training measurements; a distance needs {LEAST}"
            )
        else:
            try:
                chosen = choose(
                    options.proximal_features, data, cache, options.is_downloading, progress
                )
                self.proximal = Proximal(
                    chosen, operator, measured, options.seed, data is not None, cache, progress
                )
            except Unavailable as error:
                self.missing["proximal_fd"] = str(error)

    def _refer(self, data: CleanData) -> None:
        o = self.options
        found, absent = choose_all(o.features, data, self.cache, o.is_downloading, self.progress)
        first = o.features if isinstance(o.features, str) else o.features[0]
        for name, reason in absent.items():
            suffix = "" if name == first else f"_{name}"
            self.missing |= {f"{key}{suffix}": reason for key in DISTRIBUTION}
        for name, features in found.items():
            suffix = "" if name == first else f"_{features.key}"
            try:
                train = reference_features(features, data.train, self.cache, self.progress)
                test = reference_features(features, data.test[:HELD_OUT], self.cache, self.progress)
            except Unavailable as error:
                self.missing |= {f"{key}{suffix}": str(error) for key in DISTRIBUTION}
                continue
            self.references.append(_Reference(features, suffix, train, test, Moments.of(train)))
        if self.references:
            self.limit = threshold(self.references[0].test, self.references[0].train)
        else:
            self.missing["memorised"] = "none of the features is to be had"

    def __call__(self, drawn: Sequence[Tensor]) -> Findings:
        """Judge samples of p(x).

        Arguments:
            drawn: Samples (n, c, h, w) of each sampling seed. Distances are means over the seeds;
                precision, recall, Inception score and memorisation are those of the first.
        """
        if not all(bool(torch.isfinite(x).all()) for x in drawn):
            return Findings(missing={"generation": "samples are not finite"})
        found = Findings(missing=dict(self.missing))
        found.marked |= out_of_range(torch.cat(list(drawn)), "samples")
        fewest = min(len(x) for x in drawn)
        if fewest < LEAST:
            reason = f"{fewest} samples; a distance needs {LEAST}"
            keys = ["inception_score", "memorised", "proximal_fd"]
            keys += [f"{key}{r.suffix}" for r in self.references for key in DISTRIBUTION]
            if self.data is None:
                keys = ["proximal_fd"]
            found.missing |= dict.fromkeys(keys, reason)
            return found
        if self.proximal is not None:
            with self.progress.task("proximal distance", len(drawn)) as task:
                values = []
                for number, x in enumerate(drawn):
                    values.append(self.proximal(x, number))
                    task.advance()
            _put(found, "proximal_fd", "", values)
        for reference in self.references:
            computed = [compute(reference.features, x, self.progress) for x in drawn]
            self._compare([features for features, _ in computed], reference, found)
            features, scores = computed[0]
            if scores is not None:
                self._score(scores, reference.features.key, found)
            if reference is self.references[0] and self.data is not None:
                self._look_up(drawn[0], features, reference, found)
        if self.references and not any(key.startswith("inception_score_") for key in found.metrics):
            found.missing.setdefault("inception_score", "none of the features comes with classes")
        return found

    def _compare(
        self, sets: list[NDArray[np.float64]], reference: _Reference, found: Findings
    ) -> None:
        o, suffix = self.options, reference.suffix
        subsets, members = (generator_for(o.seed, role) for role in ("extrapolation", "kid"))
        distances, lines, kids = [], [], []
        with self.progress.task(f"distances · {reference.features.key}", len(sets)) as task:
            scale = kernel_scale(reference.features.key, reference.train)
            for features in sets:
                distances.append(reference.moments.distance(features))
                try:
                    lines.append(extrapolated(reference.moments, features, subsets))
                except ValueError as error:
                    found.missing[f"fd_inf{suffix}"] = str(error)
                pair = (features / scale, reference.train / scale)
                kids.append(kernel_distance(*pair, o.kid_size, members))
                task.advance()
        _put(found, "fd", suffix, distances)
        if lines:
            found.metrics[f"fd_inf{suffix}"] = sum(lines) / len(lines)
        sampled = sum(k.sampled for k in kids) / len(kids) ** 2
        variance = sampled + sum(k.reference for k in kids) / len(kids)
        found.metrics[f"kid{suffix}"] = sum(k.value for k in kids) / len(kids)
        found.metrics[f"kid_se{suffix}"] = variance**0.5
        # Manifolds of equal size, of members chosen by the seed.
        features = sets[0]
        size = min(o.manifold, len(features), len(reference.train))
        order = torch.randperm(len(reference.train), generator=generator_for(o.seed, "manifold"))
        try:
            precision, recall = precision_recall(
                features[:size], reference.train[order[:size].numpy()], o.neighbours
            )
            found.metrics |= {f"precision{suffix}": precision, f"recall{suffix}": recall}
        except ValueError as error:
            found.missing |= dict.fromkeys((f"precision{suffix}", f"recall{suffix}"), str(error))

    def _score(self, scores: Tensor, key: str, found: Findings) -> None:
        try:
            score = class_score(scores, self.options.is_splits, self.options.seed % 2**32)
            found.metrics |= {
                f"inception_score_{key}": score.mean,
                f"inception_score_std_{key}": score.std,
            }
        except ValueError as error:
            found.missing[f"inception_score_{key}"] = str(error)

    def _look_up(
        self, x: Tensor, features: NDArray[np.float64], reference: _Reference, found: Findings
    ) -> None:
        assert self.data is not None
        train = self.data.train
        result = memorisation(
            x[:LOOKED_UP], features[:LOOKED_UP], train, reference.train, self.limit
        )
        found.metrics |= {"memorised": result.share, "memorised_ratio": result.ratio_share}
        closest = result.closest(self.options.grid)
        found.pictures["memorised.sample"] = x[closest]
        found.pictures["memorised.neighbour"] = train[result.nearest[closest]]

    def notes(self, count: int) -> dict[str, Any]:
        """Return what the values of ``count`` samples are to be read against."""
        notes: dict[str, Any] = {}
        if self.proximal is not None and count >= LEAST:
            floor = self.proximal.floor(count)
            notes |= {
                "proximal_features": self.proximal.features.name,
                "proximal_floor": floor.mean,
                "proximal_floor_std": floor.std,
                "proximal_floor_is": f"{count} of the training measurements, drawn with "
                "replacement, against all of them",
                "proximal_ceiling": self.proximal.ceiling(count),
            }
        if self.data is None or not self.references:
            return notes
        for reference in self.references:
            notes |= self._exact(reference, count)
        notes |= self._test_split(self.data)
        notes |= {
            "all_features": [r.features.name for r in self.references],
            "memorised_threshold": self.limit,
        }
        if not self.references[0].suffix:
            notes |= {
                "features": self.references[0].features.name,
                "reference": f"train split, {len(self.data.train)} images",
            }
        return notes

    def _exact(self, reference: _Reference, count: int) -> dict[str, float]:
        """Return the distances of exact samples and of random splits for one of the features."""
        seed, suffix, train = self.options.seed, reference.suffix, reference.train
        times, size = repeats(train), len(reference.test)
        joined = np.concatenate([train, reference.test])
        key = f"{seed},{times}"

        def exact(n: int) -> MeanStd:
            return exact_distance(reference.moments, n, times, seed, self.progress)

        def split() -> MeanStd:
            return split_distance(joined, size, times, seed, self.progress)

        found: dict[str, MeanStd] = {}
        if count >= LEAST:
            found["fd_exact"] = remembered(
                self.cache, "exact", [train, f"{key},{count}"], lambda: exact(count)
            )
        if size >= LEAST:
            found["fd_exact_test"] = remembered(
                self.cache, "exact", [train, f"{key},{size}"], lambda: exact(size)
            )
            found["fd_random_splits"] = remembered(
                self.cache, "splits", [train, reference.test, key], split
            )
        means = {f"{k}{suffix}": v.mean for k, v in found.items()}
        return means | {f"{k}_std{suffix}": v.std for k, v in found.items()}

    def _test_split(self, data: CleanData) -> dict[str, Any]:
        """Return the metrics of the test split in the samples' place, at its own number."""
        size = len(self.references[0].test)
        if size < LEAST:
            reason = f"the test split holds {size} images; a distance needs {LEAST}"
            return {"test_split": {}, "test_split_missing": reason}
        found = Findings()
        for reference in self.references:
            self._compare([reference.test], reference, found)
        if self.proximal is not None:
            found.metrics["proximal_fd"] = self.proximal(data.test[:size])
        notes: dict[str, Any] = {"test_split": found.metrics, "test_split_samples": size}
        if "fd" in found.metrics:
            notes["fd_train_test"] = found.metrics["fd"]
        return notes


def _put(found: Findings, key: str, suffix: str, values: list[float]) -> None:
    """Put the mean and the standard deviation over sampling seeds, and the values themselves."""
    found.metrics[f"{key}{suffix}"] = float(np.mean(values))
    if len(values) > 1:
        found.metrics[f"{key}_std{suffix}"] = float(np.std(values, ddof=1))
    found.curves[f"{key}_by_seed{suffix}"] = values
