"""Plots are drawn as they were laid out, whatever they hold: no axis collapses, nothing is lost."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cleanprior.benchmarks import drawing, plots
from cleanprior.benchmarks.plan import Problem

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


def test_pictures_are_drawn_again_only_where_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem("a title", "label", "key", {})
    drawn = []

    def write(*arguments: Any) -> list[Path]:
        drawn.append(arguments[-1])
        (arguments[-1] / "a.png").write_bytes(b"picture")
        return [arguments[-1] / "a.png"]

    monkeypatch.setattr("cleanprior.benchmarks.pictures.write", write)
    monkeypatch.setattr("cleanprior.benchmarks.plots.write", lambda *_: [])
    records = {"em": [record(1)]}

    def draw(title: str = "a title") -> int:
        drawn.clear()
        files = drawing.draw(
            replace(problem, title=title), records, pd.DataFrame(), tmp_path, tmp_path
        )
        assert files == [tmp_path / "a.png"] and files[0].read_bytes() == b"picture"
        return len(drawn)

    assert [draw(), draw()] == [1, 0]
    records["em"][0]["rows"][0]["metrics"]["spread_ratio"] = 0.9
    assert [draw(), draw()] == [1, 0]
    (tmp_path / "a.png").unlink()
    assert [draw(), draw()] == [1, 0]
    (tmp_path / drawing.STAMP).write_text("{")
    assert [draw(), draw()] == [1, 0]
    assert [draw("another title"), draw("another title")] == [1, 0]
    monkeypatch.setattr("cleanprior.benchmarks.drawing.version", lambda _: "another")
    assert [draw("another title"), draw("another title")] == [1, 0]
