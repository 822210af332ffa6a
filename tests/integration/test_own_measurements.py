"""Measurements alone, from a file, through every command: the clean images are deleted first."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from cleanprior.cli import build_app
from cleanprior.errors import UserError

PROBLEM = ["operator=inpainting", "operator.p=0.4", "operator.sigma=0.1"]
TINY = [
    "training.budget=64",
    "training.batch=16",
    "training.warmup=1",
    "training.ema=0.5",
    "training.device=cpu",
    "training.precision=fp32",
    "evaluation.test_images=6",
    "evaluation.draws=2",
    "evaluation.samples=50",
    "evaluation.sampling_seeds=[0]",
    "posterior.steps=2",
    "sampler.steps=2",
]
OWN = ["data=measurements", "data.path=mine.npz", *PROBLEM]
METHODS = {"naive": [], "em_mmps": ["method.posterior.steps=2", "method.low_rank_iterations=1"]}
APP = build_app()


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(APP, list(arguments))
    if isinstance(result.exception, UserError):
        return result
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def weights(folder: str, method: str) -> dict[str, np.ndarray]:
    (file,) = Path(folder).glob(f"cells/*-{method}-*/prior/weights.safetensors")
    return load_file(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Measurements of images that no longer exist, and priors trained before they were deleted."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "photos").mkdir()
        rng = np.random.default_rng(0)
        for i in range(80):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(f"photos/{i}.png")
        photos = ["data=folder", "data.path=photos", "data.resolution=8", "data.channels=1"]
        photos += ["data.test_share=0.3", *PROBLEM]
        made = run("measure", *photos, "--to", "mine.npz")
        assert "wrote mine.npz" in made.output
        assert {p.name for p in folder.iterdir()} == {"photos", "mine.npz"}
        for method, options in METHODS.items():
            run("train", *photos, f"method={method}", *TINY, *options, "--out", "before")
        shutil.rmtree("photos")
        shutil.rmtree("before/measurements")
        yield folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_the_file_holds_measurements_and_nothing_else() -> None:
    names = {f"{s}{k}" for s in ("", "test/") for k in ("y", "sigma_y", "params/mask")}
    assert set(np.load("mine.npz").files) == names


@pytest.mark.parametrize("method", METHODS)
def test_the_weights_are_those_of_training_on_measurements_of_clean_images(method: str) -> None:
    """The same bits: what was at hand beside the measurements had no part in training."""
    result = run("train", *OWN, f"method={method}", *TINY, *METHODS[method])
    assert f"{method} on inpainting, measurements: done" in result.output
    assert "psnr" not in result.output
    ours, theirs = weights("runs", method), weights("before", method)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[k], theirs[k]) for k in ours)
    assert not Path("runs/measurements").exists()


def test_the_prior_restores_and_samples() -> None:
    (cell,) = Path("runs/cells").glob("*-naive-*")
    restored = run("restore", str(cell), "-n", "3", "posterior.steps=2", "--to", "held_out.npz")
    assert "3 restorations by mmps" in restored.output
    assert "(the noise alone: 0.0" in restored.output
    assert "PSNR" not in restored.output
    again = run("restore", str(cell), "--measurements", "mine.npz", "-n", "3", "posterior.steps=2")
    assert "(the noise alone: 0.0" in again.output
    run("sample", str(cell), "-n", "3", "sampler.steps=2")
    for name in ("held_out", "restored", "samples"):
        assert np.load(f"{name}.npz")["x"].shape == (3, 1, 8, 8)


def test_a_file_of_another_operator_is_refused_by_restore() -> None:
    (cell,) = Path("runs/cells").glob("*-naive-*")
    refused = run("restore", str(cell), "--operator", "denoising", "--measurements", "mine.npz")
    assert "'params/mask' is not a parameter of operator denoising" in str(refused.exception)


def test_the_bench_shows_what_needs_no_reference_and_says_why_not_the_rest() -> None:
    options = ["data.path=mine.npz", *PROBLEM[1:], *TINY]
    result = run("bench", "--methods", "naive,em", "--data", "measurements", *options)
    assert "no clean images: no PSNR, SSIM or FD" in result.output
    assert re.search(r"\|y-Ax\| of the true images: 0\.09\d+ \(the noise\)", result.output)
    assert "em: skipped: em starts from clean images (50), and data=measurements has none" in (
        result.output
    )
    (table,) = Path("runs/tables").glob("*/records.parquet")
    frame = pd.read_parquet(table).set_index("method")
    assert frame.loc["oracle", "status"].startswith("skipped: oracle starts from clean images")
    naive = frame.loc["naive"]
    assert naive["status"] == "done"
    assert "no clean images: no PSNR, SSIM or FD" in naive["missing"]
    for key in ("consistency", "train_seconds", "restore_seconds", "sample_seconds", "evaluations"):
        assert naive[key] >= 0, key
    assert not {"psnr", "ssim", "fd"} & set(frame.columns[frame.notna().any()])
    shown = (table.parent / "table.md").read_text().splitlines()
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", text)]
        for text in shown
        if text.startswith(("| method", "| naive"))
    ]
    line = dict(zip(*cells, strict=True))
    assert line["PSNR dB draw"] == line["FD"] == "-" != line["proximal FD"]
    names = {p.name for p in table.parent.iterdir()}
    assert {"samples.png", "restorations.png", "quality_cost.png"} <= names


def test_the_record_says_what_the_noise_alone_would_leave() -> None:
    (file,) = Path("runs/cells").glob("*-naive-*/record-*.json")
    record = json.loads(file.read_text())
    assert 0.095 < record["evaluation"]["expected_consistency"] < 0.1
    assert record["clean_images"] == 0
    assert record["rows"][0]["per_image"].keys() == {"consistency", "consistency_point"}


def test_a_moved_file_is_the_same_cell() -> None:
    Path("elsewhere").mkdir()
    shutil.copy("mine.npz", "elsewhere/other.npz")
    cells = set(Path("runs/cells").iterdir())
    (cell,) = Path("runs/cells").glob("*-naive-*")
    changed = (cell / "training" / "checkpoint.safetensors").stat().st_mtime_ns
    moved = ["data=measurements", "data.path=elsewhere/other.npz", *PROBLEM]
    run("train", *moved, "method=naive", *TINY)
    assert set(Path("runs/cells").iterdir()) == cells
    assert (cell / "training" / "checkpoint.safetensors").stat().st_mtime_ns == changed
