"""Ambient-Tweedie's options: augmentation, and Ambient-o, which drowns any corruption in noise."""

import pytest
import torch
from cleanprior.methods.ambient_tweedie.augmentation import augment, warp_matrices
from torch import nn

from cleanprior.config import build, compose
from cleanprior.data import Batch, Measurements
from cleanprior.diffusion.denoiser import Denoiser
from cleanprior.seeding import generator_for
from cleanprior.training.warning import codes


class Recorded(Denoiser):
    """Returns its input and remembers what it was asked."""

    def __init__(self):
        super().__init__(nn.Identity(), 0.5)
        self.anchor = nn.Parameter(torch.ones(1))
        self.asked = []

    def forward(self, x, sigma, condition=None):
        self.asked.append((x, sigma))
        return self.anchor * x


# -- augmentation ----------------------------------------------------------------------------------


def white(n=400):
    return torch.randn((n, 1, 8, 8), generator=generator_for(0, "w"))


def test_a_flip_keeps_every_value_and_takes_half_of_the_images():
    y = white()
    flipped = augment(y, "flip", 0.1, generator_for(0, "a"))
    mirrored = (flipped == y.flip(-1)).flatten(1).all(1)
    kept = (flipped == y).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 150 < mirrored.sum() < 250


def test_a_warp_weakens_and_correlates_the_noise():
    y = white()
    assert augment(y, "none", 1.0, generator_for(0, "a")) is y
    torch.testing.assert_close(augment(y, "after_noise", 0.0, generator_for(0, "a")), y)
    warped = augment(y, "after_noise", 1.0, generator_for(0, "a"))
    assert warped.var() < 0.8 * y.var()
    neighbours = (warped[..., 1:] * warped[..., :-1]).mean()
    assert neighbours > 0.05
    some = augment(y, "after_noise", 0.12, generator_for(0, "a"))
    untouched = ((some - y).abs() < 1e-4).flatten(1).all(1).float().mean()
    assert untouched.item() == pytest.approx(0.88**3, abs=0.06)


def test_warps_are_rotations_and_scales_of_edms_spread():
    linear = warp_matrices(20_000, 1.0, generator_for(0, "w"))
    # The anisotropic part has determinant 1: log2 of the root is the scale.
    scale = linear.det().log2() / 2
    assert abs(scale.mean()) < 0.01
    assert scale.std().item() == pytest.approx(0.2, rel=0.05)
    ratio = torch.linalg.svdvals(linear).log2().diff(dim=1)[:, 0].abs() / 2
    assert ratio.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("kind", ["none", "flip", "after_noise"])
def test_the_denoiser_sees_the_augmented_image_at_an_unchanged_level(
    make_denoising, monkeypatch, kind
):
    import cleanprior.methods.ambient_tweedie.method as module

    model = Recorded()
    keys = [f"augment={kind}", "augment_probability=1"]
    method = make_denoising("ambient_tweedie", model, *keys)
    method._is_consistent = False
    monkeypatch.setattr(module, "draw_sigma_above", lambda low, g: low * 1.0001)
    y = white(32)
    batch = Batch(y, {}, torch.full((32,), 0.5), torch.arange(32))
    method.loss(batch, generator_for(0, "l"), "denoiser")
    ((x, sigma),) = model.asked
    expected = augment(y, kind, 1.0, generator_for(0, "l"))
    assert (x - expected).abs().max() < 0.05
    torch.testing.assert_close(sigma, torch.full((32,), 0.50005))


def test_the_weight_of_ambient_o_is_divided_by_the_squared_coefficient(make_denoising, monkeypatch):
    import cleanprior.methods.ambient_tweedie.method as module

    monkeypatch.setattr(module, "draw_sigma_above", lambda low, g: low * 2)
    y = white(8)
    batch = Batch(y, {}, torch.full((8,), 0.5), torch.arange(8))
    totals = []
    for weight in ("edm", "ambient_o"):
        method = make_denoising("ambient_tweedie", Recorded(), f"weight={weight}")
        method._is_consistent = False
        totals.append(method.loss(batch, generator_for(0, "l"), "denoiser").total)
    # alpha = 1 - 1 / 2^2
    torch.testing.assert_close(totals[1], totals[0] / 0.75**2)


# -- Ambient-o -------------------------------------------------------------------------------------


@pytest.fixture
def omni(make_operator, make_problem, digits_data):
    def make(name="blur", sigma=0.1, mode="ambient_o"):
        keys = [f"method.operator_mode={mode}", "method.sigma_min=0.4"]
        method = build(compose(["method=ambient_tweedie", *keys])["method"])
        operator = make_operator(name, (1, 8, 8), f"sigma={sigma}")
        method.setup(make_problem(operator), torch.device("cpu"))
        method.denoiser, method._is_consistent = Recorded(), False
        x = digits_data.train[:400]
        return method, operator, Measurements.draw(x, operator, 0, "train")

    return make


def test_ambient_o_takes_any_operator_and_says_so(omni):
    method, _, _ = omni()
    assert method.supports(method.problem) is None
    assert "ambient-o" in codes(method.warnings(method.problem)).split("+")
    method, _, _ = omni(mode="refuse")
    assert "is not the identity" in method.supports(method.problem)
    assert "ambient-o" not in codes(method.warnings(method.problem))


@pytest.mark.parametrize(("name", "sigma", "level"), [("blur", 0.1, 0.4), ("blur", 0.6, 0.6)])
def test_noise_up_to_its_level_is_added_once(omni, name, sigma, level):
    method, operator, data = omni(name, sigma)
    batch = data.batch(torch.arange(400))
    noisy = method.noisy_images(batch)
    torch.testing.assert_close(noisy.sigma_y, torch.full((400,), level))
    added = noisy.y - operator.lift(batch.y, batch.params)
    expected = (level**2 - sigma**2) ** 0.5
    assert added.std().item() == pytest.approx(expected, rel=0.02, abs=1e-6)
    order = torch.randperm(400, generator=generator_for(0, "o"))
    assert torch.equal(method.noisy_images(data.batch(order)).y, noisy.y[order])


def test_ambient_o_trains_and_samples_above_its_level_only(omni):
    method, _, data = omni()
    batch = data.batch(torch.arange(400))
    method.loss(batch, generator_for(0, "l"), "denoiser")
    ((_, sigma),) = method.denoiser.asked
    assert (sigma > 0.4).all()
    (route,) = method.routes({"denoiser": method.denoiser})
    method.denoiser.asked.clear()
    route.sample(2, generator_for(0, "s"))
    assert min(float(s.min()) for _, s in method.denoiser.asked) == pytest.approx(0.4)
    method.denoiser.asked.clear()
    restored = route.restore(batch, []).x
    ((asked, level),) = method.denoiser.asked
    assert torch.equal(asked, method.noisy_images(batch).y)
    torch.testing.assert_close(level, torch.full((400,), 0.4))
    assert torch.equal(restored, asked)
