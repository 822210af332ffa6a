"""Statistics between rows: intervals cover, corrections are Holm's, ties are not won."""

from typing import Any

import numpy as np
import pytest
from cleanprior.benchmarks.statistics import best, between_seeds, bootstrap, compare, holm


def record(method: str, seed: int, psnr: np.ndarray, fd: float, clean: int = 0) -> dict[str, Any]:
    row = {
        "way": "mmps, one sample",
        "is_own": False,
        "per_image": {"psnr": psnr.tolist()},
        "metrics": {"psnr": float(psnr.mean()), "fd": fd},
    }
    return {
        "status": "done",
        "method": method,
        "seed": seed,
        "clean_images": clean,
        "rows": [row],
    }


def test_the_interval_covers_the_true_difference_at_its_level() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        shift = rng.normal(0, 0.5, (8, 1))  # of training runs
        d = 0.3 + shift + rng.normal(0, 1, (1, 60)) + rng.normal(0, 0.3, (8, 60))
        found = bootstrap(d, 500, trial)
        hits += found.low <= 0.3 <= found.high
    # 95 % less the shortening at 8 seeds; images alone would cover about 60 %.
    assert 0.86 <= hits / 200 <= 0.98


def test_the_p_value_is_uniform_under_no_difference() -> None:
    rng = np.random.default_rng(1)
    p = [bootstrap(rng.normal(0, 1, (1, 100)), 500, t).p for t in range(300)]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09
    assert 0.4 <= np.mean(np.array(p) < 0.5) <= 0.6


def test_holm_is_the_published_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = holm([0.02, float("nan"), 0.04])
    assert adjusted[0] == pytest.approx(0.04) and adjusted[2] == pytest.approx(0.04)
    assert np.isnan(adjusted[1])


def test_distances_need_three_seeds() -> None:
    assert np.isnan(between_seeds(np.array([1.0, 2.0])).p)
    assert between_seeds(np.array([10.0, 10.5, 9.8])).p < 0.01
    assert between_seeds(np.zeros(3)).p == 1


def test_the_best_row_is_significantly_best_and_within_its_track() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(18, 2, 200)
    records = {
        "good": [record("good", 0, base + 1 + rng.normal(0, 0.5, 200), 40.0)],
        "poor": [record("poor", 0, base + rng.normal(0, 0.5, 200), 60.0)],
        "few": [record("few", 0, base + 3, 20.0, clean=50)],
        "oracle": [record("oracle", 0, base + 9, 10.0)],
    }
    frame = compare(records, references=("oracle",))
    assert best(frame) == {"psnr": [("good", "mmps, one sample")], "fd": []}
    assert set(frame["a"]) | set(frame["b"]) == {"good", "poor"}
    line = frame[frame["metric"] == "psnr"].iloc[0]
    assert line["difference"] == pytest.approx(1, abs=0.1) and line["low"] < 1 < line["high"]


def test_a_tie_has_no_best_row() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(18, 2, 200)
    records = {
        name: [record(name, 0, base + rng.normal(0, 0.5, 200), 40.0)] for name in ("one", "two")
    }
    assert best(compare(records, ()))["psnr"] == []
    assert best(compare({}, ())) == {}
