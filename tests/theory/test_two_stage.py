"""The two-stage baselines: what stage 1 hands on, once, and what stage 2 fits."""

import pytest
import torch
from pair import SIGMA, C, Exact, Linear, wiener

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.diffusion.denoiser import denoising_loss
from cleanprior.errors import UserError
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for
from cleanprior.training import Session, Trainer
from cleanprior.training.checkpoint import Store

WIENER = wiener(SIGMA)


def session_of(data, averaged=None):
    return Session(data, None, averaged or {}, torch.device("cpu"), Store(None), Progress(), 0)


def make_method(name, *overrides):
    keys = [f"method.{o}" for o in overrides]
    return build(compose([f"method={name}", *keys])["method"])


@pytest.fixture
def gaussian_data(make_operator):
    operator = make_operator("denoising", (1, 1, 2), f"sigma={SIGMA}")
    x = torch.randn((400_000, 2), generator=generator_for(0, "x"))
    x = x @ torch.linalg.cholesky(C).float().T
    return Measurements.draw(x.reshape(-1, 1, 1, 2), operator, 0, "train")


def test_stage_two_fits_the_law_of_the_posterior_means(gaussian_data):
    """With the exact restorer: C (C + s^2 I)^-1 C, below C."""
    method = make_method("denoise_then_train", "chunk=100000")
    _, second = method.rounds(100)
    session = session_of(gaussian_data, {"denoiser": Exact()})
    images = method.begin_round(1, second, session).images
    found = torch.cov(images.flatten(1).double().T)
    expected = WIENER @ C
    assert (found - expected).norm() / expected.norm() < 0.03
    assert (torch.linalg.eigvalsh(C - found) > 0).all()
    assert session.costs == {"evaluations": 400_000.0}


def test_stage_one_has_the_wiener_filter_as_minimiser(gaussian_data):
    method = make_method("denoise_then_train")
    model = method.denoiser = Linear()
    session = session_of(gaussian_data)
    training_set = method.begin_round(0, method.rounds(100)[0], session)
    batch = training_set.batch(torch.arange(400_000))

    def gradient(at):
        model.matrix.data.copy_(at)
        loss = method.loss(batch, generator_for(0, "l"), "denoiser").total
        return torch.autograd.grad(loss, model.matrix)[0].double()

    slope = -gradient(torch.zeros(2, 2))
    hessian = torch.zeros(2, 2, 2).double()
    for j in range(2):
        unit = torch.zeros(2, 2)
        unit[:, j] = 1
        hessian[:, :, j] = gradient(unit) + slope
    found = torch.stack([torch.linalg.solve(hessian[i], slope[i]) for i in range(2)])
    assert (found - WIENER).abs().max() < 0.02


class Stopped(Exception):
    pass


#: Steps of 20, at a share of .3, of the networks of methods whose stage 1 trains either of them.
STEPS = {
    "denoise_then_train": {"denoiser": 20, "restorer": 0},
    "r2r_then_train": {"denoiser": 14, "restorer": 6},
}


def train(make_operator, make_problem, digits_data, name, folder, stop_at=None):
    """Train for 20 steps; raise in step ``stop_at``. Also says how often it restored."""
    method = make_method(name, "restorer_share=0.3")
    operator = make_operator("denoising", (1, 8, 8), f"sigma={SIGMA}")
    data = Measurements.draw(digits_data.train[:24], operator, 0, "train")
    computed, handed, loss, steps = [], [], method.loss, []
    restore_all = method._restore_all

    def restoring(session):
        computed.append(1)
        tensors, costs = restore_all(session)
        handed.append(tensors["images"].clone())
        return tensors, costs

    def counting(*arguments):
        steps.append(1)
        if len(steps) == stop_at:
            raise Stopped
        return loss(*arguments)

    method._restore_all, method.loss = restoring, counting
    part = compose(["method=naive"])["training"] | {"budget": 160, "batch": 8, "device": "cpu"}
    trainer: Trainer = build(part | {"checkpoint_seconds": 0.0, "precision": "fp32"})
    try:
        networks, report = trainer.fit(method, make_problem(operator), data, 0, folder)
    except Stopped:
        return method, data, None, computed, handed
    assert report.steps == STEPS[name]
    assert report.images == 160
    return method, data, networks, computed, handed


@pytest.mark.parametrize("name", STEPS)
def test_restorations_are_computed_once_and_their_restorer_goes_home(
    make_operator, make_problem, digits_data, tmp_path, name
):
    arguments = (make_operator, make_problem, digits_data, name)
    _, data, expected, computed, _ = train(*arguments, tmp_path / "whole")
    assert len(computed) == 1
    first = train(*arguments, tmp_path / "cut", stop_at=14)
    assert len(first[3]) == 1
    method, _, networks, again, _ = train(*arguments, tmp_path / "cut")
    assert not again, "found in the store"
    for network in ("denoiser", "restorer"):
        for key, value in expected[network].state_dict().items():
            assert torch.equal(value, networks[network].state_dict()[key]), (network, key)
    (route,) = method.routes(networks)
    draw = route.restore(data.batch(torch.arange(24)), [])
    restored, evaluations = draw.x, draw.evaluations
    assert evaluations == 1
    assert torch.equal(restored, first[4][0]), "the restorer in the result is that of stage 1"


def test_both_stages_share_the_budget():
    plan = make_method("denoise_then_train").rounds(100)
    assert [(r.name, r.steps, r.begin) for r in plan] == [
        ("restorer", 10, "continue"),
        ("prior", 90, "scratch"),
    ]


def test_the_pseudo_inverse_is_fitted_on_every_pixel(make_operator, make_problem, digits_data):
    method = make_method("pinv_then_train", "chunk=5")
    operator = make_operator("inpainting", (1, 8, 8), "p=0.4")
    method.setup(make_problem(operator), torch.device("cpu"))
    data = Measurements.draw(digits_data.train[:16], operator, 0, "train")
    training_set = method.begin_round(0, method.rounds(10)[0], session_of(data))
    assert torch.equal(training_set.images, data.y)
    batch = training_set.batch(torch.arange(16))
    found = method.loss(batch, generator_for(0, "l"), "denoiser").total
    expected = denoising_loss(method.denoiser, data.y, generator_for(0, "l"))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("denoise_then_train", "restorer_share=1", r"restorer_share=1; allowed: \(0, 1\)"),
        ("denoise_then_train", "restorer_share=0", r"restorer_share=0; allowed: \(0, 1\)"),
        ("denoise_then_train", "probe=unit", "probe=unit; allowed: rademacher, gaussian"),
        ("denoise_then_train", "chunk=0", "chunk=0; allowed: at least 1"),
        ("pinv_then_train", "chunk=0", "chunk=0; allowed: at least 1"),
    ],
)
def test_a_value_outside_its_range_is_refused(name, override, message):
    with pytest.raises(UserError, match=message):
        make_method(name, override)
