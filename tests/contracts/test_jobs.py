"""What a worker tells, and how it is shown: a line a phase, whole lines, notices once."""

import json
import os

import pytest
from rich.console import Console

from cleanprior.errors import PeerLost, StageFailed, UserError
from cleanprior.jobs import drive, events, lease, local, machine, ranks, worker, workers
from cleanprior.progress import Progress
from cleanprior.stopping import Stopped


@pytest.fixture
def pipe():
    """A sender, and what it has sent."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def sent():
        try:
            return [json.loads(line) for line in os.read(reading, 1 << 20).split(b"\n")[:-1]]
        except BlockingIOError:
            return []

    yield events.Sender(writing, 7), sent
    os.close(reading)
    os.close(writing)


def test_a_phase_is_told_in_events_and_never_as_text(pipe, monkeypatch):
    sender, sent = pipe
    now = [0.0]
    for module in (events, __import__("cleanprior.progress", fromlist=["time"])):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = events.SentProgress(sender, lease.Pulse(None, "train"))
    with progress.task("train", 100) as task:
        for _ in range(100):
            now[0] += 1  # slower than any interval between lines
            task.advance(note="loss 1")
    told = sent()
    assert {e["event"] for e in told} == {"begin", "steps", "end"}
    assert all(e["task"] == 7 for e in told)
    assert told[0]["total"] == 100 and told[-2]["done"] == 100


def test_many_steps_are_few_events(pipe):
    sender, sent = pipe
    progress = events.SentProgress(sender, lease.Pulse(None, "train"))
    with progress.task("train", 5000) as task:
        for _ in range(5000):
            task.advance()
    assert len(sent()) < 100


def test_a_line_is_whole_however_long_its_text(pipe):
    sender, sent = pipe
    sender.send("failed", text="x" * 100_000)
    (event,) = sent()
    assert len(json.dumps(event)) < events.WHOLE and event["text"].startswith("xxx")


def test_lines_are_one_a_phase_where_no_terminal_is(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(drive.time, "monotonic", lambda: now[0])
    console = Console(force_terminal=False)
    shown = drive.Shown(Progress(console), "em, seed 0")
    shown({"event": "begin", "phase": "train", "total": 100})
    for done in range(10, 101, 10):
        now[0] += 5
        shown({"event": "steps", "phase": "train", "done": done, "note": "loss 1"})
    shown({"event": "end", "phase": "train", "done": 100})
    shown({"event": "begin", "phase": "short", "total": 2})
    shown({"event": "end", "phase": "short", "done": 2})
    assert capsys.readouterr().out == "  em, seed 0: train: 100/100 in 50 s\n"


@pytest.mark.parametrize(
    ("last", "end", "error", "text"),
    [
        ({"event": "refused", "text": "p=7"}, {}, UserError, "p=7"),
        ({"event": "failed", "text": "KeyError: 'x'"}, {}, StageFailed, "KeyError: 'x'"),
        ({}, {"code": -11}, StageFailed, "ended by SIGSEGV"),
        ({}, {"code": -9}, StageFailed, "SIGKILL .out of memory"),
        ({}, {"code": 3}, StageFailed, "exit code 3"),
        ({"event": "busy"}, {}, lease.Busy, "^$"),
        ({"event": "lost", "text": "gone"}, {}, PeerLost, "gone"),
    ],
)
def test_how_a_task_ended_is_what_is_raised(last, end, error, text):
    with pytest.raises(error, match=text):
        workers._result(last, end)


def test_what_a_stage_raises_is_told_with_its_traceback_in_a_file(pipe, tmp_path, monkeypatch):
    sender, sent = pipe

    def stage(request, progress):
        raise SystemExit("a plug-in leaves")

    from cleanprior.jobs import stages

    monkeypatch.setitem(stages.STAGES, "train", stage)
    monkeypatch.setattr(worker, "send_notices", lambda sender: None)
    task = {"task": 7, "stage": "train", "request": {}, "threads": 1, "gpus": [], "rank": None}
    task |= {"lock": str(tmp_path / "a.lock"), "beat": None, "error": str(tmp_path / "error.txt")}
    assert worker.work(task, sender._descriptor) == 0
    assert sent()[-1] == {"task": 7, "event": "failed", "text": "SystemExit: a plug-in leaves"}
    assert "Traceback" in (tmp_path / "error.txt").read_text()


def test_jobs_are_as_many_as_there_is_room_for(monkeypatch):
    todo = [
        drive.Todo(str(k), None, {"training": {"device": "auto"}})  # type: ignore[arg-type]
        for k in range(5)
    ]
    monkeypatch.delenv(local.VARIABLE, raising=False)
    monkeypatch.setattr(local, "cores", lambda: 8)
    monkeypatch.setattr(local, "room", lambda: 3)
    monkeypatch.setattr(local, "gpus", list)
    assert local.Local().count(todo) == 3
    assert local.Local(jobs=2).count(todo) == 2
    assert local.Local(jobs=9).count(todo) == 5
    monkeypatch.setattr(local, "gpus", lambda: [0, 1])
    assert local.Local().count(todo) == 2
    monkeypatch.setenv(local.VARIABLE, "0")
    assert local.Local().count(todo) == 0


def test_processes_that_train_together_take_as_many_cores_or_gpus(monkeypatch):
    alone, two = ({"training": {"device": "auto", "processes": n}} for n in (None, 2))
    todo = [drive.Todo(str(k), None, two if k else alone) for k in range(9)]  # type: ignore[arg-type]
    monkeypatch.delenv(local.VARIABLE, raising=False)
    monkeypatch.setattr(local, "cores", lambda: 8)
    monkeypatch.setattr(local, "room", lambda: 7)
    monkeypatch.setattr(local, "gpus", list)
    assert local.Local().count(todo) == 3 and local.Local(jobs=6).count(todo) == 6
    assert local.Local().count(todo[:1]) == 1
    monkeypatch.setattr(local, "gpus", lambda: [0, 1, 2, 3, 4])
    assert local.Local().count(todo) == 2
    assert local.Local()._groups(todo) == [(0, 1), (2, 3)]
    assert local.Local()._groups(todo[:1]) == [(0,), (1,), (2,), (3,), (4,)]
    with pytest.raises(UserError, match="2 devices for each cell, and there is 1 CUDA device;"):
        local.Local(devices=[3]).run(todo, Progress())
    with pytest.raises(UserError, match="training.processes=2, and jobs=0 .* runs all in this"):
        local.Local(jobs=0).run(todo, Progress())
    monkeypatch.setattr(local, "gpus", list)
    monkeypatch.setattr(local, "cores", lambda: 1)
    assert local.Local()._groups(todo) == [] and local.LEAST == 2
    many = {"training": {"device": "auto", "processes": 3}}
    with pytest.raises(UserError, match="processes=3, and this machine has 1 core.*at most 2"):
        local.Local().run([drive.Todo("many", None, many)], Progress())  # type: ignore[arg-type]


def test_the_error_that_the_others_come_from_is_told():
    busy, late, asked = lease.Busy(), workers.TimedOut("late"), Stopped()
    died, own, lost = workers.Died("SIGKILL"), UserError("p=7"), PeerLost("gone")
    told = [busy, late, asked, died, own, lost]
    for number, error in enumerate(told):
        assert ranks.cause([*told[number:][::-1]]) is error
    assert ranks.cause([lost, own, StageFailed("x")]) is own


def test_a_process_that_says_much_is_ended_in_time_too():
    class Talking:
        def __init__(self):
            self.left = 50

        def get(self, timeout):
            self.left -= 1
            return {"event": "steps" if self.left else "exit", "phase": "", "done": 1}

    sent = []
    with pytest.raises(workers.TimedOut):
        workers.follow(Talking(), lambda _: None, 0.0, sent.append)
    assert sent == [workers.SIGTERM]


def test_of_processes_that_train_together_none_outlives_another(monkeypatch):
    over, sent = workers.threading.Event(), []
    monkeypatch.setattr(workers, "PATIENCE", 0.0)
    over.set()
    waiting = workers.queue.Queue()

    def send(which):
        sent.append(which)
        waiting.put({"event": "exit", "code": -9})

    with pytest.raises(PeerLost):
        workers.follow(waiting, lambda _: None, None, send, over)
    assert sent == [workers.KILL]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"jobs": -1}, "jobs=-1; allowed"),
        ({"jobs": "many"}, "jobs=many; allowed"),
        ({"timeout": 0}, "timeout=0; allowed"),
        ({"retries": -1}, "retries=-1; allowed"),
    ],
)
def test_other_values_are_refused(keys, text):
    with pytest.raises(UserError, match=text):
        local.Local(**keys)


def test_a_process_sees_the_device_that_its_job_has(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.visible(1) == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 5")
    assert machine.visible(0) == "GPU-a" and machine.visible(1) == "5"
    assert machine.cores() >= 1 and machine.room() >= 1
