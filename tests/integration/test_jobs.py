"""Cells in processes of their own: equal rows, no clean image, nothing lost whoever dies."""

import json
import signal
import time
from pathlib import Path

import pytest
from guests import assert_equal, bench, records, run, start, write_site

from cleanprior.cells.folder import cells_below


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guests' package."""
    return write_site(tmp_path_factory.mktemp("site"))


def test_rows_are_equal_in_one_process_and_in_many(tmp_path: Path, site: Path) -> None:
    results = []
    for jobs in (0, 2):
        cwd = tmp_path / str(jobs)
        cwd.mkdir()
        result = run(cwd, site, *bench("plain,naive", "--seeds", "2", jobs=jobs))
        assert result.returncode == 0, result.stderr
        results.append(records(cwd))
    here, there = results
    assert len(here) == 4
    assert_equal(here, there)
    assert all(record["training"]["memory_mb"]["cpu"] > 0 for record in there.values())
    logs = [files.log for files in cells_below(tmp_path / "2" / "runs")]
    assert all(log.is_file() for log in logs)
    assert not list((tmp_path / "2" / "runs").rglob("running.json"))


def test_no_clean_image_is_in_the_process_that_trains(tmp_path: Path, site: Path) -> None:
    import hashlib

    import numpy as np

    from cleanprior.data import digits

    data = digits()
    images = np.concatenate([data.train.numpy(), data.test.numpy()]).reshape(-1, 64)
    known = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    (tmp_path / "known.json").write_text(json.dumps(known))
    told = {}
    for jobs in (0, 1):
        cwd = tmp_path / str(jobs)
        cwd.mkdir()
        more = {"GUEST_KNOWN": str(tmp_path / "known.json")}
        # A cell of the oracle first: its process held every image.
        result = run(cwd, site, *bench("oracle,spy", jobs=jobs), **more)
        assert result.returncode == 0, result.stderr
        told[jobs] = records(cwd)["spy 0"]["training"]["log"]["found"]
    assert told[0] == len(set(known)), "in one process, everything"
    assert told[1] == 0


def test_no_path_to_the_images_is_in_the_process_that_trains(tmp_path: Path, site: Path) -> None:
    import numpy as np
    from PIL import Image

    place = "here-lie-the-clean-images"
    (tmp_path / "known.json").write_text("[]")
    (tmp_path / place).mkdir()
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (60, 8, 8))):
        Image.fromarray(image.astype("uint8")).save(tmp_path / place / f"{number}.png")
    told = {}
    for jobs in (0, 1):
        cwd = tmp_path / str(jobs)
        cwd.mkdir()
        more = {"GUEST_KNOWN": str(tmp_path / "known.json"), "GUEST_PLACE": place}
        data = ("--data", "folder", f"data.path={tmp_path / place}", "data.resolution=8")
        result = run(cwd, site, *bench("spy", *data, jobs=jobs), **more)
        assert result.returncode == 0, result.stderr
        told[jobs] = records(cwd)["spy 0"]["training"]["log"]["paths"]
    assert told[0] > 0 and told[1] == 0


def test_a_process_that_dies_is_its_row_and_the_others_go_on(tmp_path: Path, site: Path) -> None:
    result = run(tmp_path, site, *bench("crash,stuck,plain", "--timeout", "8"))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    found = {k.split()[0]: r["status"] for k, r in records(tmp_path).items()}
    assert found == {
        "crash": "failed: its process was ended by SIGSEGV",
        "stuck": "failed: took longer than it was given (--timeout)",
        "plain": "done",
    }
    assert "ended by SIGSEGV" in result.stdout, "the table says so too"
    # What has never been tried comes before what has failed.
    again = run(tmp_path, site, *bench("crash,naive", "--retry", "1", jobs=1))
    lines = [line for line in again.stderr.splitlines() if line.startswith("[")]
    assert [line.split()[1] for line in lines] == ["naive", "crash", "crash"]


def test_two_benchmarks_on_one_folder_share_the_cells(tmp_path: Path, site: Path) -> None:
    arguments = bench("plain,slow", "--seeds", "3", jobs=2)
    both = [start(tmp_path, site, *arguments) for _ in range(2)]
    ends = [process.communicate(timeout=400) for process in both]
    assert [p.returncode for p in both] == [0, 0], ends
    told = (tmp_path / "guests.txt").read_text().split("\n")[:-1]
    trained = [line for line in told if line != "step"]
    assert sorted(trained) == sorted(f"{m} {s}" for m in ("Plain", "Slow") for s in range(3))
    assert len(records(tmp_path)) == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ended_from_outside_it_goes_on_where_it_was(
    tmp_path: Path, site: Path, number: signal.Signals
) -> None:
    arguments = bench("slow", jobs=1)
    process = start(tmp_path, site, *arguments)
    until = time.monotonic() + 120
    (tmp_path / "guests.txt").touch()
    assert process.poll() is None
    while not (tmp_path / "guests.txt").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.6)  # some steps
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "go on from the last checkpoint" in err and "Traceback" not in err
    again = run(tmp_path, site, *arguments)
    assert again.returncode == 0, again.stderr
    (record,) = records(tmp_path).values()
    steps = [h["step"] for h in record["training"]["history"]]
    assert steps == sorted(set(steps)), "no step was taken twice"
    told = (tmp_path / "guests.txt").read_text().split("\n")[:-1]
    assert told.count("Slow 0") == 2, "it was caught while it trained"
    assert told.count("step") == record["training"]["steps"]["denoiser"], "none lost or done twice"
