"""What rows are worth in clean images: a known law, its interval, and where it ends."""

import math

import numpy as np
import pytest
from cleanprior.benchmarks.tables.worth import Values, _number, read_off, table, worth

COUNTS = (25, 50, 100, 200, 400)
#: Decibels for each doubling of the clean images, and the images' own scatter.
STEP, SCATTER = 1.5, 4.0


def psnr(n, images, rng, noise):
    """PSNR of test images after training on ``n`` clean images: a straight line over log N."""
    return (10 + STEP * np.log2(n / 25) + images + noise * rng.normal(size=images.shape))[None]


def test_a_value_is_read_between_counts_over_log_n():
    counts = np.array(COUNTS, float)
    scale = 10 + STEP * np.log2(counts / 25)
    for n in (25, 37.0, 120.0, 400):
        value = 10 + STEP * math.log2(n / 25)
        assert read_off(counts, scale, value, True) == pytest.approx(n)
        assert read_off(counts, -scale, -value, False) == pytest.approx(n)
    assert read_off(counts, scale, 9.9, True) == 0
    assert math.isinf(read_off(counts, scale, 99, True))


def test_a_scale_that_falls_back_is_made_monotone_and_the_fewest_images_count():
    counts = np.array(COUNTS, float)
    flat = np.array([10.0, 12.0, 11.0, 13.0, 13.0])
    assert read_off(counts, flat, 11.5, True) == pytest.approx(50)
    assert read_off(counts, flat, 13.0, True) == pytest.approx(200)


@pytest.mark.parametrize("truth", [40.0, 150.0])
def test_the_interval_holds_the_truth_as_often_as_it_says(truth):
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(40):
        images = SCATTER * rng.normal(size=100)
        scale = {n: Values(psnr(n, images, rng, 0.5), True) for n in COUNTS}
        found = worth(scale, Values(psnr(truth, images, rng, 0.5), True), True, seed=trial)
        assert found.low <= found.images <= found.high
        held += found.low <= truth <= found.high
        # Images are paired: their scatter of 4 dB is not in it, or it would be from < 25 to 150.
        assert found.high < 1.35 * truth and found.low > truth / 1.35
    assert held >= 34, "40 trials at 95 %: fewer than 34 come once in ten thousand"


def test_distances_are_resampled_by_their_own_seeds():
    rng = np.random.default_rng(1)
    scale = {n: Values(100 / n + rng.normal(size=(3, 4)) * 0.01, False) for n in COUNTS}
    found = worth(scale, Values(np.full((3, 4), 100 / 100.0), False), False)
    assert found.low < 100 < found.high and found.high / found.low < 1.1
    assert worth({25: scale[25]}, scale[50], False) is None
    assert worth(scale, Values(np.ones((1, 7)), True), False) is None, "another kind of values"


def test_numbers_of_images_are_whole_and_of_two_digits():
    shown = [_number(v, COUNTS) for v in (99.7, 31.6, 1234.0, 0.0, math.inf)]
    assert shown == ["100", "32", "1200", "< 25", "> 400"]


def record(clean, psnr, status="done", fd=(5.0, 6.0)):
    row = {
        "way": "mmps, one draw",
        "is_own": False,
        "procedure": "mmps",
        "metrics": {"psnr": float(np.mean(psnr)), "fd": float(np.mean(fd))},
        "per_image": {"psnr": list(psnr)},
        "curves": {"fd_by_seed": list(fd)},
    }
    return {"status": status, "clean_images": clean, "rows": [row]}


def test_the_table_names_both_ends_and_leaves_out_what_failed():
    images = np.linspace(-1, 1, 20)
    records = {
        "poor": [record(0, 1 + images)],
        "fair": [record(0, 11 + images, fd=(0.1, 0.1))],
        "lost": [{"status": "failed: x", "rows": []}],
        "o_25": [record(25, 10 + images, fd=(9.0, 9.1))],
        "o_50": [record(50, 12 + images, fd=(7.0, 7.1))],
        "o_99": [{"status": "skipped: too few", "rows": []}],
        "o": [record(80, 13 + images, fd=(3.0, 3.1))],
    }
    shown, numbers, said = table(records, ("o_25", "o_50", "o_99", "o"), ("o",))
    assert list(shown["method"]) == ["poor", "fair"]
    draws, samples = shown["one draw (PSNR)"], shown["samples (FD)"]
    assert draws[0] == "< 25" and draws[1].startswith("35") and samples[1] == "> 80"
    assert numbers["psnr_images"][1] == pytest.approx(math.sqrt(25 * 50))
    assert "25, 50, 80" in said[0] and "3 training seeds" in said[-1]
    assert len(table({"o": records["o"]}, ("o",), ())[0]) == 0
