"""FlowDiff: joint training against closed forms, and the method in a session."""

import math

import pytest
import torch
from cleanprior.methods.flowdiff.bound import Quadratic, diffusion_term, stratified_sigma
from cleanprior.methods.flowdiff.dense_flow import Base, PosteriorFlow, feature_count
from flows import CPU, OPERATORS, begin, make_flowdiff, make_measurements, randomise
from torch import nn

from cleanprior.config import build, compose
from cleanprior.data import Batch
from cleanprior.operators.likelihood import Likelihood
from cleanprior.seeding import generator_for, scoped_rng
from cleanprior.training.warning import codes

# -- learning against closed forms -----------------------------------------------------------------


@pytest.mark.timeout(120)
def test_flow_learns_the_posterior_of_one_operator(make_operator, gaussian):
    """A = I, exact Gaussian prior, a base that knows nothing of y: KL, mean and covariance."""
    s, d = 0.5, 6
    operator = make_operator("denoising", gaussian.image_shape)
    root = torch.linalg.cholesky(gaussian.covariance)
    prior_term = Quadratic(gaussian.mean, torch.linalg.inv(gaussian.covariance))
    with scoped_rng(0):
        flow = PosteriorFlow(gaussian.image_shape, feature_count(operator), 6, 32, 16)
    spread = gaussian.covariance.diagonal().sqrt()
    generator = generator_for(0, "fit")

    def draw_y(n):
        x = gaussian.mean + torch.randn(n, d, generator=generator, dtype=torch.float64) @ root.T
        y = x + s * torch.randn(n, d, generator=generator, dtype=torch.float64)
        return y.float().reshape(n, *gaussian.image_shape)

    def diagonal_base(y):
        n = len(y)
        features = torch.zeros(n, feature_count(operator))
        features[:, :d] = y.flatten(1)
        log_det = spread.log().sum().float().expand(n)
        return Base(
            gaussian.mean.float().expand(n, -1), spread.diag()[None].float(), log_det, features
        )

    def free_energy(y):
        u = torch.randn(len(y), d, generator=generator)
        x, log_det = flow(u, diagonal_base(y))
        data = ((y - x) ** 2).flatten(1).sum(1) / (2 * s**2)
        return data + prior_term(x) - log_det

    steps = 900
    optimiser = torch.optim.Adam(flow.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        free_energy(draw_y(256)).mean().backward()
        optimiser.step()
        schedule.step()

    # Expected free energy at the optimum, -log p(y) up to the constants that both sides drop.
    eye = torch.eye(d, dtype=torch.float64)
    evidence = 0.5 * torch.linalg.slogdet(gaussian.covariance + s**2 * eye)[1] + d / 2
    constants = d * math.log(s) + 0.5 * torch.linalg.slogdet(gaussian.covariance)[1] - d / 2
    with torch.no_grad():
        gap = free_energy(draw_y(40_000)).double().mean() + constants - evidence
    assert -0.02 < gap / d < 0.02

    y = draw_y(16)
    level = torch.full((16,), s)
    mean, covariance = gaussian.posterior(Likelihood(operator, y, {}, level))
    draws = 4096
    with torch.no_grad():
        u = torch.randn(16 * draws, d, generator=generator)
        x, _ = flow(u, diagonal_base(y.repeat_interleave(draws, 0)))
    x = x.reshape(16, draws, d).double()
    deviation = covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert ((x.mean(1) - mean) / deviation).square().mean().sqrt() < 0.25
    own = torch.stack([torch.cov(v.T) for v in x])
    errors = (own - covariance).norm(dim=(1, 2)) / covariance.norm(dim=(1, 2))
    assert errors.mean() < 0.27
    ratio = own.diagonal(dim1=1, dim2=2).sum() / covariance.diagonal(dim1=1, dim2=2).sum()
    assert 0.95 < ratio < 1.05


@pytest.mark.timeout(120)
def test_joint_training_finds_the_variance_of_a_one_pixel_world():
    """y = x + noise, x ~ N(0, v): v = E y^2 - sigma^2 and the flow's slope is v / (v + sigma^2)."""
    noise_variance, low, high = 0.25, 0.02, 20.0
    generator = generator_for(0, "toy")
    data = torch.randn(4096, generator=generator)
    data = data / data.square().mean().sqrt() * 1.25**0.5
    slope, log_scale = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(-1.0))
    log_v = nn.Parameter(torch.tensor(-1.0))
    phi = torch.optim.Adam([slope, log_scale], 5e-3)
    theta = torch.optim.Adam([log_v], 5e-3)

    def bound(x, v):
        def denoise(noisy, sigma):
            return noisy * v / (v + sigma.reshape(-1, 1, 1, 1) ** 2)

        sigma = stratified_sigma(len(x), low, high, generator, CPU)
        noise = torch.randn(x.shape, generator=generator)
        ends = 0.5 * x.flatten() ** 2 / (v + high**2)
        return diffusion_term(denoise, x, sigma, noise, math.log(high / low)) + ends

    tail = []
    for step in range(4000):
        y = data[torch.randint(len(data), (128,), generator=generator)]
        u = torch.randn(128, generator=generator)
        x = (slope * y + log_scale.exp() * u).reshape(-1, 1, 1, 1)
        likelihood = (y - x.flatten()) ** 2 / (2 * noise_variance)
        phi.zero_grad()
        (likelihood + bound(x, log_v.detach().exp()) - log_scale).mean().backward()
        phi.step()
        theta.zero_grad()
        bound(x.detach(), log_v.exp()).mean().backward()
        theta.step()
        if step in (2500, 3200):
            for group in (*phi.param_groups, *theta.param_groups):
                group["lr"] *= 0.3
        if step >= 3000:
            tail.append((log_v.exp().item(), slope.item()))
    v, a = torch.tensor(tail).mean(0).tolist()
    assert abs(v - 1.0) < 0.03
    assert abs(a - 0.8) < 0.01


# -- the method ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 4)])
def test_losses_route_gradients_and_ways_restore(make_operator, make_problem, name, shape):
    operator = make_operator(name, shape)
    method = make_flowdiff()
    problem = make_problem(operator)
    assert method.supports(problem) is None
    data = make_measurements(operator, 24)
    session = begin(method, problem, data, "joint")
    batch = data.batch(torch.arange(8))

    loss = method.loss(batch, generator_for(0, "a"), "flow")
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(p.grad is None for p in method.denoiser.parameters())
    assert all(p.grad is None for p in session.averaged["denoiser"].parameters())
    last = method.network.layers[-1].subnet[-1]
    assert last.weight.grad.abs().max() > 0
    assert last.weight.grad.isfinite().all()

    method.network.zero_grad(set_to_none=True)
    loss = method.loss(batch, generator_for(0, "b"), "denoiser")
    loss.total.backward()
    assert all(p.grad is None for p in method.network.parameters())
    assert any(p.grad is not None for p in method.denoiser.parameters())

    for route in method.routes(session.averaged):
        generators = [generator_for(0, "w", image=i) for i in range(8)]
        draw = route.restore(batch, generators)
        x, evaluations = draw.x, draw.evaluations
        assert x.shape == (8, *shape)
        assert x.isfinite().all()
        assert evaluations == 0


def test_the_prior_term_reaches_the_flow_through_the_denoiser(make_operator, make_problem):
    """Without the denoiser's Jacobian the gradient would be another one."""
    operator = make_operator("denoising", (1, 4, 4))
    method = make_flowdiff()
    data = make_measurements(operator, 16)
    session = begin(method, make_problem(operator), data, "joint")
    randomise(session.averaged["denoiser"], scale=0.2)
    denoiser = session.averaged["denoiser"].double()
    x = data.y[:4].double().requires_grad_()
    sigma = torch.full((4,), 0.3, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=generator_for(0, "n"), dtype=torch.float64)

    def value(x):
        return diffusion_term(denoiser, x, sigma, noise, 1.0).sum()

    (gradient,) = torch.autograd.grad(value(x), x)
    step = torch.randn(x.shape, generator=generator_for(1, "n"), dtype=torch.float64)
    with torch.no_grad():
        slope = (value(x + 1e-5 * step) - value(x - 1e-5 * step)) / 2e-5
    torch.testing.assert_close((gradient * step).sum(), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("sigma", "is_exact"), [(0.0, True), (0.2, False)])
def test_observed_pixels_are_pasted_only_without_noise(
    make_operator, make_problem, sigma, is_exact
):
    operator = make_operator("inpainting", (1, 4, 4), f"sigma={sigma}")
    method = make_flowdiff()
    data = make_measurements(operator, 16)
    begin(method, make_problem(operator), data)
    batch = data.batch(torch.arange(16))
    x = method._draw(method.network, batch, generator_for(0, "d"))
    seen = batch.params["mask"].bool()
    assert not x.requires_grad
    assert torch.equal(x[seen], batch.y[seen]) is is_exact


def test_measurements_are_never_altered(make_operator, make_problem):
    operator = make_operator("inpainting", (1, 4, 4))
    method = make_flowdiff()
    data = make_measurements(operator, 16)
    before = data.hash
    begin(method, make_problem(operator), data, "final")
    for turn in ("flow", "denoiser"):
        method.loss(data.batch(torch.arange(8)), generator_for(0, "l"), turn)
    assert data._digest() == before


def test_noise_free_measurements_without_a_floor_are_refused(make_operator, make_problem):
    problem = make_problem(make_operator("inpainting", (1, 4, 4)))
    assert "sigma_y is 0" in make_flowdiff("method.sigma_floor=0").supports(problem)
    assert codes(make_flowdiff().warnings(problem)) == "floor"


def test_images_that_a_dense_gaussian_cannot_hold_need_the_convolutional_flow(
    make_operator, make_problem
):
    problem = make_problem(make_operator("denoising", (3, 32, 32)))
    reason = make_flowdiff("method.flow=dense").supports(problem)
    assert "at most 1024 numbers; these have 3072: use flow=conv" in reason
    assert make_flowdiff().supports(problem) is None


@pytest.mark.parametrize("steps", [1, 2, 7, 60, 1500])
@pytest.mark.parametrize("each", [1, 2, 4])
def test_denoiser_steps_add_up_to_the_budget(steps, each):
    rounds = make_flowdiff(f"method.denoiser_steps={each}").rounds(steps)
    assert sum(r.steps * r.turns.count("denoiser") for r in rounds) == steps


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sigma_floor=-1", "sigma_floor=-1"),
        ("sigma_min=5", "0 < sigma_min < sigma_max"),
        ("prior_weight=0", "prior_weight=0"),
        ("prior_weight_noisy=-1", "prior_weight_noisy=-1"),
        ("joint=0.9", "add up to at most 1"),
        ("final_draws=0", "final_draws=0"),
        ("conv_couplings=1", "conv_couplings=1; allowed: 2 or more"),
        ("flow=wide", "allowed: auto, dense, conv"),
        ("levels=uniform", "allowed: stratified, importance"),
    ],
)
def test_values_outside_their_range_are_refused(override, message):
    with pytest.raises(Exception, match=message):
        make_flowdiff(f"method.{override}")


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    "keys", [[], ["method.flow=conv", "method.levels=importance"]], ids=["dense", "conv"]
)
def test_a_resumed_run_equals_an_uninterrupted_one(make_operator, make_problem, tmp_path, keys):
    """Interrupted once in every stage: pre-training, ramp, joint training, final stage."""
    operator = make_operator("inpainting", (1, 4, 4))
    data = make_measurements(operator, 32)
    config = compose(["method=flowdiff", "training.budget=320", "training.batch=8"])["training"]

    def fit(folder, stop_at=None):
        trainer = build({**config, "checkpoint_seconds": 0.0, "precision": "fp32", "device": "cpu"})
        method, calls = make_flowdiff("method.ramp=0.2", *keys), []
        if stop_at is not None:
            inner = method.loss

            def loss(batch: Batch, generator, turn):
                calls.append(turn)
                if len(calls) > stop_at:
                    raise Interrupted
                return inner(batch, generator, turn)

            method.loss = loss
        return trainer.fit(method, make_problem(operator), data, 0, folder)

    whole, report = fit(tmp_path / "whole")
    # Turns: 12 in pre-training, 16 in the ramp, 20 in joint training, 10 in the final stage.
    for stop in (5, 15, 20, 13):
        with pytest.raises(Interrupted):
            fit(tmp_path / "cut", stop)
    resumed, second = fit(tmp_path / "cut")
    assert report.status == second.status == "done"
    assert report.steps == second.steps
    assert report.costs == second.costs
    for name in ("denoiser", "flow"):
        for key, value in whole[name].state_dict().items():
            assert torch.equal(value, resumed[name].state_dict()[key]), (name, key)
