"""Samplers of p(x): closed-form moments, levels and numbers of evaluations."""

import math

import pytest
import torch

from cleanprior.diffusion.denoiser import Denoiser, denoising_loss, draw_sigma, edm_weight
from cleanprior.diffusion.samplers import Heun, ancestral_step, noise_levels
from cleanprior.seeding import generator_for, randn_like, scoped_rng, seed_for


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoise):
        self.denoise, self.calls = denoise, 0

    def __call__(self, x, sigma):
        self.calls += 1
        return self.denoise(x, sigma)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_heun_draws_from_a_gaussian(gaussian):
    n = 100_000
    noise = torch.randn((n, 1, 2, 3), generator=generator_for(0, "noise"))
    x = Heun(64, 0.002, 80.0, 7.0)(gaussian, noise, generator_for(0, "s")).flatten(1).double()
    # 1e5 draws of 6 numbers: 0.8 % from sampling; the start at sigma 80 and 64 steps add less.
    assert (x.mean(0) - gaussian.mean).abs().max() < 0.01
    assert relative(torch.cov(x.T), gaussian.covariance) < 0.02


def test_heun_has_second_order(gaussian):
    """Error against the exact solution of the ODE falls about four-fold as steps double."""
    noise = torch.randn((64, 1, 2, 3), generator=generator_for(0, "noise"))
    values, vectors = torch.linalg.eigh(gaussian.covariance)
    top, low = 80.0, 0.002
    start = (top * noise.flatten(1).double() - gaussian.mean) @ vectors
    # dx/dsigma = sigma (x - mu) / (sigma^2 + lambda), then D at the lowest level.
    end = start * ((values + low**2) / (values + top**2)).sqrt() * values / (values + low**2)
    exact = gaussian.mean + end @ vectors.T
    errors = []
    for steps in (20, 40, 80):
        x = Heun(steps, low, top, 7.0)(gaussian, noise, generator_for(0, "s")).flatten(1).double()
        errors.append((x - exact).abs().max().item())
    assert 1.7 < math.log2(errors[0] / errors[1]) < 2.6
    assert 1.7 < math.log2(errors[1] / errors[2]) < 2.6


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_heun_evaluates_the_denoiser_twice_a_step_less_one(gaussian, steps):
    counted = Counted(gaussian)
    Heun(steps, 0.01, 10.0, 7.0)(counted, torch.zeros(1, 1, 2, 3), generator_for(0, "s"))
    assert counted.calls == 2 * steps - 1


def test_heun_ends_with_the_denoised_image(gaussian):
    calls = []

    def denoise(x, sigma):
        calls.append((sigma[0].item(), gaussian(x, sigma)))
        return calls[-1][1]

    x = Heun(4, 0.01, 10.0, 7.0)(denoise, torch.ones(2, 1, 2, 3), generator_for(0, "s"))
    assert calls[-1][0] == pytest.approx(0.01)
    assert torch.equal(x, calls[-1][1])


@pytest.mark.parametrize(("low", "high", "rho", "steps"), [(0.002, 80, 7, 18), (0.02, 20, 3, 5)])
def test_noise_levels_are_those_of_the_formula(low, high, rho, steps):
    levels = noise_levels(steps, low, high, rho)
    assert levels.dtype == torch.float64
    assert len(levels) == steps + 1
    for i in range(steps):
        root = high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))
        assert levels[i].item() == pytest.approx(root**rho, rel=1e-12)
    assert levels[0].item() == pytest.approx(high)
    assert levels[-2].item() == pytest.approx(low)
    assert levels[-1] == 0


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (2, 1), (1, 1)])
def test_levels_out_of_order_are_refused(low, high):
    with pytest.raises(ValueError, match="needed: 0 < min < max"):
        noise_levels(4, low, high, 7.0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_an_ancestral_step_has_the_moments_of_its_level(eta):
    """From x + sigma n with the true x as denoised image, the result is x + sigma' n'."""
    n, sigma, lower = 200_000, 2.0, 0.7
    x = torch.full((n, 1, 1, 1), 0.3, dtype=torch.float64)
    noisy = x + sigma * randn_like(x, generator_for(0, "noise"))
    step = ancestral_step(noisy, x, sigma, lower, eta, generator_for(0, "step")) - x
    assert abs(step.mean()) < 4 * lower / n**0.5
    assert abs(step.var() / lower**2 - 1) < 4 * (2 / n) ** 0.5
    kept = torch.corrcoef(torch.stack([step.flatten(), (noisy - x).flatten()]))[0, 1]
    expected = (1 - eta**2 * (1 - (lower / sigma) ** 2)) ** 0.5
    assert abs(kept - expected) < 0.01
    assert torch.equal(ancestral_step(noisy, x, sigma, 0.0, eta, generator_for(0, "step")), x)


def test_a_deterministic_step_draws_nothing():
    generator = generator_for(0, "step")
    before = generator.get_state()
    ancestral_step(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 2.0, 1.0, 0.0, generator)
    assert torch.equal(generator.get_state(), before)


# -- the denoiser and its loss ---------------------------------------------------------------------


class Zero(torch.nn.Module):
    def forward(self, x, c_noise, condition):
        self.seen = x, c_noise, condition
        return torch.zeros_like(x)


class One(Zero):
    def forward(self, x, c_noise, condition):
        super().forward(x, c_noise, condition)
        return torch.ones_like(x)


@pytest.mark.parametrize("sigma", [0.02, 0.5, 30.0])
def test_preconditioning_is_that_of_edm(sigma):
    x = torch.randn((4, 1, 2, 2), generator=generator_for(0, "x"))
    level, sd = torch.full((4,), sigma), 0.5
    skip = Denoiser(Zero(), sd)(x, level)
    backbone = One()
    out = Denoiser(backbone, sd)(x, level) - skip
    total = sigma**2 + sd**2
    torch.testing.assert_close(skip, sd**2 / total * x)
    expected = torch.full_like(x, sigma * sd / total**0.5)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    seen, c_noise, condition = backbone.seen
    torch.testing.assert_close(seen, x / total**0.5)
    torch.testing.assert_close(c_noise, torch.full((4,), math.log(sigma) / 4))
    assert condition is None
    torch.testing.assert_close(edm_weight(level, sd)[0, 0, 0, 0].item(), total / (sigma * sd) ** 2)


def test_split_preconditioning_lets_hidden_pixels_move_and_keeps_the_mask_at_unit_scale():
    x, level = torch.full((1, 1, 1, 2), 0.4), torch.full((1,), 0.01)
    mask = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    backbone = One()
    out = Denoiser(backbone, 0.5, 1, "split")(x * mask, level, mask)
    edm = Denoiser(One(), 0.5, 1, "edm")(x * mask, level, mask)
    assert out[..., 0] == edm[..., 0]
    assert out[..., 1] == 0.5
    assert torch.equal(backbone.seen[2], mask)
    official = One()
    Denoiser(official, 0.5, 1, "scaled_condition")(x * mask, torch.full((1,), 80.0), mask)
    torch.testing.assert_close(official.seen[2], mask / (80**2 + 0.25) ** 0.5)


def test_a_conditional_denoiser_without_condition_takes_every_pixel_as_seen():
    x, level = torch.ones(2, 1, 2, 2), torch.full((2,), 0.3)
    denoiser = Denoiser(One(), 0.5, 1, "split")
    assert torch.equal(denoiser(x, level), denoiser(x, level, torch.ones(2, 1, 2, 2)))


def test_an_unknown_preconditioning_is_refused():
    with pytest.raises(ValueError, match="allowed: edm, split, scaled_condition"):
        Denoiser(Zero(), 0.5, 0, "vp")


def test_training_noise_levels_are_log_normal():
    n = 100_000
    logs = draw_sigma(n, generator_for(0, "s"), torch.device("cpu")).log().double()
    assert abs(logs.mean() + 1.2) < 4 * 1.2 / n**0.5
    assert abs(logs.std() - 1.2) < 4 * 1.2 / (2 * n) ** 0.5


def test_the_zero_network_has_the_loss_of_the_closed_form():
    """With F = 0 on N(0, sd^2) data, EDM's weighted loss is 1 at every noise level."""
    x = 0.5 * torch.randn((40_000, 1, 1, 4), generator=generator_for(0, "x"))
    loss = denoising_loss(Denoiser(Zero(), 0.5), x, generator_for(0, "l"))
    assert abs(loss.item() - 1) < 4 * (2 / x.numel()) ** 0.5 + 1e-3


# -- seeds -----------------------------------------------------------------------------------------


def test_seeds_do_not_depend_on_the_process_and_zero_is_one():
    # From sha256 of '[0, "noise", [["step", 3]]]': a change would change every result.
    import hashlib

    digest = hashlib.sha256(b'[0, "noise", [["step", 3]]]').digest()
    assert seed_for(0, "noise", step=3) == int.from_bytes(digest[:8], "big") >> 1
    seeds = {seed_for(s, r, step=k) for s in (0, 1) for r in ("a", "b") for k in (0, 1)}
    assert len(seeds) == 8


def test_a_scoped_generator_is_put_back():
    before = torch.get_rng_state()
    with scoped_rng(3):
        first = torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
    with scoped_rng(3):
        assert torch.equal(torch.rand(2), first)


def test_generators_of_another_number_than_images_are_refused():
    with pytest.raises(ValueError, match="2 generators for a batch of 3 images"):
        randn_like(torch.zeros(3, 1), [generator_for(0, "a"), generator_for(0, "b")])
