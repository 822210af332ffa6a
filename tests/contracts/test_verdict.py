"""The verdict's words: with one seed and three, ties, failed rows, no clean images, one row."""

import re
from typing import Any

import numpy as np
import pytest
from cleanprior.benchmarks.tables.statistics import RANKED
from cleanprior.benchmarks.tables.verdict import verdict

REFERENCES = ("naive", "oracle")
WAY = "mmps: one draw, mean of 8"
IMAGES = 200
NOISE = np.random.default_rng(0).normal(18, 2, IMAGES)


def row(way: str = WAY, is_own: bool = False, **found: Any) -> dict[str, Any]:
    """Make a row whose metrics are given as means: those of images are spread over images."""
    rng = np.random.default_rng([ord(c) for c in way])
    images = {
        key: (NOISE + value - 18 + rng.normal(0, 0.3, IMAGES)).tolist()
        for key, value in found.items()
        if key.startswith("psnr")
    }
    metrics = {key: value for key, value in found.items() if key in {*RANKED, "spread_ratio"}}
    return {
        "way": way,
        "is_own": is_own,
        "per_image": images,
        "metrics": metrics,
        "curves": {f"{k}_by_seed": [v - 0.5, v, v + 0.5] for k, v in metrics.items() if "fd" in k},
        "marks": found.get("marks", []),
        "marked": found.get("marked", {}),
    }


def cells(
    method: str, *rows: dict[str, Any], seeds: int = 3, clean: int = 0, cost: float | None = 1e13
) -> list[dict[str, Any]]:
    """Make records of a method, each seed a little better than the last."""
    made = []
    for seed in range(seeds):
        shifted = [
            {
                **r,
                "per_image": {
                    key: (np.array(v) + 0.02 * seed).tolist() for key, v in r["per_image"].items()
                },
                "metrics": {k: v + 0.01 * seed for k, v in r["metrics"].items()},
            }
            for r in rows
        ]
        made.append(
            {
                "status": "done",
                "method": method,
                "seed": seed,
                "clean_images": clean,
                "rows": shifted,
                "costs": {"train_flops": cost},
                "training": {"seconds": {"training": 10.0, "e-step": 5.0}},
            }
        )
    return made


def failed(status: str, seeds: int = 3) -> list[dict[str, Any]]:
    return [{"status": status, "method": "gsure", "seed": s} for s in range(seeds)]


def table(seeds: int = 3) -> dict[str, list[dict[str, Any]]]:
    """Three rows that lead in something each, a further track and references."""
    point = row("one step: point estimate", is_own=True, psnr_point=21)
    return {
        "naive": cells("naive", row(psnr=15, psnr_point=16, fd=80), seeds=seeds),
        "ambient": cells("ambient", row(psnr=17, psnr_point=19, fd=60), point, seeds=seeds),
        "em": cells("em", row(psnr=19, psnr_point=20, fd=30), seeds=seeds, clean=50),
        "em_mmps": cells("em_mmps", row(psnr=18, psnr_point=20, fd=40), seeds=seeds, cost=2e13),
        "oracle": cells("oracle", row(psnr=20, psnr_point=22, fd=20), seeds=seeds, clean=1437),
    }


def said(records: dict[str, Any]) -> tuple[str, str]:
    """Return both sentences, which must be two and sentences."""
    found = verdict(records, REFERENCES)
    assert len(found) == 2
    for sentence in found:
        assert re.fullmatch(r"\S.*[^.;, ]\.", sentence), sentence
        assert not re.search(r";\s*;|\(\)|nan|  |None", sentence), sentence
    return found[0], found[1]


def test_three_seeds_tell_who_is_best() -> None:
    first, second = said(table())
    assert "by one draw: em_mmps best (18.0" in first
    assert "em with 50 clean images 19.0" in first
    assert "point estimate: ambient: one step best (21.0" in first
    assert "samples: em_mmps best (FD 40" in first
    assert "em_mmps 20 TFLOP, 2.0 times ambient" in first
    assert "oracle" not in first and "naive" not in first
    assert second == "Each lead holds over training seeds and test images at 5%."


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_call_nobody_best(seeds: int) -> None:
    first, second = said(table(seeds))
    assert "em_mmps first (18.0" in first and "best" not in first
    assert second.startswith("One training seed:" if seeds == 1 else "2 training seeds:")
    assert "to compare methods" in second and "--seeds 3" in second


@pytest.mark.parametrize("seeds", [1, 3])
def test_rows_that_are_close_cannot_be_told_apart(seeds: int) -> None:
    records = {
        name: cells(name, row(psnr=psnr, fd=fd), seeds=seeds)
        for name, psnr, fd in (("a", 18.0, 40), ("b", 18.001, 50), ("c", 16, 40.1))
    }
    for cell in records["a"]:
        images, rng = cell["rows"][0]["per_image"], np.random.default_rng(cell["seed"])
        images["psnr"] = (np.array(images["psnr"]) + rng.normal(0, 0.5, IMAGES)).tolist()
    first, second = said(records)
    assert "draw: b best" not in first and "draw: a best" not in first
    assert re.search(r"(a from b|b from a) \(one draw\)", second)
    assert "c from a (samples)" in second
    assert ("training seed" in second) == (seeds == 1)


def test_a_tie_names_both() -> None:
    records = {name: cells(name, row(psnr=18, fd=40)) for name in ("one", "two")}
    first, second = said(records)
    assert "one and two first (18.0" in first and "best" not in first
    assert "two from one (one draw)" in second


def test_rows_that_did_not_finish_are_named() -> None:
    records = table()
    records["gsure"] = failed("failed: ValueError: x")
    records["flowdiff"] = [*cells("flowdiff", row(psnr=25))[:2], *failed("diverged: loss", 1)]
    records["dps"] = failed("skipped: needs a mask")
    first, second = said(records)
    assert "not compared: gsure (failed), flowdiff (diverged on 1 of 3 seeds)" in second
    assert "flowdiff" not in first and "dps" not in second


def test_nothing_to_rank_says_why() -> None:
    first, second = said({"gsure": failed("failed: x"), "dps": failed("skipped: y")})
    assert first == "Nothing can be ranked: no row finished."
    assert second == "Not compared: gsure (failed), dps (skipped)."
    first, second = said({"oracle": table()["oracle"]})
    assert "only reference rows finished" in first and second == "No method competes."
    assert "no row finished" in said({})[0]
    nothing = {"a": cells("a", row()), "b": cells("b", row())}
    assert "no number that is compared" in said(nothing)[0]


def test_a_single_row_is_compared_with_nothing() -> None:
    first, second = said({"em": cells("em", row(psnr=18, fd=40), clean=50)})
    assert "em with 50 clean images alone (18.0" in first
    assert second == "A single row has nothing to be compared with."


@pytest.mark.parametrize("seeds", [1, 3])
def test_without_clean_images_only_samples_are_ranked(seeds: int) -> None:
    records = {
        name: cells(name, row(proximal_fd=fd), seeds=seeds, cost=None)
        for name, fd in (("em_mmps", 0.6), ("naive", 3.0), ("ambient", 2.5))
    }
    first, _ = said(records)
    assert first.startswith("No clean images, so no restoration is ranked")
    assert ("em_mmps best" if seeds == 3 else "em_mmps first") in first
    assert "proximal FD 0.6" in first and "dB" not in first
    assert "em_mmps 15 seconds" in first  # of all phases; nobody counted FLOPs


def test_the_gravest_warning_is_told() -> None:
    def second(**changed: Any) -> str:
        records = table()
        records["em_mmps"] = cells("em_mmps", row(psnr=18, psnr_point=20, fd=40, **changed))
        return said(records)[1]

    marks = {"marks": ["range"], "marked": {"range": "samples beyond twice the range."}}
    assert "em_mmps [range]: samples beyond twice the range." in second(**marks)
    assert "draws of em_mmps vary too little (spread 0.7" in second(spread_ratio=0.77)
    assert "narrow" not in second(spread_ratio=0.97)
    leak = {"marks": ["range", "leak?"], "marked": {"leak?": "it knows too much"}}
    assert "em_mmps [leak?]: it knows too much" in second(**leak)
    assert "range" not in second(**leak)
    records = table()
    records["naive"] = cells("naive", row(psnr=18.5, psnr_point=16, fd=80))
    assert "em_mmps is not above naive in psnr" in said(records)[1]


def test_many_names_are_counted() -> None:
    records = {f"m{i}": cells(f"m{i}", row(psnr=18)) for i in range(9)}
    assert "m0, m1, m2 and 6 more first" in said(records)[0]
