"""What inspect finds in a file is there, and the command that it prints is accepted."""

import shlex

import instruments
import numpy as np
import pytest
import torch
from instruments import KINDS
from skimage.restoration import estimate_sigma

from cleanprior.cells import CellFolder
from cleanprior.cells.run import Cell
from cleanprior.config import compose
from cleanprior.data import Measurements
from cleanprior.data.reading import Reading
from cleanprior.errors import UserError
from cleanprior.inspection import inspect
from cleanprior.inspection.gaps import gaps_of, law_of, places
from cleanprior.inspection.noise import noise_of

SIDE = 24


def smooth(n, side=SIDE, seed=0):
    """Smooth images in [-0.8, 0.8]."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, np.pi, side)
    phase = rng.uniform(0, 3, (n, 2, 1))
    waves = np.sin(t + phase[:, 0])[:, :, None] * np.cos(t + phase[:, 1])[:, None, :]
    return 0.8 * waves[:, None]


def noisy(n, sigma, seed=1, **options):
    x = smooth(n, **options)
    return x + sigma * np.random.default_rng(seed).normal(size=x.shape)


# -- noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.6])
def test_the_noise_level_is_found_between_gaps_too(sigma, p):
    y = noisy(60, sigma)
    seen = np.random.default_rng(2).random((60, 1, SIDE, SIDE)) >= p
    found = noise_of(np.where(seen, y, 0), seen)
    assert found.sigma == pytest.approx(sigma, rel=0.12)
    assert found.gain is None


def test_the_noise_level_is_that_of_scikit_image():
    pytest.importorskip("pywt")
    y = noisy(8, 0.1, side=64)
    reference = np.mean([estimate_sigma(image[0]) for image in y])
    assert noise_of(y).sigma == pytest.approx(reference, rel=0.03)
    low, high = noise_of(y).spread
    assert low < reference < high


def test_nothing_is_said_of_too_few_pixels():
    y = noisy(4, 0.1)
    assert noise_of(y, np.random.default_rng(0).random(y.shape) > 0.9) is None
    assert noise_of(y[:, :, :1]) is None


def test_noise_that_grows_with_the_signal_is_told_with_its_gain():
    counts = (smooth(40) + 1) * 400 + 50
    y = 2.0 * np.random.default_rng(0).poisson(counts / 2.0) + 100.0
    found = noise_of(y)
    assert found.gain == pytest.approx(2.0, rel=0.2)
    assert noise_of(noisy(40, 0.1)).gain is None


# -- gaps ------------------------------------------------------------------------------------------


def test_dead_saturated_and_missing_pixels_are_found():
    y = np.random.default_rng(0).normal(size=(20, 1, 16, 16))
    assert not gaps_of(y).dead.any() and gaps_of(y).saturated is None and gaps_of(y).nan == 0
    y[:, 0, 3] = 7
    y[:, 0, 5, 5] = np.nan
    found = gaps_of(np.minimum(y, 1.5))
    value, share = found.saturated
    assert value == 1.5 and share == pytest.approx((np.nan_to_num(y) >= 1.5).mean(), abs=1e-3)
    assert found.nan == 20 and int(found.dead.sum()) == 17
    assert places(found.dead) == "rows 3; (row, column) (5, 5)"


def test_masks_are_compared():
    rng = np.random.default_rng(0)
    one = (rng.random((1, 1, 8, 8)) > 0.5).astype(float)
    assert "the same in all images: one fixed mask" in law_of(np.repeat(one, 9, 0))
    assert "another one for each image" in law_of(rng.random((9, 1, 8, 8)) > 0.5)
    assert "whole columns" in law_of(np.broadcast_to(rng.random((9, 1, 1, 8)) > 0.5, (9, 1, 8, 8)))
    assert law_of(np.ones((9, 1, 8, 8))) == "complete: nothing is missing"
    assert places(np.eye(8, dtype=bool)[None]).endswith("and 4 more")


# -- what measured it ------------------------------------------------------------------------------


def test_operators_are_found_from_their_parameters(make_operator, tmp_path):
    x = torch.from_numpy(smooth(40, 12)).float()
    two = torch.cat([x, -x], 1)
    for name, images, keys in (
        ("inpainting", x, ["p=0.4"]),
        ("box", x, ["side=3"]),
        ("denoising", x, []),
        ("mri", two, ["acceleration=3", "centre_lines=2"]),
        ("compressed_sensing", x, ["m=30"]),
    ):
        operator = make_operator(name, tuple(images.shape[1:]), *keys, "sigma=0.1")
        measured = Measurements.draw(images, operator, 0, "train")
        tensors = {
            k.replace("params.", "params/"): v.numpy() for k, v in measured.tensors().items()
        }
        np.savez(tmp_path / "x.npz", **tensors)
        shape = tuple(images.shape[1:]) if name == "compressed_sensing" else None
        found = inspect(tmp_path / "x.npz", Reading(), shape)
        assert found.sections["operator"][0].startswith(name), (name, found.sections)
        for key in keys:
            value = float(key.split("=")[1])
            told = found.sections["operator"][0].split(f"operator.{key.split('=')[0]}=")
            if len(told) > 1:  # else the YAML's value
                assert float(told[1].split()[0]) == pytest.approx(value, rel=0.15)
        assert accepted(found.commands, tmp_path) is not None


def accepted(commands, tmp_path):
    """Build the cell of a printed training, which checks data against operator; return it."""
    words = shlex.split(commands[0])
    assert words[:2] == ["cleanprior", "train"]
    cell = Cell(CellFolder(tmp_path / "runs", compose([*words[2:], "training.device=cpu"])))
    assert cell.refusal() is None
    return cell


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_file_gives_a_command_that_is_accepted_in_80_columns(run, tmp_path, name):
    suffix, make, dtype, _ = KINDS[name]
    raw = (noisy(40, 0.1) * 300 + 600)[:, 0].astype(dtype)
    make(path := tmp_path / f"x{suffix}", raw)
    options = ["data.layout=NHW"] if name == "npy" else []
    code, told, shown = run("inspect", path, *options)
    assert code == 0, told
    long = [line for line in shown.splitlines() if len(line) > 80 and str(path) not in line]
    assert not long
    command = shown.partition("cleanprior train")[2].partition("\n\n")[0].replace("\\\n", "")
    cell = accepted([f"cleanprior train {command}"], tmp_path)
    low, high = cell.config["data"]["range"]
    assert cell.operator.sigma * (high - low) / 2 == pytest.approx(
        30 * {"fits-scaled": 0.5, "nifti-scaled": 0.25}.get(name, 1), rel=0.1
    )


def test_a_fixed_mask_its_places_and_the_methods_that_refuse_it(run, tmp_path):
    mask = np.ones((30, 1, SIDE, SIDE))
    mask[:, :, 3] = mask[:, :, :, 5:7] = 0
    np.savez(tmp_path / "x.npz", y=noisy(30, 0.1) * mask, sigma_y=0.1, **{"params/mask": mask})
    code, told, shown = run("inspect", tmp_path / "x.npz", "--picture", tmp_path / "x.png")
    assert code == 0, told
    flat = " ".join(shown.split())
    assert "the same in all images: one fixed mask" in flat
    assert "inpainting (one fixed operator)" in flat
    assert "70 of 576 entries: rows 3; columns 5-6" in flat
    needs = flat.partition("needs an operator that varies between images")[0]
    assert "masked_loss" in needs.rpartition(" not ")[2], flat
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_nan_and_units_are_told_and_stand_in_the_command(tmp_path):
    y = (noisy(40, 0.1) + 1)[:, 0] * 500
    y[np.random.default_rng(0).random(y.shape) < 0.25] = np.nan
    path = instruments.fits(tmp_path / "x.fits", y.astype(np.float32))
    found = inspect(path, Reading(), None)
    assert "data.missing=nan" in found.commands[0]
    cell = accepted(found.commands, tmp_path)
    assert cell.config["operator"]["p"] == pytest.approx(0.25, abs=0.02)
    assert "another one for each image" in found.sections["missing"][0]


def test_one_large_image_is_advised_to_be_cut(tmp_path):
    path = instruments.tiff(tmp_path / "x.tif", (noisy(1, 0.1, side=256)[0, 0] + 2).astype("f4"))
    found = inspect(path, Reading(), None)
    assert "data.patch=64" in found.commands[0]
    assert accepted(found.commands, tmp_path).data.image_shape == (1, 64, 64)


def test_measurements_of_several_coils_need_no_further_word(make_operator, tmp_path):
    shape = (2, 12, 12)
    operator = make_operator("mri_multicoil", shape, "coils=3", "acceleration=2")
    measured = Measurements.draw(torch.randn(24, *shape) / 3, operator, 0, "train")
    measured.save(path := tmp_path / "x.safetensors")
    found = inspect(path, Reading(), None)
    assert found.sections["y"][0] == "24 scans: k-space of 12x12, 3 coils, in two parts"
    assert "another one for each image" in found.sections["missing"][0]
    assert "operator.coils=3" in found.sections["operator"][0]
    cell = accepted(found.commands, tmp_path)
    assert cell.operator.name == "mri_multicoil" and cell.data.image_shape == shape


def test_files_of_scanners_are_told_by_what_they_hold(run, tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    k_space = rng.normal(size=(2, 9, 3, 24, 20, 2)).astype(np.float32) * 0.01
    for i, one in enumerate(k_space):
        scan = one[..., 0] + 1j * one[..., 1]
        scan[:, :, 10:14, 8:12] += 1
        scan[..., ::3] = 0
        with h5py.File(tmp_path / f"scan{i}.h5", "w") as file:
            file["kspace"] = scan.astype(np.complex64)
    for path in (tmp_path / "scan0.h5", tmp_path):
        code, told, shown = run("inspect", path, "data.maps=acs")
        assert code == 0, told
        assert "24x20, 3 coils" in shown and "mri_multicoil" in shown
        command = shown.partition("cleanprior train")[2].partition("\n\n")[0].replace("\\\n", "")
        assert "data.maps=acs" in command
        assert accepted([f"cleanprior train {command}"], tmp_path).data.image_shape == (2, 24, 20)
    np.save(tmp_path / "k.npy", np.ones((3, 24, 20), np.complex64))
    code, told, _ = run("inspect", tmp_path / "k.npy")
    assert code == 2 and told.count("error: ") == 1 and "data=kspace" in told
    code, told, _ = run("inspect", tmp_path / "scan0.h5", "data=digits")
    assert code == 2 and "measurements or kspace can be inspected" in told


def test_what_a_file_holds_is_shown_even_where_it_is_refused(run, tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros((3, 4)), b=np.ones(5))
    code, told, shown = run("inspect", tmp_path / "x.npz")
    assert code == 2 and "a: 3x4 float64, 0 everywhere" in shown
    assert told.startswith("error: ") and "data.key=NAME" in told
    for arguments in (["nowhere.npz"], [tmp_path / "x.npz", "--picture", "x.jpg"]):
        code, told, _ = run("inspect", *arguments)
        assert code == 2 and told.count("error: ") == 1


def test_a_level_that_contradicts_the_file_is_told(tmp_path):
    np.savez(tmp_path / "x.npz", y=noisy(30, 0.1), sigma_y=0.5)
    told = " ".join(inspect(tmp_path / "x.npz", Reading(), None).sections["noise"])
    assert "less than the file's 0.5" in told
    np.savez(tmp_path / "v.npz", y=np.ones((9, 30)), sigma_y=0.5)
    with pytest.raises(UserError, match=r"data\.image_shape"):
        inspect(tmp_path / "v.npz", Reading(), None)
