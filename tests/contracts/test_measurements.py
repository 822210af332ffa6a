"""Measurements are drawn once from the data seed, hashed, stored, and checked when loaded."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cleanprior.data import Images, Measurements
from cleanprior.errors import UserError

SHAPE = (1, 8, 8)


@pytest.fixture
def measured(make_operator, digits_data):
    operator = make_operator("inpainting", SHAPE, "p=0.4", "sigma=0.1")
    return Measurements.draw(digits_data.train[:20], operator, 3, "train")


HASH = """
from cleanprior.config import build, compose
from cleanprior.data import Measurements, digits
config = compose(["method=naive", "operator=inpainting", "operator.p=0.4", "operator.sigma=0.1"])
operator = build(config["operator"], image_shape=(1, 8, 8))
print(Measurements.draw(digits().train[:20], operator, 3, "train").hash)
"""


def test_hash_is_the_same_in_another_process(measured):
    out = subprocess.run([sys.executable, "-c", HASH], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == measured.hash


def test_hash_changes_with_seed_split_operator_and_every_tensor(make_operator, digits_data):
    x = digits_data.train[:20]

    def hash_of(p="0.4", sigma="0.1", seed=3, split="train"):
        operator = make_operator("inpainting", SHAPE, f"p={p}", f"sigma={sigma}")
        return Measurements.draw(x, operator, seed, split).hash

    hashes = [
        hash_of(),
        hash_of(seed=0),
        hash_of(split="test"),
        hash_of("0.5"),
        hash_of("0.4", "0"),
    ]
    assert len(set(hashes)) == len(hashes)
    assert hash_of() == hashes[0]


@pytest.mark.parametrize("key", ["y", "sigma_y", "params.mask"])
def test_hash_sees_one_changed_number(measured, key):
    tensors = {k: v.clone() for k, v in measured.tensors().items()}
    tensors[key].view(-1)[3] += 0.5
    changed = Measurements(tensors["y"], {"mask": tensors["params.mask"]}, tensors["sigma_y"])
    assert changed.hash != measured.hash


def test_measurements_do_not_depend_on_method_or_training_seed(make_operator, digits_data):
    from cleanprior.config import build, compose, registry

    hashes = set()
    for number, name in enumerate(registry.methods()):
        config = compose([f"method={name}", f"seed={number}", "operator.sigma=0.1"])
        operator = build(config["operator"], image_shape=SHAPE)
        data = Measurements.draw(digits_data.train[:9], operator, config["data_seed"], "train")
        hashes.add(data.hash)
    assert len(hashes) == 1


def test_drawing_leaves_the_global_generator_alone(make_operator, digits_data):
    before = torch.get_rng_state()
    operator = make_operator("inpainting", SHAPE, "sigma=0.1")
    Measurements.draw(digits_data.train[:5], operator, 0, "train")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_holds_the_measurements_of_its_images(measured):
    index = torch.tensor([7, 2, 7])
    batch = measured.batch(index)
    assert len(batch) == 3
    assert batch.images is None
    assert torch.equal(batch.y, measured.y[index])
    assert torch.equal(batch.params["mask"], measured.params["mask"][index])
    assert torch.equal(batch.sigma_y, measured.sigma_y[index])
    assert torch.equal(batch.index, index)


def test_images_stay_beside_their_own_measurements(measured):
    images = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, *SHAPE)
    owned = Images(images, measured, torch.tensor([5, 9, 1]))
    batch = owned.batch(torch.tensor([2, 0]))
    assert torch.equal(batch.images, images[[2, 0]])
    assert torch.equal(batch.y, measured.y[[1, 5]])
    assert batch.index.tolist() == [1, 5]


def test_an_image_is_never_revealed_beyond_one_minus_p(make_operator, digits_data):
    """Over every use of a training set: epochs show the same pixels again, never new ones."""
    p, n = 0.6, 300
    operator = make_operator("inpainting", SHAPE, f"p={p}")
    x = digits_data.train[:n]
    data = Measurements.draw(x, operator, 0, "train")
    revealed = torch.zeros_like(x)
    for _ in range(3):
        for index in torch.arange(n).split(64):
            batch = data.batch(index)
            revealed[index] = torch.maximum(
                revealed[index], operator.observed(batch.y, batch.params)
            )
    share = revealed.mean()
    assert abs(share - (1 - p)) < 4 * (p * (1 - p) / revealed.numel()) ** 0.5
    assert torch.equal(data.y, x * revealed)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_save_and_load_give_the_same_hash(measured, tmp_path, suffix):
    path = tmp_path / f"measured{suffix}"
    if suffix == ".npz":
        np.savez(path, **{k: v.numpy() for k, v in measured.tensors().items()})
    else:
        measured.save(path)
    loaded = Measurements.load(path)
    assert loaded.hash == measured.hash
    assert torch.equal(loaded.y, measured.y)
    assert torch.equal(loaded.params["mask"], measured.params["mask"])


def test_the_noise_level_may_be_a_number_or_an_argument(tmp_path):
    y = np.zeros((4, *SHAPE), dtype=np.float64)
    np.savez(tmp_path / "number.npz", y=y, sigma_y=0.2)
    np.savez(tmp_path / "none.npz", y=y)
    loaded = Measurements.load(tmp_path / "number.npz")
    assert loaded.y.dtype == torch.float32
    torch.testing.assert_close(loaded.sigma_y, torch.full((4,), 0.2))
    assert Measurements.load(tmp_path / "none.npz", sigma_y=0.0).sigma_y.tolist() == [0.0] * 4
    with pytest.raises(UserError, match="holds no noise level; add 'sigma_y'"):
        Measurements.load(tmp_path / "none.npz")


def test_a_file_without_y_is_refused_and_its_arrays_are_named(tmp_path):
    np.savez(tmp_path / "m.npz", image=np.zeros((2, *SHAPE)), sigma_y=0.0)
    with pytest.raises(UserError, match="holds no array 'y'; found: image, sigma_y"):
        Measurements.load(tmp_path / "m.npz")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a file; allowed endings: .*\.npz"):
        Measurements.load(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_damaged_file_is_refused(measured, tmp_path, suffix, share):
    path = tmp_path / f"measured{suffix}"
    if suffix == ".npz":
        np.savez(path, **{k: v.numpy() for k, v in measured.tensors().items()})
    else:
        measured.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="is damaged or not a measurement file"):
        Measurements.load(path)


def test_a_pickled_array_is_refused(tmp_path):
    np.savez(tmp_path / "m.npz", y=np.array([{"a": 1}], dtype=object), sigma_y=0.0)
    with pytest.raises(UserError, match="is damaged or not a measurement file"):
        Measurements.load(tmp_path / "m.npz")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["y", "sigma_y", "params.mask"])
def test_nan_and_infinity_are_refused(measured, key, bad):
    tensors = {k: v.clone() for k, v in measured.tensors().items()}
    tensors[key].view(-1)[0] = bad
    with pytest.raises(UserError, match=f"NaN or infinity in '{key.split('.')[-1]}'"):
        Measurements(tensors["y"], {"mask": tensors["params.mask"]}, tensors["sigma_y"])


def test_lengths_that_differ_are_refused(measured, tmp_path):
    with pytest.raises(UserError, match=r"sigma_y has shape \(3,\); needed: \(20,\)"):
        Measurements(measured.y, measured.params, measured.sigma_y[:3])
    with pytest.raises(UserError, match="params 'mask' describe 4 images; y holds 20"):
        Measurements(measured.y, {"mask": measured.params["mask"][:4]}, measured.sigma_y)
    tensors = measured.tensors() | {"sigma_y": torch.zeros(3)}
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"sigma_y has shape \(3,\); needed: \(20,\)"):
        Measurements.load(tmp_path / "m.safetensors")


def test_a_negative_noise_level_is_refused(measured):
    with pytest.raises(UserError, match="sigma_y is negative"):
        Measurements(measured.y, measured.params, measured.sigma_y - 1)


def test_a_file_of_no_images_is_refused(tmp_path):
    np.savez(tmp_path / "m.npz", y=np.float32(3), sigma_y=0.0)
    with pytest.raises(UserError, match="y has shape"):
        Measurements.load(tmp_path / "m.npz")


Y, MASK, LEVEL = torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8), torch.zeros(4)


@pytest.mark.parametrize(
    ("y", "mask", "level", "message"),
    [
        (Y.to("meta"), MASK, LEVEL, "y: a tensor on torch's meta device"),
        (Y, MASK.to("meta"), LEVEL, "mask: a tensor on torch's meta device"),
        (Y, MASK, LEVEL.to("meta"), "sigma_y: a tensor on torch's meta device"),
        (Y.to_sparse(), MASK, LEVEL, "y: a sparse_coo tensor is not read"),
        (Y.to(torch.complex64), MASK, LEVEL, "complex values: as two channels"),
        (Y.long(), MASK, LEVEL, "y holds torch.int64"),
        (Y, MASK, LEVEL.bool(), "sigma_y holds torch.bool"),
    ],
)
def test_tensors_without_real_numbers_are_refused(y, mask, level, message):
    with pytest.raises(UserError, match=message):
        Measurements(y, {"mask": mask}, level)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_kept_as_float32(kind):
    half = torch.full((4, 1, 8, 8), 0.5)
    found = Measurements(half.to(kind).requires_grad_(), {"mask": MASK}, LEVEL.to(kind))
    assert found.y.dtype == found.sigma_y.dtype == torch.float32 and not found.y.requires_grad
    assert found.hash == Measurements(half, {"mask": MASK}, LEVEL).hash
