"""DiffEM: what the conditional network is told, and what it starts from."""

import logging

import pytest
import torch
from cleanprior.methods.diffem.channel import Channel, drawn_like
from cleanprior.methods.diffem.monitor import log_restorations
from conditional import EM, Reads, able, make, rounded, session_of, set_up, spied

from cleanprior.data import Measurements
from cleanprior.operators import Denoising
from cleanprior.seeding import generator_for
from cleanprior.training import Problem, Round


def test_a_measurement_is_that_of_its_own_image(make_operator) -> None:
    """With nothing hidden and no noise, who reads y' off the condition has a loss of 0."""
    x = torch.rand(40, 1, 4, 4, generator=generator_for(0, "x")) * 4 - 2
    losses, seen, *_ = spied(make_operator("inpainting", (1, 4, 4), "p=0"), x)
    assert losses == pytest.approx([0, 0], abs=1e-6)
    # ... and the noisy images are images of those, at the levels that the network is told.
    noise = (seen[0][0] - x) / seen[0][1][:, None, None, None]
    assert noise.mean() == pytest.approx(0, abs=0.15)
    assert noise.std() == pytest.approx(1, abs=0.1)


def test_mask_and_noise_are_fresh_in_every_step(make_operator) -> None:
    x = torch.rand(40, 3, 8, 8, generator=generator_for(0, "x"))
    operator = make_operator("inpainting", (3, 8, 8), "sigma=0.2")
    _, seen, data, _ = spied(operator, x)
    first, second = seen[0][2], seen[1][2]
    masks = first[:, -1:], second[:, -1:]
    assert (masks[0] != masks[1]).flatten(1).any(1).float().mean() > 0.9
    known = {m.numpy().tobytes() for m in data.params["mask"]}
    assert all(m.numpy().tobytes() in known for m in torch.cat(masks)), "of training images"
    both = (masks[0] * masks[1]).expand_as(x).bool()
    residual = [(0.5 * t[:, :3] - x)[both] for t in (first, second)]
    assert torch.stack(residual).std(1).tolist() == pytest.approx([0.2, 0.2], rel=0.05)
    assert torch.corrcoef(torch.stack(residual))[0, 1].abs() < 0.05


@pytest.mark.parametrize(("shape", "related"), [("y", 0.0), ("mask", 1.0)])
def test_noise_of_colours_is_that_of_the_data_unless_it_is_not_to(
    make_operator, shape, related
) -> None:
    x = torch.zeros(400, 3, 8, 8)
    operator = make_operator("denoising", (3, 8, 8), "sigma=0.2")
    _, seen, data, _ = spied(operator, x, f"noise_shape={shape}", n=400, seeds=(0,))
    y = 0.5 * seen[0][2][:, :3]
    rho = torch.corrcoef(y.transpose(0, 1).flatten(1))[[0, 0, 1], [1, 2, 2]]
    assert (rho - related).abs().max() < 0.02
    assert y.std() == pytest.approx(0.2, rel=0.02)
    # What the E-step is told has the same law, but for that option.
    real = 0.5 * Channel(operator, 0.5, "all", "y").told(data.y, {}, data.sigma_y)[:, :3]
    assert real.std() == pytest.approx(0.2, rel=0.02)


def test_pairs_of_a_round_stay_where_the_authors_let_them(make_operator, tiny_backbone) -> None:
    operator = make_operator("inpainting", (1, 8, 8), "sigma=0.2")
    x = torch.rand(30, 1, 8, 8, generator=generator_for(0, "x"))
    data = Measurements.draw(x, operator, 0, "train")
    method = set_up(
        make("recorrupt=per_round", "chunk=7", "gaussian_iterations=1"), operator, tiny_backbone
    )
    session = session_of(data, {"conditional": method.conditional.eval()})
    index = torch.arange(30).flip(0)
    first, again, second = (
        method.begin_round(k, Round("round", 1, ("conditional",)), session) for k in (0, 0, 1)
    )
    one, same, other = (s.batch(index) for s in (first, again, second))
    assert torch.equal(one.y, same.y)
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.params["mask"], other.params["mask"])
    hidden = one.params["mask"] == 0
    assert (one.y[hidden] == 0).all()
    assert (one.y - one.images)[~hidden].std() == pytest.approx(0.2, rel=0.1)
    method.conditional = Reads()
    for seed in (0, 1):
        method.loss(one, generator_for(seed, "loss"), "conditional")
    told = [t for *_, t in method.conditional.seen]
    assert torch.equal(told[0], told[1]), "no step measures anew"


# -- what the network is told ----------------------------------------------------------------------


def test_the_condition_has_unit_scale_at_every_level(make_operator, tiny_backbone) -> None:
    """Concatenated after EDM's input scaling: at sigma = 100 it is as large as at 0.002."""
    operator = make_operator("inpainting", (1, 8, 8), "p=0.3", "sigma=0.1")
    method = set_up(make(), operator, tiny_backbone)
    x = 0.5 * torch.randn(50, 1, 8, 8, generator=generator_for(0, "x"))
    data = Measurements.draw(x, operator, 0, "train")
    told = method.channel.told(data.y, data.params, data.sigma_y)
    assert told.shape[1] == method.channel.channels == 3
    seen = data.params["mask"].bool()
    assert told[:, :1][seen].std() == pytest.approx((0.5**2 + 0.1**2) ** 0.5 / 0.5, rel=0.05)
    assert (told[:, 1] == 0.1 / 0.5).all()
    assert torch.equal(told[:, 2:], data.params["mask"])
    heard = []
    method.conditional.backbone.register_forward_hook(lambda m, a, o: heard.append(a))
    for level in (0.002, 100.0):
        method.conditional(x, torch.full((50,), level), told)
    assert all(torch.equal(arguments[2], told) for arguments in heard)
    only = Channel(operator, 0.5, "y", "y")
    assert torch.equal(only.told(data.y, data.params, data.sigma_y), told[:, :1])
    assert only.channels == 1


def test_what_fills_hidden_entries_is_not_told(make_operator) -> None:
    operator = make_operator("inpainting", (1, 4, 4), "sigma=0.1")
    data = Measurements.draw(torch.rand(9, 1, 4, 4), operator, 0, "train")
    channel = Channel(operator, 0.5, "all", "y")
    filled = data.y + 7 * (1 - data.params["mask"])
    told = channel.told(data.y, data.params, data.sigma_y)
    assert torch.equal(channel.told(filled, data.params, data.sigma_y), told)
    new = channel.simulate(
        torch.rand(9, 1, 4, 4), data.batch(torch.arange(9)), generator_for(0, "")
    )
    assert ((new.y == 0) == (data.y == 0)).all(), "real and simulated y are filled alike"


def test_levels_of_entries_are_told_and_simulated_as_a_map(make_operator) -> None:
    shape = (3, 8, 8)
    operator = make_operator("denoising", shape)
    level = torch.rand(200, *shape, generator=generator_for(0, "levels")) + 0.1
    x = torch.zeros(200, *shape)
    noise = torch.randn(x.shape, generator=generator_for(0, "noise"))
    data = Measurements(x + level * noise, {}, level)
    channel = Channel(operator.with_levels_of(level), 0.5, "all", "y")
    told = channel.told(data.y, {}, data.sigma_y)
    assert told.shape[1] == channel.channels == 6
    assert torch.equal(told[:, 3:], level / 0.5)
    like = drawn_like(data, 200, generator_for(1, "like"))
    assert torch.equal(like.sigma_y, level[like.index])
    new = channel.simulate(x, like, generator_for(2, "new"))
    assert torch.equal(new.sigma_y, like.sigma_y)
    assert (new.y / new.sigma_y).std() == pytest.approx(1, rel=0.02)
    one = channel.told(data.y, {}, level[:, :1, :1, :1])  # one level an image, as a map
    assert one.shape == told.shape


# -- starts ----------------------------------------------------------------------------------------


def test_a_channel_without_gradient_or_gaussian_noise_is_learned(
    digits_data, tiny_backbone
) -> None:
    operator = rounded()
    method = make()
    problem = Problem(operator, "rounded", dict(tiny_backbone), 0.5, 0.0)
    assert method.supports(problem) is None
    (warning,) = method.warnings(problem)
    assert warning.code == "lift" and "not Gaussian" in warning.sentence
    set_up(method, operator, tiny_backbone)
    assert method.rounds(100)[0].name == "round 0 (start=auto)"
    data = Measurements.draw(digits_data.train[:20], operator, 0, "train")
    session = session_of(data, {"conditional": method.conditional.eval()})
    found = method.begin_round(0, Round("round 0", 1, ("conditional",)), session)
    assert torch.equal(found.images, data.y), "the first images are the measurements"
    assert session.log["start"] == "lift"
    batch = found.batch(torch.arange(20))
    x = batch.images.requires_grad_()
    loss = method.loss(batch, generator_for(0, "loss"), "conditional").total
    loss.backward()
    assert torch.isfinite(loss)
    norms = [p.grad.norm() for p in method.conditional.parameters() if p.grad is not None]
    assert len(norms) > 5 and all(torch.isfinite(n) for n in norms) and max(norms) > 0
    assert x.grad is not None, "through x_t, and not through the channel"
    assert method.begin_round(1, EM, session).images.isfinite().all()


def test_a_gaussian_start_is_refused_where_the_noise_is_not_gaussian(make_problem) -> None:
    reason = make("start=gaussian").supports(make_problem(rounded()))
    assert "additive Gaussian noise" in reason and "set method.start=auto" in reason
    assert make("start=lift").supports(make_problem(rounded())) is None


def test_the_start_is_that_of_em_mmps(make_operator, digits_data, tiny_backbone) -> None:
    """The same fit and the same exact draws, which em_mmps clamps."""
    operator = make_operator("inpainting", (1, 8, 8))
    data = Measurements.draw(digits_data.train[:30], operator, 0, "train")
    for kind in ("dense", "low_rank"):
        ours, theirs = (
            set_up(make(f"gaussian={kind}", name=name), operator, tiny_backbone)
            for name in ("diffem", "em_mmps")
        )
        turns = Round("round 0", 1)
        x = ours.begin_round(0, turns, session_of(data)).images
        other = theirs.begin_round(0, turns, session_of(data)).images
        assert torch.equal(x.clamp(-1, 1), other)
    log = session_of(data)
    ours.begin_round(0, turns, log)
    assert log.log["gaussian"] == "low_rank" and log.log["start"] == "gaussian"


def test_a_start_that_explains_too_little_is_told(caplog, monkeypatch) -> None:
    shape, sigma = (1, 2, 2), 0.5
    operator = able(Denoising(shape, sigma), "identity")
    x = torch.randn(4000, *shape, generator=generator_for(0, "x"))
    data = Measurements.draw(x, operator, 0, "train")
    channel = Channel(operator, 0.5, "all", "y")
    monkeypatch.setattr("cleanprior.notices._told", set())
    for scale, expected in ((1.0, 1.0), (0.1, 0.01)):
        caplog.clear()
        session = session_of(data)
        with caplog.at_level(logging.WARNING, logger="cleanprior"):
            log_restorations(channel, 0, scale * x, 500, session)
        assert session.log["spread"][0] == pytest.approx(expected, abs=0.06)
        assert ("too narrow" in caplog.text) == (scale < 1)
        fit = (data.y - scale * x).square().mean().item()
        assert session.log["residual"][0] == pytest.approx(fit, rel=1e-4)
        assert session.log["residual_ratio"][0] == pytest.approx(fit / sigma**2, rel=1e-4)
