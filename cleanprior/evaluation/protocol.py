"""One protocol for every cell: restore held-out measurements, draw samples, compare."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.datasets import CleanData
from ..data.measured import MeasuredData
from ..data.measurements import Batch, Measurements
from ..operators.base import ImageShape, Operator
from ..operators.likelihood import Likelihood
from ..progress import Progress
from ..training.route import Route
from .marks import Leak
from .metrics.features import SILENT
from .metrics.further import check_names, further_metrics
from .metrics.networks import NETWORKS
from .references import LEAST
from .restorations import RestorationJudge
from .routes import alone, copied, restore_all, sample_all
from .rows import Findings, Row
from .samples import SampleJudge, SampleOptions

#: Why a data set of measurements alone has no such numbers.
NO_CLEAN = "no clean images: no PSNR, SSIM or FD"
#: Features of the proximal distance: none that learned from the data's clean images.
PROXIMAL = ("pixels", *NETWORKS)
#: Side of images up to which every sample is drawn, whatever it takes.
SMALL = 32


@dataclass(frozen=True)
class Protocol:
    """How every cell is evaluated.

    Arguments:
        test_images: Held-out measurements restored, at most.
        draws: Restorations of each measurement by a route that draws from p(x|y): their spread is
            compared with their error, and their mean with point estimates.
        samples: Images generated for each sampling seed.
        sampling_seeds: Seeds of the samples; distances have a mean and a standard deviation over
            them.
        sampling_seconds: Seconds for the samples of one row where images have more than 32 pixels a
            side: fewer are drawn where they would take longer, which is told; 0 for no limit.
        features: ``auto``, ``classifier``, ``pixels``, ``inception``, ``efficientnet``,
            ``dinov2``, or a list; the first gives the distances of tables, the others further ones.
        proximal_features: Of measurements that are lifted to images: ``pixels`` or a network of
            other photographs. The classifier was trained on clean images and is refused.
        lpips: Whether LPIPS is computed.
        metrics: Names of further metrics of restorations, in ``configs/metric``.
        kid_size: Images of each side of the kernel distance, at most.
        is_splits: Splits of the Inception score; some authors use 1.
        neighbours: Nearest neighbours that make the manifolds of precision and recall.
        manifold: Images of a manifold, at most.
        download: Fetch weights of networks that are not on this machine.
        grid: Columns of the picture grids.
        chunk: Images at a time.
        seed: Evaluation seed.
    """

    test_images: int
    draws: int
    samples: int
    sampling_seeds: Sequence[int]
    sampling_seconds: float
    features: str | Sequence[str]
    proximal_features: str
    lpips: bool
    metrics: Sequence[str]
    kid_size: int
    is_splits: int
    neighbours: int
    manifold: int
    download: bool
    grid: int
    chunk: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("test_images", "samples", "grid", "chunk"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: a count, at least 2")
        for name in ("draws", "kid_size", "is_splits", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: a count, at least 1")
        seeds = self.sampling_seeds
        is_list = not isinstance(seeds, (str, int)) and len(seeds) > 0
        if not is_list or any(type(s) is not int for s in seeds) or len(set(seeds)) < len(seeds):
            raise ValueError(
                f"sampling_seeds={seeds}; allowed: a list of different whole numbers, e.g. [0,1,2]"
            )
        if not 0 <= self.sampling_seconds < float("inf"):
            raise ValueError(
                f"sampling_seconds={self.sampling_seconds}; allowed: seconds, or 0 for no limit"
            )
        check_names(self.metrics)
        if self.manifold <= self.neighbours:
            raise ValueError(f"manifold={self.manifold}; allowed: above neighbours")
        if self.proximal_features not in PROXIMAL:
            raise ValueError(
                f"proximal_features={self.proximal_features}; allowed: {', '.join(PROXIMAL)}: the "
                "distance claims to need no clean image"
            )

    def evaluate(
        self,
        routes: Sequence[Route],
        data: CleanData | MeasuredData,
        measured: Measurements,
        operator: Operator,
        cache: Path | None,
        progress: Progress,
        trained: Measurements | None = None,
    ) -> tuple[list[Row], dict[str, Tensor], dict[str, Any]]:
        """Ask every route to restore and to sample, and judge what it returns.

        Arguments:
            routes: :func:`cleanprior.evaluation.routes.routes_of`; each is a row.
            data: Clean images, or measurements alone: then only metrics without a reference.
            measured: Measurements of the test split.
            operator: Their operator.
            cache: Where feature networks and values of the reference are kept.
            progress: Where to show progress.
            trained: Measurements of the training split, for the proximal distance.

        Returns:
            The rows, pictures by name (the first ``grid`` images), and notes on the protocol.
        """
        clean = data if isinstance(data, CleanData) else None
        n = min(self.test_images, len(data.test))
        truth = None if clean is None else clean.test[:n]
        batch = measured.batch(torch.arange(n))
        likelihood = Likelihood.of(operator, batch)
        leak: Leak | None = None
        images: Callable[[Tensor], Tensor] = _unchanged
        if operator.noise is not None:  # whose least error no linear restorer tells
            images = operator.noise.images
        elif clean is not None and truth is not None:
            leak = Leak.of(clean.train, truth, likelihood, progress)
        further = {} if truth is None else further_metrics(self.metrics)
        judge = RestorationJudge(
            likelihood, truth, self.lpips, self.download, self.seed, leak, further, images
        )
        judge_samples = SampleJudge(self._options(), clean, trained, operator, cache, progress)
        rows: list[Row] = []
        pictures: dict[str, Tensor] = {}
        for route in routes:
            row = Row.of(route, self.draws)
            pictures |= self._restore(route, row, batch, judge, operator.image_shape, progress)
            found = self._sample(route, row, judge_samples, images, operator.image_shape, progress)
            pictures = found | pictures  # of pictures that all share, the first route's
            rows.append(row)
        if truth is not None:
            pictures["truth"] = truth
        else:
            for row in rows:
                row.missing["clean"] = NO_CLEAN
        pictures["measurement"] = images(operator.lift(batch.y, batch.params))
        if operator.is_image(batch.y):
            pictures["seen"] = likelihood.observed
        kept = {k: v[: self.grid].float().contiguous() for k, v in pictures.items()}
        count = next((row.samples for row in rows if row.samples), self.samples)
        notes: dict[str, Any] = {
            "has_clean": clean is not None,
            "samples": count,
            "sampling_seeds": list(self.sampling_seeds),
            "test_images": n,
            "draws": self.draws,
            "expected_consistency": judge.expected_consistency,
        }
        if leak is not None:
            notes["least_error"] = leak.bound.mean().item()
        return rows, kept, notes | judge_samples.notes(count)

    def _restore(
        self,
        route: Route,
        row: Row,
        batch: Batch,
        judge: RestorationJudge,
        shape: ImageShape,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """Restore the measurements by a route, fill its row, return its pictures."""
        if route.restore is None:
            row.missing["restoration"] = route.no_restoration
            return {}
        given, k = copied(batch), row.draws
        with progress.task(f"restore · {route.name}", k * len(batch)) as task:
            restored = alone(
                partial(restore_all, route, given, k, self.seed, self.chunk, shape, task)
            )
        row.seconds["restoration"] = restored.seconds
        row.evaluations, row.backwards = restored.evaluations, restored.backwards
        row.add(judge(restored.x, route.kind == "point"))
        shown = judge.images(restored.x)
        pictures = {f"restored.{row.way}": shown[0]}
        return pictures | ({f"mean.{row.way}": shown.mean(0)} if k > 1 else {})

    def _sample(
        self,
        route: Route,
        row: Row,
        judge: SampleJudge,
        images: Callable[[Tensor], Tensor],
        shape: ImageShape,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """Sample by a route, fill its row, return its pictures."""
        if route.sample is None:
            row.missing["generation"] = route.no_generation
            return {}
        count, seeds = self._count(route, shape, row)
        row.samples = count
        with progress.task("sample", count * len(seeds)) as task:
            drawn, row.seconds["sampling"] = alone(
                partial(sample_all, route, count, seeds, self.chunk, shape, task)
            )
        drawn = [images(x) for x in drawn]
        found = judge(drawn)
        row.add(found)
        return found.pictures | {f"samples.{row.way}": drawn[0]}

    def _count(self, route: Route, shape: ImageShape, row: Row) -> tuple[int, list[int]]:
        """Return how many samples of which seeds the budget of seconds allows; tell fewer."""
        seeds = list(self.sampling_seeds)
        if max(shape[1:]) <= SMALL or self.sampling_seconds == 0:
            return self.samples, seeds
        trial = min(4, self.samples)
        with SILENT.task("", trial) as task:
            _, seconds = alone(partial(sample_all, route, trial, seeds[:1], trial, shape, task))
        seconds /= trial
        count = self.samples
        # Halves, so that rows of about the same cost have the same number.
        while count > LEAST and count * len(seeds) * seconds > self.sampling_seconds:
            count = max(LEAST, count // 2)
        if count * len(seeds) * seconds > self.sampling_seconds:
            seeds = seeds[:1]
        if count < self.samples or len(seeds) < len(self.sampling_seeds):
            row.add(
                Findings(
                    marked={
                        "fewer": f"{count} samples of {len(seeds)} sampling seeds, where "
                        f"{self.samples} of {len(self.sampling_seeds)} were asked for: one takes "
                        f"{seconds:.2g} s (evaluation.sampling_seconds={self.sampling_seconds:g})"
                    }
                )
            )
        return count, seeds

    def _options(self) -> SampleOptions:
        return SampleOptions(
            features=self.features,
            proximal_features=self.proximal_features,
            kid_size=self.kid_size,
            is_splits=self.is_splits,
            neighbours=self.neighbours,
            manifold=self.manifold,
            grid=self.grid,
            is_downloading=self.download,
            seed=self.seed,
        )


def _unchanged(x: Tensor) -> Tensor:
    return x
