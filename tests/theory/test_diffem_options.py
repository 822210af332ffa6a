"""DiffEM: evaluation, budget, what is refused, the choices of its authors."""

import copy

import pytest
import torch
from cleanprior.methods.diffem.channel import Channel
from cleanprior.methods.diffem.levels import colour_changes, flipped, recoloured
from conditional import (
    make,
    set_up,
    spied,
)

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.errors import UserError
from cleanprior.operators import RandomInpainting
from cleanprior.seeding import generator_for
from cleanprior.training import Problem

# -- evaluation and budget -------------------------------------------------------------------------


def test_restoring_test_measurements_changes_no_weight_and_trains_on_none(
    make_operator, digits_data, tiny_backbone, monkeypatch
) -> None:
    operator = make_operator("inpainting", (1, 8, 8))
    train = Measurements.draw(digits_data.train[:40], operator, 0, "train")
    test = Measurements.draw(digits_data.test[:6], operator, 0, "test")
    met = set()
    simulate = Channel.simulate
    monkeypatch.setattr(
        Channel,
        "simulate",
        lambda self, x, like, g: (
            met.update(m.numpy().tobytes() for m in like.params["mask"])
            or simulate(self, x, like, g)
        ),
    )
    method = make("gaussian_iterations=1", "posterior.steps=3")
    problem = Problem(operator, "inpainting", dict(tiny_backbone), 0.5, 0.0)
    keys = ["budget=96", "batch=8", "precision=fp32"]
    trainer = build(compose([f"training.{k}" for k in keys])["training"])
    averaged, report = trainer.fit(method, problem, train, 0)
    assert report.status == "done"
    assert report.steps == {"conditional": 8, "denoiser": 4} and report.images == 96
    assert met <= {m.numpy().tobytes() for m in train.params["mask"]}
    networks = {**averaged, **{f"raw {k}": v for k, v in method.networks().items()}}
    before = {k: copy.deepcopy(v.state_dict()) for k, v in networks.items()}
    (route,) = method.routes(averaged)
    generators = [generator_for(0, "restore", image=i) for i in range(6)]
    draw = route.restore(test.batch(torch.arange(6)), generators)
    assert draw.x.shape == (6, 1, 8, 8) and (draw.evaluations, draw.backwards) == (3, 0)
    assert not draw.x.requires_grad
    assert route.label(8) == "conditional network: one draw, mean of 8"
    for name, state in before.items():
        now = networks[name].state_dict()
        assert all(torch.equal(now[k], v) for k, v in state.items()), name


@pytest.mark.parametrize("budget", [1, 2, 7, 20, 1500])
@pytest.mark.parametrize("name", ["diffem", "diffem_official"])
def test_the_rounds_share_one_budget(budget, name, make_operator, tiny_backbone) -> None:
    method = set_up(make(name=name), make_operator("inpainting", (1, 8, 8)), tiny_backbone)
    plan = method.rounds(budget)
    assert sum(r.steps for r in plan) == method.planned(plan) == budget
    assert plan[-1].turns == ("denoiser",) and plan[-1].begin == "averaged"
    assert all(r.turns == ("conditional",) for r in plan[:-1])
    if budget == 1500:
        assert len(plan) == 2 + method.resume_rounds
        assert {r.begin for r in plan[1:-1]} == {method.resume}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["start=prior"], "allowed: auto, gaussian, lift"),
        (["start_share=0.8", "prior_share=0.3"], "at most 1 together"),
        (["prior_share=0"], "prior_share"),
        (["resume_rounds=-1"], "resume_rounds"),
        (["final_draws=0"], "final_draws"),
        (["levels=uniform"], "allowed: edm, beta"),
        (["recorrupt=never"], "allowed: per_step, per_round"),
        (["augment=rotate"], "allowed: none, flip, color"),
        (["posterior.walk=heun"], "allowed: exponential, ancestral"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        make(*keys)


def test_what_the_authors_do_is_an_option_and_no_default() -> None:
    ours, theirs = make(), make(name="diffem_official")
    keys = ("recorrupt", "condition", "noise_shape", "augment", "levels", "resume")
    assert [getattr(ours, k) for k in keys] == ["per_step", "all", "y", "none", "edm", "continue"]
    assert [getattr(theirs, k) for k in keys] == [
        "per_round",
        "y",
        "mask",
        "color",
        "beta",
        "averaged",
    ]
    assert (len(theirs.posterior.levels) - 1, theirs.posterior.walk) == (256, "ancestral")


# -- augmentation ----------------------------------------------------------------------------------


def test_colours_change_alike_in_image_and_measurement() -> None:
    x = torch.rand(300, 3, 4, 4, generator=generator_for(0, "x"))
    change = colour_changes(300, generator_for(1, "colour"))
    grey = x[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(recoloured(grey, change), grey, rtol=0, atol=2e-3)
    assert (recoloured(torch.zeros_like(x), change) == 0).all()
    moved = recoloured(x, change)
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(
        torch.einsum("c,bchw->bhw", luma, moved), torch.einsum("c,bchw->bhw", luma, x)
    )
    assert 0.005 < (moved - x).abs().mean() < 0.05
    lifts = [
        t[:, :3]
        for *_, t in spied(
            RandomInpainting((3, 4, 4), 0.0, False, 0.0), x, "augment=color", n=300, seeds=(0,)
        )[1]
    ]
    assert (0.5 * lifts[0] - x).abs().max() > 0.01
    losses, *_ = spied(RandomInpainting((3, 4, 4), 0.0, False, 0.0), x, "augment=color", n=300)
    assert losses == pytest.approx([0, 0], abs=1e-4), "the target has the colours of y'"


def test_half_of_the_images_are_mirrored_before_they_are_measured() -> None:
    x = torch.arange(8.0).expand(400, 1, 8, 8)
    y = flipped(x, generator_for(0, "flip"))
    mirrored = (y == x.flip(3)).flatten(1).all(1)
    assert (mirrored | (y == x).flatten(1).all(1)).all()
    assert 0.4 < mirrored.float().mean() < 0.6
    losses, *_ = spied(RandomInpainting((1, 8, 8), 0.0, False, 0.0), x / 8, "augment=flip", n=400)
    assert losses == pytest.approx([0, 0], abs=1e-5)


def test_options_that_need_pixels_say_so(make_operator, make_problem) -> None:
    kspace = make_problem(make_operator("mri", (2, 8, 8)))
    assert "noise_shape=mask" in make("noise_shape=mask").supports(kspace)
    rows = make_problem(make_operator("compressed_sensing", (3, 8, 8)))
    assert "augment=color" in make("augment=color").supports(rows)
    assert make().supports(kspace) is None and make().supports(rows) is None
