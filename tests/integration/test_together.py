"""One cell in several processes of a launcher: the same training, one exit code, one record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

CELL = [
    "train",
    "method=em_mmps",
    "method.pool=0.1",
    "method.posterior.steps=2",
    "backbone.hid_channels=[8,16]",
    "backbone.mod_features=16",
    "training.batch=16",
    "training.budget=1600",
    "training.lr=1e-3",
    "training.device=cpu",
    "evaluation.test_images=16",
    "evaluation.samples=16",
    "evaluation.sampling_seeds=[0]",
    "evaluation.draws=1",
    "evaluation.features=pixels",
    "posterior.steps=2",
    "sampler.steps=2",
]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(cwd: Path, launcher: list[str], *more: str) -> "subprocess.CompletedProcess[str]":
    cwd.mkdir(exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    program = [sys.executable, *launcher, "-m", "cleanprior", *CELL, *more]
    return subprocess.run(program, cwd=cwd, env=env, text=True, capture_output=True, timeout=400)


def record_of(cwd: Path) -> dict:
    (path,) = cwd.glob("runs/cells/*/record-*.json")
    return json.loads(path.read_text())


def weights_of(cwd: Path) -> dict[str, np.ndarray]:
    (path,) = cwd.glob("runs/cells/*/prior/weights.safetensors")
    return load_file(path)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two batches a step: those of two processes, and those of one that takes two."""
    folder = tmp_path_factory.mktemp("together")
    two = run(folder / "two", LAUNCHER)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("em_mmps on inpainting, digits: done") == 1, "one speaks for all"
    one = run(folder / "one", [], "training.accumulate=2")
    assert one.returncode == 0, one.stderr
    return folder / "one", folder / "two"


def test_two_processes_train_as_one_that_takes_two_batches(both: tuple[Path, Path]) -> None:
    one, two = (weights_of(folder) for folder in both)
    assert one.keys() == two.keys()
    for key, value in one.items():
        np.testing.assert_allclose(two[key], value, atol=2e-4, err_msg=key)
        assert abs(float(two[key].mean() - value.mean())) < 1e-5, key
    there, here = record_of(both[1]), record_of(both[0])
    assert there["cell"] == here["cell"], "it is the same cell"
    for key in ("psnr", "consistency"):
        first, second = (r["rows"][0]["metrics"][key] for r in (here, there))
        assert second == pytest.approx(first, rel=0.02)
    assert there["processes"] == 2
    assert there["training"]["images"] == here["training"]["images"] == 1600
    assert there["training"]["passes"] == here["training"]["passes"], "nothing is counted twice"


def test_it_is_found_again_and_one_process_finds_it_too(both: tuple[Path, Path]) -> None:
    before = {p: p.stat().st_mtime_ns for p in both[1].rglob("checkpoint.safetensors")}
    again = run(both[1], LAUNCHER)
    assert again.returncode == 0, again.stderr
    alone = run(both[1], [], "training.accumulate=2")
    assert alone.returncode == 0, alone.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before and len(before) == 1


def test_a_mistake_is_told_before_anything_is_written(tmp_path: Path) -> None:
    refused = run(tmp_path / "a", LAUNCHER, "operator.sigma=-1")
    assert refused.returncode == 1
    assert "error: operator.sigma=-1; allowed" in refused.stderr
    assert not (tmp_path / "a" / "runs").exists()
