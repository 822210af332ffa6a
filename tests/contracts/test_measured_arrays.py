"""Measurement files in other ways of storing them, and files that contradict the operator."""

import numpy as np
import pytest
import torch

from cleanprior.cells import CellFolder
from cleanprior.cells.run import Cell
from cleanprior.config import compose
from cleanprior.data import Measurements, measured_file
from cleanprior.errors import UserError
from cleanprior.training.warning import codes

SHAPE = (1, 12, 12)


def images(n, shape=SHAPE, low=-1.0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1)) * (1 - low) + low


def arrays_of(operator, x, split="train"):
    tensors = Measurements.draw(x, operator, 3, split).tensors()
    # Without negative zeros, which a hash tells from zeros.
    return {k.replace("params.", "params/"): v.numpy() + 0.0 for k, v in tensors.items()}


@pytest.fixture
def inpainting(make_operator):
    return make_operator("inpainting", SHAPE, "p=0.4", "sigma=0.1")


def load(tmp_path, arrays, image_shape=None, layout=None, share=0.3):
    np.savez(tmp_path / "x.npz", **arrays)
    return measured_file(str(tmp_path / "x.npz"), image_shape, share, layout)


def texts(notices):
    return " ".join(n.text for n in notices)


# -- one rule for axes -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["NHWC", "NHW", "HWN", "HWCN"])
def test_every_layout_gives_the_same_measurements(inpainting, tmp_path, how):
    arrays = arrays_of(inpainting, images(30))
    plain = load(tmp_path, arrays)
    order = {"NHWC": (0, 2, 3, 1), "HWCN": (2, 3, 1, 0)}
    moved = {
        k: v if v.ndim != 4 else v.transpose(order[how]) if how in order else v[:, 0]
        for k, v in arrays.items()
    }
    if how == "HWN":
        moved = {k: np.moveaxis(v, 0, 2) if v.ndim == 3 else v for k, v in moved.items()}
    data = load(tmp_path, moved, layout=how if how.startswith("HW") else None)
    assert (data.train.hash, data.test.hash) == (plain.train.hash, plain.test.hash)
    assert data.image_shape == SHAPE
    assert f"y was read as {how}: 30 images of 1x12x12" in texts(data.notices)
    data.check(inpainting)
    assert load(tmp_path, moved, SHAPE, how).train.hash == plain.train.hash


def test_a_layout_that_stays_open_is_refused_and_the_advice_works(make_operator, tmp_path):
    operator = make_operator("denoising", (1, 12, 9), "sigma=0.3")
    arrays = arrays_of(operator, images(12, (1, 12, 9)))
    arrays["y"] = arrays["y"][:, 0]
    with pytest.raises(UserError, match=r"set data\.layout \(NHW: 12 images of 1x12x9"):
        load(tmp_path, arrays)
    load(tmp_path, arrays, layout="NHW").check(operator)
    load(tmp_path, arrays, image_shape=(1, 12, 9)).check(operator)


def test_files_of_small_or_many_channels_are_read_as_they_were_written(make_operator, tmp_path):
    for shape in ((1, 2, 3), (3, 4, 4), (2, 4, 2), (5, 12, 12)):
        operator = make_operator("denoising", shape, "sigma=0.3")
        data = load(tmp_path, arrays_of(operator, images(20, shape)))
        assert data.image_shape == shape
        data.check(operator)


def test_one_mask_for_all_may_be_stored_once(tmp_path, inpainting):
    arrays = arrays_of(inpainting, images(30))
    mask = arrays["params/mask"][:1]
    arrays["y"] = arrays["y"] * 0 + images(30).numpy() * mask
    for stored in (mask, mask[0], mask[0, 0]):
        data = load(tmp_path, arrays | {"params/mask": stored})
        assert data.train.params["mask"].shape == (len(data.train), *SHAPE)
        data.check(inpainting)


# -- gaps, complex values, scales ------------------------------------------------------------------


def test_nan_where_nothing_was_measured_is_a_gap_and_elsewhere_an_error(inpainting, tmp_path):
    arrays = arrays_of(inpainting, images(30))
    plain = load(tmp_path, arrays)
    gaps = np.where(arrays["params/mask"] == 0, np.nan, arrays["y"])
    data = load(tmp_path, arrays | {"y": gaps})
    assert (data.train.hash, data.test.hash) == (plain.train.hash, plain.test.hash)
    assert "y is NaN where nothing was measured" in texts(data.notices)
    gaps[3][arrays["params/mask"][3] == 1] = np.nan
    with pytest.raises(UserError, match="hold NaN or infinity in 'y'"):
        load(tmp_path, arrays | {"y": gaps})


def test_complex_measurements_become_two_channels(make_operator, tmp_path):
    operator = make_operator("mri", (2, 12, 12), "sigma=0")
    arrays = arrays_of(operator, images(30, (2, 12, 12)))
    plain = load(tmp_path, arrays)
    z = np.empty((30, 1, 12, 12), np.complex64)
    z.real, z.imag = arrays["y"][:, :1], arrays["y"][:, 1:]
    for stored in (z, z[:, 0], np.moveaxis(z, 1, 3)):
        data = load(tmp_path, arrays | {"y": stored})
        assert data.train.hash == plain.train.hash
        assert "real and imaginary part are two channels" in texts(data.notices)
    with pytest.raises(UserError, match="complex y of shape .* which are not images"):
        load(tmp_path, {"y": z.reshape(30, -1), "sigma_y": 0.0})


@pytest.mark.parametrize("name", ["mri", "inpainting"])
def test_a_tiny_scale_is_told(make_operator, tmp_path, name):
    shape = (2, 12, 12) if name.startswith("mri") else SHAPE
    operator = make_operator(name, shape, "sigma=0")
    arrays = arrays_of(operator, images(30, shape))
    assert load(tmp_path, arrays).check(operator) == ()
    (notice,) = load(tmp_path, arrays | {"y": arrays["y"] * 1e-5}).check(operator)
    assert notice.is_warning
    assert "reaches only" in notice.text


@pytest.mark.parametrize("sigma", ["0", "0.05", "0.5"])
def test_measurements_of_images_in_zero_to_one_are_told_and_others_not(
    make_operator, tmp_path, sigma
):
    operator = make_operator("inpainting", SHAPE, "p=0.4", f"sigma={sigma}")
    for low in (0.0, -1.0):
        arrays = arrays_of(operator, images(60, low=low))
        told = texts(load(tmp_path, arrays).check(operator))
        assert ("no values below 0" in told) == (low == 0)


def test_a_constant_y_and_a_mask_of_nothing_are_refused(make_operator, tmp_path):
    operator = make_operator("inpainting", SHAPE, "p=0.4", "sigma=0")
    arrays = arrays_of(operator, images(30))
    constant = arrays | {"y": arrays["params/mask"] * 0.5}
    with pytest.raises(UserError, match=r"y is 0\.5 wherever it was measured"):
        load(tmp_path, constant).check(operator)


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_measurements_to_hold_two_out_are_refused(inpainting, tmp_path, n):
    arrays = arrays_of(inpainting, images(n))
    with pytest.raises(UserError, match="needed: at least 3 different ones"):
        load(tmp_path, arrays)
    shipped = {f"test/{k}": v for k, v in arrays_of(inpainting, images(1), "test").items()}
    with pytest.raises(UserError, match="one measurement below test/; needed: at least 2"):
        load(tmp_path, arrays_of(inpainting, images(9)) | shipped)
    data = load(tmp_path, arrays_of(inpainting, images(12)), share=1e-6)
    assert len(data.test) == 2
    assert "10 measurements for training and 2 held out, by a hash of each y" in texts(data.notices)


# -- what the file says and what the operator assumes ----------------------------------------------

FOUND = r"set operator\.p=0\.(39\d?|40\d?|4)(;|$)"  # the share that 42 drawn masks happen to hide
LAWS = [
    ("inpainting", SHAPE, ["p=0.4"], ["p=0.5"], FOUND),
    ("inpainting", SHAPE, ["p=0"], ["p=0.5"], r"set operator\.p=0$"),
    ("inpainting", (3, 8, 8), ["p=0.4", "per_channel=true"], ["p=0.6", "per_channel=true"], FOUND),
    ("box", SHAPE, ["side=3"], ["side=2"], "the boxes have sides of 3.*set operator.side=3"),
    ("mri", (2, 12, 12), ["acceleration=3"], ["acceleration=2"], "set operator.acceleration=3"),
    ("mri", (2, 12, 12), ["centre_lines=2"], ["centre_lines=4"], "the masks have 2"),
    ("mri", (2, 12, 12), ["centre_lines=4"], ["centre_lines=2"], "set operator.centre_lines=4"),
]


@pytest.mark.parametrize(("name", "shape", "truth", "assumed", "message"), LAWS)
def test_a_file_that_contradicts_the_operator_is_refused_and_the_advice_works(
    make_operator, tmp_path, name, shape, truth, assumed, message
):
    right = make_operator(name, shape, *truth, "sigma=0")
    data = load(tmp_path, arrays_of(right, images(60, shape)))
    data.check(right)
    import re

    with pytest.raises(UserError, match=message) as caught:
        data.check(make_operator(name, shape, *assumed, "sigma=0"))
    if advised := re.search(r"set operator\.(\S+)", str(caught.value)):
        kept = [o for o in assumed if o.split("=")[0] != advised[1].split("=")[0]]
        data.check(make_operator(name, shape, *kept, advised[1], "sigma=0"))


def test_rows_of_another_variance_or_share_are_refused(make_operator, tmp_path):
    operator = make_operator("compressed_sensing", (1, 6, 6), "m=8", "sigma=0")
    arrays = arrays_of(operator, images(40, (1, 6, 6)))
    load(tmp_path, arrays, (1, 6, 6)).check(operator)
    scaled = arrays | {"params/matrix": 2 * arrays["params/matrix"]}
    with pytest.raises(
        UserError, match=r"params/matrix have the variance 0\.(5|49).*draws 1/m = 0\.125"
    ):
        load(tmp_path, scaled, (1, 6, 6)).check(operator)
    rows = arrays["params/rows"].copy()
    rows[:, :2] = 0
    missing = arrays | {"params/rows": rows, "y": arrays["y"] * rows}
    with pytest.raises(UserError, match=r"marks 25\.0% of the rows as missing"):
        load(tmp_path, missing, (1, 6, 6)).check(operator)


def test_what_is_no_box_is_refused(make_operator, tmp_path):
    operator = make_operator("box", SHAPE, "side=2", "sigma=0")
    arrays = arrays_of(operator, images(20))
    mask = np.ones((20, *SHAPE), np.float32)
    mask[:, 0, 0, :4] = 0
    odd = arrays | {"params/mask": mask, "y": images(20).numpy() * mask}
    with pytest.raises(UserError, match="hides is no square of 2 pixels"):
        load(tmp_path, odd).check(operator)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("p", [0.02, 0.5, 0.95])
def test_what_chance_explains_is_no_contradiction(make_operator, p, seed):
    operator = make_operator("inpainting", SHAPE, f"p={p}", "sigma=0")
    params = operator.draw(6, torch.Generator().manual_seed(seed))
    assert operator.mismatch(params) is None


# -- the law is read from the masks ----------------------------------------------------------------


def dead_pixels(n=40):
    mask = np.ones((n, *SHAPE), np.float32)
    mask[:, 0, 2, 3:8] = mask[:, 0, 9, 1:6] = 0
    return {"y": images(n).numpy() * mask, "sigma_y": 0.0, "params/mask": mask}


def cell(tmp_path, arrays, method, *overrides):
    np.savez(tmp_path / "x.npz", **arrays)
    own = ["data=measurements", f"data.path={tmp_path}/x.npz", "data.test_share=0.3"]
    config = compose([*own, f"method={method}", "training.device=cpu", *overrides])
    return Cell(CellFolder(tmp_path / "runs", config))


def test_one_mask_for_all_is_a_fixed_operator_with_a_null_space(tmp_path):
    problem = ("operator.p=0.07", "operator.sigma=0")
    naive = cell(tmp_path, dead_pixels(), "naive", *problem)
    assert "null" in codes(naive.method.warnings(naive.problem)).split("+")
    assert "equal for all images, inpainting is one fixed operator" in texts(naive.notices)
    assert "10 of 144 entries of y are measured in no image" in texts(naive.notices)
    drawn = naive.operator.draw(5, torch.Generator().manual_seed(0))["mask"]
    assert torch.equal(drawn, torch.from_numpy(dead_pixels(5)["params/mask"]))
    refused = {
        m: cell(tmp_path, dead_pixels(), m, *problem).refusal() for m in ("ambient", "gsure")
    }
    assert "needs an operator that varies between images" in refused["ambient"]
    assert "10 of 144 coordinates are never observed" in refused["gsure"]


def test_dead_pixels_beside_random_ones_are_a_null_space(tmp_path, make_operator):
    arrays = arrays_of(make_operator("inpainting", SHAPE, "p=0.4", "sigma=0"), images(60))
    naive = cell(tmp_path, arrays, "naive", "operator.p=0.4", "operator.sigma=0")
    assert "null" not in codes(naive.method.warnings(naive.problem)).split("+")
    assert {"random"} <= naive.operator.capabilities
    for key in ("y", "params/mask"):
        arrays[key][:, :, 5, 5] = 0
    dead = cell(tmp_path, arrays, "naive", "operator.p=0.4", "operator.sigma=0")
    assert "null" in codes(dead.method.warnings(dead.problem)).split("+")
    assert {"random"} <= dead.operator.capabilities


def test_the_class_of_an_operator_keeps_its_capabilities(make_operator):
    operator = make_operator("inpainting", SHAPE, "p=0.4")
    fixed = operator.with_law_of({"mask": torch.ones(4, *SHAPE)})
    assert fixed.capabilities - operator.capabilities == {"fixed"}
    assert "random" in operator.capabilities
    assert make_operator("inpainting", SHAPE).capabilities == operator.capabilities
