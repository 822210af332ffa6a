"""What evaluation finds: rows of a record, as plain values that strict JSON can hold."""

import math
from dataclasses import asdict, dataclass, field
from typing import cast

from torch import Tensor

from ..cells.fields import RowOf
from ..training.route import Route


@dataclass
class Findings:
    """What a judge found, to be added to a row.

    Attributes:
        metrics: Means.
        per_image: Values of each image.
        curves: Values that belong together, such as a histogram.
        pictures: Images, (n, c, h, w).
        missing: Why a metric has no value.
        marked: Warnings, code and sentence.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    per_image: dict[str, list[float]] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    marked: dict[str, str] = field(default_factory=dict)

    def add(self, other: "Findings") -> None:
        """Take over what another judge found."""
        self.metrics |= other.metrics
        self.per_image |= other.per_image
        self.curves |= other.curves
        self.pictures |= other.pictures
        self.missing |= other.missing
        self.marked |= other.marked


@dataclass
class Row:
    """What one way of restoring and sampling achieved.

    Attributes:
        way: How it restores and what a restoration is: ``mmps: one draw, mean of 8``.
        is_own: Whether this is the method's own way and not the shared sampler.
        restores_by: How it restores, in a word; empty where it does not.
        samples_by: How it samples, where that needs a word.
        draws: Draws behind a mean; 1 for a point estimate, 0 where nothing is restored.
        samples: Images drawn for each sampling seed; 0 where none are.
        metrics: Mean of each metric; :mod:`cleanprior.metric_names` says what each is.
        per_image: Restoration metrics of each test image, for paired comparisons.
        seconds: Wall seconds: ``restoration`` of one draw for all measurements, ``sampling`` of the
            samples of one sampling seed.
        evaluations: Forward passes of the denoiser for one restored image (NFE).
        backwards: Vector-Jacobian products for one restored image.
        curves: Values that belong together: ``rank_histogram``, shares of the ranks 0 ... k;
            ``fd_by_seed``, one value a sampling seed.
        missing: Why a metric has no value.
        marks: Codes of warnings that evaluation found.
        marked: The sentence of each code.
    """

    way: str
    is_own: bool
    restores_by: str = ""
    samples_by: str = ""
    draws: int = 0
    samples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    per_image: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    evaluations: int = 0
    backwards: int = 0
    curves: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    marked: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, route: Route, k: int) -> "Row":
        """Return the empty row of a route that is asked for k restorations of a measurement."""
        words = route.restores_by, route.samples_by
        return cls(route.label(k), route.is_own, *words, draws=route.draws(k))

    def add(self, found: Findings) -> None:
        """Take over what a judge found; a value that is no number becomes a reason."""
        for key, value in found.metrics.items():
            if math.isfinite(value):
                self.metrics[key] = value
            else:
                self.missing[key] = f"{key} is not finite"
        self.per_image |= found.per_image
        self.curves |= found.curves
        self.missing |= found.missing
        for code, sentence in found.marked.items():
            self.marked[code] = (
                f"{self.marked[code]}; {sentence}" if code in self.marked else sentence
            )
        self.marks = sorted(self.marked)

    def to_json(self) -> RowOf:
        """Return plain values for a record."""
        return cast(RowOf, asdict(self))
