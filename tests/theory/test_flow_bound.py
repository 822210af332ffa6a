"""The diffusion bound: equal to the log-density with the exact score, however levels are drawn."""

import math

import pytest
import torch
from cleanprior.methods.flowdiff.bound import Ends, NoiseLevels, diffusion_term, stratified_sigma

from cleanprior.seeding import generator_for

CPU = torch.device("cpu")


def negative_bound(prior, x, low, high, draws, seed=0):
    """Average the bound at one x over stratified, antithetic draws; return mean and its error."""
    generator = generator_for(seed, "bound")
    sigma = stratified_sigma(draws, low, high, generator, CPU).double()
    noise = torch.randn((draws, *x.shape), generator=generator, dtype=torch.float64)
    xs, log_range = x.expand(draws, *x.shape), math.log(high / low)
    terms = [diffusion_term(prior, xs, sigma, sign * noise, log_range) for sign in (1, -1)]
    pairs = (terms[0] + terms[1]) / 2
    return (pairs.mean() + Ends(prior, low, high)(x[None])[0]).item(), (
        pairs.std() / draws**0.5
    ).item()


def nll(prior, x, blur=0.0):
    covariance = prior.covariance + blur**2 * torch.eye(len(prior.mean), dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(prior.mean, covariance)
    return -law.log_prob(x.flatten()).item()


@pytest.mark.parametrize("place", [0.0, 0.7, -1.5])
def test_bound_with_the_exact_score_is_the_log_density(gaussian, place):
    x = (gaussian.mean + place).reshape(gaussian.image_shape)
    # lambda = -2 log sigma in [-12, 8].
    value, error = negative_bound(gaussian, x, math.exp(-4), math.exp(6), 200_000)
    assert abs(value - nll(gaussian, x)) < 4 * error + 0.05


def test_bound_lies_above_the_blurred_negative_log_density(gaussian):
    """A coarse least noise level leaves a gap; it is positive and not large."""
    x = (gaussian.mean + 0.3).reshape(gaussian.image_shape)
    value, error = negative_bound(gaussian, x, math.exp(-2), math.exp(2), 200_000)
    gap = value - nll(gaussian, x, blur=math.exp(-2))
    assert -4 * error < gap < 0.6


def test_bound_differs_between_images_as_the_blurred_prior(gaussian):
    """The identity that the flow's gradient rests on: exact at any pair of noise levels."""
    low, high = 0.2, 1.5
    x1 = (gaussian.mean + 0.8).reshape(gaussian.image_shape)
    x2 = (gaussian.mean - 0.2).reshape(gaussian.image_shape)
    first, error = negative_bound(gaussian, x1, low, high, 200_000)
    second, _ = negative_bound(gaussian, x2, low, high, 200_000)
    expected = nll(gaussian, x1, low) - nll(gaussian, x2, low)
    assert abs(first - second - expected) < 4 * 2 * error


def test_noise_levels_are_stratified():
    sigma = stratified_sigma(64, 0.05, 4.0, generator_for(0, "s"), CPU)
    place = (sigma / 0.05).log() / math.log(80)
    assert torch.equal((place * 64).floor().clamp(0, 63).long(), torch.arange(64))


# -- importance sampling ---------------------------------------------------------------------------


def adapted(prior, x, low, high, steps=300):
    """Return levels whose density has followed the integrand at x for some steps of 64 draws."""
    levels = NoiseLevels("importance", low, high)
    generator = generator_for(0, "adapt")
    for _ in range(steps):
        sigma, _ = levels.draw(64, generator, CPU)
        noise = torch.randn((64, *x.shape), generator=generator, dtype=torch.float64)
        xs = x.expand(64, *x.shape)
        term = diffusion_term(prior, xs, sigma.double(), noise, levels.log_range)
        levels.update(sigma, term)
    return levels


def batch_means(prior, x, levels, batches=2000, n=64):
    """Return the weighted mean of the integrand of many batches."""
    generator = generator_for(1, "means")
    xs = x.expand(n, *x.shape)
    means = []
    for _ in range(batches):
        sigma, weight = levels.draw(n, generator, CPU)
        noise = torch.randn((n, *x.shape), generator=generator, dtype=torch.float64)
        term = diffusion_term(prior, xs, sigma.double(), noise, levels.log_range)
        means.append((weight * term).mean())
    return torch.stack(means)


@pytest.mark.parametrize("place", [0.0, 0.7])
def test_importance_sampling_keeps_the_mean(gaussian, place):
    x = (gaussian.mean + place).reshape(gaussian.image_shape)
    low, high = 0.05, 4.0
    levels = adapted(gaussian, x, low, high)
    p = levels._probability()
    assert p.max() / p.min() > 3, "a density that has not moved would prove nothing"
    ours = batch_means(gaussian, x, levels)
    reference = batch_means(gaussian, x, NoiseLevels("stratified", low, high))
    error = (ours.var() / len(ours) + reference.var() / len(reference)).sqrt()
    assert abs(ours.mean() - reference.mean()) < 4 * error
    assert error < 0.01 * reference.mean(), "a wide error would prove nothing"
    assert ours.var() < reference.var()


def test_importance_weights_average_to_the_length_of_the_range():
    """E[weight] = 1, exactly enough to see a bin that is drawn too often."""
    levels = NoiseLevels("importance", 0.05, 4.0)
    levels.moment.copy_(torch.linspace(0.1, 3, 16, dtype=torch.float64) ** 2)
    sigma, weight = levels.draw(200_000, generator_for(0, "w"), CPU)
    assert weight.max() <= 10 + 1e-5
    assert abs(weight.mean() - 1) < 1e-3
    assert sigma.min() >= 0.05 * (1 - 1e-6)
    assert sigma.max() <= 4.0 * (1 + 1e-6)
    # Weighted, log sigma is uniform again.
    place = (sigma / 0.05).log() / math.log(80)
    assert abs((weight * place).mean() - 0.5) < 1e-3
    assert abs((weight * place**2).mean() - 1 / 3) < 1e-3


def test_stratified_levels_weigh_one_and_learn_nothing():
    levels = NoiseLevels("stratified", 0.05, 4.0)
    sigma, weight = levels.draw(64, generator_for(0, "s"), CPU)
    assert torch.equal(weight, torch.ones(64))
    assert torch.equal(sigma, stratified_sigma(64, 0.05, 4.0, generator_for(0, "s"), CPU))
    levels.update(sigma, 100 * torch.ones(64))
    assert torch.equal(levels.moment, torch.ones_like(levels.moment))


@pytest.mark.parametrize(("kind", "low"), [("uniform", 0.1), ("importance", 0.0)])
def test_levels_out_of_range_are_refused(kind, low):
    with pytest.raises(ValueError, match="allowed: stratified, importance|needed: 0 < low < high"):
        NoiseLevels(kind, low, 4.0)
