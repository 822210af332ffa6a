"""A user's own measurements: formats, splits, what is said of a file that does not fit."""

import os
import shutil
import time

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from cleanprior.cells import CellFolder, Identity
from cleanprior.cells.run import Cell, run_cell
from cleanprior.config import capabilities, compose, registry
from cleanprior.data import CleanData, MeasuredData, Measurements, measured_file, write_splits
from cleanprior.data.measured import check_measurements
from cleanprior.errors import UserError
from cleanprior.evaluation.metrics.restoration import expected_consistency
from cleanprior.fingerprint import fingerprint
from cleanprior.operators.likelihood import Likelihood
from cleanprior.progress import Progress

SHAPE = (1, 8, 8)


@pytest.fixture
def operator(make_operator):
    return make_operator("inpainting", SHAPE, "p=0.4", "sigma=0.1")


@pytest.fixture
def measured(operator, digits_data):
    return Measurements.draw(digits_data.train[:30], operator, 3, "train")


def arrays_of(measured):
    """The arrays of a file, to be changed by a test."""
    tensors = measured.tensors()
    return {k.replace("params.", "params/"): v.numpy().copy() for k, v in tensors.items()}


def write(path, arrays):
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".safetensors"])
def test_what_was_written_is_read_with_the_same_hash(measured, tmp_path, suffix):
    test = Measurements.draw(torch.zeros(5, *SHAPE), _operator_without_noise(), 0, "test")
    path = tmp_path / "deep" / f"mine{suffix}"
    write_splits(path, measured, test)
    data = measured_file(str(path), None, 0.5)
    assert (data.train.hash, data.test.hash) == (measured.hash, test.hash)
    assert (data.name, data.image_shape) == ("mine", SHAPE)
    assert Measurements.load(path).hash == measured.hash


def _operator_without_noise():
    from cleanprior.operators import RandomInpainting

    return RandomInpainting(SHAPE, 0.5, False, 0.0)


def test_a_user_writes_the_file_without_this_package(tmp_path):
    """A single noise level, 8-bit masks, groups of HDF5."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (20, 1, 8, 8), dtype=np.uint8)
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["y"] = mask * rng.uniform(-1, 1, (20, 1, 8, 8))
        file["sigma_y"] = 0.0
        file.create_group("params")["mask"] = mask
    data = measured_file(str(tmp_path / "mine.h5"), None, 0.3)
    data.check(_operator_without_noise())
    assert len(data.train) + len(data.test) == 20
    assert data.train.params["mask"].dtype == torch.float32


def test_without_a_shipped_split_the_content_decides_and_both_splits_keep_their_rows(
    measured, tmp_path
):
    data = measured_file(write(tmp_path / "a.npz", arrays_of(measured)), None, 0.3)
    turned = {k: v[::-1] for k, v in arrays_of(measured).items()}
    again = measured_file(write(tmp_path / "b.npz", turned), None, 0.3)
    rows = {tuple(y.flatten().tolist()) for y in data.test.y}
    assert {tuple(y.flatten().tolist()) for y in again.test.y} == rows
    assert len(data.train) + len(data.test) == 30
    index = {tuple(y.flatten().tolist()): i for i, y in enumerate(measured.y)}
    for split in (data.train, data.test):
        order = torch.tensor([index[tuple(y.flatten().tolist())] for y in split.y])
        assert torch.equal(split.params["mask"], measured.params["mask"][order])


MISTAKES = {
    "no y": (lambda a: a.pop("y"), "holds no array 'y'; found: params/mask, sigma_y"),
    "no sigma_y": (lambda a: a.pop("sigma_y"), "holds no noise level; add 'sigma_y'"),
    "no mask": (
        lambda a: a.pop("params/mask"),
        r"needs params/mask of shape \(\d+, 1, 8, 8\); the measurements have no parameters",
    ),
    "clean image": (lambda a: a.update(x=a["y"]), "holds 'x', which is not a part of measurements"),
    "unknown parameter": (
        lambda a: a.update({"params/maks": a["params/mask"]}),
        "'params/maks' is not a parameter of operator inpainting.*Did you mean 'mask'",
    ),
    "shape of mask": (
        lambda a: a.update({"params/mask": a["params/mask"][..., :4]}),
        r"needs params/mask of shape \(\d+, 1, 8, 8\); theirs has \(\d+, 1, 8, 4\)",
    ),
    "number of masks": (
        lambda a: a.update({"params/mask": a["params/mask"][:9]}),
        "params 'mask' describe 9 images; y holds 30",
    ),
    "number of levels": (
        lambda a: a.update(sigma_y=a["sigma_y"][:9]),
        r"sigma_y has shape \(9,\); needed: \(30,\)",
    ),
    "mask of greys": (
        lambda a: a.update({"params/mask": a["params/mask"] * 0.5}),
        r"params must be 1 \(measured\) or 0 \(not measured\); other values found",
    ),
    "inverted mask": (
        lambda a: a.update({"params/mask": 1 - a["params/mask"]}),
        r"y of image 0 holds values where its parameters say that nothing was measured",
    ),
    "NaN": (
        lambda a: a["y"].__setitem__((3, *np.argwhere(a["params/mask"][3] == 1)[0]), np.nan),
        "hold NaN or infinity in 'y'",
    ),
    "8 bits": (
        lambda a: a.update(y=a["y"] * 127.5),
        r"y of image 0 reaches .*images are in \[-1, 1\].*scale both",
    ),
    "vectors": (
        lambda a: a.update(y=a["y"].reshape(30, 64)),
        r"are not images; set data\.image_shape=\[channels,height,width\]",
    ),
    "another size": (
        lambda a: a.update({"y": a["y"][..., :4], "params/mask": a["params/mask"][..., :4]}),
        r"needs params/mask of shape|y has shape",
    ),
    "strings": (lambda a: a.update(y=a["y"].astype(str)), "'y' holds values of type"),
    "one": (
        lambda a: a.update({k: v[:1] for k, v in a.items()}),
        "1 in all, 1 of them different; needed: at least 3",
    ),
    "noise level": (
        lambda a: a.update(sigma_y=a["sigma_y"] * 2),
        "set operator.sigma=0.2",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_file_that_does_not_fit_is_refused_before_any_compute(
    operator, measured, tmp_path, mistake
):
    change, message = MISTAKES[mistake]
    arrays = arrays_of(measured)
    change(arrays)
    with pytest.raises(UserError, match=message):
        measured_file(write(tmp_path / "x.npz", arrays), None, 0.3).check(operator)


def test_y_of_another_shape_than_the_operator_makes_is_refused(measured, make_operator, tmp_path):
    arrays = {"y": np.random.default_rng(0).uniform(-1, 1, (9, 1, 4, 4)), "sigma_y": 0.0}
    data = measured_file(write(tmp_path / "x.npz", arrays), [1, 8, 8], 0.3)
    data.check(make_operator("downsampling", SHAPE, "sigma=0", "factor=2"))
    with pytest.raises(UserError, match=r"y has shape \(\d+, 1, 4, 4\); denoising makes"):
        data.check(make_operator("denoising", SHAPE, "sigma=0"))


@pytest.mark.parametrize("name", sorted(registry.options("operator")))
def test_measurements_that_an_operator_draws_pass_its_own_check(make_operator, name):
    shape = (2 if name.startswith("mri") else 1, 16, 16)
    x = torch.rand(6, *shape) * 2 - 1
    for sigma in ("0", "0.3"):
        operator = make_operator(name, shape, f"sigma={sigma}")
        check_measurements(Measurements.draw(x, operator, 0, "train"), operator)


def test_the_expected_consistency_is_that_of_the_true_images(make_operator):
    operator = make_operator("inpainting", SHAPE, "p=0.8", "sigma=0.3")
    x = torch.rand(4000, *SHAPE) * 2 - 1
    m = Measurements.draw(x, operator, 0, "train")
    from cleanprior.evaluation.metrics.restoration import consistency

    found = consistency(x, Likelihood.of(operator, m))
    expected = expected_consistency(Likelihood.of(operator, m)).mean()
    assert abs(found.mean() - expected) < 4 * found.std() / len(x) ** 0.5
    assert expected < 0.3


# -- who may be trained ----------------------------------------------------------------------------


def test_methods_that_start_from_clean_images_are_refused_and_no_other():
    data = registry.read("data", "measurements") | {"name": "measurements"}
    operator = registry.read("operator", "inpainting") | {"name": "inpainting"}
    refused = set()
    for name in registry.methods():
        method = registry.read("method", name) | {"name": name}
        found = capabilities.refusal(method, capabilities.ProblemFacts.of(operator, data))
        if found is not None and found.code == capabilities.CLEAN:
            refused.add(name)
            assert f"{name} starts from clean images" in found.reason
    assert refused == {n for n in registry.methods() if registry.read("method", n)["clean_images"]}
    assert {"oracle", "em"} <= refused


def test_a_cell_of_measurements_holds_no_clean_image(measured, tmp_path):
    write_splits(tmp_path / "m.npz", measured)
    own = ["data=measurements", f"data.path={tmp_path}/m.npz", "operator.p=0.4"]
    config = compose([*own, "method=oracle", "operator.sigma=0.1", "training.device=cpu"])
    cell = Cell(CellFolder(tmp_path / "runs", config))
    assert isinstance(cell.data, MeasuredData)
    assert not isinstance(cell.data, CleanData)
    assert len(cell.clean_index()) == 0
    record = run_cell(CellFolder(tmp_path / "runs", config), Progress())
    assert record["status"].startswith("skipped: oracle starts from clean images (all)")
    assert not list(tmp_path.glob("runs/cells/*/checkpoint*"))


# -- the place of a data set is not its identity --------------------------------------------------


def folder_of(root, values):
    root.mkdir(parents=True)
    for i, value in enumerate(values):
        Image.new("L", (4, 4), value).save(root / f"{i}.bmp")
    return root


def cell_of(path):
    return Identity(compose(["data=folder", f"data.path={path}", "method=naive"])).evaluation


def test_a_moved_folder_is_the_same_cell_and_another_content_is_not(tmp_path):
    first = cell_of(folder_of(tmp_path / "a", [1, 2, 3]))
    (tmp_path / "a" / "notes.txt").write_text("beside the images")
    assert cell_of(tmp_path / "a") == first
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert cell_of(tmp_path / "b") == first
    # The same names and sizes, one pixel value differs.
    assert cell_of(folder_of(tmp_path / "c", [1, 2, 4])) != first
    assert cell_of(folder_of(tmp_path / "d", [1, 2, 3, 3])) != first


def test_a_file_changed_in_place_is_another_data_set(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((4, 2, 2), np.uint8))
    before = fingerprint(path)
    os.utime(path, (time.time() + 5,) * 2)
    assert fingerprint(path) == before
    np.save(path, np.ones((4, 2, 2), np.uint8))
    os.utime(path, (time.time() + 10,) * 2)
    assert fingerprint(path) != before
    assert fingerprint(tmp_path / "nowhere") is None


def test_a_published_data_set_is_known_by_its_name():
    def cell(*overrides):
        return Identity(compose(["data=fashion_mnist", *overrides, "method=naive"])).evaluation

    assert cell() == cell("data.path=/elsewhere") == cell("data.download=false")
    assert cell() != cell("data.limit=9")
