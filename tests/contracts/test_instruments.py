"""Files of instruments as clean images and as measurements: axes, numbers, gaps, masks."""

import sys

import instruments
import numpy as np
import pytest
import torch
from instruments import KINDS

from cleanprior.data import Measurements, arrays, measured_file
from cleanprior.data.containers import named_arrays
from cleanprior.data.formats import FORMATS
from cleanprior.data.reading import Reading
from cleanprior.errors import UserError

N, H, W = 40, 12, 10


def counts(n=N, dtype=np.uint16, high=1000, shape=(H, W)):
    return np.random.default_rng(1).integers(0, high, (n, *shape)).astype(dtype)


def load(path, **options):
    defaults = dict.fromkeys(("key", "test_key", "layout", "range", "resolution", "channels"))
    return arrays(str(path), **({**defaults, "test_share": 0.3, "limit": None} | options))


def measured(path, **options):
    return measured_file(str(path), None, 0.3, **({"sigma_y": 5.0} | options))


def texts(data):
    return " ".join(n.text for n in data.notices)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each kind, and the values that it means."""
    root = tmp_path_factory.mktemp("kinds")
    found = {}
    for name, (suffix, make, dtype, scale) in KINDS.items():
        raw = counts(dtype=dtype)
        path = root / f"{name}{suffix}"
        make(path, raw)
        slope, offset = scale or (1, 0)
        found[name] = path, raw * slope + offset
    return found


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_the_same_images_and_measurements(files, name):
    path, values = files[name]
    low, high = float(values.min()), float(values.max())
    reference = torch.from_numpy(2 * (values - low) / (high - low) - 1).float()[:, None]
    options = {"layout": "NHW"} if name == "npy" else {}  # the others say what their axes are
    data = load(path, range=[low, high], **options)
    held = measured(path, range=[low, high], **options)
    for train, test in ((data.train, data.test), (held.train.y, held.test.y)):
        got = torch.cat([train, test])
        order = torch.cdist(reference.flatten(1), got.flatten(1)).argmin(1)
        assert len(order.unique()) == N
        torch.testing.assert_close(got[order], reference, atol=1e-5, rtol=0)
    assert held.train.sigma_y[0].item() == pytest.approx(10 / (high - low))


@pytest.mark.parametrize("name", ["tiff16", "fits", "nifti", "dicom"])
def test_a_missing_library_is_one_line_that_says_what_to_install(files, name, monkeypatch):
    path, _ = files[name]
    library = next(f.library for f in FORMATS if path.name.endswith(f.suffixes))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=r"pip install 'cleanprior\[instruments\]'"):
        load(path)


def test_ranges_of_types(files, make_operator):
    with pytest.raises(UserError, match=r"almost a constant; set data.range=\[0,1023\]"):
        load(files["tiff16"][0])
    with pytest.raises(UserError, match="int16 values, which have no range of their own"):
        load(files["nifti-gz"][0])
    with pytest.raises(UserError, match=r"reaches \d+; .*or set data.range=\[LOW,HIGH\]"):
        measured(files["fits16"][0]).check(make_operator("denoising", (1, H, W), "sigma=5"))


def test_channels_and_times_of_ome_are_told_apart(tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, (20, 2, H, W)).astype(np.uint8)
    path = instruments.tiff(tmp_path / "x.ome.tif", raw, ome=True, metadata={"axes": "TCYX"})
    assert load(path).image_shape == (2, H, W)
    assert load(path, layout=None).image_shape == (2, H, W)
    flat = instruments.tiff(tmp_path / "z.ome.tif", raw, ome=True, metadata={"axes": "TZYX"})
    data = load(flat)
    assert data.image_shape == (1, H, W) and len(data.train) + len(data.test) == 40
    assert load(flat, layout="NCHW").image_shape == (2, H, W)  # the user's word counts


def test_images_of_a_fits_file_have_names(tmp_path):
    from astropy.io import fits

    science, error = counts(30).astype(np.float32), counts(30).astype(np.float32) + 1
    parts = [fits.PrimaryHDU(), fits.ImageHDU(science, name="SCI"), fits.ImageHDU(error, name="E")]
    fits.HDUList(parts).writeto(tmp_path / "x.fits")
    with pytest.raises(UserError, match=r"several arrays: E, SCI; choose one by data.key=NAME"):
        load(tmp_path / "x.fits", range=[0, 1000])
    for key, low in (("SCI", 0), ("E", 1)):
        data = load(tmp_path / "x.fits", range=[low, 1000 + low], key=key)
        held = measured(tmp_path / "x.fits", range=[low, 1000 + low], key=key)
        assert data.train.shape[1:] == held.train.y.shape[1:] == (1, H, W)


# -- folders ---------------------------------------------------------------------------------------


def folder(root, make, suffix, frames):
    root.mkdir(parents=True)
    for i, frame in enumerate(frames):
        make(root / f"f{i:02d}{suffix}", frame)
    return root


MAKERS = {
    ".tif": instruments.tiff,
    ".fits": instruments.fits,
    ".dcm": instruments.dicom,
    ".npy": np.save,
    ".png": instruments.picture,
}


@pytest.mark.parametrize("suffix", MAKERS)
def test_a_folder_of_pictures_is_one_data_set(tmp_path, suffix):
    frames = counts(20)
    root = folder(tmp_path / "x", MAKERS[suffix], suffix, frames)
    (root / "notes.txt").write_text("none")
    data = load(root, range=[0, 1000])
    held = measured(root, range=[0, 1000])
    assert len(data.train) + len(data.test) == 20 and data.image_shape == (1, H, W)
    assert "by a hash of the names of 20 files" in texts(data) and "20 files" in texts(held)
    for split in ("train", "test"):
        torch.testing.assert_close(getattr(data, split), held.split(split).y, atol=1e-6, rtol=0)
    frame = torch.from_numpy(frames[0].astype(np.float32)) / 500 - 1
    both = torch.cat([data.train, data.test])
    assert (both - frame).abs().amax((1, 2, 3)).min() < 1e-6


def test_a_split_in_folders_is_kept_and_stacks_stay_together(tmp_path):
    folder(tmp_path / "x" / "train", instruments.tiff, ".tif", counts(12))
    folder(tmp_path / "x" / "test", instruments.tiff, ".tif", counts(4))
    for data in (load(tmp_path / "x", range=[0, 1000]), measured(tmp_path / "x", range=[0, 1000])):
        assert (len(data.train), len(data.test)) == (12, 4)
        assert "test/" in texts(data)
    stacks = folder(tmp_path / "s", instruments.tiff, ".tif", counts(60).reshape(6, 10, H, W))
    data = load(stacks, range=[0, 1000])
    assert len(data.test) in (20, 30) and len(data.train) + len(data.test) == 60


def test_sizes_and_types_of_a_folder_must_agree(tmp_path):
    root = folder(tmp_path / "x", instruments.tiff, ".tif", counts(4))
    instruments.tiff(root / "f99.tif", counts(1, shape=(H, 11))[0])
    with pytest.raises(UserError, match=r"different sizes \(f00.tif: 1x12x10, f99.tif: 1x12x11\)"):
        load(root, range=[0, 1000])
    with pytest.raises(UserError, match="measurements of different sizes"):
        measured(root, range=[0, 1000])
    assert load(root, range=[0, 1000], resolution=8).image_shape == (1, 8, 8)
    instruments.tiff(root / "f98.tif", counts(1, np.uint8, 200)[0])
    with pytest.raises(UserError, match=r"types uint16 and uint8; set data.range"):
        load(root, resolution=8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no file that can be read"):
        load(tmp_path / "empty")
    with pytest.raises(UserError, match="holds no file that can be read"):
        measured(tmp_path / "empty")


def test_pages_of_different_sizes_are_refused(tmp_path):
    path = instruments.pages(tmp_path / "x.tif", [np.zeros((8, 8)), np.zeros((8, 9))])
    with pytest.raises(UserError, match=r"pages of different sizes or types \(8x8 .*8x9"):
        load(path, range=[0, 1])


# -- gaps and masks --------------------------------------------------------------------------------


def gaps():
    y = counts(dtype=np.float32)
    y[np.random.default_rng(2).random(y.shape) < 0.3] = np.nan
    return y


@pytest.mark.parametrize("make", [instruments.fits, instruments.tiff])
def test_nan_means_missing_where_the_user_says_it(tmp_path, make, make_operator):
    y = gaps()
    path = make(tmp_path / ("x.fits" if make is instruments.fits else "x.tif"), y)
    with pytest.raises(UserError, match=r"NaN.*set data\.missing=nan"):
        measured(path, range=[0, 1000])
    data = measured(path, range=[0, 1000], missing="nan")
    assert "30.1% of y is NaN or masked" in texts(data) or "% of y is NaN" in texts(data)
    both = torch.cat([data.train.params["mask"], data.test.params["mask"]])
    assert both.mean().item() == pytest.approx(1 - np.isnan(y).mean(), abs=1e-6)
    data.check(make_operator("inpainting", (1, H, W), "p=0.3", "sigma=0.01"))
    with pytest.raises(UserError, match="missing='zero' is not offered; allowed: nan, null"):
        measured(path, missing="zero")


def test_one_mask_a_stack_of_masks_and_a_mask_for_each_picture(tmp_path, make_operator):
    frames = counts(20)
    root = folder(tmp_path / "frames", instruments.tiff, ".tif", frames)
    masks = (np.random.default_rng(3).random((20, H, W)) > 0.4).astype(np.uint8) * 255
    one = instruments.picture(tmp_path / "dead.png", masks[0])
    stack = instruments.tiff(tmp_path / "masks.tif", masks)
    each = folder(tmp_path / "masks", instruments.picture, ".png", masks)
    fixed = measured(root, range=[0, 1000], mask=str(one))
    seen = torch.from_numpy(masks[0] > 0).float()
    assert torch.equal(fixed.train.params["mask"], seen.expand(len(fixed.train), 1, H, W))
    assert ((fixed.train.y == 0) | (seen > 0)).all()
    told = fixed.check(make_operator("inpainting", (1, H, W), "p=0.4", "sigma=0.01"))
    assert "equal for all images" in " ".join(n.text for n in told)
    both = [measured(root, range=[0, 1000], mask=str(m)) for m in (stack, each)]
    assert both[0].train.hash == both[1].train.hash != fixed.train.hash
    reading = Reading(range=(0, 1000), mask=str(each))
    whole = Measurements.load(root, 0.01, reading=reading)
    assert torch.equal(whole.params["mask"][:, 0], torch.from_numpy(masks > 0).float())


def test_masks_that_do_not_fit_are_refused(tmp_path):
    root = folder(tmp_path / "frames", instruments.tiff, ".tif", counts(6))
    bad = {
        "small": (np.ones((4, 4)), r"shape \(1, 1, 4, 4\); needed: 12x10 pixels, one mask for all"),
        "many": (np.ones((5, H, W)), "one mask for all or 6"),
        "grey": (np.arange(H * W).reshape(H, W), "holds 120 values from 0 to 119"),
        "none": (np.zeros((H, W)), "says that nothing was measured"),
    }
    for name, (mask, message) in bad.items():
        np.save(tmp_path / f"{name}.npy", mask)
        with pytest.raises(UserError, match=message):
            measured(root, range=[0, 1000], mask=str(tmp_path / f"{name}.npy"))
    each = folder(tmp_path / "masks", instruments.picture, ".png", counts(5, np.uint8, 2) * 255)
    with pytest.raises(UserError, match=r"no mask for 'f05.tif': no file 'f05.\*'"):
        measured(root, range=[0, 1000], mask=str(each))


def test_a_range_scales_the_files_own_noise_level_too(tmp_path):
    y = counts().astype(np.float64)
    np.savez(tmp_path / "x.npz", y=y[:, None], sigma_y=np.full(N, 5.0))
    data = measured_file(str(tmp_path / "x.npz"), None, 0.3, range=[0, 1000])
    assert torch.allclose(data.train.sigma_y, torch.tensor(0.01))
    np.savez(tmp_path / "v.npz", y=y.reshape(N, -1), sigma_y=5.0)
    with pytest.raises(UserError, match=r"y is no image and has no offset; data.range=\[-A,A\]"):
        measured_file(str(tmp_path / "v.npz"), (1, H, W), 0.3, range=[0, 1000])
    with pytest.raises(UserError, match=r"holds no noise level.*data\.sigma_y"):
        measured(instruments.tiff(tmp_path / "t.tif", counts()), sigma_y=None)


def test_names_of_arrays_that_are_not_y(tmp_path):
    np.savez(tmp_path / "x.npz", frames=counts()[:, None], other=np.zeros(3))
    with pytest.raises(UserError, match="no array 'y'; found: frames, other; choose .*data.key"):
        measured(tmp_path / "x.npz")
    assert len(measured(tmp_path / "x.npz", key="frames", range=[0, 1000]).train) > 20
    with pytest.raises(UserError, match="no array 'frame'.*Did you mean 'frames'"):
        measured(tmp_path / "x.npz", key="frame")


def test_dicom_keeps_units_signs_and_used_bits(tmp_path):
    raw = counts(3, np.int16) - 500
    path = instruments.dicom(tmp_path / "x.dcm", raw, (1, -1024))
    with named_arrays(path) as found:
        assert np.array_equal(found["array"]().values, raw - 1024)
    twelve = (counts(3, np.uint16) | 0xF000).astype(np.uint16)
    path = instruments.dicom(tmp_path / "y.dcm", twelve, BitsStored=12, HighBit=11)
    with named_arrays(path) as found:
        assert np.array_equal(found["array"]().values, twelve & 0x0FFF)
