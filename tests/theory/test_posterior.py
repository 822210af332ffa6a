"""Samplers of p(x|y) on a Gaussian of six pixels, three of them observed, against closed forms."""

from dataclasses import replace

import pytest
import torch

from cleanprior.data import Measurements
from cleanprior.diffusion.posterior import DPS, MMPS, conjugate_gradient
from cleanprior.gaussian.dense import GaussianPrior
from cleanprior.operators.likelihood import Likelihood
from cleanprior.prior import image_generators
from cleanprior.seeding import generator_for
from cleanprior.testing import posteriors as promises

SHAPE = (1, 2, 3)
MASK = torch.tensor([1.0, 0, 1, 0, 0, 1]).reshape(1, 1, 2, 3)


@pytest.fixture(scope="module")
def operator(make_operator):
    return make_operator("inpainting", SHAPE, "sigma=0.1")


def one_measurement(operator, n, level=0.1):
    """Return n copies of one measurement of three pixels, with noise of that level."""
    y = torch.tensor([0.6, 0, -0.4, 0, 0, 0.3]).reshape(1, *SHAPE) * MASK
    copies = torch.zeros(n, dtype=torch.long)
    return Likelihood(operator, y[copies], {"mask": MASK[copies]}, torch.full((n,), level))


def several(gaussian, operator, n):
    x = torch.randn((n, *SHAPE), generator=generator_for(0, "x")) * 0.5
    return Measurements.draw(x, operator, 0, "train")


def dps(scale=0.5, guidance="norm", steps=20, eta=1.0, low=0.02, high=20.0):
    return DPS(steps, low, high, 7.0, eta, scale, False, guidance)


def mmps(steps=20, eta=1.0, iterations=6, tolerance=1e-6, low=0.002, high=80.0, floor=0.0):
    return MMPS(steps, low, high, 7.0, eta, iterations, tolerance, float("inf"), floor)


# -- MMPS is exact for a Gaussian ------------------------------------------------------------------


@pytest.mark.parametrize(("eta", "tolerance"), [(1.0, 0.08), (0.0, 0.03)])
def test_mmps_draws_from_the_posterior_of_a_gaussian(gaussian, operator, eta, tolerance):
    given = one_measurement(operator, 20_000)
    draw = mmps(256, eta)(gaussian, given, generator_for(0, "d"))
    x = draw.x.flatten(1).double()
    mean, covariance = gaussian.posterior(one_measurement(operator, 1))
    assert (x.mean(0) - mean[0]).abs().max() < 0.02
    assert (torch.cov(x.T) - covariance[0]).norm() / covariance[0].norm() < tolerance


@pytest.mark.parametrize("name", ["inpainting", "blur", "denoising"])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 10.0])
def test_the_guided_mean_is_the_conditional_mean(gaussian, make_operator, name, sigma):
    """E[x | x_sigma, y] in closed form: both x_sigma and y are measurements of x."""
    extra = ["kernel_size=1"] if name == "blur" else []
    operator = make_operator(name, SHAPE, "sigma=0.1", *extra)
    data = several(gaussian, operator, 4)
    x = sigma * torch.randn((4, *SHAPE), generator=generator_for(0, "t"))
    problem = Likelihood.of(operator, data)
    mean, correction = mmps().guide(gaussian, x, sigma, problem)
    assert correction is None
    a = operator.matrix(data.params, 4)
    eye = torch.eye(6, dtype=torch.float64)
    prior_precision = torch.linalg.inv(gaussian.covariance)
    for i in range(4):
        seen = operator.observed(data.y, data.params)[i].flatten().double()
        weight = a[i].T @ torch.diag(seen) / 0.01
        precision = prior_precision + eye / sigma**2 + weight @ a[i]
        pull = prior_precision @ gaussian.mean + x[i].flatten().double() / sigma**2
        pull = pull + weight @ data.y[i].flatten().double()
        direct = torch.linalg.solve(precision, pull)
        torch.testing.assert_close(mean[i].flatten().double(), direct, rtol=1e-3, atol=1e-4)


def test_the_floor_replaces_smaller_noise_in_the_likelihood_only(gaussian, make_operator):
    operator = make_operator("inpainting", SHAPE, "sigma=0")
    given = one_measurement(operator, 3)
    before = given.y.clone()
    free = replace(given, sigma_y=0 * given.sigma_y)
    generators = image_generators(0, range(3))
    floored = mmps(floor=0.1)(gaussian, free, generators)
    expected = mmps()(gaussian, given, image_generators(0, range(3)))
    torch.testing.assert_close(floored.x, expected.x)
    assert torch.equal(given.y, before)
    with pytest.raises(
        ValueError, match=r"sigma_y is 0 and sigma_floor is 0; set posterior\.sigma"
    ):
        mmps()(gaussian, free, generators)


# -- conjugate gradient ----------------------------------------------------------------------------


@pytest.fixture
def systems():
    root = torch.randn((6, 5, 5), generator=generator_for(0, "m"), dtype=torch.float64)
    # Well conditioned: the guard against divergence stops a residual that doubles on its way.
    matrices = root @ root.mT / 5 + 0.5 * torch.eye(5, dtype=torch.float64)
    b = torch.randn((6, 5), generator=generator_for(0, "b"), dtype=torch.float64)
    return matrices, b


def solve(matrices, b, iterations=30, tolerance=1e-10):
    def apply(v):
        return (matrices @ v[:, :, None])[:, :, 0], v

    return conjugate_gradient(apply, b, iterations, tolerance)


def test_conjugate_gradient_returns_the_mapped_solution(systems):
    matrices, b = systems
    mapping = torch.randn((5, 3), generator=generator_for(0, "map"), dtype=torch.float64)
    found = conjugate_gradient(
        lambda v: ((matrices @ v[:, :, None])[:, :, 0], v @ mapping), b, 30, 1e-8
    )
    torch.testing.assert_close(found, solve(matrices, b) @ mapping, rtol=1e-6, atol=1e-10)


def test_conjugate_gradient_equals_a_dense_solve(systems):
    matrices, b = systems
    expected = torch.linalg.solve(matrices, b)
    torch.testing.assert_close(solve(matrices, b), expected, rtol=1e-4, atol=1e-8)


def test_conjugate_gradient_solves_each_image_on_its_own(systems):
    matrices, b = systems
    scale = torch.logspace(-4, 4, 6, dtype=torch.float64)[:, None]
    together = solve(matrices, scale * b, iterations=3)
    for i in range(6):
        alone = solve(matrices[i : i + 1], scale[i] * b[i : i + 1], iterations=3)
        torch.testing.assert_close(together[i], alone[0], rtol=1e-10, atol=1e-12)


def test_conjugate_gradient_leaves_a_zero_right_hand_side_at_zero(systems):
    matrices, b = systems
    b[2] = 0
    solution = solve(matrices, b)
    assert (solution[2] == 0).all()
    assert solution.isfinite().all()


def test_conjugate_gradient_stops_where_the_map_is_not_positive(systems):
    matrices, b = systems
    matrices[1] = -torch.eye(5)
    solution = solve(matrices, b)
    assert (solution[1] == 0).all()
    rest = [0, 2, 3, 4, 5]
    expected = torch.linalg.solve(matrices[rest], b[rest])
    torch.testing.assert_close(solution[rest], expected, rtol=1e-4, atol=1e-8)


def test_conjugate_gradient_stops_at_the_tolerance(systems):
    matrices, b = systems
    calls = []

    def apply(v):
        calls.append(1)
        return (matrices @ v[:, :, None])[:, :, 0], v

    conjugate_gradient(apply, b, 30, 0.9)
    assert len(calls) < 5


# -- DPS -------------------------------------------------------------------------------------------


def linear(matrix):
    def denoise(x, sigma):
        return (x.flatten(1) @ matrix.T.to(x.dtype)).reshape(x.shape)

    return denoise


def test_the_guidance_of_a_linear_denoiser_is_minus_m_a_r(gaussian, operator):
    matrix = torch.randn((6, 6), generator=generator_for(0, "m"))
    data = several(gaussian, operator, 5)
    x = torch.randn((5, *SHAPE), generator=generator_for(0, "t"))
    problem = Likelihood.of(operator, data)
    a = operator.matrix(data.params, 5).float()
    r = data.y.flatten(1) - (a @ (x.flatten(1) @ matrix.T)[:, :, None])[:, :, 0]
    pulled = -((a.mT @ r[:, :, None])[:, :, 0] @ matrix)
    expected = {
        "norm": pulled / r.norm(dim=1, keepdim=True).clamp_min(1e-30),
        "squared": pulled / 0.1**2,
        "batch": pulled / r.norm(),
    }
    for guidance, gradient in expected.items():
        denoised, found = dps(guidance=guidance).gradient(linear(matrix), x, 1.0, problem)
        torch.testing.assert_close(found.flatten(1), gradient, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(denoised, linear(matrix)(x, None))


@pytest.mark.parametrize("guidance", ["norm", "squared", "batch"])
def test_guidance_of_an_image_when_its_batch_grows(gaussian, operator, guidance):
    data = several(gaussian, operator, 8)
    x = torch.randn((8, *SHAPE), generator=generator_for(0, "t"))
    problem = Likelihood.of(operator, data)
    denoised, together = dps(guidance=guidance).gradient(gaussian, x, 0.7, problem)
    residuals = problem.residual(denoised)
    for i in range(8):
        b = data.batch(torch.tensor([i]))
        single = Likelihood.of(operator, b)
        alone = dps(guidance=guidance).gradient(gaussian, x[i : i + 1], 0.7, single)[1]
        # One norm over the batch shrinks each image's guidance by |d_i| / |D|_F.
        factor = residuals[i].norm() / residuals.norm() if guidance == "batch" else 1.0
        torch.testing.assert_close(together[i], factor * alone[0], rtol=1e-5, atol=1e-6)


def test_guidance_of_a_perfect_fit_is_zero_and_finite(gaussian, operator):
    given = one_measurement(operator, 1)
    x = torch.zeros(1, *SHAPE)
    _, gradient = dps().gradient(lambda x, s: 0 * x + given.y, x, 1.0, given)
    assert (gradient == 0).all()


def test_squared_guidance_refuses_noise_free_measurements(gaussian, operator):
    given = one_measurement(operator, 1, level=0.0)
    with pytest.raises(ValueError, match="guidance=squared divides by sigma_y"):
        dps(guidance="squared")(gaussian, given, generator_for(0, "d"))


def test_an_unknown_guidance_is_refused():
    with pytest.raises(ValueError, match="allowed: norm, squared, batch"):
        dps(guidance="nrm")


@pytest.mark.parametrize("scale", [0.1, 100.0])
def test_a_capped_step_ends_where_the_residual_is_the_noise(gaussian, operator, scale):
    data = several(gaussian, operator, 8)
    x = torch.randn((8, *SHAPE), generator=generator_for(0, "t"))
    level = torch.linspace(0.05, 0.6, 8)
    problem = Likelihood(operator, data.y, data.params, level)
    sampler = DPS(20, 0.02, 20.0, 7.0, 1.0, scale, True, "norm")
    denoised, gradient = sampler.gradient(gaussian, x, 0.7, problem)
    _, correction = sampler.guide(gaussian, x, 0.7, problem)
    entries = data.params["mask"].flatten(1).sum(1)
    residual = ((data.y - denoised) * data.params["mask"]).flatten(1).norm(dim=1)
    step = (residual - entries.sqrt() * level).clamp(0, scale)
    assert (step == 0).any() and (step > 0).any()
    torch.testing.assert_close(correction, -step.reshape(-1, 1, 1, 1) * gradient)
    free = DPS(20, 0.02, 20.0, 7.0, 1.0, scale, False, "norm")
    torch.testing.assert_close(free.guide(gaussian, x, 0.7, problem)[1], -scale * gradient)


def test_dps_reaches_the_noise_level_of_the_measurement(gaussian, operator):
    """The residual is within a factor 2 of sigma_y^2 at a scale that suits 100 steps."""
    given = one_measurement(operator, 2000)
    sampler = dps(scale=0.3, steps=100)
    x = sampler(gaussian, given, generator_for(0, "d")).x
    guided = given.residual(x).square().flatten(1).sum(1).mean() / 3
    free = dps(scale=0.0, steps=100)
    x = free(gaussian, given, generator_for(0, "d")).x
    unguided = given.residual(x).square().flatten(1).sum(1).mean() / 3
    assert 0.5 < guided / 0.1**2 < 2
    assert unguided / 0.1**2 > 4


# -- both ------------------------------------------------------------------------------------------

SAMPLERS = {"dps": dps, "mmps": mmps}
both = pytest.mark.parametrize("name", sorted(SAMPLERS))


@both
def test_per_image_generators_make_a_draw_independent_of_its_batch(gaussian, operator, name):
    promises.check_batches(SAMPLERS[name], gaussian, several(gaussian, operator, 8), operator)


@both
def test_evaluations_and_backward_passes_are_those_counted(gaussian, operator, name):
    sampler = dps(steps=9) if name == "dps" else mmps(steps=9, iterations=2, tolerance=0.0)
    parts = (one_measurement(operator, 3), generator_for(0, "d"))
    draw = promises.check_counts(sampler, gaussian, *parts)
    assert draw.evaluations == 9
    assert draw.backwards == 9 * (1 if name == "dps" else 2)


@both
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_twice_the_pixel_range_and_noise_gives_twice_the_image(
    gaussian, operator, make_operator, name, eta
):
    given = one_measurement(operator, 4)
    twice = GaussianPrior(2 * gaussian.mean, 4 * gaussian.covariance, SHAPE)
    low, high = 0.02, 20.0
    generators = [image_generators(0, range(4)) for _ in range(2)]
    small = SAMPLERS[name](eta=eta, low=low, high=high)
    # The gradient of a norm has no unit, so DPS's scale is a length and doubles with the images.
    extra = {"scale": 1.0} if name == "dps" else {}
    large = SAMPLERS[name](eta=eta, low=2 * low, high=2 * high, **extra)
    x = small(gaussian, given, generators[0]).x
    doubled = replace(given, y=2 * given.y, sigma_y=2 * given.sigma_y)
    x2 = large(twice, doubled, generators[1]).x
    torch.testing.assert_close(x2, 2 * x, rtol=1e-3, atol=1e-3)


@both
def test_sampling_needs_no_gradient_from_outside_and_leaves_none(gaussian, operator, name):
    with torch.no_grad():
        x = SAMPLERS[name]()(gaussian, one_measurement(operator, 2), generator_for(0, "d")).x
    assert not x.requires_grad
    assert x.isfinite().all()
