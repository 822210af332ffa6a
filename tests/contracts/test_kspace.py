"""K-space of scanners: files that tests make, every step, and every wrong file in one sentence."""

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import cleanprior as cp
from cleanprior.cli import build_app
from cleanprior.data.kspace import read_scan, steps
from cleanprior.data.kspace.maps import espirit, from_centre, take_phase
from cleanprior.errors import UserError
from cleanprior.operators.coils import draw_maps
from cleanprior.seeding import generator_for

ROWS, COLUMNS, COILS, SLICES, SCALE = 24, 20, 4, 3, 3e-5
HEADER = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>{0}</x><y>20</y><z>1</z></matrixSize><fieldOfView_mm><x>{1}</x><y>2</y>
<z>1</z></fieldOfView_mm></encodedSpace><reconSpace><matrixSize><x>24</x><y>20</y><z>1</z></matrixSize>
<fieldOfView_mm><x>240</x><y>2</y><z>1</z></fieldOfView_mm></reconSpace></encoding></ismrmrdHeader>"""


def phantom(slices=SLICES, rows=ROWS, columns=COLUMNS):
    """Return complex images of ellipses, another one in each slice, (slices, rows, columns)."""
    down, right = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    images = []
    for i in range(slices):
        disc = ((down / 0.8) ** 2 + (right / 0.7) ** 2 < 1) * 1.0
        inner = (((down - 0.1 * i) / 0.4) ** 2 + ((right + 0.2) / 0.3) ** 2 < 1) * 0.5
        images.append((disc + inner) * np.exp(1j * (0.5 * down + 0.3 * i * right)))
    return np.stack(images)


def sensitivities(rows=ROWS, columns=COLUMNS, coils=COILS):
    maps = draw_maps("birdcage", 1, coils, rows, columns, generator_for(0, "maps"))[0].numpy()
    return maps[0] + 1j * maps[1]


def scan(slices=SLICES, rows=ROWS, columns=COLUMNS, noise=0.0):
    """Return k-space (slices, coils, rows, columns) in the units of a scanner."""
    x = phantom(slices, rows, columns)[:, None] * sensitivities(rows, columns)
    k_space = steps.transform(x)
    drawn = np.random.default_rng(0).standard_normal((2, *k_space.shape))
    return (SCALE * (k_space + noise * (drawn[0] + 1j * drawn[1]))).astype(np.complex64)


@pytest.fixture
def fastmri(tmp_path):
    """Write a file as fastMRI does."""

    def make(k_space, name="file1.h5", **more):
        with h5py.File(tmp_path / name, "w") as file:
            file["kspace"] = k_space
            for key, value in more.items():
                file[key] = value
        return tmp_path / name

    return make


def load(path, **keys):
    return cp.dataset("kspace", path=str(path), **{"maps": "acs", **keys})


def refused(path, message, **keys):
    with pytest.raises(UserError, match=message) as found:
        load(path, **keys)
    assert "\n" not in str(found.value)


def run(*words):
    """Run a command; return what it told."""
    result = CliRunner().invoke(build_app(), list(words))
    assert result.exit_code == 0, result.output
    return result.output + result.stderr


# -- the way there and back ------------------------------------------------------------------------


def test_a_full_scan_without_noise_is_restored_in_its_own_units(fastmri):
    """R = 1 and sigma = 0: conjugate gradient alone gives the reference, NRMSE below 1e-3."""
    data = load(fastmri(scan()), sigma_y=0.0)
    assert data.law["acceleration"] == 1
    reference = SCALE * np.abs(phantom())
    count = 0
    for split in ("train", "test"):
        measured, scale = data.split(split), data.scales[split]
        operator = cp.operator("mri_multicoil", data.image_shape, **keys_of(data))
        x = operator.A_dagger(measured.y, measured.params) * scale[:, None, None, None]
        magnitude = x.norm(dim=1).numpy()
        for found in magnitude:
            errors = [np.linalg.norm(found - r) / np.linalg.norm(r) for r in reference]
            assert min(errors) < 1e-3
            count += 1
    assert count == SLICES


def keys_of(data):
    return {k: v for k, v in data.law.items() if k != "name"}


def test_from_a_scan_to_a_prior_and_back_by_commands(fastmri, tmp_path, monkeypatch):
    """`measure`, `train` and `restore`: magnitudes come back in the file's own scale."""
    monkeypatch.chdir(tmp_path)
    lines = np.zeros(COLUMNS, np.float32)
    lines[6:14] = lines[::3] = 1
    path = fastmri(scan(noise=0.02) * lines, mask=lines)
    keys = ["data=kspace", f"data.path={path}", "data.maps=acs"]
    assert "1 measurements and 2 held out" in run("measure", *keys, "--to", "m.h5")
    data = load(path)
    told = " ".join(n.text for n in data.notices)
    assert "mask from the file: 60.0% measured" in told
    assert "sigma_y from the outer" in told
    with h5py.File("m.h5") as file:
        assert file["y"].shape == (1, 2, COILS, ROWS, COLUMNS)
        assert file["params/mask"].shape == (1, 1, 1, COLUMNS)
        assert file["params/coil_maps"].shape == file["y"].shape
        np.testing.assert_array_equal(file["test/scale"], data.scales["test"])
        stored = (file["y"][0, 0] + 1j * file["y"][0, 1]) * file["scale"][0]
    differences = [np.abs(stored - one * lines).max() for one in scan(noise=0.02)]
    assert min(differences) < 1e-5 * np.abs(stored).max()
    words = [f"operator.{k}={v}" for k, v in keys_of(data).items()]
    cheap = ["training.budget=8", "training.batch=2", "backbone.hid_channels=[16]"]
    cheap += ["backbone.hid_blocks=[1]", "operator=mri_multicoil", *words]
    cheap += ["evaluation.samples=2", "evaluation.sampling_seeds=[0]", "evaluation.draws=1"]
    cheap += ["sampler.steps=2", "posterior.steps=2"]
    run("train", "method=naive", "data=measurements", "data.path=m.h5", *cheap, "--out", "runs")
    (cell,) = (tmp_path / "runs" / "cells").iterdir()
    restore = ["restore", str(cell), "--measurements", "m.h5", "posterior.steps=2"]
    told = run(*restore, "--to", "back.h5", "--hold-out")
    assert "NRMSE of measured entries that were held out" in told
    prior = cp.load(cell)
    measured = cp.Measurements.load("m.h5")
    operator = cp.operator("mri_multicoil", data.image_shape, **keys_of(data))
    expected = prior.restore(measured, operator, cp.posterior("mmps", steps=2)).x.numpy()
    with h5py.File("back.h5") as file, h5py.File("m.h5") as source:
        (found,) = (file[k][:] for k in file)
        scaled = expected * source["scale"][:][:, None, None, None]
    assert np.abs(found - scaled).max() < 1e-5 * np.abs(scaled).max()
    assert 0.05 * SCALE < np.abs(found).max() < 50 * SCALE


def test_the_operator_of_a_scan_is_told_where_another_is_given(fastmri):
    data = load(fastmri(scan(noise=0.02)))
    with pytest.raises(UserError, match=r"set operator=mri_multicoil operator\.coils=4 "):
        data.check(cp.operator("inpainting", data.image_shape))
    data.check(cp.operator("mri_multicoil", data.image_shape, **keys_of(data)))


# -- steps -----------------------------------------------------------------------------------------


def test_the_noise_level_of_the_corners_is_the_noise_level():
    """Within 5 % over the mean of 1,000 draws."""
    rng, mask = np.random.default_rng(0), np.ones((1, 1, 40), np.float32)
    found = []
    for _ in range(1000):
        drawn = rng.standard_normal((2, 1, 4, 48, 40))
        k_space = 0.3 * (drawn[0] + 1j * drawn[1])
        k_space[..., 20:28, 16:24] += 100
        found.append(steps.level_from_corners(k_space.astype(np.complex64), mask).value)
    assert abs(np.mean(found) / 0.3 - 1) < 0.05
    assert "corners" in steps.level_from_corners(k_space.astype(np.complex64), mask).origin


@pytest.mark.parametrize("is_lines", [True, False])
def test_a_mask_is_found_in_the_zeros_that_it_made(fastmri, is_lines):
    rng = np.random.default_rng(0)
    mask = rng.random((1 if is_lines else ROWS, COLUMNS)) < 0.4
    mask[:, 6:14] |= is_lines or (np.abs(np.arange(ROWS) - 12) < 5)[:, None]
    path = fastmri(scan(noise=0.02) * mask)
    data = load(path, sigma_y=1e-6)
    for split in ("train", "test"):
        found = data.split(split).params["mask"].numpy()
        assert found.shape[2] == mask.shape[0]
        assert (found == mask).all()
    assert data.law.get("pattern", "lines") == ("lines" if is_lines else "points")
    operator = cp.operator("mri_multicoil", data.image_shape, **keys_of(data))
    data.check(operator)
    assert "fixed" in operator.with_law_of(data.test.params).capabilities


def test_espirit_finds_the_maps_of_a_phantom_up_to_their_phase():
    pytest.importorskip("sigpy")
    x, truth = phantom(1, 48, 40)[0], sensitivities(48, 40)
    k_space = steps.transform(x[None] * truth)[None]
    found = espirit(k_space, (1, 24))[0]
    np.testing.assert_allclose((np.abs(found) ** 2).sum(0), 1, rtol=1e-4)
    inside = np.abs(x) > 0
    overlap = np.abs((found.conj() * truth).sum(0))[inside]
    assert overlap.min() > 0.9
    assert overlap.mean() > 0.99


def test_maps_of_the_centre_and_their_phase():
    k_space = scan()
    centre_only = steps.only_centre(k_space, (1, 10))
    assert (centre_only[..., :5] == 0).all()
    maps = from_centre(centre_only)
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(1), 1, rtol=1e-4)
    turned = take_phase(maps, centre_only)
    combined = (turned.conj() * steps.inverse(centre_only)).sum(1)
    assert np.abs(np.angle(combined[np.abs(combined) > 0.1 * np.abs(combined).max()])).max() < 1e-3


def test_readout_oversampling_is_cut_where_the_header_says_so(fastmri):
    wide = scan(rows=2 * ROWS, noise=0.02)
    path = fastmri(wide, ismrmrd_header=HEADER.format(2 * ROWS, 480))
    assert read_scan(path).readout == ROWS
    data = load(path)
    assert data.image_shape == (2, ROWS, COLUMNS)
    expected = steps.inverse(wide)[:, :, ROWS // 2 : ROWS // 2 + ROWS]
    np.testing.assert_allclose(
        steps.inverse(steps.remove_oversampling(wide, ROWS)), expected, atol=1e-5 * SCALE
    )
    assert load(path, readout=2 * ROWS).image_shape == (2, 2 * ROWS, COLUMNS)
    refused(fastmri(wide, "x.h5", ismrmrd_header="<!DOCTYPE a>"), "its ismrmrd_header is no plain")


def test_prewhitened_coils_have_white_noise_of_level_one():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4))

    def noise(n):
        return (mix @ (rng.standard_normal((4, n)) + 1j * rng.standard_normal((4, n)))).astype("c8")

    other = noise(24 * 40).reshape(1, 4, 24, 40)
    white = steps.prewhiten(other, noise(20_000))[0].reshape(4, -1)
    covariance = white @ white.conj().T / white.shape[1] / 2
    assert np.abs(covariance - np.eye(4)).max() < 5 / 960**0.5
    with pytest.raises(UserError, match=r"noise samples of shape \(4, 3\)"):
        steps.prewhiten(other, noise(3))


def test_compressed_coils_keep_energy_and_noise(fastmri):
    k_space = scan()
    fewer = steps.compress(k_space, 3)
    assert fewer.shape == (SLICES, 3, ROWS, COLUMNS)
    assert np.linalg.norm(fewer) > 0.97 * np.linalg.norm(k_space)
    everything = steps.compress(k_space, COILS)
    np.testing.assert_allclose(np.linalg.norm(everything), np.linalg.norm(k_space), rtol=1e-5)
    assert load(fastmri(scan(noise=0.02)), coils=2).train.y.shape[2] == 2


def test_larger_pixels_keep_the_values_of_the_image(fastmri):
    path = fastmri(scan(noise=0.0))
    full, small = (load(path, sigma_y=1e-7, size=s) for s in (None, [12, 10]))
    assert small.image_shape == (2, 12, 10)
    ratio = small.scales["test"] / full.scales["test"]
    assert ((ratio - 1).abs() < 0.25).all()


def test_empty_slices_are_left_out_and_slices_are_chosen(fastmri):
    k_space = np.concatenate([1e-3 * scan(1), scan(noise=0.02), 1e-3 * scan(1)])
    data = load(fastmri(k_space))
    assert len(data.train) + len(data.test) == SLICES
    assert any("slices 1 to 3 of 5" in n.text for n in data.notices)
    one = load(fastmri(k_space), slices=[2, 3])
    assert len(one.train) == len(one.test) == 1
    assert any("too few to hold any out" in n.text for n in one.notices)
    refused(fastmri(k_space), r"slices=\[2,9\]; .* holds the slices 0 to 4", slices=[2, 9])


def test_a_retrospective_mask_is_the_law_of_the_operator(fastmri):
    path = fastmri(scan(noise=0.02))
    data = load(path, mask_from="drawn", acceleration=2)
    masks = torch.cat([data.train.params["mask"], data.test.params["mask"]])
    assert (masks.sum((1, 2, 3)) == 10).all()
    assert (masks[..., 9:11] == 1).all()
    assert len(masks.unique(dim=0)) == SLICES
    assert (data.train.y * (1 - data.train.params["mask"][:, None]) == 0).all()
    again = load(path, mask_from="drawn", acceleration=2)
    assert again.train.hash == data.train.hash
    half = fastmri(scan(noise=0.02) * (np.arange(COLUMNS) > 4), "half.h5")
    refused(half, "undersampled already", mask_from="drawn")


# -- files -----------------------------------------------------------------------------------------


def test_every_kind_of_file_holds_the_same_scan(fastmri, tmp_path):
    k_space = scan(noise=0.02)
    np.save(tmp_path / "k.npy", k_space)
    order = k_space.transpose(2, 3, 1, 0)  # read, phase, coil, slice
    shape = [ROWS, COLUMNS, 1, COILS, *[1] * 9, SLICES]
    (tmp_path / "k.hdr").write_text("# Dimensions\n" + " ".join(map(str, shape)) + " 1 1\n")
    order.reshape(shape, order="A").ravel(order="F").tofile(tmp_path / "k.cfl")
    files = [fastmri(k_space), tmp_path / "k.npy", tmp_path / "k.cfl", tmp_path / "k.hdr"]
    for path in files:
        np.testing.assert_array_equal(read_scan(path).kspace, k_space)
    np.save(tmp_path / "one.npy", k_space[0])
    np.testing.assert_array_equal(read_scan(tmp_path / "one.npy").kspace, k_space[:1])
    np.testing.assert_array_equal(
        read_scan(fastmri(k_space[:, 0], "single.h5")).kspace, k_space[:, :1]
    )


def test_lines_of_ismrmrd_come_to_their_places_and_noise_whitens(tmp_path):
    ismrmrd = pytest.importorskip("ismrmrd")
    k_space, path = scan(noise=0.02), tmp_path / "raw.h5"
    rng = np.random.default_rng(1)
    data = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
    data.write_xml_header(HEADER.format(ROWS, 240).encode())
    noise = ismrmrd.Acquisition.from_array(
        (rng.standard_normal((COILS, 400)) + 1j * rng.standard_normal((COILS, 400))).astype("c8")
    )
    noise.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    data.append_acquisition(noise)
    for number in range(SLICES):
        for column in range(COLUMNS):
            line = ismrmrd.Acquisition.from_array(
                np.ascontiguousarray(k_space[number, :, :, column])
            )
            line.idx.slice, line.idx.kspace_encode_step_1 = number, column
            data.append_acquisition(line)
    data.close()
    found = read_scan(path)
    np.testing.assert_array_equal(found.kspace, k_space)
    assert found.noise.shape == (COILS, 400)
    assert any("noise samples" in n.text for n in load(path).notices)


def test_a_folder_of_scans_is_held_out_by_files(fastmri, tmp_path):
    for i in range(5):
        fastmri((1 + i) * scan(2, noise=0.02), f"case{i}.h5")
    (tmp_path / "notes.txt").write_text("not k-space")
    data = load(tmp_path)
    assert len(data.train) + len(data.test) == 10
    assert len(data.test) % 2 == 0
    fastmri(scan(2, columns=16, noise=0.02), "other.h5")
    refused(tmp_path, r"has \(coils, rows, columns\) .* and 'other.h5'")


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k: k.transpose(0, 2, 3, 1), r"axis 3 \(4\) looks like coils.*move it to axis 1"),
        (
            lambda k: k[0].transpose(1, 2, 0)[None][0],
            "axis 2 .4. looks like coils|looks like coils",
        ),
        (lambda k: np.stack([k.real, k.imag], -1), "axis 4 of length 2 may be real and imaginary"),
        (lambda k: np.abs(k), "k-space is complex"),
        (lambda k: steps.inverse(k), r"not lie in the middle of axes 2 and 3.*is it an image\?"),
        (lambda k: np.fft.fftshift(k, axes=(2, 3)), "in the corners of axes 2 and 3"),
        (lambda k: np.where(k == k.max(), np.nan, k), "holds NaN or infinity, first in slice"),
        (lambda k: 0 * k, "is 0 everywhere"),
        (lambda k: k * (np.abs(np.arange(COLUMNS) - 10) > 2), "energy does not lie|not measured"),
    ],
)
def test_what_is_no_k_space_names_its_axis(tmp_path, change, message):
    np.save(tmp_path / "k.npy", change(scan(noise=0.01)))
    refused(tmp_path / "k.npy", message)


def test_masks_maps_and_levels_that_do_not_belong_are_refused(fastmri, tmp_path):
    k_space = scan(noise=0.02)
    refused(fastmri(k_space, mask=np.ones(7)), r"its mask has shape \(7,\); needed: \(20,\) or")
    refused(fastmri(k_space, mask=np.full(COLUMNS, 2.0)), "other values than 0 and 1")
    refused(fastmri(k_space), "holds no mask", mask_from="file")
    np.save(tmp_path / "maps.npy", sensitivities(coils=3).astype("c8"))
    refused(fastmri(k_space), r"maps of 3 coils .* has 4", maps=str(tmp_path / "maps.npy"))
    dark = sensitivities() * (np.arange(COLUMNS) < 10)
    np.save(tmp_path / "maps.npy", dark.astype("c8"))
    refused(
        fastmri(k_space), "the maps are 0 where .* of the object", maps=str(tmp_path / "maps.npy")
    )
    np.save(tmp_path / "maps.npy", sensitivities().astype("c8"))
    found = load(fastmri(k_space), maps=str(tmp_path / "maps.npy")).train.params["coil_maps"][0]
    np.testing.assert_allclose(found[0] + 1j * found[1], sensitivities(), atol=1e-5)
    tiny = scan(1, 8, 8, noise=0.01)[:, :1]
    refused(fastmri(tiny), "too few for a noise level; set data.sigma_y")
    refused(
        fastmri(k_space, "two.h5", mask=np.arange(COLUMNS) % 2 == 1), "centre of k-space is not"
    )


def test_files_that_point_elsewhere_or_lie_are_refused(fastmri, tmp_path):
    path = fastmri(scan())
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["kspace"] = h5py.ExternalLink(str(path), "kspace")
    refused(tmp_path / "link.h5", "points to another file by 'kspace'")
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["image"] = np.zeros(3)
    refused(tmp_path / "none.h5", "holds no array 'kspace'; found: image")
    (tmp_path / "a.cfl").write_bytes(b"12345678")
    refused(tmp_path / "a.cfl", "a.hdr' cannot be read")
    (tmp_path / "a.hdr").write_text("# Dimensions\n100000 100000 1 8\n")
    refused(tmp_path / "a.cfl", "claims|more than this machine's memory")
    (tmp_path / "a.hdr").write_text("nothing")
    refused(tmp_path / "a.cfl", "holds no line of dimensions")
    refused(tmp_path / "a.mat", "neither a file nor a folder")
    with pytest.raises(UserError, match="needs data.path=FILE or FOLDER"):
        cp.dataset("kspace")
