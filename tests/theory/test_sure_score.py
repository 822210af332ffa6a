"""SURE-Score: Stein's risk is unbiased, and the prior is the law of the denoised images."""

import re

import cleanprior.methods.sure_score as sure_module
import pytest
import torch
from torch import nn

from cleanprior.config import build, compose
from cleanprior.diffusion.denoiser import Denoiser
from cleanprior.diffusion.samplers import Heun
from cleanprior.errors import UserError
from cleanprior.seeding import generator_for, scoped_rng
from cleanprior.training.stein import (
    denoise_and_difference,
    denoise_and_divergence,
    draw_probe,
    stein_risk,
)

SIGMA = 0.5
SHAPE = (1, 1, 2)
C = torch.tensor([[1.0, 0.6], [0.6, 0.8]]).double()
EYE = torch.eye(2, dtype=torch.float64)
H = torch.tensor([[0.7, 0.2], [-0.1, 0.5]])
WIENER = C @ torch.linalg.inv(C + SIGMA**2 * EYE)


class Linear(Denoiser):
    """One matrix for each noise level that a test asks for."""

    def __init__(self, levels=(SIGMA,)):
        super().__init__(nn.Identity(), 0.5)
        self.register_buffer("levels", torch.tensor(levels))
        self.matrices = nn.Parameter(torch.zeros(len(levels), 2, 2))

    def forward(self, x, sigma, condition=None):
        number = (self.levels.log() - sigma.float().log()[:, None]).abs().argmin(1)
        return (self.matrices[number] @ x.flatten(1)[:, :, None])[:, :, 0].reshape(x.shape)


@pytest.fixture
def make_method(make_denoising):
    def make(denoiser, *overrides, weight=1.0):
        method = make_denoising("sure_score", denoiser, *overrides)
        method._weight = weight
        return method

    return make


def set_matrix(model, matrix):
    model.matrices.data.copy_(matrix.float().expand_as(model.matrices))


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-2])
def test_the_risk_is_unbiased(draw, probe, epsilon):
    model = Linear()
    set_matrix(model, H)
    x, y = draw(400_000)
    level = torch.full((len(y),), SIGMA)
    generator = generator_for(0, "probe")
    b = draw_probe(probe, y, generator)
    if epsilon:
        f, divergence = denoise_and_difference(model, y, level, b, epsilon, generator)
    else:
        f, divergence = denoise_and_divergence(model, y, level, b)
    gap = (stein_risk(f, divergence, y, level) - ((f - x) ** 2).flatten(1).mean(1)).double()
    z = gap.mean() / (gap.std() / len(y) ** 0.5)
    assert abs(z) < 4


def test_the_divergence_of_both_probes_is_the_trace_and_signs_vary_less(draw):
    model = Linear()
    set_matrix(model, H)
    _, y = draw(100_000)
    level = torch.full((len(y),), SIGMA)
    spread = {}
    for probe in ("rademacher", "gaussian"):
        generator = generator_for(0, probe)
        b = draw_probe(probe, y, generator)
        _, found = denoise_and_divergence(model, y, level, b)
        error = found.mean() - H.trace() / 2
        assert abs(error) < 4 * found.std() / len(y) ** 0.5
        spread[probe] = found.var()
    assert spread["rademacher"] < spread["gaussian"]


@pytest.fixture
def network(make_operator, make_problem):
    def make(dropout=0.0):
        problem = make_problem(make_operator("denoising", (1, 8, 8), f"sigma={SIGMA}"))
        problem.backbone["dropout"] = dropout
        method = build(compose(["method=sure_score", "operator=denoising"])["method"])
        method.setup(problem, torch.device("cpu"))
        return method.denoiser.train()

    return make


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_derivative_of_a_network_is_its_finite_difference(network, digits_data, dropout):
    denoiser = network(dropout)
    y = digits_data.train[:8] + SIGMA * torch.randn((8, 1, 8, 8), generator=generator_for(0, "n"))
    level = torch.full((8,), SIGMA)
    b = draw_probe("rademacher", y, generator_for(0, "b"))
    # The finite difference seeds dropout from its generator, the derivative leaves it alone.
    with scoped_rng(int(torch.randint(2**31, (), generator=generator_for(0, "g")))):
        f, exact = denoise_and_divergence(denoiser, y, level, b)
    again, finite = denoise_and_difference(denoiser, y, level, b, 1e-2, generator_for(0, "g"))
    torch.testing.assert_close(f, again)
    assert (exact - finite).abs().max() < 1e-3


def minimiser(loss, model, number):
    """Solve for one matrix of a loss that is quadratic in it, from its gradients."""
    hessian = torch.zeros(2, 2, 2).double()

    def gradient(at):
        model.matrices.data[number] = at
        return torch.autograd.grad(loss(), model.matrices)[0][number].double()

    slope = -gradient(torch.zeros(2, 2))
    for j in range(2):
        unit = torch.zeros(2, 2)
        unit[:, j] = 1
        hessian[:, :, j] = gradient(unit) + slope
    return torch.stack([torch.linalg.solve(hessian[i], slope[i]) for i in range(2)])


def test_the_minimiser_of_the_risk_is_the_wiener_filter(make_method, draw, batch_of):
    model = Linear()
    method = make_method(model, weight=0.0)
    _, y = draw(400_000)
    found = minimiser(
        lambda: method.loss(batch_of(y), generator_for(0, "l"), "denoiser").total, model, 0
    )
    assert (found - WIENER).abs().max() < 0.02


def test_samples_follow_the_law_of_the_denoised_images(make_method, draw, batch_of, monkeypatch):
    """The bias of the method: C (C + s^2 I)^-1 C and not C."""
    sampler = Heun(40, 0.01, 40.0, 7.0)
    model = Linear((SIGMA, *sampler.levels[:-1]))
    method = make_method(model)
    _, y = draw(100_000)
    method._weight = 0.0
    fitted = minimiser(
        lambda: method.loss(batch_of(y), generator_for(0, "l"), "denoiser").total, model, 0
    )
    model.matrices.data[0] = fitted.float()
    method._weight = 1.0
    for number, level in enumerate(sampler.levels[:-1], 1):
        monkeypatch.setattr(
            sure_module, "draw_sigma", lambda n, g, device, level=level: torch.full((n,), level)
        )
        model.matrices.data[number] = minimiser(
            lambda: method.loss(batch_of(y), generator_for(0, "l"), "denoiser").total, model, number
        ).float()
    noise = torch.randn((200_000, *SHAPE), generator=generator_for(0, "s"))
    found = torch.cov(sampler(model, noise).flatten(1).double().T)
    expected = WIENER @ C
    assert (found - expected).norm() / expected.norm() < 0.05
    assert (found - C).norm() / C.norm() > 0.15


@pytest.mark.parametrize("detach", ["true", "false"])
def test_detach_decides_whether_the_score_term_reaches_the_first_call(
    make_method, draw, batch_of, monkeypatch, detach
):
    level = 3.0
    model = Linear((SIGMA, level))
    set_matrix(model, H)
    method = make_method(model, f"detach={detach}")
    monkeypatch.setattr(sure_module, "draw_sigma", lambda n, g, d: torch.full((n,), level))
    _, y = draw(64)
    slopes = []
    for method._weight in (0.0, 1.0):
        loss = method.loss(batch_of(y), generator_for(0, "l"), "denoiser")
        slopes.append(torch.autograd.grad(loss.total, model.matrices)[0][0])
    assert torch.equal(slopes[0], slopes[1]) == (detach == "true")


def test_a_noise_level_an_image_gives_the_losses_of_single_images(draw):
    model = Linear((0.2, 0.5, 1.0))
    model.matrices.data.copy_(torch.randn((3, 2, 2), generator=generator_for(0, "m")))
    _, y = draw(3)
    levels = torch.tensor([0.2, 0.5, 1.0])
    b = draw_probe("rademacher", y, generator_for(0, "b"))
    f, divergence = denoise_and_divergence(model, y, levels, b)
    together = stein_risk(f, divergence, y, levels)
    for i in range(3):
        part = slice(i, i + 1)
        f, divergence = denoise_and_divergence(model, y[part], levels[part], b[part])
        torch.testing.assert_close(
            together[part], stein_risk(f, divergence, y[part], levels[part]), rtol=1e-6, atol=1e-7
        )


def test_the_official_reduction_sums_over_pixels(make_method, draw, batch_of, monkeypatch):
    level = 2.0
    model = Linear((SIGMA, level))
    set_matrix(model, H)
    monkeypatch.setattr(sure_module, "draw_sigma", lambda n, g, d: torch.full((n,), level))
    _, y = draw(64)
    parts = {
        r: make_method(model, f"reduction={r}").loss(batch_of(y), generator_for(0, "l"), "d").parts
        for r in ("mean", "official")
    }
    weight = (level**2 + 0.25) / (level * 0.5) ** 2
    mean = parts["mean"]["score"] / weight
    torch.testing.assert_close(parts["official"]["score"], 0.5 * 2 * mean / level**2)
    torch.testing.assert_close(parts["official"]["risk"], parts["mean"]["risk"])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("ramp", [0.25, 0.75, 1.0, 1.0]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("epoch", [0.0, 1.0, 2.0, 3.0]),
    ],
)
def test_the_schedule_of_lambda(make_method, schedule, expected):
    method = make_method(Linear(), f"lambda_schedule={schedule}", "stages=4")
    plan = method.rounds(10)
    assert [r.steps for r in plan] == [2, 3, 2, 3]
    assert method._weights == expected


def test_every_step_of_a_budget_below_the_stages_is_planned(make_method):
    method = make_method(Linear(), "stages=20")
    plan = method.rounds(7)
    assert [r.steps for r in plan] == [1] * 7
    assert method._weights == sorted(method._weights)


def test_the_probe_is_counted(make_method, draw, batch_of):
    method = make_method(Linear())
    _, y = draw(5)
    method.loss(batch_of(y), generator_for(0, "l"), "denoiser")
    assert method._session.costs == {"evaluations": 10.0}


@pytest.mark.parametrize(
    ("operator_name", "sigma", "reason"),
    [
        ("inpainting", "0.1", "inpainting is not the identity"),
        ("blur", "0.1", "blur is not the identity"),
        ("denoising", "0", "learns from the noise of y and sigma_y is 0; set operator.sigma above"),
    ],
)
def test_it_refuses_other_operators_and_noise_free_images(
    make_method, make_operator, make_problem, operator_name, sigma, reason
):
    method = make_method(Linear())
    problem = make_problem(make_operator(operator_name, (1, 8, 8), f"sigma={sigma}"))
    assert re.search(reason, method.supports(problem))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("probe=uniform", "probe=uniform; allowed: rademacher, gaussian"),
        ("divergence=exact", "divergence=exact; allowed: jvp, finite"),
        ("reduction=sum", "reduction=sum; allowed: mean, official"),
        ("lambda_schedule=late", "lambda_schedule=late; allowed: ramp, constant, epoch"),
        ("lambda_max=0", r"lambda_max=0(\.0)?; allowed: above 0"),
        ("stages=0", "stages=0; allowed: at least 1"),
        ("levels=linear", "levels=linear; allowed: continuous, official"),
        ("level_count=1", "level_count=1; allowed: at least 2"),
        ("operator_mode=use", "operator_mode=use; allowed: refuse, ignore"),
        ("assumed_sigma=0", r"assumed_sigma=0(\.0)?; allowed: above 0"),
    ],
)
def test_a_value_outside_its_range_is_refused(make_method, override, message):
    with pytest.raises(UserError, match=message):
        make_method(Linear(), override)
