"""What is told of the data: once, on stderr, and kept in the record."""

import numpy as np
import pytest
from typer.testing import CliRunner

from cleanprior.cells import CellFolder
from cleanprior.cells.run import run_cell
from cleanprior.cli import build_app
from cleanprior.config import compose
from cleanprior.notices import Notice, show_on_stderr, tell
from cleanprior.progress import Progress


def test_a_line_is_told_once_a_command_and_says_what_it_is(capsys):
    show_on_stderr()
    for _ in range(2):
        tell([Notice("nineteen and five"), Notice("almost a constant", True)])
    assert capsys.readouterr().err == "note: nineteen and five\nwarning: almost a constant\n"
    show_on_stderr()
    tell([Notice("nineteen and five")])
    assert capsys.readouterr().err == "note: nineteen and five\n"


@pytest.fixture
def dark(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 3, (30, 8, 8), np.uint8))
    return [f"data.path={tmp_path}/x.npy", "data.range=[0,255]"]


def test_measure_and_train_tell_and_the_record_keeps_it(dark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measure = CliRunner().invoke(build_app(), ["measure", "data=arrays", *dark, "--to", "y.npz"])
    assert measure.exit_code == 0
    assert measure.stderr.count("warning: x.npy: the values lie from 0 to 2") == 1
    assert "the values lie" not in measure.stdout
    config = compose(["data=measurements", "data.path=y.npz", "method=oracle"])
    record = run_cell(CellFolder(tmp_path / "runs", config), Progress())
    assert record["status"].startswith("skipped")
    assert any("held out, of the file's arrays" in text for text in record["data_notices"])
    assert any("almost a constant" in text for text in record["data_notices"])
