"""Whatever restores or samples, judged by the protocol of the benchmarks, without a cell."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..data.datasets import CleanData
from ..data.measured import MeasuredData
from ..data.measurements import Measurements
from ..defaults import exact_products, plain_tensors
from ..diffusion.posterior import PosteriorSampler
from ..diffusion.samplers import Sampler
from ..errors import UserError
from ..metric_names import in_order
from ..notices import tell
from ..operators.base import Operator
from ..prior import Prior
from ..progress import Progress
from ..training.route import Route
from .given import given_route
from .protocol import Protocol
from .routes import shared_route
from .rows import Row

#: Notes that restorations alone have.
_RESTORED = ("has_clean", "test_images", "draws", "expected_consistency", "least_error")
_RESTORATION = ("psnr", "ssim", "lpips", "psnr_minmax", "consistency")
#: Groups of metrics as they are printed; the last one takes what the others leave.
_GROUPS = {
    "one draw": _RESTORATION,
    "mean or point": tuple(f"{key}_point" for key in _RESTORATION),
    "the truth": ("consistency_expected",),
    "spread": ("spread_ratio", "spread_ratio_se", "coverage", "rank_deviation"),
    "proximal": ("proximal_fd", "proximal_fd_std"),
    "samples": (),
}


@dataclass(frozen=True)
class Evaluation:
    """What the protocol found.

    Attributes:
        row: The row that a table would have.
        notes: What its values are to be read against, as in a record.
    """

    row: Row
    notes: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        """Mean of each metric; :mod:`cleanprior.metric_names` says what each is."""
        return self.row.metrics

    @property
    def missing(self) -> dict[str, str]:
        """Why a metric has no value."""
        return self.row.missing

    def to_json(self) -> dict[str, Any]:
        """Return plain values: ``row`` and ``evaluation``, as in a record."""
        return {"row": self.row.to_json(), "evaluation": self.notes}

    def lines(self) -> Iterator[str]:
        """Yield lines for a terminal: the metrics, why some are missing, and warnings."""
        yield self.row.way
        taken = {key for keys in _GROUPS.values() for key in keys}
        for name, keys in _GROUPS.items():
            shown = [k for k in in_order(self.metrics) if (k in keys if keys else k not in taken)]
            if shown:
                figures = ", ".join(f"{k} {self.metrics[k]:.4g}" for k in shown)
                yield f"  {name}: {figures}"
        reasons: dict[str, list[str]] = {}
        for key, reason in self.missing.items():
            reasons.setdefault(reason, []).append(key)
        for reason, missed in reasons.items():
            yield f"  no {', '.join(missed)}: {reason}"
        for code, sentence in self.row.marked.items():
            yield f"  careful: {code}: {sentence}"


class Judge:
    """Judges whatever restores or samples, on the held-out measurements of a data set.

    Arguments:
        data: Clean images, whose measurements are those of the benchmarks; or measurements alone.
        operator: Their operator.
        data_seed: Data seed of drawn measurements.
        protocol: How it is judged.
        cache: Where feature networks and values of the reference are kept; None keeps nothing.
        progress: Where to show progress.

    Raises:
        UserError: An operator of images of another shape, measurements that are not the operator's.
    """

    def __init__(
        self,
        data: CleanData | MeasuredData,
        operator: Operator,
        data_seed: int,
        protocol: Protocol,
        cache: Path | None,
        progress: Progress,
    ) -> None:
        exact_products()
        if tuple(operator.image_shape) != tuple(data.image_shape):
            raise UserError(
                f"the data set has images {tuple(data.image_shape)}; the operator is for "
                f"{tuple(operator.image_shape)}"
            )
        if isinstance(data, MeasuredData):
            tell(data.check(operator))
            # A fixed mask in a file is a fixed operator, whatever the family draws.
            operator = operator.with_law_of(data.train.params)
            operator = operator.with_levels_of(data.train.sigma_y)
        self.data, self.operator, self.data_seed = data, operator, data_seed
        self.protocol, self.cache, self.progress = protocol, cache, progress

    def prior(
        self, prior: Prior, name: str, posterior: PosteriorSampler, sampler: Sampler
    ) -> Evaluation:
        """Judge a prior with the samplers that all methods share.

        Arguments:
            prior: The prior.
            name: The posterior sampler's name.
            posterior: The sampler of p(x|y).
            sampler: The sampler of p(x).

        Raises:
            UserError: The prior makes images of another shape.
        """
        if prior.image_shape != tuple(self.data.image_shape):
            raise UserError(
                f"the data set has images {tuple(self.data.image_shape)}; the prior makes "
                f"{prior.image_shape}"
            )
        posterior.check_noise("local_noise" not in self.operator.capabilities)
        return self.route(shared_route(name, prior, posterior, self.operator, sampler))

    def restorations(self, x: Float[Tensor, "k n c h w"], is_point: bool) -> Evaluation:
        """Judge restorations of the first held-out measurements, in their order.

        Arguments:
            x: k restorations of each of n measurements.
            is_point: Whether they are point estimates and not draws of p(x|y).

        Raises:
            UserError: More restorations than there are held-out measurements, or fewer than two;
                several point estimates of a measurement.
        """
        k, n = x.shape[:2]
        most = len(self.data.test)
        if not 2 <= n <= most:
            raise UserError(
                f"there are {n} restorations; allowed: those of the first held-out measurements, "
                f"in their order, at least 2 and at most {most}"
            )
        count = min(n, self.protocol.test_images)
        # No sample is judged: the cheapest features are never asked.
        changed = replace(self.protocol, draws=k, test_images=count, features="pixels")
        found = self.route(given_route(x, is_point), changed)
        return Evaluation(found.row, {k: v for k, v in found.notes.items() if k in _RESTORED})

    @plain_tensors()
    def route(self, route: Route, protocol: Protocol | None = None) -> Evaluation:
        """Judge a route: its restorations and its samples, as far as it has them.

        Arguments:
            route: The route.
            protocol: In the place of the judge's own.
        """
        trained = None if route.sample is None else self._measured("train")
        with self.progress.live():
            rows, _, notes = (protocol or self.protocol).evaluate(
                [route],
                self.data,
                self._measured("test"),
                self.operator,
                self.cache,
                self.progress,
                trained,
            )
        return Evaluation(rows[0], notes)

    def _measured(self, split: str) -> Measurements:
        if isinstance(self.data, MeasuredData):
            return self.data.split(split)
        x = self.data.train if split == "train" else self.data.test
        return Measurements.draw(x, self.operator, self.data_seed, split)


def written(evaluated: str, config: Mapping[str, Any], found: Evaluation) -> dict[str, Any]:
    """Return what a file says of an evaluation: what was judged, on what, and what was found."""
    kept = {k: config[k] for k in ("data", "operator", "posterior", "sampler", "evaluation")}
    about = {"evaluated": evaluated, "config": {**kept, "data_seed": config["data_seed"]}}
    return about | found.to_json()


__all__ = ["Evaluation", "Judge", "written"]
