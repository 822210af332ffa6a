"""SURE-Score's options: the authors' noise levels, and the method as third parties ran it."""

from dataclasses import replace

import pytest
import torch
from cleanprior.methods.sure_score import official_levels
from torch import nn

from cleanprior.config import build, compose
from cleanprior.config.capabilities import required
from cleanprior.data import Measurements
from cleanprior.diffusion.denoiser import SIGMA_MIN, Denoiser
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for
from cleanprior.training import Session
from cleanprior.training.checkpoint import Store
from cleanprior.training.stein import draw_probe
from cleanprior.training.warning import codes


class Recorded(Denoiser):
    """Halves its input and remembers what it was asked."""

    def __init__(self):
        super().__init__(nn.Identity(), 0.5)
        self.anchor = nn.Parameter(torch.full((1,), 0.5))
        self.asked = []

    def forward(self, x, sigma, condition=None):
        self.asked.append((x, sigma))
        return self.anchor * x


def session_of(data):
    return Session(data, None, {}, torch.device("cpu"), Store(None), Progress(), 0)


def begin(method, data):
    plan = method.rounds(20)
    method.begin_round(0, plan[0], session_of(data))


class Square(Denoiser):
    """f(y) = y^2 / 2: a finite difference of it is off by half a step."""

    def __init__(self):
        super().__init__(nn.Identity(), 0.5)
        self.anchor = nn.Parameter(torch.ones(1))

    def forward(self, x, sigma, condition=None):
        return self.anchor * x**2 / 2


@pytest.mark.parametrize(
    ("keys", "probe", "epsilon"),
    [
        ([], "rademacher", 0.0),
        (["probe=gaussian"], "gaussian", 0.0),
        (["divergence=finite", "epsilon=0.4"], "rademacher", 0.4),
    ],
)
def test_probe_and_step_of_the_divergence_are_those_of_the_configuration(
    make_denoising, draw, batch_of, keys, probe, epsilon
):
    method = make_denoising("sure_score", Square(), *keys)
    method._weight = 1.0
    _, y = draw(50)
    parts = method.loss(batch_of(y), generator_for(0, "l"), "denoiser").parts
    b = draw_probe(probe, y, generator_for(0, "l"))
    # b ((y + e b)^2 - y^2) / 2e
    torch.testing.assert_close(parts["divergence"], (y * b**2 + epsilon * b**3 / 2).mean())


def test_a_stage_weighs_the_score_term_with_its_own_lambda(make_denoising, draw, batch_of):
    method = make_denoising("sure_score", Square(), "stages=4", "lambda_max=2")
    _, y = draw(20)
    session = session_of(Measurements(y, {}, torch.full((20,), 0.5)))
    plan = method.rounds(8)
    for number, weight in enumerate([0.5, 1.5, 2.0, 2.0]):
        method.begin_round(number, plan[number], session)
        loss = method.loss(batch_of(y), generator_for(0, "l"), "denoiser")
        expected = loss.parts["risk"] + weight * loss.parts["score"]
        torch.testing.assert_close(loss.total.detach(), expected)


@pytest.mark.parametrize(("divergence", "dtype"), [("jvp", torch.bfloat16), ("finite", None)])
def test_a_finite_difference_is_taken_in_full_precision(
    make_operator, make_problem, divergence, dtype
):
    method = build(compose(["method=sure_score", f"method.divergence={divergence}"])["method"])
    problem = make_problem(make_operator("denoising", (1, 8, 8), "sigma=0.5"))
    method.setup(replace(problem, autocast=torch.bfloat16), torch.device("cpu"))
    assert method.denoiser.autocast is dtype


def test_official_levels_are_geometric_and_lowered_by_the_noise():
    images = torch.zeros(3, 1, 1, 2)
    images[1, 0, 0] = torch.tensor([3.0, 4.0])
    levels = official_levels(images, 0.5, 9)
    assert levels[0].item() == pytest.approx(5.0 - 0.5)
    raised = levels[:-1] + 0.5
    torch.testing.assert_close(raised[1:] / raised[:-1], torch.full((7,), 0.1 ** (1 / 8)))
    assert levels[-1] == pytest.approx(SIGMA_MIN)


def test_the_score_term_draws_all_official_levels_and_no_others(make_denoising, draw, batch_of):
    model = Recorded()
    method = make_denoising("sure_score", model, "levels=official", "level_count=5")
    _, y = draw(200)
    data = Measurements(y, {}, torch.full((200,), 0.5))
    begin(method, data)
    method.loss(batch_of(y), generator_for(0, "l"), "denoiser")
    expected = official_levels(y, 0.5, 5)
    assert torch.equal(model.asked[-1][1].unique(), expected.unique())
    assert torch.equal(model.asked[0][1].unique(), torch.tensor([0.5]))


def ignoring(make_operator, make_problem, name, *overrides, mode="ignore"):
    keys = [f"method.operator_mode={mode}", "method.assumed_sigma=0.03"]
    method = build(compose(["method=sure_score", f"operator={name}", *keys])["method"])
    operator = make_operator(name, (1, 8, 8), *overrides)
    problem = make_problem(operator)
    method.setup(problem, torch.device("cpu"))
    method.denoiser = Recorded()
    return method, problem, operator


@pytest.mark.parametrize(("name", "overrides"), [("inpainting", ()), ("blur", ("sigma=0.1",))])
def test_ignoring_the_operator_is_denoising_of_what_was_measured(
    make_operator, make_problem, digits_data, name, overrides
):
    method, problem, operator = ignoring(make_operator, make_problem, name, *overrides)
    assert method.supports(problem) is None
    assert "straw-man" in codes(method.warnings(problem)).split("+")
    data = Measurements.draw(digits_data.train[:8], operator, 0, "train")
    begin(method, data)
    batch = data.batch(torch.arange(8))
    loss = method.loss(batch, generator_for(0, "l"), "denoiser")
    y = operator.lift(batch.y, batch.params)
    # f(y) = y / 2, of divergence 1/2 a pixel.
    risk = (y / 2).square().mean() + 2 * 0.03**2 * 0.5 - 0.03**2
    torch.testing.assert_close(loss.parts["risk"], risk.detach())
    (route,) = method.routes({"denoiser": method.denoiser})
    x = route.restore(batch, []).x
    torch.testing.assert_close(x, y / 2)
    assert (method.denoiser.asked[-1][1] == 0.03).all()


def test_ignoring_changes_nothing_where_there_is_no_operator(
    make_operator, make_problem, digits_data
):
    totals = []
    for mode in ("ignore", "refuse"):
        method, problem, operator = ignoring(
            make_operator, make_problem, "denoising", "sigma=0.2", mode=mode
        )
        assert codes(method.warnings(problem)) == ""
        data = Measurements.draw(digits_data.train[:8], operator, 0, "train")
        begin(method, data)
        totals.append(method.loss(data.batch(torch.arange(8)), generator_for(0, "l"), "d").total)
    assert torch.equal(totals[0], totals[1])


@pytest.mark.parametrize(
    ("name", "mode"), [("sure_score", "ignore"), ("ambient_tweedie", "ambient_o")]
)
def test_a_mode_without_operator_drops_the_needs_that_it_does_not_have(name, mode):
    plain = compose([f"method={name}"])["method"]
    assert "IDENTITY" in required(plain)
    other = compose([f"method={name}", f"method.operator_mode={mode}"])["method"]
    assert required(other) == ("GAUSS", "WHITE")
