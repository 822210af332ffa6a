"""The other commands: train, sample, restore, list, --version; a kill in the middle; a plug-in."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from plugins import CARD, METHOD, write_plugin
from safetensors.numpy import load_file

PROGRAM = str(Path(sys.executable).with_name("cleanprior"))
TINY = [
    "training.budget=640",
    "evaluation.test_images=8",
    "evaluation.draws=2",
    "evaluation.samples=50",
    "evaluation.sampling_seeds=[0]",
    "evaluation.features=pixels",
    "backbone.hid_channels=[8,16]",
    "backbone.mod_features=16",
    "posterior.steps=3",
    "sampler.steps=3",
]
EM_TINY = [*TINY, "method.posterior.steps=3"]


def run(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": path}
    command = [PROGRAM, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, timeout=300)


def test_version_list_and_help_import_no_torch(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout.startswith("cleanprior ")
    listed = run(tmp_path, "list", "methods").stdout
    assert "RANDOM: the method needs an operator that varies between images" in listed
    assert "random missing pixels" in run(tmp_path, "list", "operators").stdout
    assert "fashion_mnist" in run(tmp_path, "list", "datasets").stdout
    assert run(tmp_path, "list", "method").returncode == 2
    code = (
        "import sys; from cleanprior.cli import build_app; build_app();"
        "assert not {'torch', 'pandas', 'hydra'} & set(sys.modules), 'slow import at start-up'"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_train_sample_and_restore(tmp_path: Path) -> None:
    trained = run(
        tmp_path, "train", "method=em", "operator=denoising", "operator.sigma=0.5", *EM_TINY
    )
    assert trained.returncode == 0, trained.stderr
    assert "em on denoising, digits: done" in trained.stdout
    (cell,) = (tmp_path / "runs" / "cells").iterdir()
    sampled = run(tmp_path, "sample", str(cell), "-n", "5", "--to", "mine.npz", "sampler.steps=3")
    assert sampled.returncode == 0, sampled.stderr
    assert np.load(tmp_path / "mine.npz")["x"].shape == (5, 1, 8, 8)
    assert (tmp_path / "mine.png").is_file()
    restored = run(tmp_path, "restore", str(cell), "-n", "4", "posterior.steps=3")
    assert restored.returncode == 0, restored.stderr
    assert "4 restorations by mmps" in restored.stdout
    rng = np.random.default_rng(0)
    mask = (rng.random((3, 1, 8, 8)) < 0.5).astype(np.float32)
    y = mask * rng.standard_normal((3, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "own.npz", y=y, sigma_y=np.zeros(3, np.float32), **{"params.mask": mask})
    own = run(
        tmp_path,
        "restore",
        str(cell / "prior"),
        "--operator",
        "inpainting",
        "--measurements",
        "own.npz",
        "posterior.steps=3",
    )
    assert own.returncode == 0, own.stderr
    assert np.load(tmp_path / "restored.npz")["x"].shape == (3, 1, 8, 8)


def test_a_missing_prior_is_one_clear_line(tmp_path: Path) -> None:
    result = run(tmp_path, "sample", "nowhere")
    assert result.returncode == 2
    assert "'nowhere' is not a saved prior: 'prior.yaml' is missing" in result.stderr


def test_a_refused_method_names_those_that_can_be_trained(tmp_path: Path) -> None:
    result = run(tmp_path, "train", "method=ambient", "operator=blur")
    assert result.returncode == 2
    able = result.stderr.partition("Methods that can be trained on it: ")[2].split(", ")
    assert {"em", "em_mmps", "naive"} <= {name.strip() for name in able}
    assert "ambient" not in able
    assert list(tmp_path.iterdir()) == []


EM = [
    "train",
    "method=em_mmps",
    "training.budget=12800",
    "training.checkpoint_seconds=0.1",
    "method.posterior.steps=3",
    "method.chunk=64",
    "method.resume_rounds=2",
    *TINY[1:],
]


def weights(folder: Path) -> dict[str, np.ndarray]:
    (prior,) = folder.glob("runs/cells/*/prior")
    return load_file(prior / "weights.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The weights of EM that nobody has killed."""
    whole = tmp_path_factory.mktemp("whole")
    assert run(whole, *EM).returncode == 0
    return weights(whole)


@pytest.mark.parametrize("moment", ["E-step", "M-step"])
def test_killed_in_an_em_round_and_resumed_equals_uninterrupted(
    tmp_path: Path, moment: str, uninterrupted: dict[str, np.ndarray]
) -> None:
    killed = tmp_path
    env = {**os.environ, "PYTHONPATH": ""}
    process = subprocess.Popen([PROGRAM, *EM], cwd=killed, stderr=subprocess.DEVNULL, env=env)
    deadline = time.monotonic() + 120
    was_found = False
    while time.monotonic() < deadline and process.poll() is None and not was_found:
        draws = list(killed.glob("runs/cells/*/training/round/draws-001-*.safetensors"))
        if moment == "E-step":
            was_found = 3 <= len(draws) < 20
        else:
            was_found = len(draws) == 23 and _has_step(killed)
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert was_found, "the run was not caught in the round"
    assert not list(killed.glob("runs/cells/*/record-*.json"))
    assert run(killed, *EM).returncode == 0
    expected, found = uninterrupted, weights(killed)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[k], found[k]) for k in expected)


def _has_step(folder: Path) -> bool:
    """Whether the checkpoint stands inside round 1."""
    import json
    import struct

    (path,) = folder.glob("runs/cells/*/training/checkpoint.safetensors")
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        meta = json.loads(json.loads(file.read(size))["__metadata__"]["json"])
    return meta["round"] == 1 and meta["step"] > 0


def test_a_method_from_outside_is_listed_and_stands_in_the_table(tmp_path: Path) -> None:
    site = tmp_path / "site"
    files = {"__init__.py": METHOD, "configs/method/shrunk.yaml": CARD}
    own_door = "[cleanprior.methods]\nshrunk = shrunk_prior:Shrunk\n"
    write_plugin(site, "shrunk_prior", files, own_door)
    listed = run(tmp_path, "list", "methods", path=str(site))
    assert "a guest" in listed.stdout
    benched = run(
        tmp_path, "bench", "--methods", "shrunk", "--no-references", *TINY, path=str(site)
    )
    assert benched.returncode == 0, benched.stderr
    assert "shrunk" in benched.stdout
    assert "[code]" not in benched.stdout
    (site / "shrunk_prior" / "__init__.py").write_text(METHOD + "\nEDITED = 1\n")
    again = run(tmp_path, "bench", "--methods", "shrunk", "--no-references", *TINY, path=str(site))
    assert "[code] shrunk: trained by other code of the method than is installed" in again.stdout
    refused = run(tmp_path, "train", "method=shrunk", "method.facto=1", path=str(site))
    assert "Did you mean 'method.factor'?" in refused.stderr
