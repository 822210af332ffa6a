"""PiGDM, DDRM and DiffPIR on a Gaussian of six pixels, against closed forms."""

from dataclasses import replace

import pytest
import torch

from cleanprior.data import Measurements
from cleanprior.diffusion.posterior import DDRM, DiffPIR, PiGDM, ridge_solution
from cleanprior.gaussian.dense import GaussianPrior
from cleanprior.operators.likelihood import Likelihood
from cleanprior.operators.spectral import Spectrum
from cleanprior.prior import image_generators
from cleanprior.seeding import generator_for
from cleanprior.testing import posteriors as promises

SHAPE = (1, 2, 3)
MASK = torch.tensor([1.0, 0, 1, 0, 0, 1]).reshape(1, 1, 2, 3)


@pytest.fixture(scope="module")
def operator(make_operator):
    return make_operator("inpainting", SHAPE, "sigma=0.1")


@pytest.fixture(scope="module")
def white():
    """A Gaussian of covariance 0.25 I, for which PiGDM is exact."""
    mean = torch.tensor([0.2, -0.1, 0, 0.3, 0.1, -0.2], dtype=torch.float64)
    return GaussianPrior(mean, 0.25 * torch.eye(6, dtype=torch.float64), SHAPE)


def one_measurement(operator, n, level=0.1):
    """Return n copies of one measurement of three pixels, with noise of that level."""
    y = torch.tensor([0.6, 0, -0.4, 0, 0, 0.3]).reshape(1, *SHAPE) * MASK
    copies = torch.zeros(n, dtype=torch.long)
    return Likelihood(operator, y[copies], {"mask": MASK[copies]}, torch.full((n,), level))


def pigdm(steps=20, eta=1.0, low=0.02, high=20.0, sigma_data=0.5, rho=7.0):
    return PiGDM(steps, low, high, rho, eta, sigma_data, 20, 1e-6)


def ddrm(steps=20, eta=0.85, low=0.02, high=20.0, eta_b=1.0, rho=7.0):
    return DDRM(steps, low, high, rho, eta, eta_b)


def diffpir(steps=20, zeta=0.3, low=0.02, high=20.0, weight=7.0, floor=0.0):
    return DiffPIR(steps, low, high, 7.0, weight, zeta, floor, 20, 1e-6)


SAMPLERS = {"ddrm": ddrm, "diffpir": diffpir, "pigdm": pigdm}
each = pytest.mark.parametrize("name", sorted(SAMPLERS))


# -- ridge solutions -------------------------------------------------------------------------------

OPERATORS = {
    "inpainting": ("inpainting", (2, 4, 6)),
    "blur": ("blur", (2, 4, 6)),
    "odd_blur": ("blur", (1, 5, 5)),
    "denoising": ("denoising", (2, 4, 6)),
}


@pytest.mark.parametrize("by", ["svd", "cg"])
@pytest.mark.parametrize("key", sorted(OPERATORS))
def test_a_ridge_solution_is_that_of_dense_matrices(make_operator, key, by):
    name, shape = OPERATORS[key]
    operator = make_operator(name, shape, "sigma=0.1")
    if by == "cg":
        operator.capabilities = operator.capabilities - {"svd"}
    x = torch.randn((5, *shape), generator=generator_for(0, "x"))
    data = Measurements.draw(x, operator, 0, "train")
    problem = Likelihood.of(operator, data)
    ridge = torch.tensor([0.05, 0.2, 1.0, 3.0, 20.0])
    found = ridge_solution(problem, data.y, ridge, 200, 1e-9)
    a = operator.matrix(data.params, 5)
    eye = torch.eye(a.shape[1], dtype=a.dtype)
    inner = a @ a.mT + ridge.double()[:, None, None] * eye
    v = torch.linalg.solve(inner, data.y.flatten(1).double()[:, :, None])
    torch.testing.assert_close(found.flatten(1).double(), (a.mT @ v)[:, :, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("key", sorted(OPERATORS))
def test_a_spectrum_is_a_decomposition(make_operator, key):
    name, shape = OPERATORS[key]
    operator = make_operator(name, shape, "sigma=0.1")
    x = torch.randn((5, *shape), generator=generator_for(0, "x"))
    data = Measurements.draw(x, operator, 0, "train")
    spectrum = Spectrum.of(operator, data.params, data.y)
    coordinates = spectrum.to_spectrum(x)
    torch.testing.assert_close(spectrum.to_image(coordinates), x)
    y = operator.A(x, data.params)
    expected = spectrum.singular * coordinates
    torch.testing.assert_close(spectrum.of_measurement(y), expected, rtol=1e-4, atol=1e-5)
    back = spectrum.pseudo_inverse(y)
    expected = torch.where(spectrum.kept, coordinates, 0.0)
    torch.testing.assert_close(back, expected, rtol=1e-3, atol=1e-3)


def test_an_operator_without_decomposition_has_no_spectrum(make_operator):
    operator = make_operator("inpainting", SHAPE)
    operator.capabilities = operator.capabilities - {"svd"}
    assert Spectrum.of(operator, {"mask": MASK}, torch.zeros(1, *SHAPE)) is None


# -- PiGDM -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("eta", "tolerance"), [(1.0, 0.08), (0.0, 0.03)])
def test_pigdm_draws_from_the_posterior_of_white_images(white, operator, eta, tolerance):
    given = one_measurement(operator, 20_000)
    sampler = pigdm(256, eta, 0.002, 80.0)
    x = sampler(white, given, generator_for(0, "d")).x.flatten(1).double()
    mean, covariance = white.posterior(one_measurement(operator, 1))
    assert (x.mean(0) - mean[0]).abs().max() < 0.02
    assert (torch.cov(x.T) - covariance[0]).norm() / covariance[0].norm() < tolerance


def test_pigdm_needs_no_noise(white, make_operator):
    operator = make_operator("inpainting", SHAPE, "sigma=0")
    given = one_measurement(operator, 50, level=0.0)
    x = pigdm(50)(white, given, generator_for(0, "d")).x
    assert given.residual(x).abs().max() < 1e-3


# -- DDRM ------------------------------------------------------------------------------------------


def unit(x, sigma):
    """Denoise images of unit variance and mean 0."""
    return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


@pytest.mark.parametrize(("steps", "eta"), [(100, 0.85), (100, 0.0), (20, 0.85), (20, 0.0)])
def test_ddrm_shrinks_hidden_coordinates_as_its_recursion_says(make_operator, steps, eta):
    """The levels are log-spaced, 100 to 0.01: the exponent of the spacing is large."""
    operator = make_operator("inpainting", SHAPE, "sigma=0")
    given = one_measurement(operator, 20_000, level=0.0)
    sampler = ddrm(steps, eta, 0.01, 100.0, rho=1e4)
    x = sampler(unit, given, generator_for(0, "d")).x
    v = sampler.levels[0] ** 2
    for sigma, lower in zip(sampler.levels[:-1], sampler.levels[1:], strict=True):
        k = 1 / (1 + sigma**2)
        v = (k + (1 - eta**2) ** 0.5 * lower * (1 - k) / sigma) ** 2 * v + (eta * lower) ** 2
    documented = {(100, 0.85): 0.73, (100, 0.0): 0.95, (20, 0.85): 0.61, (20, 0.0): 0.78}
    assert v == pytest.approx(documented[steps, eta], abs=0.02)
    hidden = x.flatten(1)[:, MASK.flatten() == 0]
    assert hidden.var().item() == pytest.approx(v, abs=0.02)
    seen = x.flatten(1)[:, MASK.flatten() == 1]
    torch.testing.assert_close(seen, given.y.flatten(1)[:, MASK.flatten() == 1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 5, 6)])
def test_ddrm_noise_has_the_level_of_the_state_in_a_half_spectrum(make_operator, shape):
    """Where y is exact in all coordinates, x - x_sigma is white noise of the lower level."""
    operator = make_operator("blur", shape, "sigma=0", "kernel_size=3", "blur_std=0.4")
    x = torch.zeros(2000, *shape)
    sigma_y = torch.zeros(2000)
    problem = Likelihood(operator, x, {}, sigma_y)
    sampler = ddrm()
    state = sampler.start(problem, generator_for(0, "d")) / sampler.levels[0]
    assert state.var().item() == pytest.approx(1, abs=0.02)
    stepped = sampler.step(unit, x, 2.0, 0.5, problem, generator_for(1, "d")) / 0.5
    assert stepped.var().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("key", ["inpainting", "blur"])
@pytest.mark.parametrize("lower", [0.02, 0.7, 5.0])
def test_a_ddrm_step_has_the_moments_of_its_three_cases(make_operator, key, lower):
    name, shape = OPERATORS[key]
    operator = make_operator(name, shape, "sigma=0.1")
    n = 4000
    x = torch.randn((1, *shape), generator=generator_for(0, "x"))
    params = {
        k: v.expand(n, *v.shape[1:]) for k, v in operator.draw(1, generator_for(4, "p")).items()
    }
    y = operator.A(x.expand(n, *shape), params) * 1.1
    state = 3 * torch.randn((1, *shape), generator=generator_for(0, "t")).expand(n, *shape)
    problem = Likelihood(operator, y, params, torch.full((n,), 0.1))
    eta, eta_b, sigma = 0.6, 0.9, 6.0
    sampler = ddrm(eta=eta, eta_b=eta_b)
    stepped = sampler.step(unit, state, sigma, lower, problem, generator_for(0, "d"))
    spectrum = Spectrum.of(operator, params, y)
    moved, s = spectrum.to_spectrum(stepped), spectrum.singular[0]
    hat, bar = unit(state[:1], torch.tensor([sigma])), spectrum.to_spectrum(state)[0]
    hat, target = spectrum.to_spectrum(hat)[0], spectrum.pseudo_inverse(y)[0]
    white = spectrum.to_spectrum(torch.randn((n, *shape), generator=generator_for(2, "w")))
    for place in torch.cartesian_prod(*(torch.arange(k) for k in s.shape)).tolist():
        i = tuple(place)
        tau = 0.1 / s[i] if s[i] > 1e-5 else torch.inf
        calm = (1 - eta**2) ** 0.5 * lower
        if tau == torch.inf:
            mean, std = hat[i] + calm * (bar[i] - hat[i]) / sigma, eta * lower
        elif lower < tau:
            mean, std = hat[i] + calm * (target[i] - hat[i]) / tau, eta * lower
        else:
            mean = (1 - eta_b) * hat[i] + eta_b * target[i]
            std = (lower**2 - (eta_b * tau) ** 2) ** 0.5
        found = moved[(slice(None), *i)]
        scale = white[(slice(None), *i)].std().item()
        assert abs(found.mean() - mean) < 5 * lower * scale / n**0.5 + 1e-4
        assert abs(found.std() - std * scale) < 0.06 * lower * scale + 1e-5


def test_ddrm_refuses_an_operator_without_decomposition(make_operator):
    operator = make_operator("inpainting", SHAPE)
    operator.capabilities = operator.capabilities - {"svd"}
    with pytest.raises(ValueError, match=r"ddrm needs a cheap singular value.*inpainting has none"):
        ddrm()(unit, one_measurement(operator, 2), generator_for(0, "d"))


# -- DiffPIR ---------------------------------------------------------------------------------------


def test_diffpir_reaches_the_noise_level_of_the_measurement(gaussian, operator):
    given = one_measurement(operator, 2000)
    sampler = diffpir(steps=100, weight=1.0)
    x = sampler(gaussian, given, generator_for(0, "d")).x
    guided = given.residual(x).square().flatten(1).sum(1).mean() / 3
    free = diffpir(steps=100, weight=1e9)
    x = free(gaussian, given, generator_for(0, "d")).x
    unguided = given.residual(x).square().flatten(1).sum(1).mean() / 3
    assert 0.5 < guided / 0.1**2 < 2
    assert unguided / 0.1**2 > 4


def test_diffpir_refuses_noise_free_measurements_without_a_floor(gaussian, operator):
    given, free = one_measurement(operator, 2), one_measurement(operator, 2, level=0.0)
    with pytest.raises(ValueError, match=r"diffpir needs noise.*set posterior\.sigma_floor"):
        diffpir()(gaussian, free, generator_for(0, "d"))
    floored = diffpir(floor=0.1)(gaussian, free, generator_for(0, "d"))
    expected = diffpir()(gaussian, given, generator_for(0, "d"))
    torch.testing.assert_close(floored.x, expected.x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: diffpir(weight=0.0), r"guidance_weight=0\.0; allowed: above 0"),
        (lambda: diffpir(zeta=1.5), r"zeta=1\.5; allowed: 0"),
        (lambda: ddrm(eta=-0.1), r"eta=-0\.1; allowed: 0"),
        (lambda: ddrm(eta_b=2.0), r"eta_b=2\.0; allowed: 0"),
        (lambda: pigdm(sigma_data=0.0), r"sigma_data=0\.0; allowed: above 0"),
        (lambda: pigdm(eta=2.0), r"eta=2\.0; allowed: 0"),
    ],
)
def test_values_outside_their_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- all three -------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("operator_name", ["inpainting", "blur"])
def test_per_image_generators_make_a_draw_independent_of_its_batch(
    gaussian, make_operator, name, operator_name
):
    extra = ["kernel_size=1"] if operator_name == "blur" else []
    operator = make_operator(operator_name, SHAPE, "sigma=0.1", *extra)
    x = torch.randn((8, *SHAPE), generator=generator_for(0, "x")) * 0.5
    data = Measurements.draw(x, operator, 0, "train")
    promises.check_batches(SAMPLERS[name], gaussian, data, operator)


@each
def test_evaluations_and_backward_passes_are_those_counted(gaussian, operator, name):
    parts = (one_measurement(operator, 3), generator_for(0, "d"))
    draw = promises.check_counts(SAMPLERS[name](steps=9), gaussian, *parts)
    assert draw.evaluations == 9
    assert draw.backwards == (9 if name == "pigdm" else 0)


@each
def test_twice_the_pixel_range_and_noise_gives_twice_the_image(gaussian, operator, name):
    given = one_measurement(operator, 4)
    twice = GaussianPrior(2 * gaussian.mean, 4 * gaussian.covariance, SHAPE)
    extra = {"sigma_data": 1.0} if name == "pigdm" else {}
    small, large = SAMPLERS[name](), SAMPLERS[name](low=0.04, high=40.0, **extra)
    x = small(gaussian, given, image_generators(0, range(4))).x
    doubled = replace(given, y=2 * given.y, sigma_y=2 * given.sigma_y)
    x2 = large(twice, doubled, image_generators(0, range(4))).x
    torch.testing.assert_close(x2, 2 * x, rtol=1e-3, atol=1e-3)
