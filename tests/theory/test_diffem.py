"""DiffEM: with an exact conditional network its rounds are exact EM; the E-step, the prior."""

import copy

import pytest
import torch
from cleanprior.methods.diffem import method as diffem_module
from cleanprior.methods.diffem.channel import Channel
from cleanprior.methods.diffem.levels import draw_levels
from conditional import (
    CPU,
    EM,
    PRIOR,
    OneStream,
    able,
    e_step,
    make,
    moments,
    prior_of,
    session_of,
    set_up,
)
from exact import ExactConditional
from torch import nn

from cleanprior.data import Batch, Measurements
from cleanprior.diffusion.denoiser import denoising_loss
from cleanprior.operators import Denoising, RandomInpainting
from cleanprior.operators.likelihood import Likelihood
from cleanprior.seeding import generator_for, scoped_rng
from cleanprior.training import Problem
from cleanprior.training.averages import Averages

# -- the outer loop is exact EM --------------------------------------------------------------------


def test_rounds_follow_the_recursion_of_exact_em(tiny_backbone) -> None:
    """v' = g^2 V + g sigma^2 with g = v / (v + sigma^2), by the shipped walk."""
    sigma, n, shape = 0.3, 20000, (1, 1, 1)
    operator = able(Denoising(shape, sigma), "identity")
    x = 0.5 * torch.randn(n, *shape, generator=generator_for(0, "x"))
    data = Measurements.draw(x, operator, 0, "train")
    method = make("chunk=20000")
    method.problem = Problem(operator, "denoising", {}, 0.5, sigma)
    method.channel = Channel(operator, 0.5, "all", "y")
    measured = data.y.double().var().item()
    mean = data.y.double().mean().reshape(1)
    v = expected = 0.1
    for number in range(1, 13):
        session = session_of(data, seed=number, kind=OneStream)
        prior = prior_of(mean, torch.full((1, 1), v).double(), shape)
        found = e_step(method, prior, session, has_mask=False, number=number)
        g = expected / (expected + sigma**2)
        expected = g**2 * measured + g * sigma**2
        v = found.double().var().item()
        assert v == pytest.approx(expected, rel=0.05), f"round {number}"
    assert expected == pytest.approx(measured - sigma**2, rel=0.06)


@pytest.fixture(scope="module")
def masked():
    """Five correlated pixels, half of them hidden, noise of 0.1; clean moments beside them."""
    shape, n, sigma = (1, 1, 5), 10000, 0.1
    root = torch.randn(5, 5, generator=generator_for(3, "root"), dtype=torch.float64) / 5
    covariance = root @ root.T + 0.02 * torch.eye(5, dtype=torch.float64)
    mean = 0.3 * torch.randn(5, generator=generator_for(3, "mean"), dtype=torch.float64)
    z = torch.randn(n, 5, generator=generator_for(3, "x"), dtype=torch.float64)
    x = (mean + z @ torch.linalg.cholesky(covariance).T).float().reshape(n, *shape)
    operator = able(RandomInpainting(shape, 0.5, False, sigma), "mask", "random")
    data = Measurements.draw(x, operator, 0, "train")
    method = make("chunk=20000")
    method.problem = Problem(operator, "inpainting", {}, 0.5, sigma)
    method.channel = Channel(operator, 0.5, "all", "y")
    return method, data, prior_of(mean, covariance, shape)


def test_rounds_under_masks_find_what_exact_draws_find(masked) -> None:
    """Covariance after twenty rounds from a broad start: within 5 % of exact EM (Frobenius)."""
    method, data, truth = masked
    shape = (1, 1, 5)
    prior = exact = prior_of(torch.zeros(5).double(), 0.5 * torch.eye(5).double(), shape)
    likelihood = Likelihood.of(method.channel.operator, data)
    for number in range(1, 21):
        session = session_of(data, seed=number, kind=OneStream)
        x = e_step(method, prior, session, has_mask=True, number=number)
        prior = prior_of(*moments(x), shape)
        draws = exact.draw(likelihood, generator_for(number, "exact"))
        exact = prior_of(*moments(draws), shape)
    scale = truth.covariance.norm()
    assert (prior.covariance - exact.covariance).norm() / scale < 0.05
    assert (prior.covariance - truth.covariance).norm() / scale < 0.08
    assert (prior.mean - truth.mean).abs().max() < 0.03


def test_the_true_prior_is_a_fixed_point(masked) -> None:
    method, data, truth = masked
    x = e_step(method, truth, session_of(data, kind=OneStream), has_mask=True)
    mean, covariance = moments(x)
    # Five standard errors: sqrt(2 / n) of a variance, sqrt(v / n) of a mean.
    scale = truth.covariance.diagonal().sqrt()
    error = (covariance - truth.covariance).abs() / (scale[:, None] * scale)
    assert error.max() < 5 * (2 / len(x)) ** 0.5
    assert ((mean - truth.mean).abs() / scale).max() < 5 / len(x) ** 0.5


# -- the M-step ------------------------------------------------------------------------------------


class Affine(nn.Module):
    """D as an affine map of x_t and of what is told."""

    def __init__(self, d: int, told: int) -> None:
        super().__init__()
        self.map = nn.Linear(d + told, d)
        self.sigma_data = 0.5

    def forward(self, x, sigma, told):
        return self.map(torch.cat([x.flatten(1), told[:, :1].flatten(1)], 1)).reshape(x.shape)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 3.0])
def test_the_m_step_learns_the_conditional_mean(tiny_backbone, monkeypatch, sigma) -> None:
    """E[x | x_t, y'] of Gaussian pairs in information form, within .02."""
    shape, n, sigma_y = (1, 1, 2), 60000, 0.3
    c = torch.tensor([[0.3, 0.2], [0.2, 0.4]], dtype=torch.float64)
    x = torch.randn(n, 2, generator=generator_for(1, "x"), dtype=torch.float64)
    x = (x @ torch.linalg.cholesky(c).T).float().reshape(n, *shape)
    operator = able(Denoising(shape, sigma_y), "identity")
    data = Measurements.draw(torch.zeros(7, *shape), operator, 0, "train")
    method = make()
    method.problem = Problem(operator, "denoising", {}, 0.5, sigma_y)
    method.channel, method.device = Channel(operator, 0.5, "all", "y"), CPU
    method._session = session_of(data)
    monkeypatch.setattr(diffem_module, "draw_levels", lambda law, k, *_: torch.full((k,), sigma))
    with scoped_rng(0):
        method.conditional = Affine(2, 2)
    batch = Batch(data.y, {}, data.sigma_y, torch.arange(7), x)
    optimiser = torch.optim.LBFGS(method.conditional.parameters(), max_iter=60, history_size=20)

    def closure():
        optimiser.zero_grad()
        loss = method.loss(batch, generator_for(2, "loss"), "conditional").total / sigma**-2
        loss.backward()
        return loss

    for _ in range(3):
        optimiser.step(closure)
    precision = torch.linalg.inv(c) + torch.eye(2) / sigma_y**2 + torch.eye(2) / sigma**2
    exact = torch.linalg.inv(precision)
    weight = method.conditional.map.weight.detach().double()
    assert (weight[:, :2] - exact / sigma**2).abs().max() < 0.02
    assert (weight[:, 2:] - exact / sigma_y**2 * 0.5).abs().max() < 0.02
    assert method.conditional.map.bias.abs().max() < 0.02


def test_training_levels_have_their_law() -> None:
    edm = draw_levels("edm", 40000, generator_for(0, "levels"), CPU).log()
    assert edm.mean() == pytest.approx(-1.2, abs=0.03)
    assert edm.std() == pytest.approx(1.2, rel=0.02)
    beta = draw_levels("beta", 40000, generator_for(0, "levels"), CPU)
    assert beta.min() >= 5e-4 and beta.max() <= 50
    t = (beta / 5e-4).log() / torch.tensor(1e5).log()
    assert t.mean() == pytest.approx(0.5, abs=0.005), "centred at 0.16, 0.32 on [-2, 2]"
    assert t.var() == pytest.approx(1 / 28, rel=0.03), "Beta(3, 3), which is not uniform"
    assert make().levels == "edm" and make(name="diffem_official").levels == "beta"


# -- the E-step ------------------------------------------------------------------------------------


class Refuses(nn.Module):
    def forward(self, *_):
        raise AssertionError("the network that is being trained was asked")


def test_an_e_step_asks_the_averaged_network_of_the_real_measurements(masked) -> None:
    method, data, truth = masked
    method.conditional = Refuses()
    exact = ExactConditional(truth, 0.5, True)
    heard, forward = [], exact.forward
    exact.forward = lambda x, sigma, told: heard.append(told) or forward(x, sigma, told)
    session = session_of(data, {"conditional": exact}, kind=OneStream)
    found = method.begin_round(3, EM, session)
    assert len(found) == len(data)
    told = method.channel.told(data.y, data.params, data.sigma_y)
    assert all(torch.equal(t, told) for t in heard)
    levels = method.posterior.levels[:-1]
    assert exact.asked == pytest.approx(levels)
    assert session.costs == {"evaluations": float(len(levels) * len(data))}


def test_restorations_do_not_depend_on_batching_and_are_not_clamped(masked) -> None:
    method, whole, truth = masked
    data = whole[torch.arange(12)]
    method = copy.copy(method)
    averaged = {"conditional": ExactConditional(truth, 0.5, True)}

    def draws(chunk, number=1, count=1):
        method.chunk = chunk
        torch.manual_seed(chunk)
        return method._restored(number, count, session_of(data, averaged))

    together = draws(12)
    torch.testing.assert_close(draws(5), together, rtol=1e-3, atol=1e-4)
    assert ((draws(12, number=2) - together).flatten(1).abs().amax(1) > 1e-2).all()
    twice = draws(5, count=2)
    torch.testing.assert_close(twice[:12], together, rtol=1e-3, atol=1e-4)
    assert ((twice[12:] - together).flatten(1).abs().amax(1) > 1e-2).all(), "draws of their own"
    wide = prior_of(truth.mean, 9 * truth.covariance, (1, 1, 5))
    assert e_step(method, wide, session_of(data), has_mask=True).abs().max() > 1.5


def test_chunks_that_were_drawn_survive_an_interruption(masked, tmp_path) -> None:
    method, whole, truth = masked
    data = whole[torch.arange(12)]
    method = copy.copy(method)
    method.chunk = 5

    class Breaks(ExactConditional):
        calls = 0

        def forward(self, *arguments):
            self.calls += 1
            if self.calls > 40:
                raise KeyboardInterrupt
            return super().forward(*arguments)

    exact = ExactConditional(truth, 0.5, True)
    expected = method._restored(1, 1, session_of(data, {"conditional": exact}))
    exact.asked.clear()
    with pytest.raises(KeyboardInterrupt):
        broken = {"conditional": Breaks(truth, 0.5, True)}
        method._restored(1, 1, session_of(data, broken, folder=tmp_path))
    session = session_of(data, {"conditional": exact}, folder=tmp_path)
    assert torch.equal(method._restored(1, 1, session), expected)
    assert len(exact.asked) == 2 * 32, "the first chunk was found"
    assert session.costs["evaluations"] == 32 * 12, "and counted"


def test_the_prior_is_fitted_to_several_draws_of_each_measurement(masked) -> None:
    method, whole, truth = masked
    data = whole[torch.arange(12)]
    method = copy.copy(method)
    method.prior_begin = "fresh"
    averaged = {"conditional": ExactConditional(truth, 0.5, True)}
    found = method.begin_round(6, PRIOR, session_of(data, averaged))
    assert len(found) == 12 * method.final_draws == 24
    assert found.index.tolist() == list(range(12)) * 2
    assert len({x.numpy().tobytes() for x in found.images}) == 24


def test_the_prior_is_an_unconditional_denoiser_of_restorations(make_operator, tiny_backbone):
    operator = make_operator("inpainting", (1, 8, 8))
    method = set_up(make(), operator, tiny_backbone)
    assert method.denoiser.condition_channels == 0
    x = torch.rand(6, 1, 8, 8, generator=generator_for(0, "x"))
    batch = Batch(x, {}, torch.zeros(6), torch.arange(6), x)
    loss = method.loss(batch, generator_for(0, "loss"), "denoiser").total
    assert torch.equal(loss, denoising_loss(method.denoiser, x, generator_for(0, "loss")))
    prior = method.prior(Averages(method.networks(), 0.9).modules)
    assert prior.denoiser.condition_channels == 0


def test_the_prior_begins_with_the_conditional_network(make_operator, tiny_backbone) -> None:
    """Without its condition: both are the same network where the condition is 0."""
    operator = make_operator("inpainting", (3, 8, 8))
    x = torch.rand(6, 3, 8, 8, generator=generator_for(0, "x"))
    data = Measurements.draw(x, operator, 0, "train")
    for begin, is_same in (("conditional", True), ("fresh", False)):
        method = set_up(make(f"prior_begin={begin}", "posterior.steps=3"), operator, tiny_backbone)
        averaged = Averages(method.networks(), 0.9).modules
        method.begin_round(2, PRIOR, session_of(data, averaged))
        sigma = torch.full((6,), 0.3)
        told = torch.zeros(6, method.channel.channels, 8, 8)
        found = averaged["denoiser"](x, sigma)
        assert torch.allclose(found, averaged["conditional"](x, sigma, told), atol=1e-6) == is_same
