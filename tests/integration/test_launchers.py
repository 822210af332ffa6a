"""Cells on a real Slurm of one node, on Ray, and without fork: the same rows, nothing lost."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm
from guests import TINY, assert_equal, bench, records, run, start, write_site

from cleanprior.config import compose
from cleanprior.errors import StageFailed, UserError
from cleanprior.jobs.drive import Todo
from cleanprior.jobs.fresh import Fresh, new_workers
from cleanprior.jobs.local import Local
from cleanprior.jobs.workers import Place, TimedOut, Workers
from cleanprior.progress import Progress
from cleanprior.stopping import Stopped

METHODS = "plain,slow"
#: Thirty steps: three seconds of the slow one.
LONGER = "training.budget=1920"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guests' package."""
    return write_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, site: Path) -> dict[str, dict]:
    """The records of the benchmark on this machine."""
    cwd = tmp_path_factory.mktemp("local")
    result = run(cwd, site, *bench(METHODS, LONGER))
    assert result.returncode == 0, result.stderr
    return records(cwd)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where the commands of a Slurm of one node find it."""
    if (reason := slurm.missing()) is not None:
        pytest.skip(reason)
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed")
    try:
        running = slurm.one_node(tmp_path_factory.mktemp("slurm"))
        env = running.__enter__()
    except RuntimeError as error:
        pytest.skip(f"no Slurm can be started here: {error}")
    try:
        yield {key: env[key] for key in ("SLURM_CONF", "PATH")}
    finally:
        running.__exit__(None, None, None)


def jobs_of(cluster: dict[str, str], *more: str) -> list[str]:
    command = ["squeue", "--noheader", "--array", "--format=%i", *more]
    asked = subprocess.run(command, env={**os.environ, **cluster}, capture_output=True, text=True)
    return asked.stdout.split()


def until(condition, seconds: float = 200.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def test_an_array_of_slurm_has_the_rows_of_this_machine_though_one_job_is_preempted(
    tmp_path: Path, site: Path, cluster: dict[str, str], local: dict[str, dict]
) -> None:
    log = tmp_path / "guests.txt"
    log.touch()
    more = [LONGER, "--launcher", "slurm", "launcher.max_parallel=1", "launcher.memory=1"]
    process = start(tmp_path, site, *bench(METHODS, *more, jobs=None), **cluster)
    try:
        until(lambda: log.read_text().count("step") > 2 or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        (job,) = jobs_of(cluster, "--states=RUNNING")
        # All processes of the job hear it, those that train too.
        command = ["scancel", "--signal=USR2", job]
        subprocess.run(command, env={**os.environ, **cluster}, check=True)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert_equal(local, records(tmp_path))
    told = log.read_text().split("\n")[:-1]
    assert told.count("Plain 0") == 1 and told.count("Slow 0") == 2, "it was caught and went on"
    (slow,) = (r for r in records(tmp_path).values() if r["method"] == "slow")
    assert told.count("step") == slow["training"]["steps"]["denoiser"], "none lost or done twice"
    lines = [line for line in err.splitlines() if line.startswith("[")]
    assert lines == [
        "[1/2] plain on inpainting, digits, seed 0: done",
        "[2/2] slow on inpainting, digits, seed 0: done",
    ]
    assert not jobs_of(cluster)


def test_what_is_stopped_leaves_no_job_and_a_wrong_partition_is_one_line(
    tmp_path: Path, site: Path, cluster: dict[str, str]
) -> None:
    more = ["--launcher", "slurm", "launcher.partition=gpu"]
    result = run(tmp_path, site, *bench("plain", *more, jobs=None), **cluster)
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "partition" in errors[0] and "Traceback" not in result.stderr
    process = start(tmp_path, site, *bench("stuck", *more[:2], jobs=None), **cluster)
    log = tmp_path / "guests.txt"
    until(lambda: log.exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    until(lambda: not jobs_of(cluster), 60)


RAY = """
import json, sys
import ray
import cleanprior as cp

if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    made = cp.bench(
        sys.argv[1],
        references=False,
        launcher="ray",
        overrides=[*json.loads(sys.argv[2]), "launcher.max_parallel=2"],
    )
    print("sound" if made.is_sound else "not sound", ray.is_initialized())
"""


def test_ray_has_the_rows_of_this_machine(
    tmp_path: Path, site: Path, local: dict[str, dict]
) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    script = tmp_path / "bench.py"
    script.write_text(RAY)
    # Of a process that Ray itself starts on a busy machine nothing would be seen for minutes.
    env = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(site)}
    env |= {
        "GUEST_LOG": str(tmp_path / "guests.txt"),
        "GUEST_PLACE": "none",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(script), METHODS + ",crash", json.dumps([*TINY, LONGER])],
        cwd=tmp_path,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["not", "sound", "True"]
    found = records(tmp_path)
    crashed = found.pop("crash 0")
    assert crashed["status"] == "failed: its process was ended by SIGSEGV"
    assert_equal(local, found)


def composed(tmp_path: Path) -> Todo:
    config = compose(["method=naive", *TINY, "training.device=cpu"])
    return Todo("naive", tmp_path / "runs", config)


def test_a_system_without_fork_has_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(new_workers(), Workers)
    for name in ("forked", "fresh"):
        (tmp_path / name).mkdir()
        if name == "fresh":
            monkeypatch.delattr(os, "fork")
            assert isinstance(new_workers(), Fresh)
        Local(jobs=1).run([composed(tmp_path / name)], Progress())
    assert_equal(records(tmp_path / "forked"), records(tmp_path / "fresh"))


def test_a_fresh_process_ends_when_it_is_told_and_says_how_it_ended(
    tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(site))
    workers = Fresh()
    damaged = {"out": str(tmp_path), "config": {}}
    with pytest.raises((UserError, StageFailed)):
        workers.run("prepare", damaged, Place(error=tmp_path / "error.txt"), lambda _: None)
    assert "Traceback" in (tmp_path / "error.txt").read_text()
    events = []
    with pytest.raises(TimedOut):
        late = time.monotonic() - 1
        workers.run("check", {"out": "", "configs": []}, Place(), events.append, until=late)
    workers.end()
    with pytest.raises(Stopped):
        workers.run("check", {"out": "", "configs": []}, Place(), events.append)
