"""A noise level for each entry of y: every closed form and sampler against a dense diagonal."""

from dataclasses import replace

import pytest
import torch
from cleanprior.methods.em.steps import fit_of, misfit
from cleanprior.methods.flowdiff.dense_flow import gaussian_base
from factors import two_factors

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.evaluation.metrics.restoration import expected_consistency
from cleanprior.gaussian.dense import GaussianPrior, _e_step, fit_gaussian, log_likelihood
from cleanprior.gaussian.low_rank import LowRankGaussian
from cleanprior.operators.likelihood import Likelihood
from cleanprior.operators.solve import ridge_solution
from cleanprior.seeding import generator_for

SHAPE, D = (1, 3, 4), 12
OPERATORS = {
    "masks": ("inpainting", SHAPE, ()),
    "noise": ("denoising", SHAPE, ()),
    "blur": ("blur", SHAPE, ("kernel_size=3",)),
    "coils": ("mri_multicoil", (2, 4, 4), ("coils=3", "acceleration=1.5")),
}


def two_factors_of(shape):
    d = shape[0] * shape[1] * shape[2]
    u = 0.4 * torch.randn((d, 2), generator=generator_for(1, "u"), dtype=torch.float64)
    mean = 0.2 * torch.randn(d, generator=generator_for(1, "m"), dtype=torch.float64)
    return LowRankGaussian(mean, u, 0.05, shape)


def problem(make_operator, name, n=5, low=0.05, high=1.0):
    """Return a Gaussian of rank two and measurements whose levels differ from entry to entry."""
    kind, shape, keys = OPERATORS[name]
    prior, operator = two_factors_of(shape), make_operator(kind, shape, *keys)
    x = prior.sample(n, generator_for(0, "x")).float().reshape(n, *shape)
    params = operator.draw(n, generator_for(0, "a"))
    y = operator.A(x, params)
    level = low + (high - low) * torch.rand(y.shape, generator=generator_for(0, "s"))
    noise = level * torch.randn(y.shape, generator=generator_for(0, "z"))
    y = y + noise * operator.observed(y, params)
    return prior, operator, Measurements(y, params, level)


def direct(prior, operator, data, i):
    """Mean and covariance of p(x|y_i) by the information form, on observed rows alone."""
    a = operator.matrix({k: v[i : i + 1] for k, v in data.params.items()}, 1)[0]
    one = data.batch(torch.tensor([i]))
    seen = operator.observed(one.y, one.params).flatten() > 0
    a, y = a[seen], one.y.flatten()[seen].double()
    weight = a.T @ torch.diag(one.sigma_y.expand(one.y.shape).flatten()[seen].double() ** -2)
    precision = torch.linalg.inv(prior.covariance)
    covariance = torch.linalg.inv(precision + weight @ a)
    return covariance @ (precision @ prior.mean + weight @ y), covariance


def dense(prior):
    return GaussianPrior(prior.mean, prior.covariance, prior.image_shape)


@pytest.mark.parametrize("name", OPERATORS)
def test_both_gaussian_posteriors_are_the_direct_formula(make_operator, name):
    prior, operator, data = problem(make_operator, name)
    likelihood = Likelihood.of(operator, data)
    mean, covariance = dense(prior).posterior(likelihood)
    zero = torch.zeros_like(data.y)
    centre = prior.mean.expand(len(data), -1)
    low_rank = prior.condition(centre, zero, likelihood, tolerance=1e-9).flatten(1)
    for i in range(len(data)):
        expected = direct(prior, operator, data, i)
        torch.testing.assert_close(mean[i], expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(covariance[i], expected[1], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(low_rank[i].double(), expected[0], rtol=1e-3, atol=1e-4)


def test_low_rank_draws_have_the_posterior_covariance(make_operator):
    prior, operator, data = problem(make_operator, "masks")
    copies = Likelihood.of(operator, data).take(torch.zeros(8000, dtype=torch.long))
    x = prior.draw(copies, generator_for(0, "draw")).flatten(1).double()
    mean, covariance = direct(prior, operator, data, 0)
    assert (x.mean(0) - mean).abs().max() < 4 * (covariance.diagonal().max() / 8000).sqrt()
    assert (torch.cov(x.T) - covariance).norm() / covariance.norm() < 0.05


def test_a_level_for_each_channel_is_that_map(make_operator):
    prior = two_factors_of((2, 3, 2))
    operator = make_operator("denoising", (2, 3, 2))
    y = torch.randn(3, 2, 3, 2, generator=generator_for(0, "y"))
    channels = torch.tensor([0.1, 0.7]).reshape(1, 2, 1, 1).expand(3, -1, 1, 1)
    whole = channels.expand(y.shape)
    found = [
        dense(prior).posterior(Likelihood(operator, y, {}, s.clone())) for s in (channels, whole)
    ]
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_equal_entries_are_one_level(make_operator):
    prior, operator, data = problem(make_operator, "masks")
    white = Likelihood(operator, data.y, data.params, torch.linspace(0.1, 0.5, 5))
    same = replace(white, sigma_y=white.column(white.sigma_y).expand(data.y.shape))
    for a, b in zip(dense(prior).posterior(white), dense(prior).posterior(same), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(same.level, white.level)
    torch.testing.assert_close(expected_consistency(same), expected_consistency(white))
    x = prior.sample(5, generator_for(2, "x")).float().reshape(data.y.shape)
    assert misfit(same, x) == pytest.approx(misfit(white, x), rel=1e-5)
    index = torch.arange(5)
    assert fit_of(same, index, x, 0.1, 2)[1] == pytest.approx(fit_of(white, index, x, 0.1, 2)[1])


def test_em_of_a_gaussian_weighs_entries_by_their_noise(make_operator):
    """The masked E-step is the posterior, the likelihood the direct one, and EM raises it."""
    prior, operator, data = problem(make_operator, "masks", 60)
    likelihood = Likelihood.of(operator, data)
    mean, total = _e_step(dense(prior), likelihood)
    expected = dense(prior).posterior(likelihood)
    torch.testing.assert_close(mean, expected[0])
    torch.testing.assert_close(total, expected[1].sum(0))
    sum_of_all = 0.0
    for i in range(60):
        seen = data.params["mask"][i].flatten() > 0
        if seen.any():
            c = prior.covariance[seen][:, seen] + torch.diag(
                data.sigma_y[i].flatten()[seen].double() ** 2
            )
            law = torch.distributions.MultivariateNormal(prior.mean[seen], c)
            sum_of_all += law.log_prob(data.y[i].flatten()[seen].double()).item()
    assert log_likelihood(dense(prior), data, operator) == pytest.approx(sum_of_all / 60)
    fits = [
        log_likelihood(fit_gaussian(data, operator, 0, k, generator_for(0, "g"), 0), data, operator)
        for k in (1, 2, 4)
    ]
    assert fits == sorted(fits)


def test_the_moments_of_noisy_images_lose_the_noise_of_each_entry(make_operator):
    prior, operator, data = problem(make_operator, "noise", 20_000)
    data = Measurements(data.y, {}, data.sigma_y)
    fitted = fit_gaussian(data, operator, 0, 0, generator_for(0, "g"), limit=100_000)
    assert (fitted.covariance - prior.covariance).norm() / prior.covariance.norm() < 0.1


@pytest.mark.parametrize("name", ["masks", "noise", "blur"])
def test_mmps_as_it_ships_draws_from_the_posterior_of_a_gaussian(make_operator, name):
    """The bounds are those of one level in test_shipped_samplers.py."""
    shape = (1, 8, 8)
    kind, _, keys = OPERATORS[name]
    prior, operator = two_factors(shape), make_operator(kind, shape, *keys)
    root = torch.linalg.cholesky(prior.covariance)
    z = torch.randn(64, generator=generator_for(0, "image"), dtype=torch.float64)
    params = operator.draw(1, generator_for(0, "operator"))
    y = operator.A((prior.mean + root @ z).float().reshape(1, *shape), params)
    level = 0.05 + 0.95 * torch.rand(y.shape, generator=generator_for(0, "levels"))
    y = y + level * torch.randn(y.shape, generator=generator_for(0, "noise"))
    one = Likelihood(operator, y, params, level)
    one = replace(one, y=y * one.observed)
    mean, covariance = prior.posterior(one)
    copies = one.take(torch.zeros(3000, dtype=torch.long))
    draw = build(compose([])["posterior"])(prior, copies, generator_for(0, "draws"))
    x = draw.x.flatten(1).double()
    found, expected = torch.cov(x.T), covariance[0]
    chance = (expected.trace() ** 2 + expected.square().sum()) / 2999
    error = ((found - expected).square().sum() - chance).clamp_min(0).sqrt() / expected.norm()
    offset = (x.mean(0) - mean[0]).square().mean().sqrt() / (expected.trace() / 64).sqrt()
    assert 0.95 < found.trace() / expected.trace() < 1.05
    # Of the blur's offset, 0.13 is there with a solve that has converged.
    assert error < 0.08 and offset < (0.18 if name == "blur" else 0.12)


@pytest.mark.parametrize("name", ["masks", "noise", "blur"])
@pytest.mark.parametrize("solver", ["cg", "gmres"])
def test_the_guided_mean_is_the_conditional_mean(make_operator, name, solver):
    prior, operator, data = problem(make_operator, name)
    keys = [f"posterior.solver={solver}", "posterior.iterations=12", "posterior.tolerance=1e-8"]
    sampler = build(compose([*keys, "posterior.growth=1000"])["posterior"])
    x = 0.5 * torch.randn((5, *SHAPE), generator=generator_for(0, "t"))
    mean, _ = sampler.guide(dense(prior), x, 0.5, Likelihood.of(operator, data))
    for i in range(5):
        centre, covariance = direct(prior, operator, data, i)
        information = torch.linalg.inv(covariance) + torch.eye(D).double() / 0.25
        pull = torch.linalg.solve(covariance, centre) + x[i].flatten().double() / 0.25
        expected = torch.linalg.solve(information, pull)
        torch.testing.assert_close(mean[i].flatten().double(), expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["masks", "blur"])
def test_a_ridge_of_each_entry_is_solved(make_operator, name):
    _, operator, data = problem(make_operator, name)
    likelihood = Likelihood.of(operator, data)
    residual = likelihood.residual(torch.zeros(5, *SHAPE))
    found = ridge_solution(likelihood, residual, data.sigma_y**2, 100, 1e-8)
    a = operator.matrix(data.params, 5)
    inner = a @ a.mT + torch.diag_embed(data.sigma_y.flatten(1).double() ** 2)
    weights = torch.linalg.solve(inner, residual.flatten(1).double()[:, :, None])
    expected = (a.mT @ weights)[:, :, 0]
    torch.testing.assert_close(found.flatten(1).double(), expected, rtol=1e-3, atol=1e-4)


def test_squared_guidance_is_the_gradient_of_the_likelihood(make_operator):
    prior, operator, data = problem(make_operator, "masks")
    sampler = build(compose(["posterior=dps", "posterior.guidance=squared"])["posterior"])
    x = torch.randn((5, *SHAPE), generator=generator_for(0, "t"))
    likelihood = Likelihood.of(operator, data)
    denoised, gradient = sampler.gradient(dense(prior), x, 0.4, likelihood)
    pull = likelihood.residual(denoised) / data.sigma_y**2
    c = prior.covariance
    jacobian = c @ torch.linalg.inv(c + 0.16 * torch.eye(D).double())
    expected = -(pull.flatten(1).double() @ jacobian)
    torch.testing.assert_close(gradient.flatten(1).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["masks", "noise"])
def test_the_flow_starts_at_the_posterior(make_operator, name):
    prior, operator, data = problem(make_operator, name)
    if name == "noise":  # all images share one map, and one covariance
        data = Measurements(data.y, {}, data.sigma_y[:1].expand(data.y.shape).clone())
    base = gaussian_base(dense(prior), Likelihood.of(operator, data))
    for i in range(5):
        mean, covariance = direct(prior, operator, data, i)
        root = base.root[i if len(base.root) > 1 else 0].double()
        torch.testing.assert_close(base.mean[i].double(), mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(root @ root, covariance, rtol=1e-3, atol=1e-4)


def test_the_consistency_of_the_truth_is_foretold(make_operator):
    _, operator, data = problem(make_operator, "masks")
    likelihood = Likelihood.of(operator, data)
    z = torch.randn((20_000, *data.y.shape), generator=generator_for(0, "z"))
    power = (z * data.sigma_y * likelihood.observed).square().flatten(2).sum(2)
    mean = (power / likelihood.observed.flatten(1).sum(1).clamp_min(1)).sqrt().mean(0)
    torch.testing.assert_close(expected_consistency(likelihood).float(), mean, rtol=0.02, atol=0)


def test_noise_of_each_image_has_an_e_step_of_its_own_rows(make_operator):
    """A = I with maps goes the way of masks; what it returns is the posterior."""
    prior, operator, data = problem(make_operator, "noise", 20)
    likelihood = Likelihood.of(operator, data)
    mean, total = _e_step(dense(prior), likelihood)
    expected = dense(prior).posterior(likelihood)
    torch.testing.assert_close(mean, expected[0])
    torch.testing.assert_close(total, expected[1].sum(0))
