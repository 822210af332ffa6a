"""A saved prior and anybody's restorations, judged as the benchmarks judge their rows."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import cleanprior as cp
from cleanprior import cli
from cleanprior.cells import CellFolder
from cleanprior.cells.run import run_cell
from cleanprior.config import compose
from cleanprior.diffusion.backbones import build_backbone
from cleanprior.diffusion.denoiser import Denoiser
from cleanprior.evaluation.given import read_restorations
from cleanprior.progress import Progress
from cleanprior.testing.parts import TINY

SHAPE = (1, 8, 8)
QUICK = {"test_images": 8, "draws": 2, "samples": 50, "sampling_seeds": [0], "features": "pixels"}
STEPS = ["posterior.steps=2", "sampler.steps=2"]
KEYS = [f"evaluation.{k}={v}".replace(" ", "") for k, v in QUICK.items()] + STEPS
TRAINED = ["method=naive", "operator.p=0.25", "operator.sigma=0.1", "training.budget=128"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder, in this process; return its code, stderr and stdout."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["cleanprior", *map(str, arguments)])
        capsys.readouterr()
        code = cli._run()
        told = capsys.readouterr()
        return code, told.err, told.out

    return command


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """A cell that was trained a little, with its record."""
    config = compose([*TRAINED, *KEYS])
    folder = CellFolder(tmp_path_factory.mktemp("runs"), config)
    return folder.path, run_cell(folder, Progress())


@pytest.fixture(scope="module")
def A():
    return cp.operator("inpainting", SHAPE, p=0.25, sigma=0.1)


@pytest.fixture(scope="module")
def truth():
    return cp.dataset("digits").test


def test_a_prior_gets_the_numbers_of_its_record(run, cell, tmp_path):
    path, record = cell
    code, told, shown = run("evaluate", path / "prior", *KEYS, "--to", "found.json")
    assert code == 0, told
    found = json.loads((tmp_path / "found.json").read_text())
    (row,) = record["rows"]
    assert found["row"]["metrics"] == pytest.approx(row["metrics"], rel=1e-5)
    assert found["row"]["missing"] == row["missing"]
    assert found["config"]["operator"]["sigma"] == 0.1, "the operator of its training"
    assert f"psnr {row['metrics']['psnr']:.4g}" in shown
    for group in ("one draw:", "mean or point:", "spread:", "proximal:", "samples: fd"):
        assert group in shown, group
    assert "no lpips, lpips_point: LPIPS's network needs 31 pixels" in shown
    assert not (tmp_path / "runs").exists()


def test_restorations_in_a_file_get_the_numbers_of_the_prior_that_made_them(run, cell, tmp_path):
    path, record = cell
    assert run("restore", path, "-n", "8", *STEPS)[0] == 0
    operator = ["operator.p=0.25", "operator.sigma=0.1"]
    code, told, shown = run("evaluate", "restored.npz", "--to", "r.json", *operator)
    assert code == 0, told
    row = json.loads((tmp_path / "r.json").read_text())["row"]
    assert row["metrics"]["psnr"] == pytest.approx(record["rows"][0]["metrics"]["psnr"], rel=1e-5)
    assert row["missing"]["generation"] == "restorations alone: nothing samples p(x)"
    assert "8 held-out measurements" in shown
    code, _, shown = run("evaluate", "restored.npz", "--point", *operator)
    assert code == 0 and "given: point estimate" in shown and "psnr_point" in shown


def test_pictures_are_taken_in_the_order_of_their_numbers(run, truth, A, tmp_path):
    folder = tmp_path / "restorations"
    folder.mkdir()
    for number, x in enumerate(truth[:12]):
        values = ((x[0].numpy() + 1) * 127.5).round().astype(np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
    x = read_restorations(folder, SHAPE)
    torch.testing.assert_close(x[0], truth[:12], atol=0.5 / 127, rtol=0)
    code, told, shown = run("evaluate", folder, "--data", "digits", "--operator", "inpainting")
    assert code == 0, told
    assert "12 held-out measurements" in shown and "careful: leak?" in shown
    (folder / "12.png").write_bytes((folder / "0.png").read_bytes()[:60])
    code, told, _ = run("evaluate", folder)
    assert code == 2 and "12.png" in told and told.count("\n") == 1


def test_python_gives_the_numbers_of_the_command(cell, A, truth):
    path, record = cell
    prior = cp.load(path)
    found = cp.evaluate(
        prior,
        "digits",
        A,
        posterior=cp.posterior("mmps", steps=2),
        sampler=cp.sampler("multistep", steps=2),
        progress=False,
        **QUICK,
    )
    assert found.metrics == pytest.approx(record["rows"][0]["metrics"], rel=1e-5)
    assert found.row.way.startswith("mmps: one draw")
    noise = torch.randn(3, 6, *SHAPE, generator=torch.Generator().manual_seed(0))
    draws = cp.evaluate(truth[:6] + 0.3 * noise, "digits", A, progress=False)
    assert draws.row.draws == 3 and draws.metrics["psnr_point"] > draws.metrics["psnr"] + 3
    error = (truth[:6] + 0.3 * noise[0]).clamp(-1, 1) - truth[:6]
    expected = 10 * torch.log10(4 / error.square().mean((1, 2, 3)))
    assert draws.metrics["psnr"] == pytest.approx(expected.mean().item(), rel=1e-5)
    with pytest.raises(cp.UserError, match="at least 2 and at most"):
        cp.evaluate(truth[:1], "digits", A, progress=False)


def test_measurements_alone_have_no_reference(run, cell):
    path, _ = cell
    assert run("measure", "operator.p=0.25", "operator.sigma=0.1", "--to", "mine.npz")[0] == 0
    code, told, shown = run("evaluate", path, "--data", "measurements", "data.path=mine.npz", *KEYS)
    assert code == 0, told
    assert "consistency" in shown and "proximal_fd" in shown and "psnr" not in shown
    assert "no clean: no clean images: no PSNR, SSIM or FD" in shown


def _saved(path, x, **others):
    np.savez(path, x=x, **others)
    return path


X = np.zeros((4, 1, 8, 8), np.float32)
OPEN = ["operator.p=0"]
MISTAKES = {
    "nothing there": (lambda p: ["nowhere"], "'nowhere' is not there"),
    "another file": (lambda p: [p / "note.txt"], "neither a saved prior nor a file of"),
    "an empty folder": (lambda p: [p / "empty"], "no saved prior, and holds no restorations"),
    "a name of data": (lambda p: [p / "x.npz", "--data", "digit"], "Did you mean 'digits'?"),
    "an operator": (lambda p: [p / "x.npz", "--operator", "blurr"], "Did you mean 'blur'?"),
    "given twice": (lambda p: [p / "x.npz", "--data", "digits", "data=mnist"], "is given twice"),
    "a destination": (lambda p: [p / "x.npz", "--to", "a.txt"], "written as .json"),
    "too many": (lambda p: [_saved(p / "m.npz", np.zeros((999, *SHAPE)))], "at most 360"),
    "a shape": (lambda p: [_saved(p / "s.npz", X[..., :7])], "needed: (n, 1, 8, 8)"),
    "NaN": (lambda p: [_saved(p / "n.npz", X * np.nan)], "holds NaN"),
    "bytes as floats": (lambda p: [_saved(p / "b.npz", X + 255)], "values from 255 to 255"),
    "whole numbers": (lambda p: [_saved(p / "i.npz", X.astype(np.int64))], "holds int64"),
    "no array": (lambda p: [p / "two.npz"], "holds a, b; needed: one array, or one called 'x'"),
    "draws as points": (lambda p: [_saved(p / "k.npz", X[None] + X[:2, None]), "--point"], "draws"),
    "a point prior": (lambda p: [p / "prior", "--point"], "--point says what restorations are"),
    "another shape": (
        lambda p: [p / "prior", "--data", "measurements", f"data.path={p / 'y.npz'}"] + OPEN,
        "the prior makes (1, 8, 8)",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mistakes")
    (path / "empty").mkdir()
    (path / "note.txt").write_text("hello")
    _saved(path / "x.npz", X)
    np.savez(path / "two.npz", a=X, b=X)
    big = np.random.default_rng(0).standard_normal((20, 1, 9, 9)).astype(np.float32)
    np.savez(path / "y.npz", y=big, sigma_y=np.zeros(20), **{"params/mask": np.ones_like(big)})
    made = cp.Prior(Denoiser(build_backbone(TINY, 1, 1, 0), 0.5, 0), SHAPE, TINY)
    made.save(path / "prior")
    return path


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_line(run, folder, kind):
    arguments, expected = MISTAKES[kind]
    code, told, _ = run("evaluate", *arguments(folder))
    assert code == 2, told
    (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert expected in line
