"""What ``--quiet``, ``--verbose`` and ``--json`` leave on the two streams."""

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from rich.console import Console

from cleanprior import cli, files
from cleanprior.jobs.drive import Log, Shown
from cleanprior.progress import Progress

TINY = [
    "training.budget=64",
    "training.batch=16",
    "training.device=cpu",
    "backbone.hid_channels=[8,16]",
    "backbone.mod_features=16",
    "evaluation.test_images=8",
    "evaluation.draws=1",
    "evaluation.samples=16",
    "evaluation.sampling_seeds=[0]",
    "evaluation.features=pixels",
    "posterior.steps=2",
    "sampler.steps=2",
]
BENCH = ["bench", "--methods", "naive,ambient", "--no-references", *TINY]


class Noted(io.StringIO):
    """A stream that knows what another one held whenever something was written to this one."""

    def __init__(self, other: io.StringIO) -> None:
        super().__init__()
        self.other, self.seen = other, list[str]()

    def write(self, text: str) -> int:
        self.seen.append(self.other.getvalue())
        return super().write(text)


class Output(str):
    """What was printed, with :attr:`Noted.seen`."""

    seen: list[str]


def run(folder: Path, *arguments: str) -> tuple[int, Output, str]:
    """Run the command line in this process, which has loaded its libraries."""
    err = io.StringIO()
    out = Noted(err)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["cleanprior", *arguments])
        code = cli._run()
    told = Output(out.getvalue())
    told.seen = out.seen
    return code, told, err.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, Output, str]]:
    folder = tmp_path_factory.mktemp("output")
    return folder, run(folder, *BENCH, "--json", "--jobs", "1")


def test_json_is_a_line_a_record_and_nothing_else(trained) -> None:
    folder, (code, out, err) = trained
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [(r["method"], r["status"]) for r in found] == [("naive", "done"), ("ambient", "done")]
    assert all(r["rows"][0]["metrics"]["psnr"] > 0 for r in found)
    assert "[1/2]" in err, "progress is not in the way of what is read"
    assert run(folder, *BENCH, "--json")[1] == out, "what is finished is printed, too"


def test_a_record_is_printed_when_its_cell_ends(trained) -> None:
    before = trained[1][1].seen[0]
    assert "[1/2] " in before and "[2/2] " not in before


def test_a_finished_bench_is_printed_from_a_disk_that_takes_no_file(trained, monkeypatch) -> None:
    folder, _ = trained
    for path in (folder / "runs" / "tables").rglob("*.*"):
        path.unlink()
    before = sorted(folder.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        patch.setattr(files, "write_with", lambda *_: pytest.fail("it was written"))
        code, out, err = run(folder, *BENCH)
        assert code == 0 and "naive" in out and "PSNR" in out and "page" not in out
        assert err == "note: 'runs' takes no files: what it holds is printed, and nothing written\n"
        assert run(folder, *BENCH, "--seeds", "2")[::2] == (
            2,
            "error: --out runs: 'runs' may not be written by you\n",
        )
    assert sorted(folder.rglob("*")) == before
    assert "page: " in run(folder, *BENCH)[1]


def test_json_has_no_line_for_what_nobody_trained(trained) -> None:
    folder, _ = trained
    share = ["bench", "--methods", "naive", "--no-references", "--seeds", "2", "--part", "1/2"]
    code, out, _ = run(folder, *share, *TINY, "--json")
    assert code == 0 and [json.loads(line)["seed"] for line in out.splitlines()] == [0]


def test_quiet_leaves_the_table(trained) -> None:
    folder, _ = trained
    code, out, err = run(folder, *BENCH, "--quiet", "--seeds", "0,")
    assert (code, err) == (0, "")
    assert "naive" in out and "PSNR" in out
    loud = run(folder, *BENCH, "--seeds", "0,")[1]
    for remark in ("page: ", "files in ", "training seed"):
        assert remark in loud and remark not in out


def test_train_says_as_much_as_it_is_asked_to(trained) -> None:
    folder, _ = trained
    cell = ["train", "method=naive", "seed=3", *TINY]
    code, out, err = run(folder, *cell, "--quiet")
    assert (code, err) == (0, "") and "naive on inpainting, digits: done" in out
    code, out, _ = run(folder, *cell, "--json")
    (line,) = out.splitlines()
    assert (code, json.loads(line)["seed"]) == (0, 3)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["train", "--quiet", "--verbose"], "--quiet and --verbose: give one of them"),
        (["bench", "--quiet", "--verbose"], "--quiet and --verbose: give one of them"),
        (["bench", "--dry-run", "--json"], "--dry-run trains nothing"),
    ],
)
def test_what_contradicts_itself_is_a_mistake(tmp_path: Path, given: list[str], told: str) -> None:
    code, out, err = run(tmp_path, *given)
    assert (code, out) == (2, "") and told in err and not (tmp_path / "runs").exists()


def test_quiet_progress_says_errors() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, no_color=True)
    progress = Progress(console, is_quiet=True)
    with progress.live(), progress.task("train", 2) as task:
        task.advance()
        progress.say("[1/2] naive")
        progress.say("naive failed", is_error=True)
    assert console.file.getvalue() == "naive failed\n"


def test_verbose_shows_what_a_cell_prints_from_now_on(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("before\n")
    shown = {}
    for has_logs in (False, True):
        console = Console(file=io.StringIO())
        shown[has_logs] = console.file
        cell = Shown(Progress(console, has_logs=has_logs), "em, seed 0", None, path)
        with path.open("a") as log:
            log.write("fitted [/x] \x1b[2J\nhal")
        cell({"event": "say", "text": "said"})
        with path.open("a") as log:
            log.write("f\n")
        cell.close()
    assert shown[False].getvalue() == "said\n"
    told = "  em, seed 0 | fitted [/x] \\x1b[2J\nsaid\n  em, seed 0 | half\n"
    assert shown[True].getvalue() == told
    log = Log(path)
    path.write_text("new\n")  # the cell's folder was made anew
    assert log.lines() == ["new"]
    path.unlink()
    assert log.lines() == []
