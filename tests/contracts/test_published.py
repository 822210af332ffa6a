"""Papers' tables: each composes at every scale, and each published number it names exists."""

from dataclasses import replace

import pandas as pd
import pytest
from cleanprior.benchmarks import description, published
from cleanprior.benchmarks.figures import plots
from cleanprior.benchmarks.plan import make_plan, refusal
from cleanprior.benchmarks.tables.summary import summarise, tidy

from cleanprior.config import registry
from cleanprior.errors import UserError

TABLES = sorted(registry.options("table"))
BENCHES = sorted(registry.options("bench"))


@pytest.mark.parametrize("scale", description.SCALES)
@pytest.mark.parametrize("name", TABLES)
def test_every_table_composes_at_every_scale(name: str, scale: str) -> None:
    given = description.table(name, scale)
    # Composing takes its time: the first and the last problem hold every shape that there is.
    plan = make_plan(replace(given, cases=(given.cases[0], given.cases[-1])))
    for problem in plan.problems:
        budgets = {c["training"]["budget"] for cs in problem.cells.values() for c in cs}
        assert len(budgets) == 1
        assert any(refusal(cs[0]) is None for cs in problem.cells.values())
        if problem.beside is not None:
            printed = published.select(problem.beside.group, problem.beside.where)
            names = {p.method for p in printed}
            used = set(problem.beside.rows) & names
            assert used, f"no row of ours stands beside {names}"
            assert {problem.beside.rows[n][0] for n in used} <= set(problem.cells)


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_composes(name: str) -> None:
    assert make_plan(description.bench(name)).problems


def test_published_rows_are_sourced_and_inherit() -> None:
    for group, rows in published.groups().items():
        for row in rows:
            assert row.metrics and row.source, group
            assert set(row.metrics) <= {m[0] for m in published.METRICS}, group
    (row,) = published.select("ambient.fig4.cifar10", {"p_missing": 0.6})
    assert row.metrics == {"fid": 28.88, "is": 6.88}
    assert row.setting["resolution"] == 32 and row.setting["n_clean"] == 0
    with pytest.raises(UserError, match="no row with"):
        published.select("ambient.fig4.cifar10", {"p_missing": 0.5})
    with pytest.raises(UserError, match="Did you mean"):
        published.select("ambient.fig4.cifar", {})


def test_a_variant_row_is_its_method_with_other_settings() -> None:
    plan = make_plan(description.table("em_table4", "cpu"))
    cells = plan.problems[0].cells
    assert [cs[0]["method"]["clean_images"] for cs in cells.values()] == [0, 10, 50, 100, 500]
    assert cells["clean_10"][0]["method"]["name"] == "oracle_50"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: description.table("em_tabel1", "cpu"), "Did you mean 'em_table1'"),
        (lambda: description.table("em_table1", "gpuu"), "Did you mean 'gpu'"),
        (lambda: description.bench("smoky"), "Did you mean 'smoke'"),
        (lambda: make_plan(description.bench("default"), ["ambiant"]), "Did you mean 'ambient'"),
    ],
)
def test_names_that_do_not_exist_are_refused(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def record(method: str, fd: float) -> dict:
    plan = make_plan(description.table("ambient_fig4", "cpu"), seeds=1)
    config = plan.problems[2].cells[method][0]
    return {
        "status": "done",
        "method": method,
        "operator": "inpainting",
        "data": "digits",
        "seed": 0,
        "config": config,
        "clean_images": 0,
        "train_images": 1437,
        "image_shape": [1, 8, 8],
        "parameters": {"denoiser": 294000},
        "training": {
            "seconds": {"training": 10.0},
            "images": 96000,
            "memory_mb": {"cpu": 1.0, "gpu": None},
            "costs": {},
        },
        "evaluation": {"features": "64", "samples": 360, "test_images": 360, "reference": "train"},
        "rows": [
            {
                "way": "one step; samples: fixed mask",
                "is_own": True,
                "metrics": {"psnr": 18.0, "fd": fd},
                "per_image": {},
                "seconds": {},
                "evaluations": 1,
                "backwards": 0,
                "missing": {},
            }
        ],
    }


def test_published_and_measured_numbers_stand_in_columns_of_their_own() -> None:
    problem = make_plan(description.table("ambient_fig4", "cpu")).problems[2]
    records = {"ambient": [record("ambient", 114.6)]}
    summary = summarise(tidy(records))
    shown, found, remarks = published.beside(problem, records, summary)
    (line,) = shown.to_dict("records")
    assert line["FID published"] == "28.88" and line["FD ours"] == "115"
    assert line["IS ours"] == "-" and "PSNR ours" not in line
    assert line["clean images there"] == "0" and line["clean images here"] == "0"
    told = published.tell(found)
    assert [text.split(":")[0] for text in told] == [
        "data",
        "operator",
        "noise",
        "budget",
        "evaluation",
    ]
    assert any(r.startswith("source: ambient (2305.19256), Figure 4") for r in remarks)


def test_psnr_of_stretched_pictures_stands_beside_its_like_alone() -> None:
    sides = {}
    for name in ("em_table1", "ambient_table1"):
        given = description.table(name, "cpu")
        (problem,) = make_plan(replace(given, cases=given.cases[:1])).problems
        records = {m: [record("ambient", 1.0)] for m in ("ambient", "em", "oracle")}
        for cells in records.values():
            cells[0]["rows"][0]["metrics"] = {"psnr": 18.0, "psnr_minmax": 14.0}
        summary = summarise(tidy(records))
        shown, _, remarks = published.beside(problem, records, summary)
        sides[name] = set(shown["PSNR ours"]) - {"-"}
        assert any("contrast stretch" in r for r in remarks) == (name == "em_table1")
    assert sides == {"em_table1": {"14.00"}, "ambient_table1": {"18.00"}}


def test_published_tables_are_sorted_by_their_numbers() -> None:
    shown = pd.DataFrame({"our row": ["em", "-"], "PSNR ours": ["7.37 ± 0.01", "-"]})
    found = published.numbers(shown)
    assert found["PSNR ours"].iloc[0] == 7.37
    assert found.isna().sum().tolist() == [2, 1]


def test_a_difference_is_told_once_with_where_it_holds() -> None:
    make = published.Difference
    found = [
        make("blur", "EM", "data", "CIFAR-10", "digits"),
        make("blur", "SURE", "data", "CIFAR-10", "digits"),
        make("noise", "EM", "data", "CIFAR-10", "digits"),
        make("blur", "EM", "noise", "none", "0.02"),
        make("blur", "SURE", "noise", "none", "0.02"),
        make("noise", "EM", "noise", "0.2", "0.2"),
        make("blur", "EM", "budget", "unknown", "10"),
        make("blur", "SURE", "budget", "unknown", "20"),
        make("noise", "EM", "budget", "unknown", "10"),
    ]
    assert published.tell(found) == [
        "data: published: CIFAR-10; ours: digits",
        "noise, blur: published: none; ours: 0.02",
        "noise, noise: published: 0.2; ours: 0.2",
        "budget, blur (EM); noise: published: unknown; ours: 10",
        "budget, blur (SURE): published: unknown; ours: 20",
    ]


def test_a_sweep_needs_two_values() -> None:
    summary = summarise(tidy({"ambient": [record("ambient", 50.0)]}))
    summary["is_own"] = False
    assert plots.sweep([(0.2, summary)], "operator.p", (), "title") is None
    figure = plots.sweep([(0.2, summary), (0.4, summary)], "operator.p", ("naive",), "title")
    assert figure is not None and len(figure.axes) == 2
