"""FlowDiff: the dense flow, and joint training against closed forms."""

import math

import pytest
import torch
from cleanprior.methods.flow import (
    Base,
    ConditionalAffine,
    ConditionalCoupling,
    PosteriorFlow,
    feature_count,
    gaussian_base,
    splits,
)
from cleanprior.methods.flow_bound import Quadratic, diffusion_term, stratified_sigma
from torch import nn

from cleanprior.config import build, compose
from cleanprior.data import Batch, Measurements
from cleanprior.operators.base import likelihood_sigma
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for, scoped_rng
from cleanprior.training import Round, Session
from cleanprior.training.averages import Averages
from cleanprior.training.checkpoint import Store

CPU = torch.device("cpu")
OPERATORS = ["inpainting", "denoising", "blur"]


def make_method(*overrides):
    dense = ["method.hidden=16", "method.couplings=4", "method.context=8"]
    conv = ["method.conv_couplings=2", "method.conv_hidden=8", "method.conv_context=8"]
    return build(compose(["method=flowdiff", *dense, *conv, *overrides])["method"])


def make_measurements(operator, n, seed=0):
    """Measurements of smooth random images; no clean image is kept."""
    x = torch.randn((n, *operator.image_shape), generator=generator_for(seed, "x"))
    return Measurements.draw((0.6 * x).cumsum(3).tanh(), operator, seed, "train")


def begin(method, problem, measurements, name="pre-train"):
    method.setup(problem, CPU)
    averaged = Averages(method.networks(), 0.9).modules
    session = Session(measurements, None, averaged, CPU, Store(None), Progress(), problem.seed)
    method.begin_round(0, Round(name, 1), session)
    return session


def randomise(module, seed=0, scale=0.3):
    """Give every weight, the zero last layers included, a random value."""
    generator = generator_for(seed, "weights")
    for p in module.parameters():
        p.data = scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)


# -- the flow --------------------------------------------------------------------------------------


def jacobian_log_det(function, z):
    jacobian = torch.func.jacrev(function)(z)
    return torch.linalg.slogdet(jacobian)[1]


@pytest.mark.parametrize("kind", ["checkerboard", "random", "affine"])
def test_layers_invert_and_know_their_determinant(kind):
    if kind == "affine":
        layer = ConditionalAffine(6, 3, 8, 2.0)
    else:
        kept = splits((1, 2, 3), 4)[0 if kind == "checkerboard" else 2]
        layer = ConditionalCoupling(kept, 3, 8, 1.5)
    layer = layer.double()
    randomise(layer)
    z, c = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    out, log_det = layer(z, c)
    back, inverse_log_det = layer.inverse(out, c)
    assert (back - z).abs().max() < 1e-10
    torch.testing.assert_close(inverse_log_det, -log_det)
    for i in range(5):
        own = jacobian_log_det(lambda v, i=i: layer(v[None], c[i : i + 1])[0][0], z[i])
        torch.testing.assert_close(log_det[i], own, rtol=1e-5, atol=1e-9)


def test_a_coupling_changes_something_and_keeps_something():
    with pytest.raises(ValueError, match="keep some entries"):
        ConditionalCoupling(torch.ones(4, dtype=torch.bool), 2, 4, 1.0)


def small_case(make_operator, gaussian, name="inpainting", n=5):
    operator = make_operator(name, gaussian.image_shape, *(["kernel_size=1"] * (name == "blur")))
    data = make_measurements(operator, n)
    batch = data.batch(torch.arange(n))
    flow = PosteriorFlow(gaussian.image_shape, feature_count(operator), 4, 16, 8)
    flow.set_gaussian(gaussian.mean, gaussian.covariance)
    return operator, batch, flow, gaussian_base(gaussian, batch, operator, 0.1)


def test_whole_flow_inverts_and_knows_its_determinant(make_operator, gaussian):
    _, batch, flow, base = small_case(make_operator, gaussian)
    flow = flow.double()
    randomise(flow)
    base = base.to(torch.float64)
    u = torch.randn(len(batch), 6, dtype=torch.float64, generator=generator_for(0, "u"))
    x, log_det = flow(u, base)
    back, inverse_log_det = flow.inverse(x, base)
    assert (back - u).abs().max() < 1e-5
    torch.testing.assert_close(inverse_log_det, -log_det)
    for i in range(len(batch)):
        one = base.take(torch.tensor([i]))
        own = jacobian_log_det(lambda v, one=one: flow(v[None], one)[0].flatten(), u[i])
        # The base's own log-determinant was rounded to float32.
        torch.testing.assert_close(log_det[i], own, rtol=1e-5, atol=1e-5)


def test_flow_inverts_in_single_precision(make_operator, gaussian):
    _, batch, flow, base = small_case(make_operator, gaussian)
    randomise(flow)
    u = torch.randn(len(batch), 6, generator=generator_for(0, "u"))
    assert (flow.inverse(flow(u, base)[0], base)[0] - u).abs().max() < 1e-4


@pytest.mark.parametrize("name", OPERATORS)
def test_untrained_flow_is_the_exact_gaussian_posterior(make_operator, gaussian, name):
    operator, batch, flow, base = small_case(make_operator, gaussian, name)
    level = likelihood_sigma(batch.sigma_y, 0.1)
    mean, covariance = gaussian.posterior(batch.y, batch.params, level, operator)
    torch.testing.assert_close(base.mean.double(), mean, atol=1e-5, rtol=1e-4)
    root = base.root.double()
    torch.testing.assert_close(
        (root @ root.mT).expand_as(covariance), covariance, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(root, root.mT)
    log_det = 0.5 * torch.linalg.slogdet(covariance)[1]
    torch.testing.assert_close(base.log_det.double(), log_det, atol=1e-4, rtol=1e-4)

    draws = 40_000
    one = base.take(torch.zeros(draws, dtype=torch.long))
    with torch.no_grad():
        x, _ = flow(torch.randn(draws, 6, generator=generator_for(0, "u")), one)
    x = x.flatten(1).double()
    deviation = covariance[0].diagonal().sqrt()
    assert ((x.mean(0) - mean[0]).abs() / deviation).max() < 4.5 / draws**0.5
    error = (torch.cov(x.T) - covariance[0]).norm() / covariance[0].norm()
    assert error < 0.03


def test_every_pixel_is_changed_by_some_coupling():
    for shape in [(1, 8, 8), (3, 4, 5)]:
        chosen = splits(shape, 8)
        assert len(chosen) == 8
        assert (~torch.stack(chosen)).any(0).all()
        assert all(torch.equal(a, b) for a, b in zip(chosen, splits(shape, 8), strict=True))


def test_the_mask_alone_changes_the_output(make_operator, gaussian):
    _, batch, flow, base = small_case(make_operator, gaussian)
    randomise(flow)
    features = base.features.clone()
    mask = features[:, 18:24]
    assert torch.equal(mask, batch.params["mask"].flatten(1))
    features[:, 18:24] = 1 - mask
    other = Base(base.mean, base.root, base.log_det, features)
    u = torch.randn(len(batch), 6, generator=generator_for(0, "u"))
    assert (flow(u, base)[0] - flow(u, other)[0]).abs().amax((1, 2, 3)).min() > 1e-3


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
    mean, covariance = gaussian.posterior(y, {}, level, operator)
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
    method = make_method()
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

    for way in method.ways(session.averaged):
        generators = [generator_for(0, "w", image=i) for i in range(8)]
        x, evaluations = way.restore(batch, generators)
        assert x.shape == (8, *shape)
        assert x.isfinite().all()
        assert evaluations == 0


def test_the_prior_term_reaches_the_flow_through_the_denoiser(make_operator, make_problem):
    """Without the denoiser's Jacobian the gradient would be another one."""
    operator = make_operator("denoising", (1, 4, 4))
    method = make_method()
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
    method = make_method()
    data = make_measurements(operator, 16)
    begin(method, make_problem(operator), data)
    batch = data.batch(torch.arange(16))
    x = method._draw(method.network, batch, generator_for(0, "d"))
    seen = batch.params["mask"].bool()
    assert not x.requires_grad
    assert torch.equal(x[seen], batch.y[seen]) is is_exact


def test_measurements_are_never_altered(make_operator, make_problem):
    operator = make_operator("inpainting", (1, 4, 4))
    method = make_method()
    data = make_measurements(operator, 16)
    before = data.hash
    begin(method, make_problem(operator), data, "final")
    for turn in ("flow", "denoiser"):
        method.loss(data.batch(torch.arange(8)), generator_for(0, "l"), turn)
    assert data._digest() == before


def test_noise_free_measurements_without_a_floor_are_refused(make_operator, make_problem):
    problem = make_problem(make_operator("inpainting", (1, 4, 4)))
    assert "sigma_y is 0" in make_method("method.sigma_floor=0").supports(problem)
    assert make_method().warning(problem) == "floor"


def test_images_that_a_dense_gaussian_cannot_hold_need_the_convolutional_flow(
    make_operator, make_problem
):
    problem = make_problem(make_operator("denoising", (3, 32, 32)))
    reason = make_method("method.flow=dense").supports(problem)
    assert "at most 1024 numbers; these have 3072: use flow=conv" in reason
    assert make_method().supports(problem) is None


@pytest.mark.parametrize("steps", [1, 2, 7, 60, 1500])
@pytest.mark.parametrize("each", [1, 2, 4])
def test_denoiser_steps_add_up_to_the_budget(steps, each):
    rounds = make_method(f"method.denoiser_steps={each}").rounds(steps)
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
        make_method(f"method.{override}")


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
        method, calls = make_method("method.ramp=0.2", *keys), []
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
