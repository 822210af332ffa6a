"""Channels that can only be simulated: who learns from them, what is measured again, mistakes."""

import numpy as np
import pytest
import torch
from scipy import stats
from trained import TINY

from cleanprior.cells.folder import CellFolder
from cleanprior.cells.identity import Identity
from cleanprior.cells.run import Cell, run_cell, write_measurements
from cleanprior.config import capabilities, compose
from cleanprior.data import Measurements, measured_file
from cleanprior.data.instrument_noise import with_noise
from cleanprior.errors import UserError
from cleanprior.operators.like import measured_like
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for, randn_like

CLIPPING = ("noise.kind=clipping", "noise.high=0.6")
KINDS = {
    "clipping": CLIPPING,
    "erasing": ("noise.kind=erasing",),
    "rectangle": ("noise.kind=erasing", "noise.shape=rectangle"),
    "jpeg": ("noise.kind=jpeg",),
}


@pytest.fixture
def instrument(make_operator):
    """Return an operator with the noise of some keys."""

    def make(*keys, operator="denoising", shape=(1, 8, 8)):
        config = compose([f"operator={operator}", *keys])
        return with_noise(config, make_operator(operator, shape))

    return make


# -- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["noise.kind=jpeg", "noise.quality=0"], "noise.quality=0; allowed: [1, 100]"),
        (["noise.kind=jpeg", "noise.quality=x"], "noise.quality=x; allowed: a whole number"),
        (["noise.kind=jpeg", "noise.quality=101"], "noise.quality=101; allowed: [1, 100]"),
        (["noise.kind=jpeg", "noise.as=map"], "no entry of y tells its own variance; use level"),
        (["noise.kind=erasing", "noise.as=map"], "no entry of y tells its own variance"),
        (["noise.kind=jpeg", "noise.as=anscombe"], "for counted photons, and noise.kind=jpeg: use"),
        (["noise.kind=erasing", "noise.p=1"], "noise.p=1; allowed: (0, 1)"),
        (["noise.kind=erasing", "noise.p=-0.1"], "noise.p=-0.1; allowed: (0, 1)"),
        (["noise.kind=erasing", "noise.shape=disc"], "allowed: pixels, rectangle"),
        (["noise.kind=clipping", "noise.sigma=0"], "noise.sigma=0; allowed: above 0"),
        (["noise.kind=clipping", "operator=mri"], "mri measures in the Fourier domain"),
        (["noise.kind=jpeg", "operator=mri"], "mri measures in the Fourier domain"),
    ],
)
def test_a_channel_that_is_none_is_one_line(overrides, message):
    with pytest.raises(UserError) as raised:
        compose(
            ["operator=denoising", *overrides] if "operator=mri" not in overrides else overrides
        )
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "operator", "channels", "message"),
    [
        ("jpeg", "inpainting", 2, "images of 1 or 3 channels, and here they have two"),
        ("jpeg", "denoising", 4, "images of 1 or 3 channels, and here they have 4"),
        ("clipping", "denoising", 2, "as a complex image has"),
        ("erasing", "blur", 2, "as a complex image has"),
        ("jpeg", "compressed_sensing", 1, r"compressed sensing has the shape \(32,\)"),
        ("erasing", "compressed_sensing", 1, r"changes pixels of an image"),
        ("clipping", "denoising", 5, None),
        ("jpeg", "downsampling", 3, None),
    ],
)
def test_what_has_no_pixels_or_other_channels_is_refused(
    instrument, kind, operator, channels, message
):
    keys, shape = (f"noise.kind={kind}",), (channels, 8, 8)
    if message is None:
        assert instrument(*keys, operator=operator, shape=shape).noise is not None
        return
    with pytest.raises(UserError, match=message) as raised:
        instrument(*keys, operator=operator, shape=shape)
    assert "\n" not in str(raised.value)


def test_ends_in_the_wrong_order_are_refused(instrument):
    with pytest.raises(UserError, match="low=0.5, high=0.5; allowed: low below high"):
        instrument("noise.kind=clipping", "noise.low=0.5", "noise.high=0.5")


# -- what is measured ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_an_image_is_measured_alike_whatever_is_beside_it(instrument, digits_data, name):
    operator = instrument(*KINDS[name], operator="inpainting")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole = Measurements.draw(digits_data.train[:300], operator, 3, "train")
    part = Measurements.draw(digits_data.train[:20], operator, 3, "train")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(whole.y[:20], part.y)
    params = {k: v[7:9] for k, v in whole.params.items()}
    sources = [generator_for(3, "noise", split="train", image=i) for i in (7, 8)]
    assert torch.equal(operator.measure(digits_data.train[7:9], params, sources), whole.y[7:9])
    assert (part.y[part.params["mask"].expand_as(part.y) == 0] == 0).all()
    assert not torch.equal(
        Measurements.draw(digits_data.train[:20], operator, 4, "train").y, part.y
    )


def same_law(a, b):
    """Whether two sets of numbers may be of one law, and both hold as many of each end."""
    a, b = a.flatten().double().numpy(), b.flatten().double().numpy()
    for end in (a.min(), a.max()):
        share = np.mean(a == end)
        if abs(share - np.mean(b == end)) > 5 * (2 * share * (1 - share) / len(a)) ** 0.5:
            return False
    return stats.ks_2samp(a, b, method="asymp").pvalue > 1e-3


LAWS = {
    **KINDS,
    "poisson": ("noise.kind=poisson", "noise.gain=0.1"),
    "gamma": ("noise.kind=gamma",),
}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("operator", ("denoising", "inpainting", "blur"))
def test_untold_images_are_measured_again_as_they_were(instrument, digits_data, operator, name):
    """By one generator for the batch; the law of the error is that of the stored measurements."""
    made = instrument(*LAWS[name], operator=operator)
    x = digits_data.train[:300]
    stored = Measurements.draw(x, made, 0, "train")
    again = measured_like(made, x, stored.params, stored.sigma_y, generator_for(0, "again"))
    clean = made.A(x, stored.params)
    assert same_law(stored.y - clean, again - clean) and same_law(stored.y, again)
    other = measured_like(made, x, stored.params, stored.sigma_y, generator_for(1, "again"))
    assert torch.equal(other, again) == (name == "jpeg")
    if name == "jpeg":
        assert torch.equal(again, stored.y)


def test_fills_and_shares_of_what_is_measured_again_are_the_law_s(instrument, digits_data):
    """One fill for each image: their histogram, which pixels of many images would blur."""
    made = instrument("noise.kind=erasing", "noise.p=0.3")
    x = digits_data.train[:1000]
    y = Measurements.draw(x, made, 0, "train").y
    again = measured_like(made, x, {}, torch.zeros(1000), generator_for(0, "again"))
    fills, shares = [], []
    for recorded in (y, again):
        where = recorded != x
        shares.append(where.float().mean().item())
        fills.append(
            torch.stack([image[w].unique()[0] for image, w in zip(recorded, where, strict=True)])
        )
    assert stats.ks_2samp(*(f.numpy() for f in fills), method="asymp").pvalue > 0.01
    assert stats.kstest(fills[1].numpy(), stats.uniform(-1, 2).cdf, method="asymp").pvalue > 0.01
    assert abs(shares[0] - shares[1]) < 0.01 and abs(shares[0] - 0.3) < 0.01


@pytest.mark.parametrize("told", ("map", "level"))
def test_who_is_told_of_gaussian_noise_measures_again_by_it(instrument, digits_data, told):
    made = instrument(*CLIPPING, f"noise.as={told}")
    x = digits_data.train[:50]
    stored = Measurements.draw(x, made, 0, "train")
    again = measured_like(made, x, {}, stored.sigma_y, generator_for(0, "again"))
    level = stored.sigma_y if told == "map" else stored.sigma_y.reshape(-1, 1, 1, 1)
    assert torch.equal(again, x + level * randn_like(x, generator_for(0, "again")))


def test_a_gradient_flows_where_nothing_was_lost_and_is_refused_where_there_is_none(
    instrument, digits_data
):
    x = digits_data.train[:20].clone().requires_grad_()
    for keys, is_kept in (
        (CLIPPING, lambda y: (y > -1) & (y < 2 * 0.6 - 1)),
        (("noise.kind=erasing",), lambda y: y == x),
    ):
        y = measured_like(instrument(*keys), x, {}, torch.zeros(20), generator_for(0, "again"))
        (gradient,) = torch.autograd.grad(y.sum(), x)
        kept = is_kept(y)
        assert 0.05 < kept.float().mean() < 0.95
        assert (gradient[kept] - 1).abs().max() < 1e-5 and not gradient[~kept].any()
    for kind in ("jpeg", "poisson", "quantisation"):
        made = instrument(f"noise.kind={kind}")
        with pytest.raises(ValueError, match="no gradient"):
            measured_like(made, x, {}, torch.zeros(20), generator_for(0, "again"))
        with torch.no_grad():
            measured_like(made, x, {}, torch.zeros(20), generator_for(0, "again"))


# -- who may learn from it -----------------------------------------------------------------------


def refused(method, *keys):
    found = capabilities.refused(compose([f"method={method}", "operator=denoising", *keys]))
    return None if found is None else found.code


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("clipping", None),
        ("erasing", None),
        ("rician", None),
        ("gamma", None),
        ("jpeg", "GRADIENT"),
        ("poisson", "GRADIENT"),
        ("poisson_gaussian", "GRADIENT"),
        ("quantisation", "GRADIENT"),
    ],
)
def test_ambient_gan_learns_through_what_has_a_gradient(kind, code):
    keys = [f"noise.kind={kind}"]
    assert refused("ambient_gan", *keys) == code
    assert refused("ambient_gan", *keys, "noise.as=level") is None
    assert refused("naive", *keys) is None and refused("em_mmps", *keys) == "GAUSS"
    for method in ("naive+distill", "oracle+distill"):
        assert refused(method, *keys) == code
    assert refused("em_mmps+distill", *keys) == "TEACHER"


def test_a_refusal_says_what_this_kind_may_be_told_as():
    config = compose(["method=em_mmps", "operator=denoising", "noise.kind=jpeg"])
    assert capabilities.refused(config).reason.endswith("take an approximation, noise.as=level")
    config = compose(["method=ambient_gan", "operator=denoising", "noise.kind=poisson"])
    assert capabilities.refused(config).reason.endswith("noise.as=map, level or anscombe")


def test_an_operator_of_unknown_noise_is_not_simulated():
    facts = capabilities.ProblemFacts("mine", frozenset({"random"}), 0.1)
    found = capabilities.refusal({"name": "gan", "needs": ["SIMULATE", "GRADIENT"]}, facts)
    assert found.code == "SIMULATE" and "how mine does is not known" in found.reason
    plain = capabilities.ProblemFacts("mine", frozenset({"gaussian"}), 0.1)
    assert capabilities.refusal({"name": "gan", "needs": ["SIMULATE", "GRADIENT"]}, plain) is None


def test_cells_on_disk_are_known_by_the_needs_of_their_time():
    for method, needs in (("ambient_gan", ["GAUSS"]), ("naive+distill", [])):
        config = compose([f"method={method}", "operator=denoising"])
        then = {**config, "method": {**config["method"], "needs": needs}}
        assert config["method"]["needs"] != needs
        assert Identity(config).training == Identity(then).training
        assert Identity(config).evaluation == Identity(then).evaluation


# -- whole cells ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("ambient_gan", ["operator=denoising", *CLIPPING]),
        ("ambient_gan", ["operator=inpainting", *KINDS["rectangle"]]),
        ("ambient_gan", ["operator=blur", "noise.kind=clipping", "method.loss_function=wgan_gp"]),
        ("observations", ["operator=inpainting", *KINDS["jpeg"]]),
        ("naive", ["operator=downsampling", *KINDS["jpeg"]]),
    ],
)
def test_a_cell_is_trained_and_says_why_nothing_is_restored(tmp_path, digits_data, method, keys):
    np.save(tmp_path / "few.npy", digits_data.train[:80, 0].numpy())
    data = ["data=arrays", f"data.path={tmp_path / 'few.npy'}", "data.range=[-1,1]"]
    folder = CellFolder(tmp_path, compose([f"method={method}", *keys, *data, *TINY]))
    record = run_cell(folder, Progress())
    assert record["status"] == "done", record["status"]
    (row,) = record["rows"]
    assert np.isfinite(row["metrics"]["fd"]) and np.isfinite(row["metrics"]["proximal_fd"])
    if method == "observations":
        assert np.isfinite(row["metrics"]["psnr_point"])
    elif method == "naive":
        assert "posterior samplers take Gaussian noise" in row["missing"]["restoration"]
    else:
        assert "a generator only samples" in row["missing"]["restoration"]


def test_one_level_is_near_the_root_mean_square_of_what_happened(tmp_path):
    for keys, low, high in (  # bright pixels of digits lie at the end, and not anywhere above 0.6
        (CLIPPING, 0.75, 0.85),
        (KINDS["erasing"], 0.97, 1.03),
        (KINDS["jpeg"], 0.8, 1),
    ):
        built = Cell(CellFolder(tmp_path, compose(["operator=denoising", *keys, "noise.as=level"])))
        error = (built.measurements("train").y[:] - built.data.train).square().mean().sqrt().item()
        assert low < built.operator.sigma / error < high, keys


def test_measurements_are_written_as_the_channel_left_them(tmp_path):
    path = tmp_path / "small.npz"
    write_measurements(compose(["operator=denoising", *KINDS["jpeg"]]), path)
    read = measured_file(str(path), None, 0.1)
    values = 255 * (read.train.y.double() + 1) / 2
    assert (values - values.round()).abs().max() < 1e-4, "bytes"
    assert read.train.sigma_y.unique().numel() == 1 and read.train.sigma_y[0] > 0.05
