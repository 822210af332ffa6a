"""The Gaussian prior: closed forms against direct formulas, and exact EM."""

import pytest
import torch

from cleanprior.data import Measurements
from cleanprior.gaussian.dense import GaussianPrior, broad_start, fit_gaussian, log_likelihood
from cleanprior.operators.likelihood import Likelihood
from cleanprior.seeding import generator_for, scoped_rng


def draw(prior, n, seed=0):
    root = torch.linalg.cholesky(prior.covariance)
    noise = torch.randn(n, len(prior.mean), generator=generator_for(seed, "x"), dtype=torch.float64)
    return (prior.mean + noise @ root.T).float().reshape(n, *prior.image_shape)


@pytest.fixture
def problem(make_operator, gaussian):
    operator = make_operator("inpainting", gaussian.image_shape, "sigma=0.1")
    return operator, Measurements.draw(draw(gaussian, 40), operator, 0, "train")


def test_the_denoiser_is_the_conditional_mean(gaussian):
    x = draw(gaussian, 5)
    sigma = torch.linspace(0.05, 3, 5)
    denoised = gaussian(x, sigma)
    assert denoised.dtype == x.dtype
    for i in range(5):
        c, s2 = gaussian.covariance, sigma[i].double() ** 2
        direct = gaussian.mean + c @ torch.linalg.solve(
            c + s2 * torch.eye(6), x[i].flatten().double() - gaussian.mean
        )
        torch.testing.assert_close(denoised[i].flatten().double(), direct, rtol=1e-5, atol=1e-6)


def test_the_denoiser_minimises_the_squared_error(gaussian):
    x = draw(gaussian, 200_000)
    noisy = x + 0.4 * torch.randn(x.shape, generator=generator_for(0, "n"))
    error = (gaussian(noisy, torch.full((len(x),), 0.4)) - x).flatten(1).double()
    # Orthogonality: the error of a conditional mean is uncorrelated with what it saw.
    correlation = error.T @ noisy.flatten(1).double() / len(x)
    assert correlation.abs().max() < 5 * 0.4 * 0.7 / len(x) ** 0.5


def test_the_posterior_is_that_of_the_direct_formula(gaussian, problem):
    """Against the information form, on observed rows only: another route to the same numbers."""
    operator, data = problem
    mean, covariance = gaussian.posterior(Likelihood.of(operator, data))
    precision = torch.linalg.inv(gaussian.covariance)
    for i in range(len(data)):
        a = torch.eye(6, dtype=torch.float64)[data.params["mask"][i].flatten().bool()]
        y = data.y[i].flatten().double()[data.params["mask"][i].flatten().bool()]
        s2 = data.sigma_y[i].double() ** 2
        direct = torch.linalg.inv(precision + a.T @ a / s2)
        centre = direct @ (precision @ gaussian.mean + a.T @ y / s2)
        torch.testing.assert_close(covariance[i], direct, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(mean[i], centre, rtol=1e-7, atol=1e-8)


def test_the_posterior_of_more_measurements_than_unknowns_is_that_formula_too(make_operator):
    shape, keys = (2, 4, 4), ("coils=4", "acceleration=1.5", "sigma=0.1")
    operator = make_operator("mri_multicoil", shape, *keys)
    root = torch.randn(32, 32, generator=generator_for(0, "c"), dtype=torch.float64)
    mean = torch.linspace(-0.5, 0.5, 32, dtype=torch.float64)
    prior = GaussianPrior(mean, root @ root.T / 32 + 0.1 * torch.eye(32).double(), shape)
    data = Measurements.draw(draw(prior, 5), operator, 0, "train")
    likelihood = Likelihood.of(operator, data)
    found = prior.posterior(likelihood)
    precision = torch.linalg.inv(prior.covariance)
    for i, a in enumerate(operator.matrix(data.params, 5)):
        assert a.shape[0] > a.shape[1]
        direct = torch.linalg.inv(precision + a.T @ a / 0.1**2)
        y = data.y[i].flatten().double()
        centre = direct @ (precision @ mean + a.T @ y / 0.1**2)
        torch.testing.assert_close(found[1][i], direct, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found[0][i], centre, rtol=1e-5, atol=1e-6)


def test_draws_have_the_moments_of_the_posterior(gaussian, problem):
    operator, data = problem
    n = 40_000
    one = data.batch(torch.zeros(n, dtype=torch.long))
    x = gaussian.draw(Likelihood.of(operator, one), generator_for(0, "d"))
    x = x.flatten(1).double()
    first = data.batch(torch.zeros(1, dtype=torch.long))
    mean, covariance = gaussian.posterior(Likelihood.of(operator, first))
    assert (x.mean(0) - mean[0]).abs().max() < 0.01
    assert (torch.cov(x.T) - covariance[0]).norm() / covariance[0].norm() < 0.03


def test_the_likelihood_is_that_of_the_observed_entries(gaussian, problem):
    operator, data = problem
    total = 0.0
    for i in range(len(data)):
        seen = data.params["mask"][i].flatten().bool()
        c = gaussian.covariance[seen][:, seen] + 0.01 * torch.eye(int(seen.sum()))
        r = data.y[i].flatten().double()[seen] - gaussian.mean[seen]
        quadratic = (r @ torch.linalg.solve(c, r)).item() if len(r) else 0.0
        logdet = torch.logdet(c).item() if len(r) else 0.0
        total += -0.5 * (quadratic + logdet + len(r) * 1.8378770664093453)
    assert log_likelihood(gaussian, data, operator) == pytest.approx(total / len(data), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "keys"), [("inpainting", ["p=0.6", "sigma=0.1"]), ("box", ["side=2"]), ("blur", [])]
)
def test_shortcuts_of_the_fit_change_nothing(make_operator, name, keys, monkeypatch):
    """Masks on their seen rows, one covariance for one operator: as image by image."""
    shape = (1, 6, 6)
    with scoped_rng(2):
        root = 0.2 * torch.randn(36, 36, dtype=torch.float64)
    prior = GaussianPrior(torch.linspace(-0.3, 0.3, 36).double(), root @ root.T, shape)
    operator = make_operator(name, shape, *keys)
    data = Measurements.draw(draw(prior, 50), operator, 0, "train")
    quick = fit_gaussian(data, operator, 0.05, 4, generator_for(0, "g"))
    given = Likelihood(operator, data.y, data.params, torch.full((50,), 0.1))
    moments, noise = prior.posterior_root(given), prior.draw(given, generator_for(0, "d"))
    operator.capabilities = frozenset()
    start = broad_start(data, operator, 0.05)
    monkeypatch.setattr("cleanprior.gaussian.dense.broad_start", lambda *_: start)
    monkeypatch.setattr(Likelihood, "is_shared", False)
    plain = fit_gaussian(data, operator, 0.05, 4, generator_for(0, "g"))
    torch.testing.assert_close(quick.mean, plain.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(quick.covariance, plain.covariance, rtol=0, atol=1e-10)
    for a, b in zip(moments, prior.posterior_root(given), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    torch.testing.assert_close(noise, prior.draw(given, generator_for(0, "d")))


@pytest.mark.parametrize(
    ("name", "keys"),
    [("blur", ["sigma=0.05"]), ("denoising", ["sigma=0.5"]), ("downsampling", ["sigma=0.1"])],
)
def test_with_one_operator_a_direction_begins_with_what_a_measurement_explains(
    make_operator, name, keys
):
    r"""In the singular directions of A: 0.3 (1 - 0.97 sigma^2 / (0.3 s^2 + sigma^2))."""
    operator = make_operator(name, (1, 6, 6), *keys)
    data = Measurements.draw(torch.zeros(3, 1, 6, 6), operator, 0, "train")
    start = broad_start(data, operator, 0.05)
    a = operator.matrix({}, 1)[0]
    values, vectors = torch.linalg.eigh(a.T @ a)
    noise = operator.sigma**2
    expected = 0.3 * (1 - 0.97 * noise / (0.3 * values.clamp_min(0) + noise))
    found = vectors.T @ start.covariance @ vectors
    torch.testing.assert_close(found, torch.diag(expected), rtol=0, atol=1e-7)  # float32 sigma
    if name == "downsampling":  # 27 of 36 directions are hidden from everybody
        assert (found.diag() - 0.009).abs().lt(1e-7).sum() == 27


def test_with_masks_every_direction_begins_broad(make_operator):
    operator = make_operator("inpainting", (1, 6, 6), "p=0.6")
    data = Measurements.draw(torch.zeros(3, 1, 6, 6), operator, 0, "train")
    start = broad_start(data, operator, 0.05)
    assert torch.equal(start.covariance, 0.3 * torch.eye(36, dtype=torch.float64))


@pytest.fixture(scope="module")
def five():
    with scoped_rng(11):
        root = torch.randn(5, 5, dtype=torch.float64) / 5**0.5
        mean = 0.3 * torch.randn(5, dtype=torch.float64)
    return GaussianPrior(mean, 0.3 * root @ root.T + 0.03 * torch.eye(5), (1, 1, 5))


def test_em_never_lowers_the_likelihood(make_operator, five):
    operator = make_operator("inpainting", five.image_shape, "p=0.5", "sigma=0.1")
    data = Measurements.draw(draw(five, 2000), operator, 0, "train")
    values = [
        log_likelihood(fit_gaussian(data, operator, 0.0, k, generator_for(0, "g")), data, operator)
        for k in range(1, 9)
    ]
    for before, after in zip(values, values[1:], strict=False):
        assert after >= before - 1e-9 * abs(before)
    assert values[-1] > values[0] + 0.01


def test_em_recovers_the_covariance_from_half_of_the_pixels(make_operator, five):
    operator = make_operator("inpainting", five.image_shape, "p=0.5", "sigma=0.1")
    data = Measurements.draw(draw(five, 20_000), operator, 0, "train")
    fitted = fit_gaussian(data, operator, 0.0, 40, generator_for(0, "g"), limit=20_000)
    error = (fitted.covariance - five.covariance).norm() / five.covariance.norm()
    assert error <= 0.05
    assert (fitted.mean - five.mean).abs().max() < 0.03
    zero_filled = torch.cov(data.y.flatten(1).double().T)
    assert (zero_filled - five.covariance).norm() / five.covariance.norm() > 0.3


def test_em_uses_the_floor_where_there_is_no_noise_and_leaves_y_alone(make_operator, five):
    operator = make_operator("inpainting", five.image_shape, "p=0.3", "sigma=0")
    data = Measurements.draw(draw(five, 500), operator, 0, "train")
    before = data.hash
    fitted = fit_gaussian(data, operator, 0.05, 5, generator_for(0, "g"))
    assert torch.linalg.eigvalsh(fitted.covariance).min() > 0
    assert Measurements(data.y, data.params, data.sigma_y).hash == before


def test_images_too_large_for_a_dense_fit_are_refused(make_operator):
    operator = make_operator("inpainting", (3, 32, 32))
    data = Measurements.draw(torch.zeros(1, 3, 32, 32), operator, 0, "train")
    with pytest.raises(ValueError, match="at most 1024 numbers; these have 3072"):
        fit_gaussian(data, operator, 0.1, 1, generator_for(0, "g"))
