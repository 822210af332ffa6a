"""One protocol for every cell: restore held-out measurements, draw samples, compare."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.datasets import CleanData
from ..data.measurements import Measurements
from ..diffusion.posterior import PosteriorSampler
from ..diffusion.samplers import Sampler
from ..operators.base import Operator, take
from ..prior import Prior, image_generators
from ..progress import Progress
from ..seeding import generator_for
from ..training.method import Way
from .features import Features, choose
from .metrics import consistency, frechet_distance, psnr, ssim


@dataclass
class Row:
    """What one way of restoring and sampling achieved.

    Attributes:
        way: How it restores, e.g. ``mmps, one sample``.
        is_own: Whether this is the method's own way and not the shared sampler.
        metrics: Mean of each metric.
        per_image: Restoration metrics of each test image, for paired comparisons.
        seconds: Wall seconds of restoration and sampling.
        evaluations: Forward passes of the denoiser for one restored image (NFE).
        backwards: Vector-Jacobian products for one restored image.
        missing: Why a metric has no value.
    """

    way: str
    is_own: bool
    metrics: dict[str, float] = field(default_factory=dict)
    per_image: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    evaluations: int = 0
    backwards: int = 0
    missing: dict[str, str] = field(default_factory=dict)

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
        features: ``auto``, ``classifier`` or ``pixels``.
        grid: Columns of the picture grids.
        chunk: Images at a time.
        seed: Evaluation seed.
    """

    test_images: int
    samples: int
    features: str
    grid: int
    chunk: int
    seed: int

    def __post_init__(self) -> None:
        if min(self.test_images, self.samples, self.grid, self.chunk) < 2:
            raise ValueError("test_images, samples, grid and chunk are counts; allowed: at least 2")

    def evaluate(
        self,
        prior: Prior | None,
        prior_ways: dict[str, PosteriorSampler],
        own_ways: list[Way],
        sampler: Sampler,
        data: CleanData,
        measured: Measurements,
        operator: Operator,
        cache: Path | None,
        progress: Progress,
    ) -> tuple[list[Row], dict[str, Tensor], dict[str, Any]]:
        """Evaluate a prior by the shared samplers, and a method's own ways.

        Arguments:
            prior: The prior, or None for a method without a denoiser.
            prior_ways: Posterior samplers by name; the first is the one that all rows share.
            own_ways: The method's own ways.
            sampler: The sampler of p(x).
            data: Clean images.
            measured: Measurements of the test split.
            operator: Their operator.
            cache: Where feature networks are kept.
            progress: Where to show progress.

        Returns:
            The rows, pictures by name (the first ``grid`` images), and notes on the protocol.
        """
        features = choose(self.features, data, cache)
        reference = features(data.train)
        n = min(self.test_images, len(data.test))
        count = min(self.samples, len(data.test))
        numbers = torch.arange(n)
        batch = measured.batch(numbers)
        rows: list[Row] = []
        pictures: dict[str, Tensor] = {}

        for name, posterior in prior_ways.items():
            if prior is None:
                break
            row = Row(f"{name}, one sample", is_own=False)
            start = time.perf_counter()
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
            row.seconds["restoration"] = time.perf_counter() - start
            row.evaluations, row.backwards = draw.evaluations, draw.backwards
            self._restoration(row, draw.x, data.test[:n], measured, operator)
            pictures[f"restored.{row.way}"] = draw.x
            if not rows:
                start = time.perf_counter()
                with progress.task("sample", count) as task:
                    drawn = prior.sample(count, sampler, self.seed, self.chunk)
                    task.advance(count)
                row.seconds["sampling"] = time.perf_counter() - start
                self._generation(row, drawn, features, reference)
                pictures[f"samples.{row.way}"] = drawn
            rows.append(row)

        for way in own_ways:
            row = Row(way.name, is_own=True)
            if way.restore is None:
                row.missing["restoration"] = way.reason or f"{way.name} does not restore"
            else:
                start = time.perf_counter()
                restored, row.evaluations = way.restore(
                    batch, image_generators(self.seed, range(n))
                )
                row.seconds["restoration"] = time.perf_counter() - start
                self._restoration(row, restored, data.test[:n], measured, operator)
                pictures[f"restored.{row.way}"] = restored
            if way.sample is None:
                row.missing["generation"] = way.reason or f"{way.name} does not sample p(x)"
            else:
                start = time.perf_counter()
                drawn = way.sample(count, generator_for(self.seed, "own-samples"))
                row.seconds["sampling"] = time.perf_counter() - start
                self._generation(row, drawn, features, reference)
                pictures[f"samples.{row.way}"] = drawn
            rows.append(row)

        pictures["truth"] = data.test[:n]
        pictures["measurement"] = operator.lift(batch.y, batch.params)
        if operator.is_image(batch.y):
            pictures["seen"] = operator.observed(batch.y, batch.params)
        kept = {k: v[: self.grid].float().contiguous() for k, v in pictures.items()}
        notes = {
            "features": features.name,
            "reference": f"train split, {len(data.train)} images",
            "samples": count,
            "test_images": n,
            "fd_train_test": frechet_distance(reference, features(data.test[:count])),
        }
        return rows, kept, notes

    def _restoration(
        self, row: Row, x: Tensor, truth: Tensor, measured: Measurements, operator: Operator
    ) -> None:
        n = len(x)
        values = {
            "psnr": psnr(x, truth),
            "ssim": ssim(x, truth),
            "consistency": consistency(
                x, measured.y[:n], take(measured.params, slice(n)), operator
            ),
        }
        for key, value in values.items():
            row.per_image[key] = [round(v, 5) for v in value.tolist()]
            row.metrics[key] = value.mean().item()

    def _generation(self, row: Row, x: Tensor, features: Features, reference: Any) -> None:
        if not torch.isfinite(x).all():
            row.missing["generation"] = "samples are not finite"
            return
        row.metrics["fd"] = frechet_distance(reference, features(x))
