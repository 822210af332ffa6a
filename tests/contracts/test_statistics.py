"""Statistics between rows: simulated error rates, Holm's correction, what is compared with what."""

import time
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from cleanprior.benchmarks import null
from cleanprior.benchmarks.tables.difference import (
    Noise,
    between,
    half_width,
    holm,
    moderate,
    p_values,
    seeds_needed,
)
from cleanprior.benchmarks.tables.statistics import best, compare, needed
from scipy.stats import ttest_1samp, ttest_ind

WAY = "mmps: one draw, mean of 8"
#: Nominal 5 %: that, two standard errors of the simulation, and a half for what is approximate.
TOLERATED = 0.065


def record(
    method: str,
    seed: int,
    psnr: Any = (),
    fd: float | None = None,
    clean: int = 0,
    way: str = WAY,
    **further: Any,
) -> dict[str, Any]:
    row = {
        "way": way,
        "is_own": False,
        "per_image": {"psnr": list(psnr)} if len(psnr) else {},
        "metrics": {} if fd is None else {"fd": fd},
        "curves": {},
    }
    row |= further
    return {
        "status": "done",
        "method": method,
        "seed": seed,
        "clean_images": clean,
        "rows": [row],
    }


def as_records(x: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """Make records of a table (rows, seeds, images)."""
    return {
        f"m{i}": [record(f"m{i}", seed, run.tolist()) for seed, run in enumerate(runs)]
        for i, runs in enumerate(x)
    }


@pytest.mark.parametrize("spread", null.SPREADS.values(), ids=null.SPREADS)
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("rows", "tries"), [(2, 2000), (15, 250)])
def test_equal_methods_are_called_different_in_five_percent(
    rows: int, tries: int, seeds: int, spread: tuple[float, ...]
) -> None:
    x = null.tables(np.random.default_rng(0), tries, rows, seeds, spread, images=60)
    pairs, bold = null.errors(null.shipped, x)
    noise = 2 * np.sqrt(0.05 * 0.95 / tries)
    assert pairs <= TOLERATED + noise and bold <= TOLERATED + noise


def test_the_earlier_procedures_err() -> None:
    # So that the test above can fail: what one seed, and resampling three, made of equal methods.
    one = null.tables(np.random.default_rng(0), 1000, 2, 1, [0.3], images=60)
    assert null.errors(null.images_alone, one)[0] > 0.6
    three = null.tables(np.random.default_rng(0), 300, 2, 3, [0.3], images=60)
    assert null.errors(null.pigeonhole, three)[0] > 0.15
    many = null.tables(np.random.default_rng(0), 300, 15, 3, [0.3], images=60)
    assert null.errors(null.crossed_t, many)[0] > 0.08


@pytest.mark.parametrize(
    ("rows", "seeds", "lead", "least"), [(2, 3, 0.3, 0.5), (2, 5, 0.3, 0.75), (15, 3, 0.5, 0.6)]
)
def test_a_lead_is_found(rows: int, seeds: int, lead: float, least: float) -> None:
    x = null.tables(np.random.default_rng(1), 300, rows, seeds, [0.1], images=60, lead=lead)
    assert null.power(null.shipped, x)[1] > least
    # Pairs of fifteen rows: the bootstrap's floor of 0.0005 marked none, whatever the lead.
    assert null.power(null.shipped, x)[0] > (0.15 if rows > 2 else least)


def test_few_rows_among_many_may_be_tied_at_the_top() -> None:
    # Bold has no correction for the number of rows: two equal leaders are its worst case.
    x = null.tables(np.random.default_rng(2), 2000, 5, 3, [0.1], images=60)
    x[:, :2] += 3
    assert null.errors(null.shipped, x)[1] <= TOLERATED + 0.01


def test_records_are_compared_as_simulated_tables_are() -> None:
    x = null.tables(np.random.default_rng(3), 1, 4, 3, [0.2], images=40)
    a, b = np.array(list(combinations(range(4), 2))).T
    frame = compare(as_records(x[0]), ())
    assert frame["p"].to_numpy() == pytest.approx(null.shipped(x, a, b)[0])
    assert frame["p_holm"].to_numpy() == pytest.approx(holm(frame["p"].tolist()))
    assert ((frame["low"] > 0) | (frame["high"] < 0)).tolist() == (frame["p"] < 0.05).tolist()


def test_p_values_are_those_of_a_t_where_one_part_counts() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(0, 1, 4), rng.normal(1, 3, 6)
    variance, freedom = np.array([x.var(ddof=1), y.var(ddof=1)]), np.array([3.0, 5.0])
    total, welch = between(variance, freedom, freedom + 1, np.array([0]), np.array([1]))
    noise = Noise(total, welch, np.zeros(1), 10.0)
    test = ttest_ind(x, y, equal_var=False)
    assert p_values(np.array([x.mean() - y.mean()]), noise)[0] == pytest.approx(test.pvalue, 2e-3)
    assert half_width(noise)[0] == pytest.approx(np.diff(test.confidence_interval())[0] / 2)
    images = Noise(np.zeros(1), np.ones(1), np.array([x.var(ddof=1) / 4]), 3.0)
    p = ttest_1samp(x, 0).pvalue
    assert p_values(np.array([x.mean()]), images)[0] == pytest.approx(p, 2e-3)


def test_p_values_have_no_floor() -> None:
    noise = Noise(np.full(3, 0.01), np.full(3, 28.0), np.full(3, 0.01), 359.0)
    p = p_values(np.array([0.0, 1.5, np.nan]), noise)
    assert p[0] == pytest.approx(1) and 0 < p[1] < 1e-8 and np.isnan(p[2])
    silent = Noise(np.zeros(2), np.ones(2), np.zeros(2), 359.0)
    found = p_values(np.array([0.0, 0.1]), silent)
    assert found[0] == 1 and np.isnan(found[1])


def test_variances_borrow_from_alike_and_not_from_unlike_rows() -> None:
    rng = np.random.default_rng(5)
    alike, freedom = moderate(rng.chisquare(2, (50, 200)) / 2, np.full(200, 2.0))
    assert np.median(freedom) > 15 and np.median(alike.min(1)) > 0.6  # nearly one variance
    unlike = np.exp(rng.normal(0, 4, 200)) * rng.chisquare(2, 200) / 2
    kept, freedom = moderate(unlike, np.full(200, 2.0))
    assert freedom.max() < 3 and (kept >= unlike).all()
    assert (kept == unlike).mean() > 0.4  # those above the common variance, which is small
    alone, freedom = moderate(np.array([0.3, 0.0, np.nan]), np.array([2.0, 2.0, 0.0]))
    assert alone[:2].tolist() == [0.3, 0.0] and freedom.tolist() == [2.0, 2.0, 0.0]


def test_holm_is_the_published_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = holm([0.02, float("nan"), 0.04])
    assert adjusted[0] == pytest.approx(0.04) and adjusted[2] == pytest.approx(0.04)
    assert np.isnan(adjusted[1])


@pytest.fixture(scope="module")
def mixed() -> dict[str, list[dict[str, Any]]]:
    """Three seeds of two competitors, one that was handed 50 images, and a reference."""
    rng = np.random.default_rng(6)
    base = rng.normal(18, 2, 200)

    def cells(method: str, gain: float, fd: float, clean: int = 0) -> list[dict[str, Any]]:
        return [
            record(
                method,
                seed,
                base + gain + rng.normal(0, 0.1) + rng.normal(0, 0.5, 200),
                fd + rng.normal(),
                clean,
            )
            for seed in range(3)
        ]

    return {
        "good": cells("good", 1, 40),
        "poor": cells("poor", 0, 60),
        "few": cells("few", 3, 20, clean=50),
        "oracle": cells("oracle", 9, 10, clean=1437),
    }


def test_every_pair_is_there_and_ranked_within_its_track(mixed: dict[str, Any]) -> None:
    frame = compare(mixed, ("oracle",))
    assert frame.groupby("metric").size().to_dict() == {"psnr": 6, "fd": 6}
    psnr = frame[frame["metric"] == "psnr"].set_index(["a", "b"])
    assert psnr["family"].to_dict() == {
        ("good", "poor"): "ranked",
        ("good", "few"): "tracks",
        ("good", "oracle"): "references",
        ("poor", "few"): "tracks",
        ("poor", "oracle"): "references",
        ("few", "oracle"): "references",
    }
    few = psnr.loc[("good", "few")]
    assert few["note"] == "few used 50 clean images" and (few["track_a"], few["track_b"]) == (0, 50)
    assert psnr.loc[("good", "poor"), "note"] == ""
    assert best(frame) == {"psnr": [("good", WAY)], "fd": [("good", WAY)]}
    line = psnr.loc[("good", "poor")]
    assert line["difference"] == pytest.approx(1, abs=0.3) and line["low"] < 1 < line["high"]
    assert (line["scope"], line["seeds_a"]) == ("methods", 3)


def test_pairs_that_are_only_listed_cost_no_power(mixed: dict[str, Any]) -> None:
    frame = compare(mixed, ("oracle",))
    ranked = frame[frame["family"] == "ranked"]
    assert ranked["p_holm"].tolist() == ranked["p"].tolist()  # one pair a metric


def test_one_seed_speaks_of_these_networks_alone(mixed: dict[str, Any]) -> None:
    for seeds in (1, 2):
        frame = compare({m: cells[:seeds] for m, cells in mixed.items()}, ("oracle",))
        assert set(frame["scope"]) == {"these networks"} and frame["p"].isna().all()
        psnr = frame[frame["metric"] == "psnr"]
        assert (psnr["high"] - psnr["low"]).between(0.05, 0.3).all()
        assert best(frame) == {"psnr": [], "fd": []}
        # A distance without further sampling seeds has no interval at all.
        assert frame.loc[frame["metric"] == "fd", "low"].isna().all()


def test_sampling_seeds_give_one_run_an_interval_and_many_a_floor() -> None:
    def drawn(method: str, seed: int, values: list[float]) -> dict[str, Any]:
        curves = {"fd_by_seed": values}
        return record(method, seed, fd=float(np.mean(values)), curves=curves)

    one = {"a": [drawn("a", 0, [10, 11, 12])], "b": [drawn("b", 0, [20, 22, 24])]}
    line = compare(one, ()).iloc[0]
    expected = ttest_ind([10, 11, 12], [20, 22, 24], equal_var=False).confidence_interval()
    assert (line["low"], line["high"]) == pytest.approx(tuple(expected))
    assert line["scope"] == "these networks" and np.isnan(line["p"])
    # Three runs that agree by chance to within 0.01, although each is known to within 3.
    three = {
        m: [drawn(m, s, [at - 5, at + 0.01 * s, at + 5]) for s in range(3)]
        for m, at in (("a", 20.0), ("b", 22.0))
    }
    assert compare(three, ()).iloc[0]["p"] > 0.1


def test_draws_never_meet_points() -> None:
    rng = np.random.default_rng(7)
    draws = {"draw": [record("draw", s, rng.normal(18, 1, 30)) for s in range(3)]}
    point = {"psnr_point": rng.normal(19, 1, 30).tolist()}
    points = {"point": [record("point", s, per_image=point) for s in range(3)]}
    assert len(compare(draws | points, ())) == 0
    assert best(compare(draws | points, ())) == {} and best(compare({}, ())) == {}


def test_ways_of_the_same_networks_are_compared_run_by_run() -> None:
    rng = np.random.default_rng(8)
    runs = [rng.normal(18, 1, 60) + shift for shift in (-1.0, 0.0, 1.0)]  # unequal networks
    cells = []
    for seed, run in enumerate(runs):
        cell = record("em", seed, run)
        other = record("em", seed, run + 0.2 + rng.normal(0, 0.02, 60), way="dps: one draw")
        cell["rows"] += other["rows"]
        cells.append(cell)
    line = compare({"em": cells}, ()).iloc[0]
    assert line["p"] < 0.01 and line["high"] - line["low"] < 0.1
    apart = {"em": cells, "other": [{**c, "rows": c["rows"][1:]} for c in cells]}
    assert compare(apart, ()).iloc[1]["p"] > 0.5


def test_a_method_that_failed_on_a_seed_is_not_compared(mixed: dict[str, Any]) -> None:
    broken = dict(mixed, good=[*mixed["good"][:2], {"status": "failed: x", "seed": 2}])
    frame = compare(broken, ("oracle",))
    assert "good" not in {*frame["a"], *frame["b"]}


def test_rows_may_have_unequal_numbers_of_seeds(mixed: dict[str, Any]) -> None:
    frame = compare({**mixed, "poor": mixed["poor"][:1]}, ("oracle",))
    scopes = frame[frame["metric"] == "psnr"].set_index(["a", "b"])["scope"]
    assert scopes["good", "poor"] == "these networks" and scopes["good", "few"] == "methods"


def test_a_tie_has_no_best_row(mixed: dict[str, Any]) -> None:
    again = [{**c, "method": "again"} for c in mixed["good"]]
    frame = compare({"good": mixed["good"], "again": again}, ())
    assert frame["p"].tolist() == [1, 1] and best(frame) == {"psnr": [], "fd": []}


def test_seeds_that_are_said_to_be_needed_suffice(mixed: dict[str, Any]) -> None:
    images = 2 * (null.OF_METHOD**2 + null.OF_RUN**2)
    count = seeds_needed(0.3, 0.1**2, images, null.IMAGES)
    assert count is not None
    for seeds, is_enough in ((count, True), (count - 2, False)):
        x = null.tables(np.random.default_rng(9), 1500, 2, seeds, [0.1], 60, lead=0.3)
        assert (null.power(null.shipped, x)[0] > 0.78) == is_enough
    assert seeds_needed(0.3, 0.1**2, images, 20) is None  # too few images, however many seeds
    told = needed(mixed, ("oracle",))
    assert "--seeds" in told and "median row" in told
    one = needed({m: cells[:1] for m, cells in mixed.items()}, ("oracle",))
    assert one.count("--seeds") == 2 and "assumed" in one
    assert needed({"good": mixed["good"]}, ()) == ""
    few = {
        m: [record(m, 0, np.random.default_rng(i).normal(18, 2, 30))]
        for i, m in enumerate(("a", "b"))
    }
    assert "raise evaluation.test_images" in needed(few, ())


def test_a_large_table_is_compared_in_no_time() -> None:
    x = np.random.default_rng(10).normal(18, 2, (20, 5, 360))
    records = as_records(x)
    start = time.process_time()
    frame = compare(records, ())
    assert len(frame) == 190 and time.process_time() - start < 1


def test_numbers_that_are_not_finite_are_no_evidence() -> None:
    rng = np.random.default_rng(11)
    records = {
        m: [record(m, s, rng.normal(18, 1, 20), fd=float(rng.normal(40, 1))) for s in range(3)]
        for m in ("sound", "other", "broken")
    }
    records["broken"][1]["rows"][0]["per_image"]["psnr"][3] = float("inf")
    records["broken"][1]["rows"][0]["metrics"]["fd"] = float("nan")
    frame = compare(records, ()).set_index(["metric", "a", "b"])
    for metric in ("psnr", "fd"):
        assert np.isfinite(frame.loc[(metric, "sound", "other"), "p"])
        assert frame.loc[(metric, "sound", "broken"), ["p", "low", "high"]].isna().all()


def test_a_row_that_leaks_on_purpose_is_never_ranked() -> None:
    made = as_records(np.random.default_rng(0).normal(size=(3, 3, 20)))
    for run in made["m1"]:
        run["warning"] = "shift+leak"
    found = compare(made, [])
    families = {(a, b): f for a, b, f in found[["a", "b", "family"]].itertuples(index=False)}
    assert families[("m0", "m2")] == "ranked"
    assert families[("m0", "m1")] == families[("m1", "m2")] == "references"
