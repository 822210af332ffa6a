"""What a benchmark will take, said before it begins."""

import made_up
import pytest
from cleanprior.benchmarks import description, forecast
from cleanprior.benchmarks.plan import make_plan

from cleanprior.cells import CellFolder
from cleanprior.cells.record import write_record
from cleanprior.config import compose
from cleanprior.jobs import trial
from cleanprior.progress import Progress
from cleanprior.terminal import Screen

TINY = ["backbone.hid_channels=[8,16]", "backbone.mod_features=16", "evaluation.test_images=16"]


def plan_of(*methods, seeds=2):
    chosen = description.bench("default")
    return make_plan(chosen, list(methods), seeds=seeds, with_references=False, overrides=TINY)


def test_records_of_like_cells_are_scaled_by_the_budget(tmp_path):
    plan = plan_of("naive", "ambient", "sure_score")
    config = plan.problems[0].cells["naive"][0]
    other = {
        **config,
        "training": {**config["training"], "budget": 10 * config["training"]["budget"]},
    }
    cell = CellFolder(tmp_path, other)
    (made, _) = made_up.records(config, seeds=2)["naive"]
    made["training"]["seconds"] = {"training": 100.0}
    made["training"]["memory_mb"]["cpu"] = 700.0
    made["rows"][0]["seconds"] = {"restoration": 5.0, "sampling": 7.0}
    record = {**made, "config": other}
    write_record(cell, record)
    # Another learning rate is no like cell, and a damaged record is none at all.
    odd = {**config, "training": {**config["training"], "lr": 0.5}}
    write_record(CellFolder(tmp_path, odd), {**record, "config": odd})
    cell.files.record("other").write_text("{")
    naive, ambient, sure_score = forecast.rows(plan, tmp_path)
    assert naive.seconds == pytest.approx(10 + 12) and naive.memory_mb == 700
    assert naive.told == "1 record" and len(naive.todo) == 2 and naive.finished == 0
    assert ambient.seconds is None
    assert sure_score.todo == []
    assert sure_score.told.startswith("skipped: sure_score is defined only")
    assert "about" not in forecast.summary([naive, ambient, sure_score], 2)
    write_record(CellFolder(tmp_path, config), {**record, "config": config})
    (naive, *_) = forecast.rows(plan, tmp_path)
    assert naive.finished == 1 and len(naive.todo) == 1


def test_a_plan_is_no_shorter_than_its_longest_cell():
    rows = [
        forecast.Row("p", "a", 0, [{}, {}], seconds=60.0),
        forecast.Row("p", "b", 1, [{}], seconds=600.0),
    ]
    assert "about 12 min with 1 at a time (12 min one" in forecast.summary(rows, 1)
    assert "3 cells to do, 1 finished; about 10 min with 2 at a time" in forecast.summary(rows, 2)


@pytest.mark.parametrize("method", ["em_mmps", "oracle", "observations"])
def test_a_trial_leaves_nothing_and_says_what_the_cell_takes(tmp_path, method):
    config = compose([f"method={method}", *TINY, "training.budget=64000"])
    found = trial.trial(CellFolder(tmp_path / "runs", config), Progress())
    assert found["seconds"] >= (0 if method == "observations" else 0.5)
    assert 100 < found["memory_mb"] < 8000 and found["disk_mb"] > 0
    assert not (tmp_path / "runs").exists()
    # Twice the budget is about twice the steps.
    if method == "oracle":
        config = compose([f"method={method}", *TINY, "training.budget=640000"])
        more = trial.trial(CellFolder(tmp_path / "runs", config), Progress())
        assert more["seconds"] > 3 * found["seconds"]


def test_a_dry_run_fits_a_narrow_terminal_and_says_why_a_row_is_skipped(
    tmp_path, monkeypatch, capsys
):
    asked = []

    class Workers:
        def run(self, stage, request, place, tell):
            asked.append(request["config"]["method"]["name"])
            return {"seconds": 90.0, "memory_mb": 600.0, "disk_mb": 5.0}

        def end(self):
            pass

    monkeypatch.setattr(forecast, "new_workers", Workers)
    monkeypatch.setenv("COLUMNS", "80")
    from cleanprior.jobs.local import Local

    plan = plan_of("naive", "ambient", "sure_score")
    forecast.forecast(plan, tmp_path / "runs", Local(jobs=2), Screen(), Progress())
    told = capsys.readouterr().out
    assert asked == ["naive", "ambient"], "one cell of a row stands for its seeds"
    assert max(map(len, told.splitlines()[:-1])) <= 80
    assert "4 cells to do, 0 finished, 1 rows skipped; about 3 min with 2 at a time" in " ".join(
        told.split()
    )
    assert "skipped: sure_score is defined only" in " ".join(told.split())
    assert not (tmp_path / "runs").exists()
