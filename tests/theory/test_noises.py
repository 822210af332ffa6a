"""Noise of instruments: means and variances in closed form, the map's calibration, Anscombe."""

import math

import pytest
import torch

from cleanprior.data.instrument_noise import InstrumentNoise
from cleanprior.data.noises import Gamma, Poisson, Quantisation, Rician
from cleanprior.seeding import generator_for

N = 200_000
SIGNALS = (0.05, 0.3, 1.0)


def drawn(noise, signal, n=N):
    """Return what is recorded of n equal signals."""
    return noise.draw(
        torch.full((n,), signal), generator_for(0, "noise", signal=str(signal))
    ).double()


def within(values, expected, errors=4.0):
    """Whether a mean is within four standard errors of what is expected."""
    return abs(values.mean().item() - expected) < errors * values.std().item() / len(values) ** 0.5


MODELS = {
    "poisson": (Poisson(0.1), lambda s: s, lambda s: 0.1 * s),
    "background": (Poisson(0.05, 0.2), lambda s: s, lambda s: 0.05 * (s + 0.2)),
    "read": (Poisson(0.02, 0.1, 0.03), lambda s: s, lambda s: 0.02 * (s + 0.1) + 0.03**2),
    "gamma": (Gamma(5.0), lambda s: s, lambda s: s**2 / 5),
}


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("name", MODELS)
def test_mean_and_variance_are_those_of_the_law(name, signal):
    noise, mean, variance = MODELS[name]
    recorded = drawn(noise, signal)
    assert within(recorded, mean(signal))
    assert within((recorded - signal) ** 2, variance(signal))
    told = noise.variance(torch.tensor([signal])).item()
    assert told == pytest.approx(variance(signal), rel=1e-5)


@pytest.mark.parametrize("signal", (0.0, 0.1, 0.5))
def test_the_magnitude_has_the_moments_of_rice(signal):
    """E r by numerical integration of Rice's density, E r^2 = s^2 + 2 sigma^2."""
    noise = Rician(0.2)
    r = torch.linspace(1e-6, 3, 200_001, dtype=torch.float64)
    scaled = r * signal / 0.04
    density = r / 0.04 * torch.exp(-((r - signal) ** 2) / 0.08) * torch.special.i0e(scaled)
    mean = torch.trapezoid(r * density, r).item()
    assert noise.mean(torch.tensor([signal])).item() == pytest.approx(mean, rel=1e-5)
    recorded = drawn(noise, signal)
    assert within(recorded, mean)
    assert within(recorded**2, signal**2 + 2 * 0.04)
    square = signal**2 + 2 * 0.04 + signal**2 - 2 * signal * mean
    assert noise.variance(torch.tensor([signal])).item() == pytest.approx(square, rel=1e-4)
    assert within((recorded - signal) ** 2, square)


def test_rounding_errs_as_a_uniform_law_on_many_steps():
    noise = Quantisation(1 / 16)
    signal = torch.rand(N, generator=generator_for(0, "signal"))
    error = (noise.draw(signal, generator_for(0, "noise")) - signal).double()
    assert error.abs().max() <= 1 / 32 + 1e-6
    assert within(error, 0.0)
    assert within(error**2, 1 / 16**2 / 12)
    assert torch.equal(
        noise.draw(signal, generator_for(1, "n")), noise.draw(signal, torch.Generator())
    )


def calibration(noise, signal):
    """Mean square of (recorded - signal) / sigma with sigma from what was recorded."""
    recorded = drawn(noise, signal)
    return (recorded - signal) ** 2 / noise.estimated(recorded.float()).double()


@pytest.mark.parametrize("photons", [3, 10, 100])
def test_the_map_of_photons_is_calibrated_to_one_photon(photons):
    """E (k - l)^2 / (k + 1) = (1 + l)^2 (1 - e^-l) / l - (1 + l), near 1 + 1 / l."""
    exact = (1 + photons) ** 2 * (1 - math.exp(-photons)) / photons - (1 + photons)
    assert within(calibration(Poisson(1 / photons), 1.0), exact)
    assert exact < 1 + 1.4 / photons


@pytest.mark.parametrize("photons", [3, 10, 100])
def test_weights_of_a_map_lose_one_photon(photons):
    recorded = drawn(Poisson(1.0), float(photons))
    weights = 1 / Poisson(1.0).estimated(recorded.float()).double()
    exact = photons / (1 - math.exp(-photons)) - 1
    mean = (weights * recorded).sum() / weights.sum()
    spread = (weights * (recorded - mean)).std() / weights.mean() / N**0.5
    assert abs(mean - exact) < 4 * spread


@pytest.mark.parametrize(
    ("noise", "signal", "tolerance"),
    [
        (Gamma(8.0), 0.5, None),
        (Quantisation(1 / 16), 0.53, 3.0),
        (Rician(0.05), 0.5, 0.02),
        (Poisson(0.01, 0.0, 0.1), 0.3, 0.03),
    ],
)
def test_the_map_of_other_noise_is_calibrated(noise, signal, tolerance):
    found = calibration(noise, signal)
    if tolerance is None:
        assert within(found, 1.0)
    else:
        assert found.mean().item() == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("noise", [Poisson(0.1), Poisson(0.02, 0.1, 0.03), Gamma(5.0)])
def test_one_level_is_the_root_mean_variance(noise):
    signal = torch.rand(N, generator=generator_for(0, "signal"))
    recorded = noise.draw(signal, generator_for(0, "noise"))
    found, true = noise.unbiased(recorded).double(), noise.variance(signal).double()
    assert within(found - true, 0.0)


@pytest.mark.parametrize("gain", [0.1, 0.01])
def test_the_root_of_photons_has_one_level_and_its_inverse_no_bias(gain, make_operator):
    """On what the prior sees: unit noise in the root's scale, and a mean that comes back."""
    operator = make_operator("denoising", (1, 1, 3))
    instrument = InstrumentNoise(Poisson(gain), "anscombe")
    x = torch.tensor([0.2, 0.6, 1.0]).reshape(1, 1, 1, 3)
    many = x.expand(40_000, -1, -1, -1)
    y = instrument.measure(operator, many, {}, generator_for(0, "noise"))
    (level,) = set(instrument.levels(operator, y, {}).tolist())
    spread = y.flatten(1).std(0) / level
    assert (spread - 1).abs().max() < 0.06
    back = instrument.images(y.mean(0, keepdim=True))
    assert (back - x).abs().max() < 0.02
    assert (instrument.images(instrument.learned(x)) - x).abs().max() < 1e-4
    black = torch.full((1, 1, 1, 3), -1.0)
    assert torch.equal(instrument.images(instrument.learned(black)), black)
    dark = instrument.measure(operator, black, {}, generator_for(0, "noise"))
    torch.testing.assert_close(instrument.learned(black), dark, atol=1e-3, rtol=0)


def test_a_blur_has_the_noise_of_what_it_shows(make_operator):
    """Poisson noise comes after A: the mean of y is A x, the variance that of its signal."""
    operator = make_operator("blur", (1, 4, 4), "kernel_size=3")
    instrument = InstrumentNoise(Poisson(0.05), "map")
    x = torch.rand(1, 1, 4, 4, generator=generator_for(0, "x")) * 2 - 1
    y = instrument.measure(operator, x.expand(20_000, -1, -1, -1), {}, generator_for(0, "noise"))
    shown = operator.A(x, {})
    signal = (shown + operator.A(torch.ones_like(x), {})) / 2
    error = (y - shown).flatten(1).double()
    z = error.mean(0) / (error.std(0) / 20_000**0.5)
    assert z.abs().max() < 4
    torch.testing.assert_close(
        error.square().mean(0), (4 * 0.05 * signal).flatten().double(), rtol=0.06, atol=0
    )
