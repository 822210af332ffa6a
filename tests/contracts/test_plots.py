"""Plots are drawn as they were laid out, whatever they hold: no axis collapses, nothing is lost."""

import warnings

import pytest
from cleanprior.benchmarks import plots

TITLE = "fashion_mnist (resolution=8, channels=1, limit=2000), inpainting (p=0.6, sigma=0.0)"


def record(rows: int) -> dict:
    return {
        "status": "done",
        "rows": [
            {
                "way": f"way {i}; and more",
                "is_own": i > 0,
                "metrics": {"spread_ratio": 0.8},
                "curves": {"rank_histogram": [0.2, 0.1, 0.7]},
            }
            for i in range(rows)
        ],
    }


@pytest.mark.parametrize("count", [1, 2, 5, 11])
def test_rank_histograms_have_a_panel_a_row_and_fit(count: int) -> None:
    figure = plots.calibration({"em": [record(count)]}, TITLE)
    assert figure is not None and len(figure.axes) == count
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "axes sizes collapsed to zero"
        assert plots.png(figure).startswith(b"\x89PNG")
    assert [[bar.get_height() for bar in a.patches] for a in figure.axes] == [
        [0.2, 0.1, 0.7]
    ] * count


def test_without_draws_there_is_no_histogram() -> None:
    unfinished = {"status": "failed: why", "rows": record(1)["rows"]}
    assert plots.calibration({"em": [unfinished], "flow": [record(0)]}, TITLE) is None
