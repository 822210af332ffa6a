"""The low-rank Gaussian prior: exact draws, PPCA, the quadratic form, Monte-Carlo EM."""

from dataclasses import replace

import pytest
import torch

from cleanprior.data import Measurements
from cleanprior.gaussian.dense import GaussianPrior, fit_gaussian, log_likelihood
from cleanprior.gaussian.low_rank import LowRankGaussian, cheaper_fit, fit_low_rank, ppca
from cleanprior.operators.likelihood import Likelihood
from cleanprior.seeding import generator_for, scoped_rng

SHAPE = (1, 3, 4)


@pytest.fixture(scope="module")
def prior() -> LowRankGaussian:
    """Twelve numbers, two axes and a rest of 0.05."""
    with scoped_rng(3):
        factor = 0.5 * torch.randn(12, 2, dtype=torch.float64)
        mean = 0.3 * torch.randn(12, dtype=torch.float64)
    return LowRankGaussian(mean, factor, 0.05, SHAPE)


def dense(prior: LowRankGaussian) -> GaussianPrior:
    return GaussianPrior(prior.mean, prior.covariance, prior.image_shape)


def images(prior: LowRankGaussian, n: int, seed: int = 0):
    return prior.sample(n, generator_for(seed, "x")).float().reshape(n, *prior.image_shape)


def relative(found, expected) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def test_the_denoiser_is_that_of_the_dense_prior(prior) -> None:
    x, sigma = images(prior, 6), torch.linspace(0.02, 5, 6)
    torch.testing.assert_close(prior(x, sigma), dense(prior)(x, sigma), rtol=1e-5, atol=1e-6)
    assert prior(x, sigma).dtype == torch.float32


def test_the_quadratic_and_the_density_are_those_of_the_dense_prior(prior) -> None:
    x = images(prior, 20).requires_grad_()
    centred = x.detach().flatten(1).double() - prior.mean
    precision = torch.linalg.inv(prior.covariance)
    expected = 0.5 * ((centred @ precision) * centred).sum(1)
    quadratic = prior.quadratic(x)
    assert quadratic.dtype == torch.float32
    torch.testing.assert_close(quadratic.double(), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(quadratic.sum(), x)
    expected_gradient = (centred @ precision).float().reshape(x.shape)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
    law = torch.distributions.MultivariateNormal(prior.mean, prior.covariance)
    expected = law.log_prob(x.detach().flatten(1).double())
    torch.testing.assert_close(prior.log_prob(x).double(), expected, rtol=1e-5, atol=1e-5)
    single = prior.to(torch.float32).quadratic(x)
    torch.testing.assert_close(single, quadratic, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("inpainting", ["p=0.4", "sigma=0.2"]),
        ("denoising", ["sigma=0.3"]),
        ("blur", ["kernel_size=3", "blur_std=0.8", "sigma=0.1"]),
        ("compressed_sensing", ["m=5", "sigma=0.1"]),
    ],
)
def test_draws_have_the_mean_and_covariance_of_the_posterior(
    prior, make_operator, name: str, overrides: list[str]
) -> None:
    """Three measurements at a time, so that every image is solved on its own."""
    operator = make_operator(name, SHAPE, *overrides)
    data = Measurements.draw(images(prior, 3), operator, 0, "train")
    mean, covariance = dense(prior).posterior(Likelihood.of(operator, data))
    n = 40_000
    many = data.batch(torch.arange(3).repeat(n))
    x = prior.draw(Likelihood.of(operator, many), generator_for(0, "d"))
    x = x.flatten(1).double().reshape(n, 3, -1)
    for i in range(3):
        assert (x[:, i].mean(0) - mean[i]).abs().max() < 0.015
        assert relative(torch.cov(x[:, i].T), covariance[i]) < 0.03


def test_conjugate_gradient_and_the_closed_solve_agree(prior, make_operator, monkeypatch) -> None:
    for name in ("inpainting", "denoising"):
        operator = make_operator(name, SHAPE, "sigma=0.1")
        data = Measurements.draw(images(prior, 9), operator, 0, "train")
        given = Likelihood.of(operator, data)
        closed = prior.draw(given, generator_for(0, "d"))
        operator.capabilities = frozenset()
        iterated = prior.draw(given, generator_for(0, "d"))
        torch.testing.assert_close(closed, iterated, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
@pytest.mark.parametrize("pattern", ["lines", "points"])
@pytest.mark.parametrize("kind", ["white", "map"])
def test_draws_given_several_coils_are_those_of_a_dense_solve(
    make_operator, size, pattern, kind
) -> None:
    shape = (2, *size)
    d = 2 * size[0] * size[1]
    keys = ("coils=3", "acceleration=2", f"pattern={pattern}", "centre_lines=2", "sigma=0.2")
    operator = make_operator("mri_multicoil", shape, *keys)
    with scoped_rng(5):
        factor = torch.randn(d, 4, dtype=torch.float64)
        mean = torch.randn(d, dtype=torch.float64)
    prior = LowRankGaussian(mean, factor, 0.01, shape)
    measured = Measurements.draw(images(prior, 3), operator, 0, "train")
    assert measured.y[0].numel() > d
    if kind == "map":
        levels = 0.1 + torch.rand(measured.y.shape, generator=generator_for(0, "levels"))
        measured = replace(measured, sigma_y=levels)
    likelihood = Likelihood.of(operator, measured)
    x_0 = prior.sample(3, generator_for(0, "draws"))
    z = torch.randn(measured.y.shape, generator=generator_for(0, "noise"), dtype=torch.float64)
    found = prior.condition(x_0, z, likelihood).flatten(1).double()

    seen = likelihood.observed.flatten(1).double()
    level = likelihood.column(likelihood.sigma_y.double()).expand_as(z).flatten(1)
    a = operator.matrix(measured.params, 3) * seen[:, :, None]
    b = (measured.y.double().flatten(1) - level * z.flatten(1)) * seen
    left = torch.linalg.inv(prior.covariance) + a.mT @ (a / level[:, :, None] ** 2)
    right = a.mT @ ((b - (a @ x_0[:, :, None])[:, :, 0]) / level**2)[:, :, None]
    expected = x_0 + torch.linalg.solve(left, right)[:, :, 0]
    assert relative(found, expected) < 1e-4


def test_unseen_entries_of_y_do_not_matter(prior, make_operator) -> None:
    operator = make_operator("inpainting", SHAPE, "sigma=0.1", "p=0.5")
    data = Measurements.draw(images(prior, 4), operator, 0, "train")
    filled = data.y + 7 * (1 - operator.observed(data.y, data.params))
    draws = [
        prior.draw(replace(Likelihood.of(operator, data), y=y), generator_for(0, "d"))
        for y in (data.y, filled)
    ]
    assert torch.equal(*draws)


@pytest.mark.parametrize("n", [20_000, 30])
def test_ppca_recovers_a_low_rank_covariance(prior, n: int) -> None:
    """Within 3 % at 20,000 samples; few samples give the formula on the sample covariance."""
    x = images(prior, n)
    fitted = ppca(x, 2)
    if n == 20_000:
        assert relative(fitted.covariance, prior.covariance) < 0.03
    sample = torch.cov(x.flatten(1).double().T, correction=0)
    values, vectors = torch.linalg.eigh(sample)
    rest = values[:-2].mean()
    expected = (
        rest * torch.eye(12, dtype=rest.dtype)
        + (vectors[:, -2:] * (values[-2:] - rest)) @ vectors[:, -2:].T
    )
    torch.testing.assert_close(fitted.covariance, expected, rtol=1e-8, atol=1e-10)


def test_ppca_by_the_gram_matrix_equals_ppca_by_the_covariance() -> None:
    """Ten images of 48 numbers: the smaller matrix is diagonalised."""
    x = torch.randn(10, 3, 4, 4, generator=generator_for(0, "x"))
    sample = torch.cov(x.flatten(1).double().T, correction=0)
    values, vectors = torch.linalg.eigh(sample)
    rest = values[:-4].mean()
    kept = vectors[:, -4:]
    expected = rest * torch.eye(48, dtype=rest.dtype) + (kept * (values[-4:] - rest)) @ kept.T
    torch.testing.assert_close(ppca(x, 4).covariance, expected, rtol=1e-8, atol=1e-10)
    assert ppca(x, 64).factor.shape == (48, 9), "at most n - 1 axes"


def test_the_leading_spectrum_of_large_data_is_that_of_the_full_one(prior, monkeypatch) -> None:
    x = images(prior, 500)
    full = ppca(x, 2).covariance
    monkeypatch.setattr("cleanprior.gaussian.low_rank.DENSE_SIDE", 4)
    state = torch.get_rng_state()
    torch.testing.assert_close(ppca(x, 2).covariance, full, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state), "the global stream is left alone"


def test_em_recovers_the_covariance_and_the_likelihood_of_the_exact_fit(make_operator) -> None:
    """Masks p = .5, sigma = .1, 20,000 images of five numbers: 5 %, as the dense fit."""
    with scoped_rng(11):
        factor = 0.4 * torch.randn(5, 2, dtype=torch.float64)
        mean = 0.3 * torch.randn(5, dtype=torch.float64)
    truth = LowRankGaussian(mean, factor, 0.04, (1, 1, 5))
    operator = make_operator("inpainting", truth.image_shape, "p=0.5", "sigma=0.1")
    data = Measurements.draw(images(truth, 20_000), operator, 0, "train")
    fitted = fit_low_rank(data, operator, 0.0, 20, 2, generator_for(0, "g"), limit=20_000)
    assert relative(fitted.covariance, truth.covariance) <= 0.05
    assert (fitted.mean - truth.mean).abs().max() < 0.03
    exact = fit_gaussian(data, operator, 0.0, 20, generator_for(0, "g"), limit=20_000)
    part = Measurements(data.y[:2000], {"mask": data.params["mask"][:2000]}, data.sigma_y[:2000])
    gap = log_likelihood(exact, part, operator) - log_likelihood(dense(fitted), part, operator)
    assert abs(gap) < 0.01


def test_the_fit_uses_the_floor_leaves_y_alone_and_repeats(prior, make_operator) -> None:
    operator = make_operator("inpainting", SHAPE, "p=0.3", "sigma=0")
    data = Measurements.draw(images(prior, 60), operator, 0, "train")
    told: list[int] = []
    fits = [
        fit_low_rank(data, operator, 0.05, 3, 2, generator_for(0, "g"), 40, told.append)
        for _ in range(2)
    ]
    assert torch.equal(fits[0].factor, fits[1].factor)
    assert told == [1] * 6
    assert data._digest() == data.hash
    with pytest.raises(ValueError, match="set sigma_floor above 0"):
        fit_low_rank(data, operator, 0.0, 1, 2, generator_for(0, "g"))


def test_a_large_image_is_fitted_and_restored(make_operator) -> None:
    shape = (3, 64, 64)
    with scoped_rng(0):
        tone = torch.rand(100, 3, 1, 1) - 0.5
        slope = 0.5 * (torch.rand(100, 1, 1, 1) - 0.5) * torch.linspace(-1, 1, 64)
    clean = (tone + slope).expand(100, *shape).contiguous()
    operator = make_operator("inpainting", shape, "p=0.6")
    data = Measurements.draw(clean, operator, 0, "train")
    fitted = fit_low_rank(data, operator, 0.05, 14, 4, generator_for(0, "g"))
    given = Likelihood(operator, data.y, data.params, torch.full((100,), 0.05))
    x = fitted.draw(given, generator_for(0, "d"))
    assert x.shape == clean.shape
    error = (x - clean).square().mean().sqrt()
    assert error < 0.05


def test_what_cannot_be_a_prior_is_refused(prior) -> None:
    with pytest.raises(ValueError, match="allowed: a variance above 0"):
        LowRankGaussian(prior.mean, prior.factor, 0.0, SHAPE)
    with pytest.raises(ValueError, match="mean holds 12 numbers"):
        LowRankGaussian(prior.mean, prior.factor, 0.1, (1, 3, 5))
    with pytest.raises(ValueError, match="2 images or more"):
        ppca(torch.zeros(1, *SHAPE), 2)


def test_the_cheaper_fit_is_dense_for_small_images_and_for_one_operator(make_operator) -> None:
    def choice(name: str, shape: tuple[int, int, int]) -> str:
        operator = make_operator(name, shape)
        return cheaper_fit(Measurements.draw(torch.zeros(2, *shape), operator, 0, "t"), operator)

    assert choice("inpainting", (1, 8, 8)) == choice("denoising", (1, 32, 32)) == "dense"
    assert choice("inpainting", (1, 16, 16)) == choice("denoising", (3, 32, 32)) == "low_rank"


@pytest.mark.parametrize("name", ["blur", "denoising"])
def test_with_one_operator_the_first_e_step_takes_what_measurements_explain(
    prior, make_operator, name
) -> None:
    operator = make_operator(name, SHAPE, "sigma=0.2")
    data = Measurements.draw(images(prior, 200), operator, 0, "train")
    first = [fit_low_rank(data, operator, 0.05, 1, 3, generator_for(s, "em")) for s in (0, 1)]
    broad = GaussianPrior(
        torch.zeros(12, dtype=torch.float64), 0.3 * torch.eye(12, dtype=torch.float64), SHAPE
    )
    means, _ = broad.posterior(Likelihood.of(operator, data))
    expected = ppca(means.reshape(200, *SHAPE), 3)
    for found in first:  # nothing random in it
        torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.covariance, expected.covariance, rtol=0, atol=1e-5)
    second = [fit_low_rank(data, operator, 0.05, 2, 3, generator_for(s, "em")) for s in (0, 1)]
    assert relative(second[0].covariance, second[1].covariance) > 1e-3  # then it draws


def test_with_masks_the_first_e_step_draws(prior, make_operator) -> None:
    operator = make_operator("inpainting", SHAPE, "p=0.5", "sigma=0.2")
    data = Measurements.draw(images(prior, 200), operator, 0, "train")
    first = [fit_low_rank(data, operator, 0.05, 1, 3, generator_for(s, "em")) for s in (0, 1)]
    assert relative(first[0].covariance, first[1].covariance) > 1e-2
