"""DiffEM: with an exact conditional network its rounds are exact EM; what the network is told."""

import copy
import logging

import pytest
import torch
from cleanprior.methods.diffem import method as diffem_module
from cleanprior.methods.diffem.channel import Channel, drawn_like
from cleanprior.methods.diffem.levels import colour_changes, draw_levels, flipped, recoloured
from cleanprior.methods.diffem.monitor import log_restorations
from exact import ExactConditional
from torch import nn

from cleanprior.config import build, compose
from cleanprior.data import Batch, Measurements
from cleanprior.diffusion.denoiser import denoising_loss
from cleanprior.errors import UserError
from cleanprior.gaussian.dense import GaussianPrior
from cleanprior.operators import Denoising, RandomInpainting
from cleanprior.operators.base import Operator
from cleanprior.operators.likelihood import Likelihood
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for, scoped_rng
from cleanprior.training import Problem, Round, Session
from cleanprior.training.averages import Averages
from cleanprior.training.checkpoint import Store

CPU = torch.device("cpu")
EM, PRIOR = Round("round 1", 1, ("conditional",)), Round("prior", 1)


def make(*overrides: str, name: str = "diffem"):
    return build(compose([f"method={name}", *(f"method.{o}" for o in overrides)])["method"])


class OneStream(Session):
    """A session whose images share a generator: many small images are drawn in no time."""

    def generators(self, role, numbers, **keys):
        return self.generator(role, first=numbers[0], **keys)


def session_of(data, averaged=None, seed=0, kind=Session, folder=None):
    return kind(data, None, averaged or {}, CPU, Store(folder), Progress(), seed)


def set_up(method, operator, backbone):
    """Give a method its problem and small networks."""
    problem = Problem(operator, operator.name, dict(backbone), 0.5, operator.sigma)
    method.setup(problem, CPU)
    return method


def able(operator, *more):
    """Return a hand-made operator with the capabilities of its YAML."""
    operator.capabilities = frozenset({"gaussian", "same_shape", *more})
    return operator


def moments(x):
    flat = x.flatten(1).double()
    mean = flat.mean(0)
    return mean, (flat - mean).T @ (flat - mean) / len(flat)


def prior_of(mean, covariance, shape):
    return GaussianPrior(mean, covariance, shape)


def e_step(method, prior, session, has_mask, number=1):
    session.averaged = {"conditional": ExactConditional(prior, 0.5, has_mask)}
    return method.begin_round(number, EM, session).images


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


class Reads(nn.Module):
    """Returns the measurement that it is told, and keeps everything that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma_data, self.seen = 0.5, []

    def forward(self, x, sigma, told):
        self.seen.append((x, sigma, told))
        return 0.5 * told[:, : x.shape[1]]


def spied(operator, x, *keys, seeds=(0, 1), n=40):
    """Ask the loss of some images; return it and what the network was told of them."""
    method = make(*keys)
    method.problem = Problem(operator, operator.name, {}, 0.5, operator.sigma)
    method.channel = Channel(operator, 0.5, method.condition, method.noise_shape)
    method.device, method.conditional = CPU, Reads()
    data = Measurements.draw(
        torch.rand(n, *x.shape[1:]) if n != len(x) else x, operator, 0, "train"
    )
    method._session = session_of(data)
    batch = Batch(data.y, data.params, data.sigma_y, torch.arange(n), x)
    losses = [
        method.loss(batch, generator_for(s, "loss"), "conditional").total.item() for s in seeds
    ]
    return losses, method.conditional.seen, data, method


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


# -- starts ----------------------------------------------------------------------------------------


class Rounded(Operator):
    """An instrument that rounds, without a derivative: no Gaussian noise, no linear A."""

    def A(self, x, params):
        return torch.from_numpy((x.detach().numpy() * 2).round() / 2)


def rounded():
    operator = Rounded(Denoising((1, 8, 8), 0.0).physics, (1, 8, 8), 0.0)
    operator.capabilities = frozenset({"fixed", "same_shape"})
    return operator


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
