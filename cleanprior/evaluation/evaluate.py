"""One protocol for every cell: restore held-out measurements, draw samples, compare."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.datasets import CleanData
from ..data.measured import MeasuredData
from ..data.measurements import Measurements
from ..diffusion.posterior import PosteriorSampler
from ..diffusion.samplers import Sampler
from ..operators.base import Operator, take
from ..prior import Prior, image_generators
from ..progress import Progress
from ..seeding import generator_for
from ..training.method import Way
from .features import Features, choose
from .metrics import consistency, expected_consistency, frechet_distance, psnr, ssim

#: Why a data set of measurements alone has no such numbers.
NO_CLEAN = "no clean images: no PSNR, SSIM or FD"


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
        data: CleanData | MeasuredData,
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
            data: Clean images, or measurements alone: then only metrics without a reference.
            measured: Measurements of the test split.
            operator: Their operator.
            cache: Where feature networks are kept.
            progress: Where to show progress.

        Returns:
            The rows, pictures by name (the first ``grid`` images), and notes on the protocol.
        """
        clean = data if isinstance(data, CleanData) else None
        features = None if clean is None else choose(self.features, clean, cache)
        reference = None if clean is None or features is None else features(clean.train)
        n = min(self.test_images, len(data.test))
        truth = None if clean is None else clean.test[:n]
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
            self._restoration(row, draw.x, truth, measured, operator)
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
                self._restoration(row, restored, truth, measured, operator)
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
            "samples": count,
            "test_images": n,
            "expected_consistency": expected_consistency(
                batch.sigma_y, batch.y, batch.params, operator
            )
            .mean()
            .item(),
        }
        if clean is not None and features is not None and reference is not None:
            notes |= {
                "features": features.name,
                "reference": f"train split, {len(clean.train)} images",
                "fd_train_test": frechet_distance(reference, features(clean.test[:count])),
            }
        return rows, kept, notes

    def _restoration(
        self, row: Row, x: Tensor, truth: Tensor | None, measured: Measurements, operator: Operator
    ) -> None:
        n = len(x)
        values = {} if truth is None else {"psnr": psnr(x, truth), "ssim": ssim(x, truth)}
        values["consistency"] = consistency(
            x, measured.y[:n], take(measured.params, slice(n)), operator
        )
        for key, value in values.items():
            row.per_image[key] = [round(v, 5) for v in value.tolist()]
            row.metrics[key] = value.mean().item()

    def _generation(self, row: Row, x: Tensor, features: Features | None, reference: Any) -> None:
        if not torch.isfinite(x).all():
            row.missing["generation"] = "samples are not finite"
            return
        if features is not None:
            row.metrics["fd"] = frechet_distance(reference, features(x))
