"""Plots are drawn as they were laid out, whatever they hold: no axis collapses, nothing is lost."""

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cleanprior.benchmarks.figures import layout, plots, problems
from cleanprior.benchmarks.plan import Problem
from matplotlib.figure import Figure
from matplotlib.text import Text

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

    def write(*arguments: Any) -> tuple[list[Path], list[str]]:
        drawn.append(arguments[-1])
        (arguments[-1] / "a.png").write_bytes(b"picture")
        return [arguments[-1] / "a.png"], ["a line"]

    monkeypatch.setattr("cleanprior.benchmarks.figures.grids.write", write)
    monkeypatch.setattr("cleanprior.benchmarks.figures.plots.write", lambda *_: [])
    records = {"em": [record(1)]}

    def draw(title: str = "a title") -> int:
        drawn.clear()
        files, lines = problems.draw(
            replace(problem, title=title), records, pd.DataFrame(), tmp_path, tmp_path
        )
        assert files == [tmp_path / "a.png"] and files[0].read_bytes() == b"picture"
        assert lines == ["a line"]
        return len(drawn)

    assert [draw(), draw()] == [1, 0]
    records["em"][0]["rows"][0]["metrics"]["spread_ratio"] = 0.9
    assert [draw(), draw()] == [1, 0]
    (tmp_path / "a.png").write_bytes(b"pic")
    assert [draw(), draw()] == [1, 0]
    (tmp_path / "a.png").unlink()
    assert [draw(), draw()] == [1, 0]
    (tmp_path / problems.STAMP).write_text("{")
    assert [draw(), draw()] == [1, 0]
    assert [draw("another title"), draw("another title")] == [1, 0]
    monkeypatch.setattr("cleanprior.benchmarks.figures.problems.version", lambda _: "another")
    assert [draw("another title"), draw("another title")] == [1, 0]


#: Formulas, markup, brackets of a console, what a legend would leave out.
NAMES = ("$x_1$", "_hidden", "<b>bold</b>", "[red]", "a$b", "em_mmps", "C:\\alpha")
#: Pixels that a page gives a figure on a telephone.
TELEPHONE = 470


def trained(methods: tuple[str, ...], seconds: float = 10.0) -> tuple[pd.DataFrame, dict]:
    """Return a summary and records of rows that cost 1, 2, 3 ... GFLOP."""
    lines, records = [], {}
    for i, method in enumerate(methods):
        numbers = {"psnr": 15.0 + i, "psnr_point": 17.0 + i, "fd": 10.0 * (i + 1)}
        line = {"method": method, "way": "mmps", "is_own": False, "status": "done"}
        lines.append(line | numbers | {f"{k}_std": math.nan for k in numbers})
        lines[-1]["train_seconds"] = seconds * (i + 1)
        history = [{"step": k, "loss": 1.0 / (k + 1)} for k in range(30)]
        training = {"history": history, "log": {"residual": [0.3, 0.2, 0.1], "own": [1, 2]}}
        records[method] = [
            {
                "status": "done",
                "rows": record(1)["rows"],
                "training": training,
                "costs": {"train_flops": 1e9 * (i + 1)},
            }
        ]
    return pd.DataFrame(lines), records


def texts(figure: Figure) -> list[Text]:
    return [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]


def drawn(methods: tuple[str, ...]) -> list[Figure]:
    summary, records = trained(methods)
    points = [(0.1, summary), (0.5, summary)]
    found = [
        plots.quality_cost(summary, records, TITLE),
        plots.curves(records, TITLE),
        plots.calibration(records, TITLE),
        plots.sweep(points, "operator.p", (), TITLE),
    ]
    assert all(found)
    return [f for f in found if f is not None]


@pytest.mark.parametrize("methods", [NAMES, ("em",), tuple(f"row {i}" for i in range(20))])
def test_every_name_is_drawn_as_it_is_and_nothing_is_lost(methods: tuple[str, ...]) -> None:
    for figure in drawn(methods):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert plots.png(figure).startswith(b"\x89PNG")
        assert not any(t.get_parse_math() for t in texts(figure))
        said = " ".join(t.get_text().replace("\n", " ") for t in texts(figure))
        assert all(name in said for name in methods)


def test_no_panel_is_empty_and_each_axis_has_its_unit() -> None:
    cost, curves, ranks, sweep = drawn(("em", "naive"))
    for figure in (cost, curves, ranks, sweep):
        plots.png(figure)
        assert figure.axes and all(a.lines or a.patches for a in figure.axes)
    for figure in (curves, sweep):
        assert all(a.get_xlabel() and a.get_ylabel() for a in figure.axes)
    assert [a.get_xlabel() for a in cost.axes[-2:]] == [
        "FLOP of training, E-steps included",
        "time of training, whatever else ran",
    ]
    assert all(a.get_ylabel() for a in cost.axes[::2])
    for figure in (cost, curves, ranks, sweep):  # panels fill the figure's width
        boxes = [a.get_tightbbox().bounds for a in figure.axes]
        right = max(x + w for x, _, w, _ in boxes) / figure.bbox.width
        assert min(x for x, *_ in boxes) / figure.bbox.width < 0.15 and right > 0.9


def test_text_is_legible_on_a_telephone() -> None:
    for figure in drawn(("em", "naive")):
        plots.png(figure)
        scale = min(1.0, TELEPHONE / (figure.get_figwidth() * layout.DPI))
        sizes = [t.get_fontsize() * layout.DPI / 72 * scale for t in texts(figure)]
        assert min(sizes) >= 8


def test_another_process_moves_the_seconds_and_not_the_flops() -> None:
    def places(seconds: float) -> list[list[float]]:
        figure = plots.quality_cost(*trained(("em", "naive"), seconds), TITLE)
        assert figure is not None
        return [[float(line.get_xdata()[0]) for line in a.lines] for a in figure.axes]

    quiet, busy = places(10.0), places(90.0)
    assert quiet[0] == busy[0] == [1e9, 2e9]
    assert (quiet[1], busy[1]) == ([10, 20], [90, 180])


def test_a_row_without_a_count_is_named_and_what_trains_nothing_is_a_line() -> None:
    summary, records = trained(("observations", "custom", "em"))
    records["custom"][0]["costs"]["train_flops"] = None
    del records["observations"][0]["costs"]  # an earlier version's
    summary.loc[0, "train_seconds"] = 0.0
    figure = plots.quality_cost(summary, records, TITLE)
    assert figure is not None
    said = [t.get_text() for t in texts(figure)]
    assert "no FLOP count: custom" in said
    flops, seconds = figure.axes[:2]
    assert [len(line.get_xdata()) for line in flops.lines] == [2, 1]
    assert [len(line.get_xdata()) for line in seconds.lines] == [2, 1, 1]
    for cells in records.values():
        for r in cells:
            r.pop("costs", None)
    old = plots.quality_cost(summary, records, TITLE)
    assert old is not None and len(old.axes) == 3  # seconds alone, a panel a quality


@pytest.mark.parametrize(("low", "high"), [(1e9, 1.4e9), (3e9, 8e12), (1e15, 9e20), (0.01, 3)])
def test_ticks_are_few_and_read_as_numbers(low: float, high: float) -> None:
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([low, high], [1, 2])
    axes.set_xscale("log")
    layout.log_ticks(axes, "x", layout.COUNTS if low > 1 else layout.SECONDS, layout.lettered)
    low, high = axes.get_xlim()
    ticks = [t for t in axes.get_xticks() if low <= t <= high]
    assert 2 <= len(ticks) <= 6
    assert len({layout.lettered(t) for t in ticks}) == len(ticks)
    assert layout.lettered(1.5e12) == "1.5 T" and layout.lettered(999.9e9) == "1 T"


def test_a_number_stands_beside_its_own_marker_and_covers_no_other() -> None:
    figure = Figure(figsize=(6, 4), dpi=layout.DPI)
    axes = figure.add_subplot()
    close = [(1.0, 1.0), (1.004, 1.001), (1.03, 1.0), (1.0, 1.04), (0.97, 1.0), (2.0, 2.0)]
    axes.plot(*zip(*close, strict=True), "o")
    figure.draw_without_rendering()
    plots._place([(x, y, str(i)) for i, (x, y) in enumerate(close)], axes)
    pixels = axes.transData.transform(close)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(close)
    for i, box in enumerate(boxes):
        centre = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        assert math.dist(centre, pixels[i]) < 60
        assert not any(box.contains(*p) for k, p in enumerate(pixels) if k != i)
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
