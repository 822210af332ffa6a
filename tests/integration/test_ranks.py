"""A cell in two processes of a bench: one row, nothing lost whoever dies, sealed in both."""

import signal
import time
from pathlib import Path

import psutil
import pytest
from guests import bench, records, run, start, write_site

from cleanprior.cells.folder import cells_below
from cleanprior.jobs.lease import Beat

TWO = ("--devices-per-cell", "2", "training.batch=16", "training.device=cpu")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guests' package."""
    return write_site(tmp_path_factory.mktemp("site"))


def steps_of(cwd: Path) -> int:
    log = cwd / "guests.txt"
    return log.read_text().split("\n").count("step") if log.exists() else 0


def caught(cwd: Path, site: Path, *arguments: str):
    """Start a bench and return it when its cell has taken some steps, with who takes them."""
    process = start(cwd, site, *arguments)
    until = time.monotonic() + 120
    while steps_of(cwd) < 6 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (files,) = cells_below(cwd / "runs")
    beat = Beat.read(files.beat)
    assert beat is not None and beat.processes == 2
    (server,) = psutil.Process(process.pid).children()
    ranks = {child.pid: child for child in server.children()}
    return process, ranks.pop(beat.pid), *ranks.values()


def test_both_end_at_the_same_step_and_go_on_from_it(tmp_path: Path, site: Path) -> None:
    arguments = bench("slow", *TWO, jobs=1)
    process, *ranks = caught(tmp_path, site, *arguments)
    assert len(ranks) == 2
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "go on from the last checkpoint" in err and "Traceback" not in err
    assert not any(rank.is_running() for rank in ranks)
    assert records(tmp_path) == {}, "it has not failed"
    again = run(tmp_path, site, *arguments)
    assert again.returncode == 0, again.stderr
    (record,) = records(tmp_path).values()
    assert record["training"]["steps"] == {"denoiser": 20} and record["processes"] == 2
    assert steps_of(tmp_path) == 2 * 20, "none lost or done twice"


def test_where_one_is_killed_that_is_told_and_both_begin_again(tmp_path: Path, site: Path) -> None:
    more = ("--retry", "1", "training.checkpoint_seconds=0")
    process, *ranks = caught(tmp_path, site, *bench("slow", *TWO, *more, jobs=1))
    ranks[0].kill()
    _, err = process.communicate(timeout=120)
    assert "failed: its process was ended by SIGKILL" in err and "Traceback" not in err
    assert not any(rank.is_running() for rank in ranks)
    (record,) = records(tmp_path).values()
    assert process.returncode == 0 and record["status"] == "done"
    assert 2 * 20 <= steps_of(tmp_path) <= 2 * 21 + 1, "they went on from a checkpoint"


def test_an_error_of_the_second_is_the_row_and_time_ends_both(tmp_path: Path, site: Path) -> None:
    long = ("training.budget=64000", "--timeout", "9")
    result = run(tmp_path, site, *bench("odd,spoilt,slow", *TWO, *long, jobs=1))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    found = {k.split()[0]: r["status"] for k, r in records(tmp_path).items()}
    assert found == {
        "odd": "failed: ValueError: this one is odd",
        "spoilt": "diverged",
        "slow": "failed: took longer than it was given (--timeout)",
    }
    (odd,) = (f for f in cells_below(tmp_path / "runs") if "-odd-" in f.folder.name)
    assert "this one is odd" in odd.error.read_text()


def test_no_clean_image_is_in_either(tmp_path: Path, site: Path) -> None:
    import hashlib
    import json

    from cleanprior.data import digits

    images = digits().train.numpy().reshape(-1, 64)
    known = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    (tmp_path / "known.json").write_text(json.dumps(known))
    more = {"GUEST_KNOWN": str(tmp_path / "known.json")}
    result = run(tmp_path, site, *bench("spy", *TWO, jobs=1), **more)
    assert result.returncode == 0, result.stderr
    told = (tmp_path / "guests.txt").read_text().split("\n")
    assert [line for line in told if line.startswith("found")] == ["found 0 0"] * 2
