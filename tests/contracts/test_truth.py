"""Operators that are believed to be others: what measures, what is known, what is refused."""

import json

import pytest
import torch
from cleanprior.benchmarks.description import bench
from cleanprior.benchmarks.plan import make_plan

from cleanprior.cells.folder import CellFolder
from cleanprior.cells.identity import Identity, training_identity
from cleanprior.cells.run import Cell
from cleanprior.config import compose, recompose
from cleanprior.errors import UserError


def cell(tmp_path, *overrides):
    return Cell(CellFolder(tmp_path, compose(["method=naive", *overrides])))


def test_without_a_truth_a_configuration_is_what_it_was():
    plain = compose(["operator=denoising"])
    assert "truth" not in plain
    same = compose(["operator=denoising", "truth.sigma=0.5", "truth.shift=0"])
    assert same == plain and Identity(same).training == Identity(plain).training


def test_a_truth_is_part_of_the_cell_and_comes_back_from_its_record():
    config = compose(["operator=denoising", "operator.sigma=0.25", "truth.sigma=0.5"])
    assert config["truth"] == {"sigma": 0.5} and config["operator"]["sigma"] == 0.25
    known = compose(["operator=denoising", "operator.sigma=0.25"])
    assert Identity(config).training != Identity(known).training
    assert Identity(config).evaluation != Identity(known).evaluation
    # What defines a training beside its measurements is what is believed.
    assert training_identity(config) == training_identity(known)
    assert recompose(json.loads(json.dumps(config)), "x") == config


@pytest.mark.parametrize("given", ["sigma", 1, ["sigma"], None])
def test_a_strangers_truth_is_data(given):
    config = compose(["operator=denoising", "truth.sigma=0.5"])
    with pytest.raises(UserError, match="'x' is damaged: its truth holds no keys"):
        recompose({**config, "truth": given}, "x")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["truth.sigma=-1"], "truth.sigma=-1; allowed: at least 0"),
        (["truth.sigma=a"], "truth.sigma"),
        (["truth.simga=1"], "unknown key 'truth.simga'"),
        (["truth.blur_std=1"], "unknown key 'truth.blur_std'"),
        (["truth=1"], "unknown key 'truth'"),
        (["truth.shift=0.5"], "truth.shift"),
        (["truth.capabilities=[mask]"], "unknown key"),
    ],
)
def test_a_truth_that_is_none_is_one_line(overrides, message):
    with pytest.raises(UserError) as raised:
        compose(["operator=inpainting", *overrides])
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_y_is_measured_by_the_truth_and_told_as_the_belief(tmp_path):
    true = cell(tmp_path / "a", "operator=denoising", "operator.sigma=0.5").measurements("train")
    taken = cell(
        tmp_path / "b", "operator=denoising", "operator.sigma=0.25", "truth.sigma=0.5"
    ).measurements("train")
    assert torch.equal(true.y[:], taken.y[:])
    assert (taken.sigma_y == 0.25).all() and (true.sigma_y == 0.5).all()
    assert true.hash != taken.hash


def test_a_shift_moves_what_measures_and_not_what_is_known(tmp_path):
    known = cell(tmp_path / "a", "operator=inpainting").measurements("train")
    built = cell(tmp_path / "b", "operator=inpainting", "truth.shift=1")
    taken = built.measurements("train")
    mask = known.params["mask"][:]
    assert torch.equal(mask, taken.params["mask"][:])
    x = built.data.train
    assert torch.equal(taken.y[:], x * torch.roll(mask, 1, -1))
    # Without a truth both are one.
    assert torch.equal(known.y[:], x * mask)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["operator=blur", "truth.shift=1"], "no parameters of an image"),
        (["operator=downsampling", "truth.factor=4"], "could be mistaken for it"),
    ],
)
def test_a_truth_that_nobody_could_mistake_is_refused(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        cell(tmp_path, *overrides)


def test_a_users_own_measurements_have_no_truth(tmp_path):
    drawn = cell(tmp_path, "operator=inpainting").measurements("train")[:8]
    path = tmp_path / "mine.safetensors"
    drawn.save(path)
    own = ["data=measurements", f"data.path={path}"]
    with pytest.raises(UserError, match="drawn already"):
        cell(tmp_path, *own, "operator=inpainting", "truth.shift=1")


def test_the_process_that_trains_is_not_told_the_truth(tmp_path):
    built = cell(tmp_path, "operator=denoising", "truth.sigma=0.1")
    files = built.folder.files.training
    files.folder.mkdir(parents=True)
    built.job().write(files)
    assert "truth" not in files.job.read_text()


def test_the_benchmark_names_what_is_true_and_what_is_known():
    plan = make_plan(bench("robustness"))
    labels = [problem.label for problem in plan.problems]
    assert labels[1] == "denoising sigma=0.25 truth sigma=0.5" and len(set(labels)) == len(labels)
