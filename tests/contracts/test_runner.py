"""Which cells a benchmark trains: those that nobody has finished, also while it runs."""

from pathlib import Path

import pytest
from cleanprior.benchmarks import described
from cleanprior.benchmarks.plan import make_plan
from cleanprior.benchmarks.runner import run

from cleanprior.progress import Progress
from cleanprior.records import write_record


@pytest.mark.parametrize("forced", [[], ["ambient"]])
def test_what_another_process_finishes_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: list[str]
) -> None:
    plan = make_plan(described.bench("default"), ["naive", "ambient"], seeds=1)
    trained: list[str] = []

    def train(config, out, progress, force):
        trained.append(config["method"]["name"])
        for problem in plan.problems:  # the other process ends here with everything else
            for configs in problem.cells.values():
                for other in configs:
                    write_record(out, other, {"status": "done", "rows": [{}]})

    monkeypatch.setattr("cleanprior.run.run_cell", train)
    run(plan, tmp_path, forced, Progress())
    assert len(trained) == 1 + len(forced)
    trained.clear()
    run(plan, tmp_path, forced, Progress())
    assert trained == forced
