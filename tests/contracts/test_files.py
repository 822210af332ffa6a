"""Files are whole or absent, whoever else writes beside, and nothing half written stays."""

import errno
import os
import threading
import time

import pytest
import torch

from cleanprior import files
from cleanprior.errors import UserError
from cleanprior.files import staging_path, sweep, write_bytes, write_text
from cleanprior.training.checkpoint import write_tensors

WRITERS = {
    "text": lambda path: write_text(path, "new"),
    "bytes": lambda path: write_bytes(path, b"new"),
    "tensors": lambda path: write_tensors(path, {"a": torch.zeros(2)}, {"b": 1}),
}
over_writers = pytest.mark.parametrize("kind", WRITERS)


@over_writers
def test_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch, kind):
    steps, fsync, replace = [], os.fsync, os.replace
    names = {}

    def note_open(path, *rest):
        handle = opened(path, *rest)
        names[handle] = os.path.isdir(path)
        return handle

    opened = os.open
    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(
        os, "fsync", lambda h: (steps.append("folder" if names[h] else "file"), fsync(h))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("name"), replace(a, b)))
    WRITERS[kind](tmp_path / "deep" / "x.safetensors")
    assert steps == ["file", "name", "folder"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.safetensors"]


@over_writers
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_refuses_leaves_what_was_there(tmp_path, monkeypatch, kind, number):
    path = tmp_path / "x.safetensors"
    path.write_text("old")
    calls = []

    def refuse(*_):
        calls.append(number)
        raise OSError(number, os.strerror(number))

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, refuse)
            with pytest.raises(UserError, match=f"{os.strerror(number)}; earlier results are") as e:
                WRITERS[kind](path)
        assert "\n" not in str(e.value)
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    assert len(calls) == 2


@over_writers
def test_a_place_that_is_no_folder_is_one_line(tmp_path, kind):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write '.*/file/x'") as told:
        WRITERS[kind](tmp_path / "file" / "x")
    assert "\n" not in str(told.value)


def test_temporary_names_tell_machines_and_processes_apart(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    monkeypatch.setattr(os, "getpid", lambda: 7)
    found = {staging_path(path).name for _ in range(50)}
    assert len(found) == 50
    monkeypatch.setattr(files, "_host", lambda: "another_host")
    other = staging_path(path)
    assert other.name.startswith(".another_host-7-") and other.suffix == ".npz"
    write_text(tmp_path / ("é" * 100 + ".json"), "a name of 205 bytes")


def test_two_writers_with_one_process_number_lose_and_tear_nothing(tmp_path, monkeypatch):
    """As two containers with one volume."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "x"
    write_text(path, "a" * 5000)
    refused, torn = [], []

    def write(letter):
        for _ in range(60):
            try:
                write_text(path, letter * 5000)
            except UserError as error:
                refused.append(error)
            content = path.read_text()
            torn.extend([content] if len(content) != 5000 or len(set(content)) > 1 else [])

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not refused and not torn and list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_is_swept_when_it_is_old(tmp_path):
    old = time.time() - files.OLD - 60
    kept = [".hidden", "x.json", ".host-7-0123456789ab.part", ".me-7-xyz.part-x", ".part-x"]
    left = [staging_path(tmp_path / name) for name in ("x.json", "prior", "a\nb")]
    for path in (*(tmp_path / name for name in kept), left[0], left[2]):
        path.write_text("")
        os.utime(path, (old, old))
    (tmp_path / "prior").mkdir()
    lost = staging_path(tmp_path / "no such prior")  # perhaps the only copy
    for folder in (left[1], lost):
        folder.mkdir()
        os.utime(folder, (old, old))
    young = staging_path(tmp_path / "x.json")
    young.write_text("another process is writing")
    write_text(tmp_path / "new.json", "")  # the first write of a process sweeps
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {*kept, "prior", lost.name, young.name, "new.json"}
    sweep(tmp_path / "nowhere")


def test_a_folder_is_tried_and_not_believed(tmp_path, monkeypatch):
    """/proc and a full disk say that one may write there."""
    assert files.check_folder("--out", tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not list(tmp_path.iterdir()), "a trial leaves nothing"

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    with pytest.raises(UserError, match=r"--out .*nothing can be written .*No space left"):
        files.check_folder("--out", tmp_path / "a")
