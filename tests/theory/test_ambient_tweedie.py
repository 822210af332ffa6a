"""Ambient-Tweedie: exact above the noise of the data, and consistency determines what is below."""

import re

import cleanprior.methods.ambient_tweedie.method as tweedie_module
import pytest
import torch
from cleanprior.methods.ambient_tweedie.method import draw_sigma_above, tweedie_loss
from pair import SHAPE, SIGMA, C, Exact, Linear, wiener
from torch import nn

from cleanprior.diffusion.denoiser import Denoiser, edm_weight, per_image
from cleanprior.diffusion.samplers import Heun
from cleanprior.errors import UserError
from cleanprior.seeding import generator_for

# -- above the noise of the data -------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.1, 1.6, 4.0])
@pytest.mark.parametrize("weight", ["edm", "ambient_o"])
def test_the_minimiser_is_the_conditional_mean(
    make_tweedie, draw, batch_of, monkeypatch, factor, weight
):
    level = factor * SIGMA
    model = Linear()
    method = make_tweedie(model, f"weight={weight}")
    monkeypatch.setattr(
        tweedie_module, "draw_sigma_above", lambda low, g: torch.full_like(low, level)
    )
    hessian, slope = torch.zeros(2, 2, 2).double(), torch.zeros(2, 2).double()
    _, y = draw(400_000)

    def gradient(at):
        model.matrix.data.copy_(at)
        loss = method.loss(batch_of(y), generator_for(0, "l"), "denoiser").total
        return torch.autograd.grad(loss, model.matrix)[0].double()

    slope = -gradient(torch.zeros(2, 2))
    for j in range(2):
        unit = torch.zeros(2, 2)
        unit[:, j] = 1
        hessian[:, :, j] = gradient(unit) + slope
    found = torch.stack([torch.linalg.solve(hessian[i], slope[i]) for i in range(2)])
    assert (found - wiener(level)).abs().max() < 0.02


class Constant(Denoiser):
    """Returns its own parameter: the gradient there shows what the loss pulls towards."""

    def __init__(self, n):
        super().__init__(nn.Identity(), 0.5)
        self.output = nn.Parameter(torch.zeros(n, *SHAPE))

    def forward(self, x, sigma, condition=None):
        return self.output


def test_the_variance_of_the_regression_target(draw):
    """sigma_y^2 sigma^2 / (sigma^2 - sigma_y^2), and the target is unbiased for x."""
    level, n = 0.8, 400_000
    x, y = draw(n)
    model = Constant(n)
    noise = torch.randn(y.shape, generator=generator_for(0, "more"))
    loss = tweedie_loss(model, y, torch.full((n,), SIGMA), torch.full((n,), level), noise)
    alpha = 1 - SIGMA**2 / level**2
    # A pixel's loss is (alpha (D - target))^2 / 2; at D = 0 its slope is -alpha^2 target.
    target = -torch.autograd.grad(loss.sum(), model.output)[0] / alpha**2
    error = (target - x).double()
    expected = SIGMA**2 * level**2 / (level**2 - SIGMA**2)
    assert abs(error.var() / expected - 1) < 0.02
    assert abs(error.mean()) < 4 * (expected / (2 * n)) ** 0.5


def test_without_noise_it_is_the_edm_loss(
    make_tweedie, batch_of, digits_data, make_operator, make_problem
):
    method = make_tweedie(None)
    method.setup(
        make_problem(make_operator("denoising", (1, 8, 8), "sigma=0")), torch.device("cpu")
    )
    x = digits_data.train[:16]
    generator = generator_for(0, "l")
    loss = method.loss(batch_of(x, 0.0), generator_for(0, "l"), "denoiser").total
    sigma = draw_sigma_above(torch.zeros(16), generator)
    noise = torch.randn(x.shape, generator=generator)
    denoised = method.denoiser(x + per_image(sigma) * noise, sigma)
    expected = (edm_weight(sigma, 0.5) * (denoised - x) ** 2).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


def test_a_batch_of_clean_and_noisy_images_has_the_mean_of_both_losses(draw):
    model = Exact(0.7)
    x, y = draw(8)
    images = torch.cat([x[:4], y[4:]])
    level = torch.tensor([0.0] * 4 + [SIGMA] * 4)
    sigma = torch.linspace(0.6, 2, 8)
    noise = torch.randn(y.shape, generator=generator_for(0, "n"))
    together = tweedie_loss(model, images, level, sigma, noise)
    denoised = model(images + per_image(sigma) * noise, sigma)
    clean = ((denoised - images) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(together[:4], clean[:4], rtol=1e-6, atol=1e-7)
    noisy = tweedie_loss(model, y[4:], level[4:], sigma[4:], noise[4:])
    torch.testing.assert_close(together[4:], noisy, rtol=1e-6, atol=1e-7)


def test_a_large_level_keeps_its_digits(draw):
    model = Exact()
    _, y = draw(64)
    level, sigma = torch.full((64,), SIGMA), torch.full((64,), 500.0)
    noise = torch.randn(y.shape, generator=generator_for(0, "n"))
    found = tweedie_loss(model, y, level, sigma, noise).double()
    x = y.double() + (500.0**2 - SIGMA**2) ** 0.5 * noise.double()
    alpha = 1 - SIGMA**2 / 500.0**2
    exact = alpha * model(x, sigma.double()) + (1 - alpha) * x - y.double()
    torch.testing.assert_close(found, (exact**2).flatten(1).mean(1), rtol=1e-5, atol=0)


def test_no_draw_is_at_or_below_the_noise_and_clamping_puts_many_there(make_tweedie):
    n, low = 200_000, 0.2
    sigma = draw_sigma_above(torch.full((n,), low), generator_for(0, "s"))
    assert (sigma > low).all()
    assert sigma.isfinite().all()
    method = make_tweedie(None, "sigma_draw=clamp")
    clamped = method._draw_sigma(torch.full((n,), low), generator_for(0, "s"))
    assert abs((clamped == low).float().mean() - 0.366) < 0.005
    # The law above the cut is the same: shares beyond 0.4, given beyond 0.2.
    expected = (clamped > 0.4).float().mean() / (clamped > low).float().mean()
    assert abs((sigma > 0.4).float().mean() - expected) < 0.01
    assert (draw_sigma_above(torch.full((1000,), 50.0), generator_for(0, "s")) > 50).all()


def test_the_truncated_sampler_stops_at_the_noise_with_the_denoised_mean(
    make_tweedie, draw, batch_of, make_operator, make_problem
):
    method = make_tweedie(Exact())
    method.problem = make_problem(make_operator("denoising", SHAPE, f"sigma={SIGMA}"))
    method.sampler = Heun(128, 0.002, 80.0, 7.0)
    (route,) = method.routes({"denoiser": method.denoiser})
    found = torch.cov(route.sample(100_000, generator_for(0, "s")).flatten(1).double().T)
    expected = wiener(SIGMA) @ C
    assert (found - expected).norm() / expected.norm() < 0.03
    assert (found - C).norm() / C.norm() > 0.1
    _, y = draw(10)
    draw = route.restore(batch_of(y), [])
    restored, evaluations = draw.x, draw.evaluations
    assert evaluations == 1
    wanted = (y.flatten(1).double() @ wiener(SIGMA).T).reshape(y.shape).float()
    torch.testing.assert_close(restored, wanted)


# -- refusals --------------------------------------------------------------------------------------


def test_it_refuses_other_operators(make_tweedie, make_operator, make_problem):
    method = make_tweedie(None)
    for name in ("inpainting", "blur"):
        reason = method.supports(make_problem(make_operator(name, (1, 8, 8), "sigma=0.1")))
        assert re.search(f"{name} is not the identity", reason)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sigma_draw=reject"], "sigma_draw=reject; allowed: truncate, clamp"),
        (["weight=none"], "weight=none; allowed: edm, ambient_o"),
        (["sigma_draw=clamp", "weight=ambient_o"], "divides by 0; set sigma_draw=truncate or"),
        (["augment=scale"], "augment=scale; allowed: none, flip, after_noise"),
        (["augment_probability=2"], r"augment_probability=2(\.0)?; allowed: \[0, 1\]"),
        (["operator_mode=ignore"], "operator_mode=ignore; allowed: refuse, ambient_o"),
        (["sigma_min=0"], r"sigma_min=0(\.0)?; allowed: above 0"),
        (["consistency.pairing=one"], "pairing='one'; allowed: independent, shared"),
        (["consistency.weighting=on"], "weighting='on'; allowed: none, edm"),
        (["consistency.estimator=median"], "estimator='median'; allowed: product, mean"),
        (["consistency.children=3"], "children=3; allowed: 2, 4"),
        (["consistency.weight=-1"], r"weight=-1(\.0)?; allowed: 0 \(off\) or above"),
        (["consistency.share=0"], r"share=0(\.0)?; allowed: \(0, 1\]"),
        (["consistency.steps=0"], "steps=0; allowed: 1 or more"),
        (["consistency.start=1"], r"start=1(\.0)?; allowed: above 1"),
        (["consistency.sigma_min=0"], r"sigma_min=0(\.0)?; allowed: above 0"),
    ],
)
def test_a_value_outside_its_range_is_refused(make_tweedie, overrides, message):
    with pytest.raises(UserError, match=message):
        make_tweedie(None, *overrides)
