"""Judges of restorations, of posterior draws and of samples: which metrics a row gets, and why not.

The metrics themselves are functions in the modules beside this one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.datasets import CleanData
from ..data.measurements import Batch, Measurements
from ..operators.base import Operator
from ..progress import Progress
from ..seeding import generator_for
from .calibration import calibrate, open_pixels
from .features import SILENT, Features, choose, choose_all, compute, reference_features
from .generation import class_score, kernel_distance, precision_recall
from .memorisation import memorisation, threshold
from .metrics import (
    consistency,
    expected_consistency,
    frechet_distance,
    psnr,
    psnr_minmax,
    ssim,
)
from .networks import Unavailable
from .perceptual import Lpips, refusal
from .proximal import Proximal

#: Metrics that each features give.
DISTRIBUTION = ("fd", "kid", "precision", "recall")
#: Samples that are looked up among the training images, at most.
LOOKED_UP = 10_000
#: Held-out images that set the threshold of memorisation, at most: two of them are above it, and a
#: network of photographs needs about 0.1 s for each on one core.
HELD_OUT = 2_000


@dataclass
class Findings:
    """What a judge found, to be added to a row.

    Attributes:
        metrics: Means.
        per_image: Values of each image.
        curves: Values that belong together, such as a histogram.
        pictures: Images, (n, c, h, w).
        missing: Why a metric has no value.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    per_image: dict[str, list[float]] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class RestorationJudge:
    """Compares restorations with their measurements and, where there is one, with the truth.

    Arguments:
        batch: The measurements.
        truth: Their clean images, or None.
        operator: Their operator.
        is_lpips: Whether LPIPS is computed.
        is_downloading: Whether absent weights may be fetched.
    """

    def __init__(
        self,
        batch: Batch,
        truth: Tensor | None,
        operator: Operator,
        is_lpips: bool,
        is_downloading: bool,
    ) -> None:
        self.batch, self.truth, self.operator = batch, truth, operator
        expected = expected_consistency(batch.sigma_y, batch.y, batch.params, operator)
        self.expected_consistency = expected.mean().item()
        self.lpips: Lpips | None = None
        self.missing: dict[str, str] = {}
        if truth is None:
            return
        reason = refusal(truth.shape[1:]) if is_lpips else "LPIPS is off: evaluation.lpips=false"
        if reason is None:
            try:
                self.lpips = Lpips.load(is_downloading)
            except Unavailable as error:
                reason = str(error)
        if reason is not None:
            self.missing["lpips"] = reason

    def __call__(self, x: Tensor) -> Findings:
        """Judge one restoration of each measurement."""
        values: dict[str, Tensor] = {}
        if self.truth is not None:
            values["psnr"] = psnr(x, self.truth)
            values["psnr_minmax"] = psnr_minmax(x, self.truth)
            values["ssim"] = ssim(x, self.truth)
            if self.lpips is not None:
                values["lpips"] = self.lpips(x, self.truth)
        values["consistency"] = consistency(x, self.batch.y, self.batch.params, self.operator)
        metrics = {k: v.mean().item() for k, v in values.items()}
        metrics["consistency_expected"] = self.expected_consistency
        per_image = {k: [round(v, 5) for v in value.tolist()] for k, value in values.items()}
        return Findings(metrics, per_image, missing=dict(self.missing))


class CalibrationJudge:
    """Draws several times for a few measurements and compares spread with error.

    Arguments:
        batch: The measurements whose first ``images`` are drawn for again.
        truth: Their clean images, or None.
        operator: Their operator.
        images: How many measurements; 0 turns calibration off.
        draws: Draws for each, the first of which is the row's restoration.
        seed: Evaluation seed.
    """

    def __init__(
        self,
        batch: Batch,
        truth: Tensor | None,
        operator: Operator,
        images: int,
        draws: int,
        seed: int,
    ) -> None:
        self.n, self.k = min(images, len(batch)), draws
        self.operator = operator
        self.truth = None if truth is None else truth[: self.n]
        self.reason: str | None = None
        if self.n == 0:
            self.reason = "calibration is off: evaluation.calibration_images=0"
        elif truth is None:
            self.reason = "calibration needs clean images"
        index = torch.arange(self.n)
        again = index.repeat(self.k - 1)
        params = {key: value[again] for key, value in batch.params.items()}
        self.again = Batch(batch.y[again], params, batch.sigma_y[again], batch.index[again])
        if self.reason is None:
            first = {key: value[index] for key, value in batch.params.items()}
            generator = generator_for(seed, "open-pixels")
            self.is_open = open_pixels(operator, first, batch.sigma_y[index], generator)

    def __call__(self, first: Tensor, draw: Callable[[Batch], Tensor]) -> Findings:
        """Judge a posterior sampler.

        Arguments:
            first: Its restoration of all measurements.
            draw: Restores a batch with other random numbers.
        """
        names = ("spread_ratio", "coverage", "psnr_mean")
        if self.reason is not None or self.truth is None:
            return Findings(missing=dict.fromkeys(names, self.reason or ""))
        others = draw(self.again).reshape(self.k - 1, self.n, *first.shape[1:])
        samples = torch.cat([first[None, : self.n], others])
        if not torch.isfinite(samples).all():
            return Findings(missing=dict.fromkeys(names, "draws are not finite"))
        try:
            found = calibrate(samples, self.truth, self.is_open)
        except ValueError as error:
            return Findings(missing=dict.fromkeys(names, f"calibration: {error}"))
        mean = psnr(samples.mean(0), self.truth)
        metrics = {
            "spread_ratio": found.spread_ratio,
            "spread_ratio_se": found.spread_ratio_se,
            "coverage": found.coverage,
            "rank_deviation": found.rank_deviation,
            "psnr_mean": mean.mean().item(),
            "psnr_mean_gain": (mean - psnr(samples[0], self.truth)).mean().item(),
        }
        if self.n < 2:
            del metrics["spread_ratio_se"]
        per_image = {"psnr_mean": [round(v, 5) for v in mean.tolist()]}
        return Findings(metrics, per_image, curves={"rank_histogram": found.ranks})


@dataclass(frozen=True)
class SampleOptions:
    """How samples are compared.

    Attributes:
        features: One name or several; the first stands in tables.
        proximal_features: Features of lifted measurements.
        kid_subsets: Subsets of the kernel distance.
        kid_size: Members of a subset, at most half of the smaller set.
        is_splits: Splits of the Inception score.
        neighbours: Neighbours of precision and recall.
        manifold: Members of each manifold, at most.
        grid: How many of the most similar pairs are drawn.
        is_downloading: Whether absent weights may be fetched.
        seed: Evaluation seed.
    """

    features: str | Sequence[str]
    proximal_features: str
    kid_subsets: int
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
    """

    features: Features
    suffix: str
    train: NDArray[np.float64]
    test: NDArray[np.float64]


class SampleJudge:
    """Compares generated samples with clean training images and with training measurements.

    Arguments:
        options: How.
        data: Clean images, or None.
        measured: The training measurements, or None for no proximal distance.
        operator: Their operator.
        count: How many samples there will be.
        cache: Folder of trained classifiers and reference features.
        progress: Where to show what takes its time.
    """

    def __init__(
        self,
        options: SampleOptions,
        data: CleanData | None,
        measured: Measurements | None,
        operator: Operator,
        count: int,
        cache: Path | None,
        progress: Progress = SILENT,
    ) -> None:
        self.options, self.data, self.count = options, data, count
        self.progress = progress
        self.missing: dict[str, str] = {}
        self.references: list[_Reference] = []
        self.proximal: Proximal | None = None
        if data is not None:
            found, absent = choose_all(
                options.features, data, cache, options.is_downloading, progress
            )
            listed = options.features
            first = listed if isinstance(listed, str) else listed[0]
            for name, reason in absent.items():
                suffix = "" if name == first else f"_{name}"
                self.missing |= {f"{key}{suffix}": reason for key in DISTRIBUTION}
            for name, features in found.items():
                train = reference_features(features, data.train, cache, progress)
                held_out = data.test[: max(count, HELD_OUT)]
                test = reference_features(features, held_out, cache, progress)
                suffix = "" if name == first else f"_{features.key}"
                self.references.append(_Reference(features, suffix, train, test))
        if self.references:
            self.limit = threshold(self.references[0].test, self.references[0].train)
        elif data is not None:
            self.missing["memorised"] = "none of the features is to be had"
        if measured is None:
            self.missing["proximal_fd"] = "no training measurements were given"
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

    def __call__(self, x: Tensor) -> Findings:
        """Judge samples of p(x)."""
        if not torch.isfinite(x).all():
            return Findings(missing={"generation": "samples are not finite"})
        found = Findings(missing=dict(self.missing))
        if self.proximal is not None:
            found.metrics["proximal_fd"] = self.proximal(x)
        for reference in self.references:
            features, scores = compute(reference.features, x, self.progress)
            self._compare(features, reference, found)
            if scores is not None:
                self._score(scores, reference.features.key, found)
            if reference is self.references[0] and self.data is not None:
                self._look_up(x, features, reference, found)
        if self.references and not any(key.startswith("inception_score_") for key in found.metrics):
            found.missing.setdefault("inception_score", "none of the features comes with classes")
        return found

    def _compare(
        self, features: NDArray[np.float64], reference: _Reference, found: Findings
    ) -> None:
        o, suffix = self.options, reference.suffix
        found.metrics[f"fd{suffix}"] = frechet_distance(reference.train, features)
        try:
            generator = generator_for(o.seed, "kid")
            kid = kernel_distance(features, reference.train, o.kid_subsets, o.kid_size, generator)
            found.metrics |= {f"kid{suffix}": kid.mean, f"kid_subset_std{suffix}": kid.std}
        except ValueError as error:
            found.missing[f"kid{suffix}"] = str(error)
        # Manifolds of equal size, of members chosen by the seed.
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

    def notes(self) -> dict[str, Any]:
        """Return what the values are to be read against: the test split in the samples' place."""
        notes: dict[str, Any] = {}
        if self.proximal is not None:
            notes["proximal_features"] = self.proximal.features.name
            notes["proximal_floor"] = self.proximal.floor(self.count)
            notes["proximal_ceiling"] = self.proximal.ceiling(self.count)
        if self.data is None or not self.references:
            return notes
        found = Findings()
        for reference in self.references:
            self._compare(reference.test[: self.count], reference, found)
        if self.proximal is not None:
            found.metrics["proximal_fd"] = self.proximal(self.data.test[: self.count])
        notes |= {
            "all_features": [r.features.name for r in self.references],
            "test_split": found.metrics,
            "memorised_threshold": self.limit,
        }
        if not self.references[0].suffix:
            notes |= {
                "features": self.references[0].features.name,
                "reference": f"train split, {len(self.data.train)} images",
                "fd_train_test": found.metrics["fd"],
            }
        return notes
