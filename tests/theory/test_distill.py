"""RSD: the generator's law becomes the teacher's; what is hidden and what is frozen stays so."""

import copy
import math

import pytest
import torch
from cleanprior.methods.distill.alignment import Alignment, Levels
from torch import nn

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.diffusion.denoiser import per_image
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for
from cleanprior.testing.training import fit, make_setting, make_trainer, weights
from cleanprior.training import Session, View
from cleanprior.training.checkpoint import Store

PIXEL = (1, 1, 1)


class Gaussian(nn.Module):
    """The exact denoiser of N(0, v), v = exp(w)."""

    sigma_data = 0.5

    def __init__(self, variance):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(math.log(variance)))

    def forward(self, x, sigma, condition=None):
        v = self.w.exp()
        return v / (v + per_image(sigma) ** 2) * x


class Scale(nn.Module):
    """A generator of one pixel: x = a times what it is shown, here sigma_init z."""

    def __init__(self, variance, sigma_init):
        super().__init__()
        self.sigma_init = sigma_init
        self.log_a = nn.Parameter(torch.tensor(0.5 * math.log(variance) - math.log(sigma_init)))

    def forward(self, x, sigma, condition=None):
        return self.log_a.exp() * x

    @property
    def variance(self):
        return float((self.log_a.exp() * self.sigma_init).detach() ** 2)


@pytest.fixture
def make_distill(make_operator, make_problem):
    """``make_distill("ambient", "inpainting", data, "alpha=1")``: a method that distils."""

    def make(teacher, operator, data=None, *overrides, shape=PIXEL, keys=()):
        settings = [f"method.{o}" for o in overrides]
        method = build(compose([f"method={teacher}+distill", *settings])["method"])
        method.setup(make_problem(make_operator(operator, shape, *keys)), torch.device("cpu"))
        if data is None:
            data = Measurements(torch.zeros(1, *shape), {}, torch.zeros(1))
        averaged = {k: copy.deepcopy(v) for k, v in method.networks().items()}
        session = Session(data, None, averaged, torch.device("cpu"), Store(None), Progress(), 0)
        plan = method.rounds(10)
        method.begin_round(len(plan) - 1, plan[-1], session)
        return method

    return make


def noisy_pixels(variance, sigma):
    x = variance**0.5 * torch.randn((4096, *PIXEL), generator=generator_for(0, "x"))
    y = x + sigma * torch.randn(x.shape, generator=generator_for(0, "noise"))
    return Measurements(y, {}, torch.full((4096,), sigma))


# -- the law that is learned -------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 1.2])
@pytest.mark.parametrize(("taught", "start"), [(0.25, 1.0), (1.0, 0.1)])
def test_the_generators_variance_becomes_the_teachers(make_distill, alpha, taught, start):
    """Whatever the teacher was taught, rightly or wrongly: distillation inherits its bias."""
    data = noisy_pixels(0.64, 0.5)  # the truth, which neither law is
    method = make_distill("ambient_tweedie", "denoising", data, f"alpha={alpha}", keys=["sigma=.5"])
    method.generator = Scale(start, method.sigma_init)
    method._session.averaged["denoiser"] = Gaussian(taught)
    optimiser = torch.optim.Adam(method.generator.parameters(), lr=0.05, betas=(0.0, 0.999))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 250)
    for step in range(250):
        method.fake = Gaussian(method.generator.variance)
        batch = data.batch(torch.arange(512))
        loss = method.loss(batch, generator_for(0, "loss", step=step), "generator")
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        decay.step()
    assert method.generator.variance == pytest.approx(taught, rel=0.01)


def test_the_fake_learns_the_generators_law_from_its_noisy_measurements(make_distill):
    data = noisy_pixels(0.64, 0.5)
    method = make_distill("ambient_tweedie", "denoising", data, keys=["sigma=.5"])
    method.generator = Scale(0.3, method.sigma_init)
    method.fake = method.student.denoiser = Gaussian(1.0)
    optimiser = torch.optim.Adam(method.fake.parameters(), lr=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 200)
    for step in range(200):
        batch = data.batch(torch.arange(2048))
        loss = method.loss(batch, generator_for(0, "loss", step=step), "fake")
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        decay.step()
    assert method.fake.w.exp().item() == pytest.approx(0.3, rel=0.05)
    assert method.generator.log_a.grad is None


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_the_expected_loss_is_one_minus_alpha_times_the_squared_difference(alpha):
    n = 200_000
    x = 0.7 * torch.randn((n, *PIXEL), generator=generator_for(0, "x"))
    sigma = Levels(0.05, 2.0, 7.0, 1.0).draw(n, generator_for(0, "sigma"))
    noise = torch.randn(x.shape, generator=generator_for(0, "noise"))
    found = Alignment.of(Gaussian(1.0), Gaussian(0.49), x, sigma, noise, View())
    squared = found.difference.flatten(1).square().mean(1)
    excess = (found.terms(alpha) - (1 - alpha) * squared).detach().double()
    assert excess.mean().abs() < 4 * excess.std() / n**0.5
    assert found.terms(alpha - 1).mean() > 8 * excess.std() / n**0.5  # it could have failed


def test_equal_laws_leave_the_generator_as_it_is(make_distill):
    method = make_distill("ambient_tweedie", "denoising", noisy_pixels(1, 0.5), keys=["sigma=.5"])
    method.generator = Scale(0.4, method.sigma_init)
    method.fake = method._session.averaged["denoiser"] = Gaussian(0.4)
    batch = method._session.measurements.batch(torch.arange(64))
    method.loss(batch, generator_for(0, "loss"), "generator").total.backward()
    assert float(method.generator.log_a.grad) == 0


# -- masks -------------------------------------------------------------------------------------


def test_hidden_pixels_have_no_gradient_and_the_generator_is_told_a_mask(
    make_distill, digits_data, make_operator
):
    shape = (1, 8, 8)
    data = Measurements.draw(digits_data.train[:16], make_operator("inpainting", shape), 0, "train")
    method = make_distill("ambient", "inpainting", data, shape=shape)
    views, asked, view = [], [], method.teacher.view
    method.teacher.view = lambda n, g: views.append(view(n, g)) or views[-1]
    x = digits_data.train[:16].clone().requires_grad_()
    # A fake that is not the teacher: else nothing has a gradient.
    fake = Gaussian(0.2)
    found = method.align(method._session.averaged["denoiser"], fake, x, generator_for(0, "loss"))
    (found.weights() * found.terms(method.alpha)).sum().backward()
    mask = views[-1].condition.expand_as(x)
    assert 0.2 < mask.mean() < 0.7
    assert (x.grad[mask == 0] == 0).all() and (x.grad[mask == 1] != 0).float().mean() > 0.9

    def seen(u, sigma, condition):
        asked.append((u, condition))
        return u

    method.generate(seen, 4, generator_for(0, "z"))
    u, condition = asked[0]
    assert set(condition.unique().tolist()) == {0.0, 1.0}
    assert (u[condition == 0] == 0).all() and (u[condition == 1] != 0).all()


# -- three networks ----------------------------------------------------------------------------


def test_the_teacher_is_its_own_row_and_distilling_moves_no_bit_of_it():
    alone, _ = fit(make_setting("ambient"), trainer=make_trainer(8))
    networks, report = fit(make_setting("ambient+distill"), trainer=make_trainer(8))
    assert report.steps == {"denoiser": 8, "fake": 4, "generator": 4}
    assert report.images == 64  # the budget of the teacher: the distillation is beside it
    after = weights(networks)
    for key, value in weights(alone).items():
        assert torch.equal(after[key], value), key
        for name in ("fake", "generator"):
            assert after[key.replace("denoiser.", f"{name}.", 1)].shape == value.shape
    assert any(
        not torch.equal(v, after[k.replace("denoiser.", f"{name}.", 1)])
        for name in ("fake", "generator")
        for k, v in weights(alone).items()
    )
    assert report.passes["generator"]["forward"] == 2 * 4 * 8
    assert report.passes["denoiser"]["vjp"] == 4 * 8


def test_both_copies_begin_with_the_teachers_averaged_weights(make_distill):
    method = make_distill("ambient_tweedie", "denoising", keys=["sigma=.5"])
    averaged, plan = method._session.averaged, method.rounds(10)
    for parameter in averaged["denoiser"].parameters():
        parameter.data += 1  # an average is not the weights themselves
    method.begin_round(len(plan) - 1, plan[-1], method._session)
    taught = averaged["denoiser"].state_dict()
    for name in ("fake", "generator"):
        copied = averaged[name].state_dict()
        assert all(torch.equal(v, copied[k]) for k, v in taught.items())
        assert not torch.equal(next(iter(taught.values())), next(method.denoiser.parameters()))


def test_a_share_of_the_budget_divides_it():
    name, keys = "ambient+distill", ("method.teacher_share=0.75",)
    _, report = fit(make_setting(name, keys), trainer=make_trainer(8))
    assert report.steps == {"denoiser": 6, "fake": 2, "generator": 2}
    assert report.images == 64


def test_levels_are_those_of_the_paper_and_stop_at_the_noise_where_they_are_told_to(make_distill):
    method = make_distill("ambient_tweedie", "denoising", keys=["sigma=.5"])
    drawn = method.levels.draw(20_000, generator_for(0, "levels"))
    assert drawn.min() == pytest.approx(0.002, rel=0.01)
    assert drawn.max() == pytest.approx(24.4, rel=0.01)
    cut = method.levels.draw(20_000, generator_for(0, "levels"), above=0.5)
    assert cut.min() == pytest.approx(0.5, rel=0.01) and cut.max() == pytest.approx(24.4, rel=0.01)
    whole = drawn[drawn >= 0.5]
    assert cut.log().mean() == pytest.approx(float(whole.log().mean()), abs=0.03)
