"""What runs in a folder, and how it stands."""

import json
import os
import socket
import time
from dataclasses import asdict

import pytest

from cleanprior.cells import CellFolder
from cleanprior.cells.record import write_record
from cleanprior.commands.status import duration, lines, states
from cleanprior.config import compose
from cleanprior.errors import UserError
from cleanprior.files import write_text
from cleanprior.jobs.lease import STALE, Beat, Busy, Pulse, held


def beat(**changes):
    now = time.time()
    values = {
        "stage": "train",
        "phase": "train · round 2",
        "done": 300,
        "total": 500,
        "since": now - 700,
        "began": now - 60,
        "first": 100,
        "time": now,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    return Beat(**{**values, **changes})


def cell(tmp_path, seed, method="em"):
    return CellFolder(tmp_path / "runs", compose([f"method={method}", f"seed={seed}"]))


def test_each_cell_is_said_with_where_it_is(tmp_path):
    done, failed, running, left, dead = (cell(tmp_path, seed) for seed in range(5))
    write_record(done, {**done.names, "seed": 0, "status": "done", "rows": []})
    write_record(failed, {**failed.names, "seed": 1, "status": "failed: no memory"})
    for one in (running, left, dead):
        write_text(one.files.training.job, json.dumps({"config": one.config}))
    write_text(running.files.beat, json.dumps(asdict(beat())))
    # A process of this machine that is no more, and one of another that has been silent.
    write_text(left.files.beat, json.dumps(asdict(beat(pid=2**22 + 1))))
    silent = beat(host="elsewhere", time=time.time() - STALE - 1)
    write_text(dead.files.beat, json.dumps(asdict(silent)))
    write_text(left.files.training.checkpoint, "")
    told = lines(states(tmp_path / "runs"), is_long=False)
    assert told[0] == "5 cells: 1 running, 2 begun, 1 failed, 1 done"
    text = "\n".join(told)
    assert (
        "em on inpainting, digits, seed 2: train · round 2 300/500, for 12 min, 60 s left" in text
    )
    assert "em on inpainting, digits, seed 1: no memory" in text
    assert "seed 3: last checkpoint 0 s ago" in text
    assert "seed 0" not in text
    assert "seed 0" in "\n".join(lines(states(tmp_path / "runs"), is_long=True))


def test_the_time_left_counts_the_steps_of_this_process_alone():
    assert beat().left == pytest.approx(60, abs=1)  # 200 steps in 60 s, 200 to go
    assert beat(done=100).left is None
    assert beat(total=0).left is None


def test_a_folder_without_cells_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no cells"):
        states(tmp_path)


FORGED = json.dumps(asdict(beat(pid=-1)))
DEEP = "[" * 100_000


@pytest.mark.parametrize("text", ["", "[]", '{"stage": 1}', "\x00", FORGED, DEEP])
def test_what_cannot_be_read_is_nobody_at_work(tmp_path, text):
    path = tmp_path / "running.json"
    path.write_text(text)
    assert Beat.read(path) is None


def test_a_pulse_says_where_the_process_is_and_is_gone_at_the_end(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("cleanprior.jobs.lease.time.time", lambda: now[0])
    path = tmp_path / "running.json"
    pulse = Pulse(path, "train")
    now[0] += 10
    pulse.tell("round 1", 7, 50)
    now[0] += 1
    pulse.tell("round 1", 9, 50)  # a moment later: not written
    found = Beat.read(path)
    assert (found.phase, found.done, found.total, found.first) == ("round 1", 7, 50, 7)
    assert found.pid == os.getpid() and found.is_alive
    pulse.end()
    assert not path.exists()


def test_a_lock_is_held_by_one(tmp_path):
    with held(tmp_path / "a.lock"):
        with pytest.raises(Busy), held(tmp_path / "a.lock"):
            pass
        with held(tmp_path / "b.lock"):
            pass
    with held(tmp_path / "a.lock"):
        pass


def test_a_lock_that_the_disk_refuses_is_one_line(tmp_path):
    (tmp_path / "a.lock").mkdir()
    with pytest.raises(UserError, match="cannot lock '.*a.lock'"), held(tmp_path / "a.lock"):
        pass
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "locks").touch()
    with pytest.raises(UserError, match="cannot make '.*locks'"):
        cell(tmp_path, 0).lock()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "3 s"), (600, "10 min"), (3 * 3600 + 1200, "3 h 20 min"), (90000 * 2, "2 d 2 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
