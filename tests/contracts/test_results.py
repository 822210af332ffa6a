"""What comes in goes out: container, names, order, type, range and scale."""

import instruments
import numpy as np
import pytest
from hostile import SMALL
from instruments import KINDS

from cleanprior.data import Measurements
from cleanprior.data.containers import named_arrays
from cleanprior.data.reading import Reading
from cleanprior.data.results import Target, original_of
from cleanprior.errors import UserError

N, H, W = 6, 12, 10
READING = Reading(range=(-200, 1200), sigma_y=1)


def counts(n=N, dtype=np.uint16):
    return np.random.default_rng(1).integers(0, 1000, (n, H, W)).astype(dtype)


def frames_in(path, key=None):
    with named_arrays(path) as found:
        rows = found[key]() if key else next(iter(found.values()))()
        values = np.asarray(rows[:] if rows.shape else rows)
    return values, getattr(rows, "form", None)


def back(path, to=None, reading=READING, spread=False, n=None):
    """Read measurements, and write them as if they were restorations."""
    y = Measurements.load(path, reading=reading).y[:n]
    target = Target.of(to, original_of(path, None, reading), str(path.parent / "restored"))
    target.check(spread)
    target.write(np.abs(y.numpy()) * 700 if spread else target.units(y.numpy()), spread)
    return target


@pytest.mark.parametrize("name", KINDS)
def test_one_file_of_each_kind_in_and_out_again(tmp_path, name):
    suffix, make, dtype, scale = KINDS[name]
    make(path := tmp_path / f"in{suffix}", counts(dtype=dtype))
    reading = Reading(range=(-2000, 2000), sigma_y=1, layout="NHW" if name == "npy" else None)
    written = back(path, reading=reading)
    assert written.path.name == f"restored{path.suffix if suffix != '.nii.gz' else suffix}"
    (values, form), (found, other) = frames_in(path), frames_in(written.path)
    assert other == form and found.dtype == values.dtype and found.shape == values.shape
    atol = 2e-3 if np.dtype(dtype).kind == "f" else 0
    np.testing.assert_allclose(found, values, rtol=0, atol=atol)


def test_headers_of_instruments_stay(tmp_path):
    import nibabel
    import pydicom
    import tifffile
    from astropy.io import fits

    back(instruments.fits(tmp_path / "x.fits", counts(), OBJECT="M31", CRVAL1=10.5))
    header = fits.getheader(tmp_path / "restored.fits")
    assert (header["OBJECT"], header["CRVAL1"]) == ("M31", 10.5)
    back(instruments.nifti(tmp_path / "x.nii", counts(dtype=np.int16)))
    affine = nibabel.load(tmp_path / "restored.nii").affine
    assert np.array_equal(affine, np.diag([0.5, 2, 3, 1]))
    back(instruments.ome(tmp_path / "x.ome.tif", counts()), tmp_path / "restored.ome.tif")
    with tifffile.TiffFile(tmp_path / "restored.ome.tif") as file:
        assert file.is_ome and file.series[0].axes == "TYX"
    back(instruments.dicom(tmp_path / "x.dcm", counts(), (1, -100)))
    held, source = (pydicom.dcmread(tmp_path / f"{n}.dcm") for n in ("restored", "x"))
    assert held.PatientName == source.PatientName and held.RescaleIntercept == -100
    assert held.SOPInstanceUID != source.SOPInstanceUID
    assert list(held.ImageType)[:2] == ["DERIVED", "SECONDARY"]


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".safetensors", ".zarr"])
def test_arrays_keep_name_axes_and_type(tmp_path, suffix):
    y = counts(dtype=np.uint16)[..., None]
    source = tmp_path / "x.npz"
    np.savez(source, frames=y, sigma_y=1.0)
    reading = Reading(range=(-200, 1200), key="frames", layout="NHWC")
    back(source, tmp_path / f"out{suffix}", reading)
    found, _ = frames_in(tmp_path / f"out{suffix}", "frames")
    assert found.dtype == y.dtype and np.array_equal(found, y)
    again = Reading(range=(-200, 1200), key="frames", layout="NHWC", sigma_y=0)
    assert back(tmp_path / f"out{suffix}", None, again).suffix == suffix


def test_complex_arrays_come_back_complex(tmp_path):
    y = (counts() + 1j * counts()[::-1]).astype(np.complex64)
    np.savez(tmp_path / "x.npz", y=y, sigma_y=0.0)
    reading = Reading(range=(-1000, 1000), layout="NHW")
    target = back(tmp_path / "x.npz", None, reading)
    found, _ = frames_in(target.path, "x")
    assert found.dtype == y.dtype and np.allclose(found, y, atol=1e-3)


@pytest.mark.parametrize("to", ["x.tif", "x.fits", "x.nii", "x.nii.gz", "x.npy", "x.h5", "x.npz"])
def test_an_ending_chooses_the_container(tmp_path, to):
    path = instruments.tiff(tmp_path / "in.tif", counts())
    back(path, tmp_path / to)
    found, _ = frames_in(tmp_path / to)
    assert found.dtype == np.uint16
    order = np.moveaxis(found, -1, 0) if ".nii" in to else found.reshape(N, H, W)
    assert np.array_equal(order, counts())
    # Scaled numbers of another container are written as what they mean.
    scaled = instruments.fits(tmp_path / "in.fits", counts(dtype=np.int16), (0.5, 10.0))
    back(scaled, tmp_path / f"s{to}")
    found, form = frames_in(tmp_path / f"s{to}")
    if not to.endswith(".fits"):
        assert found.dtype == np.float32
    order = np.moveaxis(found, -1, 0) if ".nii" in to else found.reshape(N, H, W)
    np.testing.assert_allclose(order, counts() * 0.5 + 10, atol=1e-2)


def test_a_folder_comes_back_as_one_with_its_names(tmp_path):
    (tmp_path / "in" / "b").mkdir(parents=True)
    # Folders of splits are restored, too.
    (tmp_path / "in" / "train").mkdir()
    (tmp_path / "in" / "test").mkdir()
    for i, name in enumerate(["train/z.tif", "b/c.tif", "test/a.tif"]):
        instruments.tiff(tmp_path / "in" / name, counts(3)[i])
    target = back(tmp_path / "in", tmp_path / "out")
    names = sorted(p.relative_to(tmp_path / "out").as_posix() for p in target.path.rglob("*.tif"))
    assert names == ["b/c.tif", "test/a.tif", "train/z.tif"]
    for name in names:
        a, b = frames_in(tmp_path / "in" / name), frames_in(tmp_path / "out" / name)
        assert a[1] == b[1] and np.array_equal(a[0], b[0])
    assert target.picture() == tmp_path / "out.png"
    back(tmp_path / "in", tmp_path / "one.tif")  # or as one stack, in the order of the names
    assert np.array_equal(frames_in(tmp_path / "one.tif")[0], counts(3)[[1, 2, 0]])
    back(tmp_path / "in", tmp_path / "two", n=2)
    assert len(list((tmp_path / "two").rglob("*.tif"))) == 2


def test_spread_is_float_without_an_offset(tmp_path):
    path = instruments.tiff(tmp_path / "in.tif", counts())
    target = back(path, tmp_path / "std.tif", spread=True)
    values, form = frames_in(target.path)
    assert values.dtype == np.float32
    y = Measurements.load(path, reading=READING).y[:, 0].numpy()
    np.testing.assert_allclose(values, np.abs(y) * 700, rtol=1e-5)
    assert target.called("mean").path == tmp_path / "std_mean.tif"


def test_integers_are_rounded_and_cut_to_their_range(tmp_path):
    path = instruments.tiff(tmp_path / "in.tif", counts(dtype=np.uint8))
    reading = Reading(range=(0, 255))
    target = Target.of(tmp_path / "out.tif", original_of(path, None, reading))
    x = np.full((N, 1, H, W), -1.5)
    x[0], x[1] = 1.5, (2 * 100.4 / 255) - 1
    target.write(target.units(x))
    found, _ = frames_in(target.path)
    assert found.dtype == np.uint8 and [int(f.max()) for f in found[:3]] == [255, 100, 0]


def test_what_cannot_be_written_is_refused_before_any_compute(tmp_path):
    tif = original_of(instruments.tiff(tmp_path / "in.tif", counts()), None, READING)
    dcm = original_of(instruments.dicom(tmp_path / "in.dcm", counts()), None, READING)
    png = instruments.picture(tmp_path / "in.png", counts()[0].astype(np.uint8))
    png = original_of(png, None, READING)
    for original, to, spread, message in (
        (tif, "x.dcm", False, "DICOM is written from DICOM alone; give --to NAME.tif"),
        (tif, "x.png", False, "one picture cannot hold 6"),
        (tif, "x.jpg", False, "JPEG changes the numbers"),
        (dcm, "x.dcm", True, "DICOM files hold no floats"),
        (png, "x.png", True, "picture files hold no floats"),
    ):
        with pytest.raises(UserError, match=message):
            Target.of(tmp_path / to, original).check(spread)
    Target.of(tmp_path / "x.png", png)


# -- the command -----------------------------------------------------------------------------------

OWN = ["data=measurements", "data.range=[0,1000]", "data.sigma_y=50"]
DENOISING = ["--operator", "denoising", "operator.sigma=0.1", *OWN, *SMALL]


def test_restore_writes_what_came_and_the_spread_of_draws(run, prior, tmp_path):
    raw = np.random.default_rng(0).integers(0, 1000, (3, 8, 8)).astype(np.uint16)
    path = instruments.tiff(tmp_path / "in.tif", raw)
    work = tmp_path / "work"
    code, told, shown = run("restore", prior, "--measurements", path, *DENOISING)
    assert code == 0 and "3 restorations by mmps" in shown, told
    assert "y and sigma_y are read by data.range=[0,1000]" in told
    found, form = frames_in(work / "restored.tif")
    assert form == frames_in(path)[1] and found.std() > 0
    assert (work / "restored.png").is_file()
    several = ["--draws", "3", "--to", "x.tif"]
    assert run("restore", prior, "--measurements", path, *several, *DENOISING)[0] == 0
    draws = np.stack([frames_in(work / f"x_{k}.tif")[0] for k in (1, 2, 3)]).astype(float)
    assert np.array_equal(draws[0], found)  # the first draw is that of one draw
    both = ["--mean", "--std"]
    assert run("restore", prior, "--measurements", path, *several, *both, *DENOISING)[0] == 0
    mean, std = (frames_in(work / f"x_{what}.tif")[0] for what in ("mean", "std"))
    assert mean.dtype == np.uint16 and std.dtype == np.float32
    inside = (draws > 0).all(0) & (draws < 65535).all(0)
    assert inside.sum() > 20
    assert np.abs(mean - draws.mean(0))[inside].max() <= 1
    np.testing.assert_allclose(std[inside], draws.std(0, ddof=1)[inside], atol=1)
    refused = run("restore", prior, "--measurements", path, "--std", *DENOISING)
    assert refused[0] == 2 and "add --draws 8" in refused[1]


def test_images_larger_than_the_priors_are_restored_by_windows(run, prior, tmp_path):
    raw = np.random.default_rng(0).integers(0, 1000, (2, 20, 13)).astype(np.float32)
    raw[:, 5] = np.nan
    path = instruments.fits(tmp_path / "in.fits", raw)
    inpaint = ["operator.p=0.05", "operator.sigma=0.1", "data.missing=nan", *OWN, *SMALL]
    code, told, _ = run("restore", prior, "--measurements", path, *inpaint)
    assert code == 0, told
    found, form = frames_in(tmp_path / "work" / "restored.fits")
    assert form == frames_in(path)[1] and np.isfinite(found).all()
    blur = ["--operator", "blur", "operator.sigma=0.1", *OWN, *SMALL]
    path = instruments.fits(tmp_path / "in.fits", np.nan_to_num(raw))
    code, told, _ = run("restore", prior, "--measurements", path, *blur)
    assert code == 2 and "(1, 8, 8)" in told
