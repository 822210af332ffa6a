"""Where the tables of a request lie: those of other rows overwrite none."""

import json
from dataclasses import replace

import pytest
from cleanprior.benchmarks.places import tables
from cleanprior.benchmarks.report import report
from cleanprior.benchmarks.request import Request

from cleanprior.cells import CellFolder
from cleanprior.cells.record import write_record
from cleanprior.cells.run import Cell
from cleanprior.cli import main
from cleanprior.config import compose
from cleanprior.errors import UserError
from cleanprior.terminal import Screen

WHOLE = Request(bench="smoke")
PART = replace(WHOLE, methods=["em"], with_references=False)


def key(**changes):
    return replace(WHOLE, **changes).plan().key


def test_rows_and_seeds_of_ones_own_have_a_folder_of_their_own():
    own = WHOLE.plan()
    rows = list(own.problems[0].cells)
    keys = [own.key, PART.plan().key, key(seeds="3,4"), key(with_references=False)]
    assert len(set(keys)) == 4 and all(k.startswith(own.key) for k in keys)
    compared = [row for row in rows if row not in own.references]
    assert key(methods=compared[::-1]) == own.key, "all rows, in whatever order"
    assert key(methods=["em", "ambient"]) == key(methods=["ambient", "em"])


def test_a_further_key_that_is_null_moves_no_table():
    # The name that its folder has had; another default of a cell may change it.
    assert WHOLE.plan().key == "smoke-digits-inpainting-7434c865"


def skipped(plan, out):
    """Write records, so that there are tables: every row was skipped."""
    for row, cells in plan.problems[0].cells.items():
        for config in cells:
            folder = CellFolder(out, config)
            status = "skipped: for a test"
            write_record(folder, {**folder.names, "seed": config["seed"], "status": status})
            assert folder.record.is_file(), row


@pytest.fixture
def out(tmp_path):
    plan = WHOLE.plan()
    skipped(plan, tmp_path)
    WHOLE.write(tables(tmp_path, plan.key))
    report(plan, tmp_path, Screen(is_silent=True))
    return tmp_path


def test_a_bench_of_one_row_leaves_the_table_of_all_rows(out):
    whole = tables(out, WHOLE.plan().key) / "table.md"
    before = whole.read_text()
    assert all(f"| {row} " in before for row in ("naive", "em", "em_mmps"))
    report(PART.plan(), out, Screen(is_silent=True))
    assert whole.read_text() == before
    part = (tables(out, PART.plan().key) / "table.md").read_text()
    assert "| em " in part and "naive" not in part


def test_a_folder_that_was_named_without_its_rows_is_reported_where_it_is(out, monkeypatch):
    plan = PART.plan()
    folder = tables(out, replace(plan, part="").key)
    PART.write(folder)
    monkeypatch.setattr("sys.argv", ["cleanprior", "report", str(folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "naive" not in (folder / "table.md").read_text()
    assert not tables(out, plan.key).exists()
    assert plan.kept_in("another").part == plan.part


def test_worth_adds_few_clean_images_as_references_in_a_folder_of_its_own():
    plan = replace(WHOLE, worth=True).plan()
    cells = plan.problems[0].cells
    counts = [cells[row][0]["method"]["clean_images"] for row in plan.worth]
    assert counts == [25, 50, 100, 200, 400, 800, "all"]
    assert set(plan.worth) <= set(plan.references) and list(cells)[-7:] == list(plan.worth)
    assert plan.key != WHOLE.plan().key and not WHOLE.plan().worth
    ones = {row: c[0] for row, c in WHOLE.plan().problems[0].cells.items()}
    assert all(cells[row][0] == config for row, config in ones.items()), "the same cells"
    own = replace(WHOLE, worth=True, data="measurements", overrides=["data.path=x.npz"])
    with pytest.raises(UserError, match="--worth compares .* data=measurements has none"):
        own.plan()


def test_a_request_of_before_there_was_worth_is_read(out):
    path = tables(out, WHOLE.plan().key) / "request.json"
    given = json.loads(path.read_text())
    del given["worth"]
    path.write_text(json.dumps(given))
    assert Request.read(path.parent).plan() == WHOLE.plan()


def test_more_clean_images_than_there_are_is_a_row_that_is_skipped(tmp_path):
    chosen = ["method=oracle", "method.clean_images=2000"]
    cell = Cell(CellFolder(tmp_path, compose(chosen)))
    assert cell.refusal() == "is to start from 2000 clean images, and there are 1437"
    assert Cell(CellFolder(tmp_path, compose([*chosen[:1], "seed=1"]))).refusal() is None
