"""What every metric of restorations promises."""

from typing import ClassVar

import torch

from ..evaluation.metrics.further import Metric, check_names, further_metrics, values_of
from .cards import check_card
from .parts import no_global_randomness, uniform

#: Shapes of images that a metric is tried on: digits, and photographs.
SHAPES = ((1, 8, 8), (3, 32, 32))


def check_metric(name: str, metric: Metric, shape: tuple[int, int, int]) -> None:
    """Check that a metric has one finite value an image, of that image alone.

    Arguments:
        name: Its configuration.
        metric: The metric.
        shape: Shape of one image.
    """
    x, truth = 1.5 * uniform((6, *shape), 0), uniform((6, *shape), 1)
    before = x.clone(), truth.clone()
    with no_global_randomness():
        values = values_of(name, metric, x, truth)
    assert torch.isfinite(values).all(), f"{name} is not finite: {values.tolist()}"
    metric(x, truth)
    assert torch.equal(x, before[0]), f"{name} changes the restorations"
    assert torch.equal(truth, before[1]), f"{name} changes the clean images"
    alone = torch.cat([values_of(name, metric, x[i : i + 1], truth[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(
        alone, values, rtol=1e-4, atol=1e-5, msg=f"{name} of an image depends on its batch"
    )
    exact = values_of(name, metric, truth, truth)
    assert not torch.allclose(exact, values), f"{name} is the same for an exact restoration"


class MetricContract:
    """Tests of one metric.

    Attributes:
        name: Its configuration.
        shapes: Shapes of images that it is tried on.
    """

    name: ClassVar[str]
    shapes: ClassVar[tuple[tuple[int, int, int], ...]] = SHAPES

    def make(self) -> Metric:
        """Build the metric from its YAML."""
        return further_metrics([self.name])[self.name]

    def test_the_yaml_has_a_key_for_every_argument(self) -> None:  # noqa: D102
        check_card("metric", self.name)

    def test_its_name_is_its_own(self) -> None:  # noqa: D102
        check_names([self.name])

    def test_it_has_one_value_an_image(self) -> None:  # noqa: D102
        for shape in self.shapes:
            check_metric(self.name, self.make(), shape)
