"""One protocol for every cell: restore held-out measurements, draw samples, compare."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from ..costs import clock
from ..data.datasets import CleanData
from ..data.measured import MeasuredData
from ..data.measurements import Batch, Measurements
from ..diffusion.posterior import PosteriorSampler
from ..diffusion.samplers import Sampler
from ..operators.base import Operator
from ..prior import Prior, image_generators
from ..progress import Progress
from ..seeding import generator_for, seed_for
from ..training.method import Way
from .judges import CalibrationJudge, Findings, RestorationJudge, SampleJudge, SampleOptions

Restore = Callable[[Batch, list[Generator]], tuple[Tensor, int]]
#: Why a data set of measurements alone has no such numbers.
NO_CLEAN = "no clean images: no PSNR, SSIM or FD"


@dataclass
class Row:
    """What one way of restoring and sampling achieved.

    Attributes:
        way: How it restores, e.g. ``mmps, one sample``.
        is_own: Whether this is the method's own way and not the shared sampler.
        metrics: Mean of each metric; :mod:`cleanprior.metric_names` says what each is.
        per_image: Restoration metrics of each test image, for paired comparisons.
        seconds: Wall seconds of restoration and sampling.
        evaluations: Forward passes of the denoiser for one restored image (NFE).
        backwards: Vector-Jacobian products for one restored image.
        curves: Values that belong together: ``rank_histogram``, shares of the ranks 0 ... k.
        missing: Why a metric has no value.
    """

    way: str
    is_own: bool
    metrics: dict[str, float] = field(default_factory=dict)
    per_image: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    evaluations: int = 0
    backwards: int = 0
    curves: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, found: Findings) -> None:
        """Take over what a judge found."""
        self.metrics |= found.metrics
        self.per_image |= found.per_image
        self.curves |= found.curves
        self.missing |= found.missing

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a record."""
        return asdict(self)


@dataclass(frozen=True)
class Protocol:
    """How every cell is evaluated.

    Arguments:
        test_images: Held-out measurements restored, at most.
        samples: Images generated for the Frechet distance, at most the test split's size, so that
            the distance of the test split itself is comparable.
        features: ``auto``, ``classifier``, ``pixels``, ``inception``, ``efficientnet``,
            ``dinov2``, or a list; the first gives the distances of tables, the others further ones.
        proximal_features: One of those, of measurements that are lifted to images.
        lpips: Whether LPIPS is computed.
        kid_subsets: Subsets of the kernel distance.
        kid_size: Images of a subset, at most half of the smaller set.
        is_splits: Splits of the Inception score; some authors use 1.
        neighbours: Nearest neighbours that make the manifolds of precision and recall.
        manifold: Images of a manifold, at most.
        calibration_images: Measurements for which a posterior sampler draws several times; 0 for
            none.
        calibration_draws: Draws for each of them, at least 2.
        download: Fetch weights of networks that are not on this machine.
        grid: Columns of the picture grids.
        chunk: Images at a time.
        seed: Evaluation seed.
    """

    test_images: int
    samples: int
    features: str | Sequence[str]
    proximal_features: str
    lpips: bool
    kid_subsets: int
    kid_size: int
    is_splits: int
    neighbours: int
    manifold: int
    calibration_images: int
    calibration_draws: int
    download: bool
    grid: int
    chunk: int
    seed: int

    def __post_init__(self) -> None:
        if min(self.test_images, self.samples, self.grid, self.chunk) < 2:
            raise ValueError("test_images, samples, grid and chunk are counts; allowed: at least 2")
        if self.calibration_images < 0 or self.calibration_draws < 2:
            raise ValueError(
                f"calibration_images={self.calibration_images}, calibration_draws="
                f"{self.calibration_draws}; allowed: at least 0 (off) and at least 2"
            )
        if min(self.kid_subsets, self.kid_size, self.is_splits, self.neighbours) < 1:
            raise ValueError("kid_subsets, kid_size, is_splits, neighbours; allowed: at least 1")
        if self.manifold <= self.neighbours:
            raise ValueError(f"manifold={self.manifold}; allowed: above neighbours")

    def evaluate(
        self,
        prior: Prior | None,
        prior_ways: dict[str, PosteriorSampler],
        own_ways: list[Way],
        sampler: Sampler,
        data: CleanData | MeasuredData,
        measured: Measurements,
        operator: Operator,
        cache: Path | None,
        progress: Progress,
        trained: Measurements | None = None,
    ) -> tuple[list[Row], dict[str, Tensor], dict[str, Any]]:
        """Evaluate a prior by the shared samplers, and a method's own ways.

        Arguments:
            prior: The prior, or None for a method without a denoiser.
            prior_ways: Posterior samplers by name; the first is the one that all rows share.
            own_ways: The method's own ways.
            sampler: The sampler of p(x).
            data: Clean images, or measurements alone: then only metrics without a reference.
            measured: Measurements of the test split.
            operator: Their operator.
            cache: Where feature networks are kept.
            progress: Where to show progress.
            trained: Measurements of the training split, for the proximal distance.

        Returns:
            The rows, pictures by name (the first ``grid`` images), and notes on the protocol.
        """
        clean = data if isinstance(data, CleanData) else None
        n = min(self.test_images, len(data.test))
        truth = None if clean is None else clean.test[:n]
        count = min(self.samples, len(data.test))
        batch = measured.batch(torch.arange(n))
        judge = RestorationJudge(batch, truth, operator, self.lpips, self.download)
        calibration = CalibrationJudge(
            batch, truth, operator, self.calibration_images, self.calibration_draws, self.seed
        )
        judge_samples = SampleJudge(
            self._options(), clean, trained, operator, count, cache, progress
        )
        again = seed_for(self.seed, "calibration")
        rows: list[Row] = []
        pictures: dict[str, Tensor] = {}

        for name, posterior in prior_ways.items():
            if prior is None:
                break
            row = Row(f"{name}, one sample", is_own=False)
            start = clock()
            with progress.task(f"restore · {name}", n) as task:
                draw = prior.restore(
                    batch.y,
                    batch.params,
                    batch.sigma_y,
                    operator,
                    posterior,
                    self.seed,
                    self.chunk,
                    task.advance,
                )
            row.seconds["restoration"] = clock() - start
            row.evaluations, row.backwards = draw.evaluations, draw.backwards
            row.add(judge(draw.x))
            start = clock()

            def draw_again(more: Batch, posterior: PosteriorSampler = posterior) -> Tensor:
                assert prior is not None
                given = (more.y, more.params, more.sigma_y)
                return prior.restore(*given, operator, posterior, again, self.chunk).x

            row.add(calibration(draw.x, draw_again))
            row.seconds["calibration"] = clock() - start
            pictures[f"restored.{row.way}"] = draw.x
            if not rows:
                start = clock()
                with progress.task("sample", count) as task:
                    drawn = prior.sample(count, sampler, self.seed, self.chunk)
                    task.advance(count)
                row.seconds["sampling"] = clock() - start
                found = judge_samples(drawn)
                row.add(found)
                pictures = found.pictures | pictures
                pictures[f"samples.{row.way}"] = drawn
            rows.append(row)

        for way in own_ways:
            row = Row(way.name, is_own=True)
            if way.restore is None:
                row.missing["restoration"] = way.reason or f"{way.name} does not restore"
            else:
                start = clock()
                restored, row.evaluations = way.restore(
                    batch, image_generators(self.seed, range(n))
                )
                row.seconds["restoration"] = clock() - start
                row.add(judge(restored))
                start = clock()
                restore = way.restore

                def draw_way(more: Batch, restore: Restore = restore) -> Tensor:
                    return restore(more, image_generators(again, range(len(more))))[0]

                row.add(calibration(restored, draw_way))
                row.seconds["calibration"] = clock() - start
                pictures[f"restored.{row.way}"] = restored
            if way.sample is None:
                row.missing["generation"] = way.reason or f"{way.name} does not sample p(x)"
            else:
                start = clock()
                drawn = way.sample(count, generator_for(self.seed, "own-samples"))
                row.seconds["sampling"] = clock() - start
                found = judge_samples(drawn)
                row.add(found)
                pictures = found.pictures | pictures
                pictures[f"samples.{row.way}"] = drawn
            rows.append(row)

        if truth is not None:
            pictures["truth"] = truth
        else:
            for row in rows:
                row.missing["clean"] = NO_CLEAN
        pictures["measurement"] = operator.lift(batch.y, batch.params)
        if operator.is_image(batch.y):
            pictures["seen"] = operator.observed(batch.y, batch.params)
        kept = {k: v[: self.grid].float().contiguous() for k, v in pictures.items()}
        notes: dict[str, Any] = {
            "has_clean": clean is not None,
            "samples": count,
            "test_images": n,
            "expected_consistency": judge.expected_consistency,
            "calibration_images": calibration.n if truth is not None else 0,
            "calibration_draws": self.calibration_draws,
        }
        notes |= judge_samples.notes()
        return rows, kept, notes

    def _options(self) -> SampleOptions:
        return SampleOptions(
            features=self.features,
            proximal_features=self.proximal_features,
            kid_subsets=self.kid_subsets,
            kid_size=self.kid_size,
            is_splits=self.is_splits,
            neighbours=self.neighbours,
            manifold=self.manifold,
            grid=self.grid,
            is_downloading=self.download,
            seed=self.seed,
        )
