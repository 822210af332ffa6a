"""One cell in several processes of a launcher: the same training, one exit code, one record."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
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
#: The same without a launcher, as ``bench --devices-per-cell 2``.
TWO = "training.processes=2"
TRACKED = ["training.tracker=tensorboard"] if find_spec("tensorboard") else []
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(cwd: Path, launcher: list[str], *more: str) -> "subprocess.CompletedProcess[str]":
    cwd.mkdir(exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "CLEANPRIOR_JOBS": "1"}
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
    two = run(folder / "two", LAUNCHER, *TRACKED)
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


def test_without_a_launcher_it_is_the_same(both: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(tmp_path, [], TWO)
    assert result.returncode == 0, result.stderr
    assert "em_mmps on inpainting, digits, seed 0, in 2 processes" in result.stderr
    here, there = weights_of(tmp_path), weights_of(both[1])
    assert all(np.array_equal(here[key], value) for key, value in there.items())
    mine, other = record_of(tmp_path), record_of(both[1])
    for key in ("cell", "processes"):
        assert mine[key] == other[key]
    assert mine["training"]["history"] == other["training"]["history"]
    before = {p: p.stat().st_mtime_ns for p in both[1].rglob("checkpoint.safetensors")}
    found = run(both[1], [], TWO)
    assert found.returncode == 0, found.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before and len(before) == 1


@pytest.mark.skipif(not TRACKED, reason="tensorboard is not installed")
def test_two_processes_are_one_run_of_a_tracker(both: tuple[Path, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (path for path in both[1].glob("runs/cells/*/training/tracker/*") if path.is_dir())
    events = EventAccumulator(str(folder)).Reload()
    history = record_of(both[1])["training"]["history"]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([h["loss"] for h in history])
    assert len(events.Scalars("mmps one draw/psnr")) == 1


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
