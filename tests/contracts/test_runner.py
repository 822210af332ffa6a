"""Which cells a benchmark trains: those that nobody has finished, also while it runs."""

from pathlib import Path

import pytest
from cleanprior.benchmarks import description
from cleanprior.benchmarks.plan import make_plan
from cleanprior.benchmarks.runner import Part, pending, records, run

from cleanprior.cells import CellFolder
from cleanprior.cells.record import read_record, write_record
from cleanprior.errors import UserError
from cleanprior.progress import Progress


@pytest.mark.parametrize("forced", [[], ["ambient"]])
def test_what_another_process_finishes_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: list[str]
) -> None:
    plan = make_plan(description.bench("default"), ["naive", "ambient"], seeds=1)
    trained: list[str] = []

    def train(folder, progress, force):
        trained.append(folder.names["method"])
        for problem in plan.problems:  # the other process ends here with everything else
            for configs in problem.cells.values():
                for other in configs:
                    write_record(CellFolder(folder.out, other), {"status": "done", "rows": []})

    monkeypatch.setattr("cleanprior.cells.run.run_cell", train)
    run(plan, tmp_path, forced, Progress())
    assert len(trained) == 1 + len(forced)
    trained.clear()
    run(plan, tmp_path, forced, Progress())
    assert trained == forced


def test_parts_are_all_cells_each_once_whatever_is_finished(tmp_path: Path) -> None:
    plan = make_plan(description.bench("default"), ["naive", "ambient"], seeds=2)
    everything = pending(plan, tmp_path, [])
    parts = [pending(plan, tmp_path, [], Part(number, 3)) for number in (1, 2, 3)]
    assert sorted(map(str, everything)) == sorted(str(cell) for part in parts for cell in part)
    assert {len(part) for part in parts} == {len(everything) // 3, -(-len(everything) // 3)}
    # A cell that is finished meanwhile moves no other cell to another part.
    write_record(CellFolder(tmp_path, parts[0][0][1]), {"status": "done", "rows": []})
    assert pending(plan, tmp_path, [], Part(1, 3)) == parts[0][1:]
    assert pending(plan, tmp_path, [], Part(2, 3)) == parts[1]


def test_a_part_trains_its_cells_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(description.bench("default"), ["naive", "ambient"], seeds=2)
    trained = []
    monkeypatch.setattr(
        "cleanprior.cells.run.run_cell", lambda folder, *_: trained.append(folder.config)
    )
    run(plan, tmp_path, [], Progress(), Part(2, 3))
    assert trained == [config for _, config in pending(plan, tmp_path, [], Part(2, 3))]


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="allowed: NUMBER/OF"):
        Part.read(text)


ERRORS = {
    "naive": (UserError("a file lost its last image"), "failed: a file lost its last image"),
    "ambient": (RuntimeError("no memory"), "failed: RuntimeError: no memory"),
}


def test_a_cell_that_fails_is_a_row_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(description.bench("default"), ["naive", "ambient", "gsure"], seeds=1)

    def train(folder, progress, force):
        error, _ = ERRORS.get(folder.names["method"], (None, ""))
        if error is not None:
            raise error
        write_record(folder, {"status": "done", "rows": []})

    monkeypatch.setattr("cleanprior.cells.run.run_cell", train)
    run(plan, tmp_path, [], Progress())
    found = {row: cells[0]["status"] for row, cells in records(plan.problems[0], tmp_path).items()}
    assert found.pop("naive") == ERRORS["naive"][1]
    assert found.pop("ambient") == ERRORS["ambient"][1]
    assert found and {s for s in found.values() if not s.startswith("skipped")} == {"done"}
    config = plan.problems[0].cells["naive"][0]
    told = CellFolder(tmp_path, config).files.error.read_text()
    assert "Traceback" in told and "a file lost its last image" in told
    again = {row for row, _ in pending(plan, tmp_path, [])}
    assert again == set(ERRORS), "what failed is tried again"


@pytest.mark.parametrize("is_mistake", [True, False])
def test_what_a_user_gave_is_refused_before_the_first_cell_and_a_crash_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_mistake: bool
) -> None:
    plan = make_plan(description.bench("default"), ["naive", "ambient"], seeds=1)
    error = UserError("p=7") if is_mistake else RuntimeError("a broken constructor")

    class Cell:
        def __init__(self, folder):
            if folder.names["method"] == "ambient":
                raise error

    def train(folder, progress, force):
        Cell(folder)
        write_record(folder, {"status": "done", "rows": []})

    monkeypatch.setattr("cleanprior.cells.run.Cell", Cell)
    monkeypatch.setattr("cleanprior.cells.run.run_cell", train)
    if is_mistake:
        with pytest.raises(UserError, match="p=7"):
            run(plan, tmp_path, [], Progress())
        assert list(tmp_path.iterdir()) == []
        return
    run(plan, tmp_path, [], Progress())
    config = plan.problems[0].cells["ambient"][0]
    record = read_record(CellFolder(tmp_path, config))
    assert record is not None
    assert record["status"] == "failed: RuntimeError: a broken constructor"
    assert [row for row, _ in pending(plan, tmp_path, [])] == ["ambient"]
