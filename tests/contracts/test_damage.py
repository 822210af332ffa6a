"""Damage on the disk: it is told in one line and made again, never a crash, never used."""

import json
import os
import shutil

import hostile
import pytest
from cleanprior.benchmarks import places
from cleanprior.benchmarks.request import Request
from damage import (
    changed_number,
    cut,
    empty,
    flip,
    lacking,
    newer,
    of_another,
    other_cell,
    pickle_in,
    text,
    unlink,
    without_hash,
)
from hostile import device, pipe

from cleanprior.cells.reading import read_sealed, sealed
from cleanprior.training.checkpoint import read_tensors, write_tensors

VALUES = [
    "training.device=cpu",
    "training.budget=64",
    "backbone.hid_channels=[8,8]",
    "posterior.steps=2",
    "sampler.steps=2",
    "evaluation.test_images=4",
    "evaluation.draws=1",
    "evaluation.samples=20",
    "evaluation.sampling_seeds=[0]",
    "evaluation.features=pixels",
]
TRAIN = ["train", "method=naive", *VALUES]


class Folder:
    """A folder of runs with one finished cell and its tables."""

    def __init__(self, root):
        self.root, self.runs = root, root / "runs"

    def one(self, pattern):
        (found,) = self.runs.glob(pattern)
        return found

    @property
    def record(self):
        return self.one("cells/*/record-*.json")

    @property
    def training(self):
        return self.one("cells/*/training")

    @property
    def checkpoint(self):
        return self.training / "checkpoint.safetensors"

    @property
    def outcome(self):
        return self.training / "outcome.json"

    @property
    def measurements(self):
        return self.one("measurements/train-*.safetensors")

    @property
    def pictures(self):
        return self.one("pictures/*.safetensors")

    @property
    def tables(self):
        return self.one("tables/*")

    def metrics(self):
        return json.loads(self.record.read_text())["rows"][0]["metrics"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cell that was trained once for all rows; each damages a copy."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("sys.argv", ["cleanprior", *TRAIN])
        assert hostile.cli._run() == 0
        request = Request(methods=["naive"], overrides=VALUES, with_references=False)
        request.write(places.tables(root / "runs", request.plan().key))
        patch.setattr("sys.argv", ["cleanprior", "report", str(Folder(root).tables)])
        assert hostile.cli._run() == 0
    return Folder(root)


@pytest.fixture
def copy(whole, tmp_path, monkeypatch):
    shutil.copytree(whole.root, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Folder(tmp_path / "copy")


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *arguments: hostile.command(monkeypatch, capsys, *arguments)


RECORDS = {
    "cut": (cut, "is not JSON"),
    "empty": (empty, "is not JSON"),
    "a list": (lambda p: p.write_text("[]"), "is no record"),
    "a number": (lambda p: p.write_text("3"), "is no record"),
    "lists within lists": (lambda p: p.write_text("[" * 10**5), "nested too deep"),
    "bytes": (lambda p: p.write_bytes(b"\xff\xfe\x00"), "is no text in UTF-8"),
    "a pipe": (pipe, "is a named pipe"),
    "without end": (device, "is a device"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "is a folder"),
    "of a newer version": (newer, "has format 2; this version reads 1"),
    "a number that changed": (changed_number, "its content has another hash"),
    "of another cell": (other_cell, "is the record of another cell"),
    "a status that is a list": (without_hash(lambda r: r.update(status=["done"])), "is no record"),
    "a configuration that is a list": (without_hash(lambda r: r.update(config=[1])), "its config"),
    "rows that are a number": (without_hash(lambda r: r.update(rows=3)), "its rows are 3"),
    "a row that is a text": (without_hash(lambda r: r.update(rows=["x"])), "its row 0 is 'x'"),
    "a row without its way": (
        without_hash(lambda r: r["rows"][0].pop("way")),
        "its row 0.way is None",
    ),
    "a metric that is a text": (
        without_hash(lambda r: r["rows"][0]["metrics"].update(psnr="20")),
        "its row 0.metrics is",
    ),
    "a reason that is a list": (
        without_hash(lambda r: r["rows"][0]["missing"].update(x=[1])),
        "its row 0.missing is",
    ),
    "without a training": (without_hash(lambda r: r.pop("training")), "it lacks training"),
    "seconds that are a text": (
        without_hash(lambda r: r["training"].update(seconds="1")),
        "its training.seconds is '1'",
    ),
    "costs of a row that are keys": (
        without_hash(lambda r: r["rows"][0]["costs"].update(restore_flops={"a": 1})),
        "its row 0.costs is",
    ),
    "no number for a metric": (
        without_hash(lambda r: r["rows"][0]["metrics"].update(psnr=float("nan"))),
        "its row 0.metrics is",
    ),
    "images that are a number": (
        without_hash(lambda r: r["rows"][0].update(per_image={"psnr": 3})),
        "its row 0.per_image is",
    ),
    "memory of nothing": (
        without_hash(lambda r: r["training"].update(memory_mb={})),
        "its training.memory_mb is {}",
    ),
    "parameters that are a list": (
        without_hash(lambda r: r.update(parameters=[1])),
        "its parameters is [1]",
    ),
}


def lines(told):
    return [line for line in told.splitlines() if line.startswith("warning: ")]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_as_if_it_were_not_there(run, copy, name):
    damage, message = RECORDS[name]
    damage(copy.record)
    code, told, shown = run("report", copy.tables)
    assert "Traceback" not in told + shown and code == 0, told
    (line,) = lines(told)
    assert message in line and "as if it were not there" in line
    assert "not run" in (copy.tables / "table.md").read_text()


#: Damage, what it is done to, and what is told; the record is gone, so that all is read again.
STATES = {
    "a record that is cut": (cut, "record", "is not JSON"),
    "a checkpoint with a bit flipped": (flip, "checkpoint", "another hash"),
    "a checkpoint that is cut": (cut, "checkpoint", "is damaged"),
    "a checkpoint that is empty": (empty, "checkpoint", "is damaged"),
    "a checkpoint that is a pickle": (pickle_in, "checkpoint", "is damaged"),
    "a checkpoint that is a pipe": (pipe, "checkpoint", "is a named pipe"),
    "a checkpoint of another training": (of_another, "checkpoint", "belongs to something else"),
    "a checkpoint that lacks a weight": (lacking, "checkpoint", "holds other networks"),
    "an outcome that is cut": (cut, "outcome", "is not JSON"),
    "an outcome that is a list": (lambda p: p.write_text("[]"), "outcome", "holds no keys"),
    "an outcome that changed": (
        lambda p: p.write_text(p.read_text().replace('"done"', '"lost"', 1)),
        "outcome",
        "another hash",
    ),
    "an outcome without a status": (
        without_hash(lambda r: r.pop("status")),
        "outcome",
        "is damaged: 'status'",
    ),
    "an outcome that is a pipe": (pipe, "outcome", "is a named pipe"),
    "measurements with a bit flipped": (flip, "measurements", "another hash; they are drawn again"),
    "measurements that are cut": (cut, "measurements", "they are drawn again"),
    "measurements of something else": (of_another, "measurements", "belongs to something else"),
    "measurements that are a pickle": (pickle_in, "measurements", "they are drawn again"),
    "measurements that are a pipe": (pipe, "measurements", "is a named pipe"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", STATES)
def test_a_state_that_is_damaged_is_made_again(run, copy, whole, name):
    damage, what, message = STATES[name]
    path = getattr(copy, what)
    if what != "record":
        copy.record.unlink()
    damage(path)
    code, told, shown = run(*TRAIN)
    assert code == 0 and "Traceback" not in told + shown, told
    assert any(message in line for line in lines(told)), told
    assert not path.with_name("canary").exists()
    assert copy.metrics() == whole.metrics()
    code, told, _ = run(*TRAIN)  # what was made again is whole
    assert code == 0 and not lines(told)


PICTURES = {
    "missing": (unlink, "is missing"),
    "cut": (cut, "is damaged"),
    "with a bit flipped": (flip, "another hash"),
    "a text": (text, "is damaged"),
    "a pipe": (pipe, "is a named pipe"),
    "of another cell": (of_another, "belongs to something else"),
    "without images": (
        lambda p: write_tensors(p, {}, {"of": read_tensors(p)[1]["of"]}),
        "it holds no pictures",
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_a_finished_cell_are_a_line_under_its_page(run, copy, name):
    damage, message = PICTURES[name]
    damage(copy.pictures)
    for _ in range(2):  # also where nothing is drawn again
        code, told, shown = run("report", copy.tables)
        assert code == 0 and "Traceback" not in told + shown, told
        for place in (shown, (copy.tables / "table.md").read_text()):
            words = " ".join(place.split())
            assert "naive: no images are shown" in words and message in words
        assert "no images are shown" in (copy.tables / "report.html").read_text()


TABLES = {
    "a picture that is cut": (cut, "restorations.png"),
    "a picture that is missing": (unlink, "restorations.png"),
    "a picture that is a text": (text, "samples.png"),
    "strips that are a text": (text, ".strips.json"),
    "a stamp that is a text": (text, ".drawn.json"),
    "a stamp that is a list": (lambda p: p.write_text("[]"), ".drawn.json"),
    "a stamp that names other files": (
        lambda p: p.write_text(sealed(read_sealed(p) | {"files": {"../../x": None}})),
        ".drawn.json",
    ),
    "a page that is a text": (text, "report.html"),
    "a table that is cut": (cut, "table.csv"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", TABLES)
def test_what_is_written_of_a_table_is_drawn_again(run, copy, whole, name):
    damage, what = TABLES[name]
    expected = {p.name: p.read_bytes() for p in whole.tables.iterdir()}
    damage(copy.tables / what)
    code, told, shown = run("report", copy.tables)
    assert code == 0 and not lines(told) and "Traceback" not in shown
    found = {p.name: p.read_bytes() for p in copy.tables.iterdir()}
    assert found.keys() == expected.keys()
    same = {n for n in expected if found[n] == expected[n]}
    assert expected.keys() - same <= {"report.html", ".drawn.json"}  # these name folders and times


def test_what_is_on_a_disk_that_takes_no_file_is_printed(run, copy, monkeypatch):
    for number, word in ((28, "No space left"), (30, "Read-only")):

        def refuse(*_, number=number):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", refuse)
            code, told, shown = run("report", copy.tables)
        assert code == 2 and word in told and told.count("\n") == 1
        assert "naive" in shown and "PSNR" in shown and "Traceback" not in shown
    assert run("report", copy.tables)[0] == 0
