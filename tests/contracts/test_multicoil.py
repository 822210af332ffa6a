"""Multi-coil MRI: the operator, what it refuses, complex images, metrics of magnitudes."""

import numpy as np
import pytest
import torch
from deepinv.physics import MultiCoilMRI
from PIL import Image
from skimage.metrics import structural_similarity

import cleanprior as cp
from cleanprior.cells.identity import Identity
from cleanprior.config import build, compose
from cleanprior.config.capabilities import refused
from cleanprior.data import Measurements
from cleanprior.data.phases import smooth_phase
from cleanprior.errors import UserError
from cleanprior.evaluation.marks import _known_of_gram
from cleanprior.evaluation.metrics.further import further_metrics
from cleanprior.evaluation.metrics.restoration import held_out_error
from cleanprior.operators.coils import KINDS, draw_maps
from cleanprior.operators.likelihood import Likelihood
from cleanprior.seeding import generator_for
from cleanprior.testing import operators as promises
from cleanprior.testing.metrics import check_metric
from cleanprior.testing.operators import draw

SHAPE = (2, 12, 16)
METRICS = ["magnitude_nrmse", "magnitude_psnr", "magnitude_ssim"]


def normal(shape, seed=0):
    return torch.randn(shape, generator=generator_for(seed, "x"))


def to_complex(x):
    return torch.complex(x[:, 0], x[:, 1])


@pytest.fixture
def multicoil(make_operator):
    def make(*overrides, shape=SHAPE):
        return make_operator("mri_multicoil", shape, *overrides)

    return make


@pytest.mark.parametrize("keys", [(), ("pattern=points",), ("maps=smooth", "coils=3")])
def test_the_adjoint_is_that_of_complex_arithmetic(multicoil, keys):
    shape = (2, 8, 8) if "pattern=points" in keys else SHAPE
    operator = multicoil(*keys, shape=shape)
    params = draw(operator, 4)
    x = normal((4, *shape))
    y = normal(tuple(operator.A(x, params).shape), 1)
    left = (to_complex(operator.A(x, params)) * to_complex(y).conj()).flatten(1).sum(1)
    right = (to_complex(x) * to_complex(operator.A_adjoint(y, params)).conj()).flatten(1).sum(1)
    size = operator.A(x, params).flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
    assert ((left - right).abs() / size).max() < 1e-5
    promises.check_pseudo_inverse(operator, 1e-3)
    promises.check_batches(operator)


def test_one_coil_is_the_single_coil_operator(multicoil, make_operator):
    several, one = multicoil("coils=1", "sigma=0.1"), make_operator("mri", SHAPE, "acceleration=4")
    params = draw(several, 5)
    assert params["coil_maps"].unique().tolist() == [0.0, 1.0]
    x, mask = normal((5, *SHAPE)), {"mask": params["mask"]}
    y = several.A(x, params)
    torch.testing.assert_close(y[:, :, 0], one.A(x, mask), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(several.lift(y, params), one.lift(y[:, :, 0], mask))
    torch.testing.assert_close(
        several.A_dagger(y, params), one.A_dagger(y[:, :, 0], mask), rtol=1e-4, atol=1e-5
    )


def test_it_is_deepinvs_operator_with_the_maps_as_real_arrays(multicoil):
    operator = multicoil("coils=4")
    params = draw(operator, 3)
    maps, mask = to_complex(params["coil_maps"]), params["mask"].expand(-1, 2, *SHAPE[1:])
    theirs = MultiCoilMRI(mask=mask, coil_maps=maps, img_size=SHAPE)
    x = normal((3, *SHAPE))
    torch.testing.assert_close(operator.A(x, params), theirs.A(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_squares_of_the_maps_sum_to_one_and_images_differ(kind):
    maps = draw_maps(kind, 70, 5, 9, 12, generator_for(0, "maps"))
    assert maps.shape == (70, 2, 5, 9, 12)
    torch.testing.assert_close(maps.square().sum((1, 2)), torch.ones(70, 9, 12))
    assert (maps[0] - maps[1]).abs().max() > 0.1
    # Neighbours differ little: a map is smooth.
    steps = (maps.diff(dim=-1).square().sum(1).sqrt().mean(), maps.square().sum(1).sqrt().mean())
    assert steps[0] < 0.4 * steps[1]


@pytest.mark.parametrize(
    "keys", [(), ("pattern=points",), ("acceleration=2",), ("acceleration=1",)]
)
def test_further_corruption_goes_from_r_to_r_plus_one_and_keeps_the_centre(multicoil, keys):
    operator = multicoil(*keys, shape=(2, 20, 48))
    total = operator.sampling.centre.numel()
    params = draw(operator, 50)
    further = operator.further(params, 0.1, generator_for(0, "f"))
    before, after = (p["mask"].flatten(1).sum(1).unique().tolist() for p in (params, further))
    assert before == [int(total / operator.acceleration)]
    assert after == [int(total / (operator.acceleration + 1))]
    assert (further["mask"] <= params["mask"]).all()
    assert (further["mask"] >= operator.sampling.centre).all()
    assert further["coil_maps"] is params["coil_maps"]
    assert (multicoil(*keys[:0], "further_lines=1").sampling.further_count) == 1


def test_bounds_of_the_expected_gram_are_bounds(multicoil):
    operator = multicoil("coils=2", "acceleration=2", shape=(2, 1, 6))
    params = draw(operator, 1)
    centre = {**params, "mask": operator.sampling.centre[None, None]}
    further = operator.further(params, 0, generator_for(0, "f"))
    hidden = [i for i in range(6) if further["mask"][0, 0, 0, i] == 0]
    grams = []
    for line in hidden:
        mask = further["mask"].clone()
        mask[..., line] = 1
        a = operator.matrix({**params, "mask": mask}, 1)[0]
        grams.append(a.T @ a)
    least = torch.linalg.eigvalsh(torch.stack(grams).mean(0))[0]
    bound = operator.supervision(further, 0)[0, 0]
    assert 0 < bound <= least + 1e-6
    assert centre["mask"].sum() < params["mask"].sum()


@pytest.mark.parametrize(
    ("keys", "shape", "message"),
    [
        ((), (1, 8, 8), r"needs complex images.*have 1 channel\(s\).*data=complex_images"),
        (("acceleration=0.5",), SHAPE, "acceleration=0.5; allowed: at least 1"),
        (("centre_lines=4",), SHAPE, "do not fit the 4 lines of images of 12x16"),
        (("pattern=points", "centre_lines=13"), SHAPE, "do not fit the 48 points"),
        (("coils=0",), SHAPE, r"coils=0; allowed: .1, 1024"),
        (("coils=1000000000",), SHAPE, r"coils=1000000000; allowed: .1, 1024"),
        (("maps=body",), SHAPE, "allowed: birdcage, smooth"),
    ],
)
def test_what_cannot_be_measured_is_refused(multicoil, keys, shape, message):
    with pytest.raises(UserError, match=message):
        multicoil(*keys, shape=shape)


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("gsure", "SVD"),
        ("masked_loss", "MASK"),
        ("ambient", "NOISE_FREE"),
        ("sure_score", "IDENTITY"),
    ],
)
def test_methods_that_it_is_not_for_refuse_with_their_reason(method, code):
    keys = [f"method={method}", "operator=mri_multicoil", "operator.sigma=0.05"]
    assert refused(compose(keys)).code == code


def test_ambient_takes_noisy_scans_where_it_is_told_to_and_says_so(make_problem, multicoil):
    keys = [
        "method=ambient",
        "operator=mri_multicoil",
        "operator.sigma=0.05",
        "method.noise=ignore",
    ]
    assert refused(compose(keys)) is None
    method = build(compose(keys)["method"])
    problem = make_problem(multicoil("sigma=0.05"))
    assert method.supports(problem) is None
    assert "noisy" in {w.code for w in method.warnings(problem)}
    with pytest.raises(UserError, match="noise='some'; allowed: ignore"):
        build(compose(["method=ambient", "method.noise=some"])["method"])


def test_the_keys_that_ambient_gained_are_no_part_of_a_cell_where_nobody_set_them():
    plain = compose(["method=ambient"])
    kept = {k: v for k, v in plain["method"].items() if k not in ("residual", "noise")}
    older = {**plain, "method": kept}
    assert Identity(plain).training == Identity(older).training == "a9e0fe24675d03bd"
    chosen = compose(["method=ambient", "method.noise=ignore"])
    assert Identity(chosen).training != Identity(plain).training


@pytest.fixture
def scans(multicoil):
    operator = multicoil("sigma=0.1")
    return Measurements.draw(normal((6, *SHAPE)), operator, 0, "train"), operator


def test_its_own_measurements_are_its_own(scans):
    measured, operator = scans
    assert operator.mismatch(measured.params) is None
    found = operator.with_law_of(measured.params)
    assert found.capabilities == operator.capabilities
    drawn = found.draw(5, generator_for(0, "d"))
    assert all(
        any(torch.equal(m, k) for k in measured.params["coil_maps"]) for m in drawn["coil_maps"]
    )


def test_one_mask_for_all_is_a_fixed_operator_whatever_the_coils(scans):
    measured, operator = scans
    one = measured.params["mask"][:1]
    found = operator.with_law_of({**measured.params, "mask": one.repeat(6, 1, 1, 1)})
    assert "fixed" in found.capabilities
    assert "random" not in found.capabilities
    assert torch.equal(found.draw(3, generator_for(0, "d"))["mask"], one.repeat(3, 1, 1, 1))


def test_maps_and_masks_of_another_law_are_told_apart(scans, multicoil):
    measured, operator = scans
    maps, mask = measured.params["coil_maps"], measured.params["mask"]
    reason = operator.mismatch({"mask": mask, "coil_maps": 2 * maps})
    assert "sum to 4 over the coils; needed: 1" in reason
    dark = maps.clone()
    dark[..., :4] = 0
    assert "on 25.0% of the pixels" in operator.mismatch({"mask": mask, "coil_maps": dark})
    other = multicoil("acceleration=2").mismatch(measured.params)
    assert "measure 4 of 16 lines" in other
    assert "set operator.acceleration=4" in other
    wide = multicoil("centre_lines=3").mismatch(measured.params)
    assert "the masks have 1 of them" in wide


@pytest.fixture
def brains(tmp_path):
    """Grey pictures of a bright disc, each with another grey."""
    grid = np.hypot(*np.mgrid[-1:1:24j, -1:1:24j])
    for i in range(12):
        Image.fromarray(((grid < 0.7) * (100 + 10 * i)).astype(np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    return tmp_path


def test_complex_images_have_the_magnitude_of_the_pictures_and_a_bounded_phase(brains):
    plain = cp.dataset("folder", path=str(brains), resolution=12, channels=1)
    data = cp.dataset("complex_images", path=str(brains), resolution=12, phase=0.25)
    assert data.train.shape == (len(plain.train), 2, 12, 12)
    for ours, grey in ((data.train, plain.train), (data.test, plain.test)):
        torch.testing.assert_close(ours.norm(dim=1), (grey[:, 0] + 1) / 2)
    angle = smooth_phase(plain.train, 0.25, 0)
    assert (angle.abs().flatten(1).amax(1) - np.pi / 4).abs().max() < 1e-5
    assert (angle[0] - angle[1]).abs().max() > 0.1
    again = smooth_phase(plain.train[:2], 0.25, 0)
    assert torch.equal(again, angle[:2])
    assert not torch.equal(smooth_phase(plain.train[:2], 0.25, 1), again)
    assert any("simulated smooth phase" in n.text for n in data.notices)
    with pytest.raises(UserError, match="needs data.path=FOLDER or FILE.zip"):
        cp.dataset("complex_images")


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_keeps_what_metrics_promise(name):
    check_metric(name, further_metrics([name])[name], (2, 16, 16))
    with pytest.raises(ValueError, match="of complex images"):
        further_metrics([name])[name](torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def test_metrics_are_of_the_magnitude_within_the_object():
    x, truth = normal((3, 2, 24, 24)), torch.zeros(3, 2, 24, 24)
    truth[:, :, 4:20, 4:20] = normal((3, 2, 16, 16), 1) + 3
    truth[:, :, 10:12, 10:12] = 0  # a hole belongs to the object
    nrmse, psnr, ssim = (further_metrics(METRICS)[n](x, truth) for n in METRICS)
    a, b = x.double().norm(dim=1), truth.double().norm(dim=1)
    inside = (slice(None), slice(4, 20), slice(4, 20))
    error = (a - b)[inside].flatten(1)
    torch.testing.assert_close(nrmse, error.norm(dim=1) / b.flatten(1).norm(dim=1))
    peak = b.flatten(1).amax(1)
    torch.testing.assert_close(psnr, 10 * torch.log10(peak**2 / error.square().mean(1)))
    for i in range(3):
        _, full = structural_similarity(
            (a[i] / peak[i]).numpy(),
            (b[i] / peak[i]).numpy(),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        assert abs(full[4:20, 4:20].mean() - ssim[i]) < 2e-3
    # A phase costs nothing, and what lies in the air neither.
    turned = torch.stack([-truth[:, 1], truth[:, 0]], 1)
    turned[:, :, :4] += 1
    assert further_metrics(METRICS)["magnitude_nrmse"](turned, truth).abs().max() < 1e-6


def test_held_out_entries_are_compared_with_those_that_were_measured(scans):
    measured, operator = scans
    clean = normal((6, *SHAPE))
    further = operator.further(measured.params, 0.1, generator_for(0, "held"))
    likelihood = Likelihood.of(operator, measured)
    dropped = measured.params["mask"] - further["mask"]
    seen = dropped[:, None].expand_as(measured.y).bool()
    noise = (measured.y - operator.A(clean, measured.params))[seen]
    found = held_out_error(clean, likelihood, further)
    together = noise.square().sum().sqrt() / measured.y[seen].square().sum().sqrt()
    assert abs(found.mean() / together - 1) < 0.2
    nothing = held_out_error(torch.zeros(6, *SHAPE), likelihood, further)
    torch.testing.assert_close(nothing, torch.ones(6).double())


def test_the_least_error_is_that_of_the_larger_system(scans):
    """Where y is larger than x, the yardstick of leaks solves the smaller of two systems."""
    measured, operator = scans
    one = Likelihood.of(operator, measured).take(torch.tensor([2]))
    root = normal((384, 384), 3).double() / 384**0.5
    covariance = root @ root.T
    (a,) = operator.matrix(one.params, 1)
    seen = covariance @ a.T
    inner = a @ seen + 0.01 * torch.eye(len(a)).double()
    expected = (seen * torch.linalg.solve(inner, seen.T).T).sum()
    torch.testing.assert_close(_known_of_gram(one, covariance, 0.1), expected, rtol=1e-4, atol=0)
